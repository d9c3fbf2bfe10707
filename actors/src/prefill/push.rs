//! Where the layers of a sequence go: from the engine's events straight to the task that pushes to its decode device, past every mailbox.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use relevo_transport::{Frame, FrameSender, PushError};
use relevo_wire::{DeviceId, KvBlocksHeader, KvLayout, LayerIndex, LeaseId, PROTOCOL_VERSION, SequenceId, checksum};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::cluster::{Directory, Fill, fill_of_weak};
use crate::device::GrantedLease;
use crate::faults::FrameFault;
use crate::traces::Hop;

/// Jobs that a pusher holds: two chunks' worth of layers of a small model. More makes the engine wait, not the memory grow.
pub(crate) const PUSH_CAPACITY: usize = 64;

/// Blocks of a frame at most: what announces them stays well below the longest header.
const FRAME_BLOCKS: usize = 1024;

/// Bytes of a frame at most, but for a block that has more: a slow network carries them well within the deadline.
pub(crate) const FRAME_BYTES: usize = 8 << 20;

/// How long a frame may take to be answered.
const PUSH_DEADLINE: Duration = Duration::from_secs(2);

/// How often a frame that was damaged on its way is sent again.
const MAX_RESENDS: usize = 3;

/// Who decodes what is prefilled here.
#[derive(Default)]
pub(crate) struct PushRoutes {
    routes: DashMap<SequenceId, Route>,
    /// The pusher of each destination, to see how full its queue is.
    pushers: DashMap<DeviceId, mpsc::WeakSender<PushJob>>,
}

#[derive(Clone)]
struct Route {
    lease: Arc<GrantedLease>,
    jobs: mpsc::Sender<PushJob>,
    hop: Hop,
}

/// One layer's blocks, to be pushed.
pub(crate) struct PushJob {
    sequence: SequenceId,
    lease: Arc<GrantedLease>,
    layer: LayerIndex,
    first_block: u32,
    blocks: Vec<Bytes>,
    /// Closes when the route does and the last job is done.
    hop: Hop,
}

impl PushRoutes {
    /// Layers of `sequence` go to `jobs` from here on; `hop` is open until the last is delivered.
    pub(crate) fn open(&self, sequence: SequenceId, lease: GrantedLease, jobs: mpsc::Sender<PushJob>, hop: Hop) {
        self.routes.insert(sequence, Route { lease: Arc::new(lease), jobs, hop });
    }

    /// Layers of `sequence` go nowhere from here on.
    pub(crate) fn close(&self, sequence: SequenceId) {
        self.routes.remove(&sequence);
    }

    /// All of them.
    pub(crate) fn close_all(&self) {
        self.routes.clear();
    }

    /// `jobs` lead to the pusher of a destination from here on.
    pub(crate) fn set_pusher(&self, to: DeviceId, jobs: &mpsc::Sender<PushJob>) {
        self.pushers.insert(to, jobs.downgrade());
    }

    /// How full the queues of the pushers are, by destination.
    pub(crate) fn queues(&self) -> BTreeMap<DeviceId, Fill> {
        self.pushers.iter().map(|entry| (*entry.key(), fill_of_weak(entry.value()))).collect()
    }

    /// A layer is done. Waits for room with the pusher; a layer whose sequence is gone, or whose lease is another, is dropped.
    pub(crate) async fn push(
        &self,
        sequence: SequenceId,
        lease: LeaseId,
        layer: LayerIndex,
        first_block: u32,
        blocks: Vec<Bytes>,
    ) {
        let Some(route) = self.routes.get(&sequence).map(|route| route.clone()) else { return };
        let Route { lease: granted, jobs, hop } = route;
        if granted.lease == lease {
            // Fails if the pusher is gone: then its actor is, and the sequence is replayed.
            let _ = jobs.send(PushJob { sequence, lease: granted, layer, first_block, blocks, hop }).await;
        }
    }
}

/// What a pusher needs.
pub(crate) struct Pusher {
    pub(crate) directory: Arc<Directory>,
    pub(crate) from: DeviceId,
    pub(crate) to: DeviceId,
    pub(crate) layout: KvLayout,
}

