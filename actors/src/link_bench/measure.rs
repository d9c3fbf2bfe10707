//! The near end of a measurement.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relevo_gpu::cpu::KvPool;
use relevo_gpu::model::KvMemory;
use relevo_transport::{BareLink, Frame, FrameSender};
use relevo_wire::{
    BlockIndex, ControlMessage, ControlReply, ElementType, Epoch, KvBlocksHeader, KvLayout, LayerIndex, LeaseId,
    LinkBench, NodeId, PROTOCOL_VERSION, ToProbe, checksum,
};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::figures::{LinkMeasurement, Ratio, Round, Transfer};
use super::{probe_device, probe_sequence, processor_ns};
use crate::clock;
use crate::cluster::Directory;
use crate::peers::Peer;
use crate::prefill::FRAME_BYTES;

/// About what is pushed under one lease: beyond the caches.
const POOL_BYTES: usize = 128 << 20;

/// Blocks of a frame, but for large ones: a layer of a chunk of 512 tokens.
const FRAME_BLOCKS: usize = 32;

/// Longest that a round is to take, on a link that is slow.
const ROUND_TIME: Duration = Duration::from_millis(400);

/// Frames of one block there and back, at most, and for how long.
const ROUND_TRIPS: usize = 4000;
const ROUND_TRIPS_TIME: Duration = Duration::from_secs(2);

/// The block whose way there and back is timed.
const SMALL_BLOCK_KIB: u32 = 4;

/// How long a frame, a copy or a step may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// No round begins after that, on a link that is slow.
const ROUNDS_TIME: Duration = Duration::from_secs(25);

/// How long all of it may take: less than who asks for it waits.
const MEASUREMENT_DEADLINE: Duration = Duration::from_secs(50);

/// Measures the way to a node.
///
/// # Errors
/// Why it cannot be measured, in words for the operator.
pub(crate) async fn measure(
    directory: &Arc<Directory>,
    to: NodeId,
    LinkBench { block_kib, rounds }: LinkBench,
) -> Result<LinkMeasurement, String> {
    let Ok(_alone) = directory.link_probe.measuring.try_lock() else {
        return Err("it measures a link already: try again when that is done".to_owned());
    };
    let peer = directory.peers.find(to).ok_or("there is no link to that node")?;
    let layout = match block_kib {
        Some(block_kib) => layout_of(block_kib),
        None => directory.links.layout().ok_or("this node has no peers")?,
    };
    // Only lengths count here, and a CPU's pool holds no bf16.
    let element = if layout.element == ElementType::Bf16 { ElementType::F16 } else { layout.element };
    let path = Path { directory: Arc::clone(directory), peer };
    let measuring = timeout(MEASUREMENT_DEADLINE, path.measure(KvLayout { element, ..layout }, rounds));
    let measured = measuring.await.unwrap_or_else(|_| Err(format!("not done within {MEASUREMENT_DEADLINE:?}")));
    // If it is not heard, the peer's memory comes free when nothing is heard of this node for a while.
    let _ = path.step(ToProbe::Close).await;
    measured
}

/// One KV head in a few layers, whose keys and values make a block of so many KiB.
fn layout_of(block_kib: u32) -> KvLayout {
    let dim = block_kib * 16;
    KvLayout { num_layers: 1, num_kv_heads: 1, key_dim: dim, value_dim: dim, element: ElementType::F16 }
}

struct Path {
    directory: Arc<Directory>,
    peer: Arc<Peer>,
}

/// Whoever gives up a measurement leaves no link of its behind.
impl Drop for Path {
    fn drop(&mut self) {
        self.directory.links.end_link(probe_device(self.directory.node), self.peer.node);
    }
}

impl Path {
    async fn measure(&self, layout: KvLayout, rounds: u32) -> Result<LinkMeasurement, String> {
        let num_blocks = (POOL_BYTES / layout.block_bytes().max(1)).clamp(1, 1 << 16);
        let frame_blocks = (FRAME_BYTES / layout.layer_block_bytes().max(1)).clamp(1, FRAME_BLOCKS);
        let mut kv = self.open(layout, num_blocks, frame_blocks).await?;
        let mut copies = self.bare_link().await?;
        let mut num_frames = kv.frames_in_time().await?;
        self.copy(&mut copies, kv.pieces(num_frames)).await?;
        let (mut pushed, mut copied) = (Vec::new(), Vec::new());
        let began = clock::now();
        while pushed.len() < rounds as usize && clock::now().since(began) < ROUNDS_TIME {
            let round = kv.push_round(num_frames).await?;
            // A link that has become slow.
            num_frames = if round.took > 2 * ROUND_TIME { num_frames.div_ceil(2) } else { num_frames };
            pushed.push(round);
            copied.push(kv.copy_round(&mut copies, num_frames).await?);
        }
        let (cpu_ratio, rate_ratio) = (Ratio::of_cpu(&pushed, &copied), Ratio::of_rates(&pushed, &copied));
        let carrier = kv.link.carrier().to_owned();
        let (path, bare_path) = (kv.link.path(), copies.path());
        drop(kv);
        let (mut frames, mut bare) = self.round_trips(&mut copies).await?;
        Ok(LinkMeasurement {
            from: self.directory.name.clone(),
            to: self.peer.name.to_string(),
            address: self.peer.listen.to_string(),
            carrier,
            block_bytes: layout.layer_block_bytes() as u64,
            frame_blocks: frame_blocks.min(num_blocks) as u64,
            rounds: pushed.len() as u64,
            mtu: u64::from(bare_path.mtu),
            kv: Transfer::of(&pushed, &mut frames, path),
            bare: Transfer::of(&copied, &mut bare, Some(bare_path)),
            cpu_ratio,
            rate_ratio,
        })
    }