impl Pusher {
    /// Pushes until no route leads here any more.
    pub(crate) async fn run(self, mut jobs: mpsc::Receiver<PushJob>) {
        while let Some(job) = jobs.recv().await {
            let hop = job.hop.clone();
            self.push_or_tell(job).instrument(hop.span().clone()).await;
        }
    }

    async fn push_or_tell(&self, job: PushJob) {
        let (sequence, lease) = (job.sequence, job.lease.lease);
        if let Err(error) = self.push(job).await {
            match error {
                PushError::LeaseGone => metrics::counter!("relevo_pushes_too_late_total").increment(1),
                error => tracing::warn!(%sequence, %lease, %error, "blocks could not be pushed"),
            }
            // It may have left its actor's hands by now: only the gateway knows whether it is still wanted.
            self.directory.lost(sequence);
        }
    }

    /// Blocks that were in the prefix cache leave all at once, and may be more than a frame can announce.
    async fn push(&self, job: PushJob) -> Result<(), PushError> {
        let block_bytes = self.layout.layer_block_bytes().max(1);
        let most = (FRAME_BYTES / block_bytes).clamp(1, FRAME_BLOCKS);
        for (index, blocks) in job.blocks.chunks(most).enumerate() {
            self.push_frame(&job, index * most, blocks).await?;
        }
        Ok(())
    }

    /// The job's blocks from `skipped` on.
    async fn push_frame(&self, job: &PushJob, skipped: usize, blocks: &[Bytes]) -> Result<(), PushError> {
        let header = self.header(job, skipped, blocks).ok_or(PushError::Mismatch)?;
        let mut resends = 0;
        loop {
            // Asked for each frame, since one that was closed is replaced.
            let link = self.directory.frame_link(self.from, self.to).await.ok_or(PushError::Closed)?;
            let frame = Frame::new(&header, blocks.to_vec()).map_err(PushError::Malformed)?;
            let num_bytes = frame.payload_bytes();
            match self.send(&link, frame).await {
                Ok(()) => {
                    metrics::counter!("relevo_kv_bytes_handed_over_total", "carrier" => link.carrier())
                        .increment(num_bytes as u64);
                    return Ok(());
                }
                Err(PushError::Corrupt { index }) if resends < MAX_RESENDS => {
                    metrics::counter!("relevo_kv_blocks_corrupt_total", "carrier" => link.carrier()).increment(1);
                    tracing::warn!(sequence = %job.sequence, index, "a block was damaged on its way, and is sent again");
                    resends += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn send(&self, link: &FrameSender, frame: Frame) -> Result<(), PushError> {
        let frame = match self.directory.faults.on_frame() {
            None => frame,
            Some(FrameFault::Drop) => return Ok(()),
            Some(FrameFault::Corrupt) => damaged(frame),
            Some(FrameFault::Break) => {
                let breaks = async { self.directory.links.break_link(self.from, self.to) };
                // In this order: the link breaks when it has the frame.
                return tokio::join!(link.push(frame, PUSH_DEADLINE), breaks).0;
            }
        };
        link.push(frame, PUSH_DEADLINE).await
    }

    fn header(&self, job: &PushJob, skipped: usize, blocks: &[Bytes]) -> Option<KvBlocksHeader> {
        let first = (job.first_block as usize).checked_add(skipped)?;
        let targets = job.lease.blocks.get(first..first.checked_add(blocks.len())?)?;
        Some(KvBlocksHeader {
            protocol: PROTOCOL_VERSION,
            sequence: job.sequence,
            device: self.to,
            lease: job.lease.lease,
            epoch: job.lease.epoch,
            layer: job.layer,
            first_block: u32::try_from(first).ok()?,
            blocks: targets.to_vec(),
            layout: self.layout,
            checksums: blocks.iter().map(|block| checksum(block)).collect(),
        })
    }
}

/// The frame with one bit of its first block flipped, as a bad cable would do.
fn damaged(frame: Frame) -> Frame {
    let (header, mut blocks) = frame.into_parts();
    if let Some(first) = blocks.first_mut() {
        let mut bytes = first.to_vec();
        if let Some(byte) = bytes.first_mut() {
            *byte ^= 1;
        }
        *first = Bytes::from(bytes);
    }
    Frame::from_parts(header, blocks)
}