    /// Has memory at both ends, and a link between them.
    async fn open(&self, layout: KvLayout, num_blocks: usize, frame_blocks: usize) -> Result<Pushes<'_>, String> {
        let made = spawn_blocking(move || noise(layout, num_blocks));
        let pool = made.await.map_err(|error| error.to_string())??;
        let num_blocks_there = u32::try_from(num_blocks).map_err(|error| error.to_string())?;
        let (lease, _) = self.step(ToProbe::Open(layout, num_blocks_there)).await?;
        let (from, to) = (probe_device(self.directory.node), probe_device(self.peer.node));
        // Each from memory of its own.
        self.directory.links.end_link(from, self.peer.node);
        let link = self.directory.links.sender(from, to, || pool.shared_region()).await;
        let link = link.ok_or("no way there for KV blocks: this node's log says why")?;
        Ok(Pushes { path: self, pool, layout, link, lease, frame_blocks })
    }

    async fn bare_link(&self) -> Result<BareLink, String> {
        let opened = self.directory.links.bare_link(&self.peer).await;
        opened.map_err(|error| format!("bare copies to {}: {error}", self.peer.name))
    }

    async fn copy(&self, copies: &mut BareLink, pieces: Vec<Bytes>) -> Result<(), String> {
        let copied = copies.copy(pieces, DEADLINE).await;
        copied.map_err(|error| format!("a bare copy to {}: {error}", self.peer.name))
    }

    /// The lease and the processor time at the far end.
    async fn step(&self, step: ToProbe) -> Result<(LeaseId, u64), String> {
        match self.peer.remote.ask(&ControlMessage::Probe(step), DEADLINE).await {
            Ok(ControlReply::Probed { lease, processor_ns }) => Ok((lease, processor_ns)),
            Ok(ControlReply::Refused(reason)) => Err(format!("{}: {reason}", self.peer.name)),
            Ok(_) => Err(format!("{} takes part in no measurements", self.peer.name)),
            Err(error) => Err(format!("{}: {error}", self.peer.name)),
        }
    }

    /// Of a block of 4 KiB, as a frame and as it is, in turns.
    async fn round_trips(&self, copies: &mut BareLink) -> Result<(Vec<Duration>, Vec<Duration>), String> {
        let small = self.open(layout_of(SMALL_BLOCK_KIB), ROUND_TRIPS, 1).await?;
        let (mut frames, mut bare) = (Vec::with_capacity(ROUND_TRIPS), Vec::with_capacity(ROUND_TRIPS));
        let began = clock::now();
        for index in 0..ROUND_TRIPS {
            let before = clock::now();
            small.push(index).await?;
            let between = clock::now();
            self.copy(copies, small.blocks(index)).await?;
            frames.push(between.since(before));
            bare.push(clock::now().since(between));
            if clock::now().since(began) >= ROUND_TRIPS_TIME {
                break;
            }
        }
        Ok((frames, bare))
    }
}

/// A pool of bytes that do not repeat.
fn noise(layout: KvLayout, num_blocks: usize) -> Result<Arc<KvPool>, String> {
    let pool = KvPool::shareable(layout, num_blocks).map_err(|error| error.to_string())?;
    let mut block = vec![0_u8; layout.layer_block_bytes()];
    let mut word = 1_u64;
    for (layer, index) in
        (0..layout.num_layers).flat_map(|layer| (0..num_blocks as u32).map(move |index| (layer, index)))
    {
        for place in block.chunks_exact_mut(8) {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            place.copy_from_slice(&word.to_le_bytes());
        }
        pool.write_at(LayerIndex(layer), BlockIndex(index), 0, &block).map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(pool))
}

/// Frames from one pool into another.
struct Pushes<'p> {
    path: &'p Path,
    pool: Arc<KvPool>,
    layout: KvLayout,
    link: FrameSender,
    lease: LeaseId,
    frame_blocks: usize,
}

impl Pushes<'_> {
    fn frames_of_layer(&self) -> usize {
        self.pool.num_blocks().div_ceil(self.frame_blocks)
    }

    fn num_frames(&self) -> usize {
        self.frames_of_layer() * self.layout.num_layers as usize
    }

    /// How many frames a round takes, and the first time through them, so that all pages are there, and the path is known.
    async fn frames_in_time(&self) -> Result<usize, String> {
        let (began, mut num_frames) = (clock::now(), 0);
        while num_frames < self.num_frames() && clock::now().since(began) < ROUND_TIME {
            self.push(num_frames).await?;
            num_frames += 1;
        }
        Ok(num_frames)
    }

    /// Where a frame's blocks lie.
    fn place(&self, frame: usize) -> (LayerIndex, Vec<BlockIndex>) {
        let first = frame % self.frames_of_layer() * self.frame_blocks;
        let end = (first + self.frame_blocks).min(self.pool.num_blocks());
        let layer = u32::try_from(frame / self.frames_of_layer()).unwrap_or(u32::MAX);
        (LayerIndex(layer), (first..end).map(|block| BlockIndex(u32::try_from(block).unwrap_or(u32::MAX))).collect())
    }

    fn blocks(&self, frame: usize) -> Vec<Bytes> {
        let (layer, blocks) = self.place(frame);
        blocks.into_iter().map(|block| self.pool.read(layer, block)).collect()
    }

    /// All the blocks of so many frames.
    fn pieces(&self, num_frames: usize) -> Vec<Bytes> {
        (0..num_frames).flat_map(|frame| self.blocks(frame)).collect()
    }

    /// As a pusher makes it, with the checksums that are part of what it costs.
    fn frame(&self, index: usize) -> Result<Frame, String> {
        let (layer, blocks) = self.place(index);
        let bytes = self.blocks(index);
        let header = KvBlocksHeader {
            protocol: PROTOCOL_VERSION,
            sequence: probe_sequence(self.path.directory.node),
            device: probe_device(self.path.peer.node),
            lease: self.lease,
            epoch: Epoch(1),
            layer,
            first_block: blocks.first().map_or(0, |block| block.0),
            blocks,
            layout: self.layout,
            checksums: bytes.iter().map(|block| checksum(block)).collect(),
        };
        Frame::new(&header, bytes).map_err(|error| error.to_string())
    }

    async fn push(&self, index: usize) -> Result<(), String> {
        let pushed = self.link.push(self.frame(index)?, DEADLINE).await;
        pushed.map_err(|error| format!("a frame to {}: {error}", self.path.peer.name))
    }

    async fn push_round(&mut self, num_frames: usize) -> Result<Round, String> {
        let (lease, receiver_before) = self.path.step(ToProbe::Again).await?;
        self.lease = lease;
        let (began, sender_before) = (clock::now(), processor_ns());
        let lane = |lane| self.push_every_fourth(lane, num_frames);
        tokio::try_join!(lane(0), lane(1), lane(2), lane(3))?;
        let (took, sender_ns) = (clock::now().since(began), processor_ns() - sender_before);
        self.round(num_frames, took, (sender_ns, receiver_before)).await
    }

    /// Four frames are under way at a time, as pushers of a few sequences have them.
    async fn push_every_fourth(&self, first: usize, num_frames: usize) -> Result<(), String> {
        for index in (first..num_frames).step_by(4) {
            self.push(index).await?;
        }
        Ok(())
    }

    async fn copy_round(&self, copies: &mut BareLink, num_frames: usize) -> Result<Round, String> {
        let (_, receiver_before) = self.path.step(ToProbe::Read).await?;
        let pieces = self.pieces(num_frames);
        let (began, sender_before) = (clock::now(), processor_ns());
        self.path.copy(copies, pieces).await?;
        let (took, sender_ns) = (clock::now().since(began), processor_ns() - sender_before);
        self.round(num_frames, took, (sender_ns, receiver_before)).await
    }

    async fn round(
        &self,
        num_frames: usize,
        took: Duration,
        (sender_ns, receiver_before): (u64, u64),
    ) -> Result<Round, String> {
        let (_, receiver_after) = self.path.step(ToProbe::Read).await?;
        let blocks: usize = (0..num_frames).map(|frame| self.place(frame).1.len()).sum();
        let bytes = (blocks * self.layout.layer_block_bytes()) as u64;
        Ok(Round { bytes, took, sender_ns, receiver_ns: receiver_after.saturating_sub(receiver_before) })
    }
}
