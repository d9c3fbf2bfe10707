//! Links over each carrier, frames to push, and a sink that keeps what it gets.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

pub mod arena;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use relevo_transport::{
    EphemeralAuthority, Frame, FrameReceiver, FrameSender, FrameSink, FrameWriter, Patience, QuicEndpoint, Refusal,
    ShmListener, Ticket, in_process, serve_frames, shm_link,
};
use relevo_wire::{
    ArchivedKvBlocksHeader, BlockIndex, DeviceId, ElementType, Epoch, KvBlocksHeader, KvLayout, LayerIndex, LeaseId,
    PROTOCOL_VERSION, RequestId, SequenceId, checksum,
};
use tokio::task::JoinSet;

use arena::Arena;

pub const DEADLINE: Duration = Duration::from_secs(20);
pub const CAPACITY: usize = 4;

pub const LAYOUT: KvLayout =
    KvLayout { num_layers: 2, num_kv_heads: 1, key_dim: 2, value_dim: 2, element: ElementType::F16 };

/// What carries the frames of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    InProcess,
    Quic,
    Shm,
}

/// A new carrier adds itself here.
pub const CARRIERS: [Carrier; 3] = [Carrier::InProcess, Carrier::Quic, Carrier::Shm];

/// Where the blocks of all frames lie.
pub static ARENA: LazyLock<Arena> = LazyLock::new(|| Arena::new(16 << 20));

/// A link that nobody serves yet.
pub struct Link {
    pub sender: FrameSender,
    way_in: WayIn,
    /// What carries its frames.
    pub tasks: JoinSet<()>,
}

enum WayIn {
    InProcess(FrameReceiver),
    Quic(Box<Quic>),
    Shm(ShmListener),
}

/// Two ends with a certificate each.
pub struct Quic {
    pub authority: EphemeralAuthority,
    pub server: QuicEndpoint,
    pub client: QuicEndpoint,
}

impl Link {
    pub fn new(carrier: Carrier) -> Self {
        let mut tasks = JoinSet::new();
        match carrier {
            Carrier::InProcess => {
                let (sender, receiver) = in_process(CAPACITY);
                Self { sender, way_in: WayIn::InProcess(receiver), tasks }
            }
            Carrier::Quic => {
                let ends = Quic::new(Patience::default());
                let sender = ends.link(&mut tasks);
                Self { sender, way_in: WayIn::Quic(Box::new(ends)), tasks }
            }
            Carrier::Shm => {
                let listener = ShmListener::open(Patience::default()).unwrap();
                let sender = dial_shm(&listener, &ARENA, &mut tasks);
                Self { sender, way_in: WayIn::Shm(listener), tasks }
            }
        }
    }

    /// Serves it from here on. Its first task to end is one that ends with its last sender.
    pub fn serve(self) -> (FrameSender, Arc<Notes>, JoinSet<()>) {
        let notes = Arc::new(Notes::default());
        let (sender, tasks) = self.serve_to(Arc::clone(&notes));
        (sender, notes, tasks)
    }

    /// As [`Link::serve`], to this sink.
    pub fn serve_to(self, sink: Arc<impl FrameSink>) -> (FrameSender, JoinSet<()>) {
        let Self { sender, way_in, mut tasks } = self;
        match way_in {
            WayIn::InProcess(receiver) => drop(tasks.spawn(serve_frames(receiver, sink))),
            WayIn::Quic(ends) => ends.serve(&mut tasks, sink),
            WayIn::Shm(listener) => {
                drop(tasks.spawn(async move { listener.serve(move |_| Some(Arc::clone(&sink))).await }))
            }
        }
        (sender, tasks)
    }

    /// Takes the receiving end away; what carries its frames stays.
    pub fn cut(self) -> (FrameSender, JoinSet<()>) {
        (self.sender, self.tasks)
    }
}

impl Quic {
    pub fn new(patience: Patience) -> Self {
        let authority = EphemeralAuthority::new().unwrap();
        let [server, client] = ["device-1", "device-0"].map(|name| endpoint(&authority, name, patience));
        Self { authority, server, client }
    }

    pub fn link(&self, tasks: &mut JoinSet<()>) -> FrameSender {
        let (sender, carried) = self.client.link(self.server.address(), "device-1", CAPACITY);
        tasks.spawn(carried);
        sender
    }

    pub fn serve(&self, tasks: &mut JoinSet<()>, sink: Arc<impl FrameSink>) {
        let server = self.server.clone();
        tasks.spawn(async move { server.serve(sink).await });
    }
}

/// A link to a listener that expects it, for blocks of `arena`.
pub fn dial_shm(listener: &ShmListener, arena: &Arena, tasks: &mut JoinSet<()>) -> FrameSender {
    let ticket = Ticket::random().unwrap();
    listener.expect(ticket.clone(), "device-0");
    let (sender, carried) =
        shm_link(listener.address(), ticket, arena.region(), CAPACITY, Patience::default()).unwrap();
    tasks.spawn(carried);
    sender
}

pub fn endpoint(authority: &EphemeralAuthority, name: &str, patience: Patience) -> QuicEndpoint {
    let (server, client) = authority.admit(name).unwrap();
    QuicEndpoint::open(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), server, client, patience).unwrap()
}

pub fn header(layer: u32, blocks: &[Bytes]) -> KvBlocksHeader {
    KvBlocksHeader {
        protocol: PROTOCOL_VERSION,
        device: DeviceId(0),
        sequence: SequenceId { request: RequestId(7), choice: 1, attempt: 2 },
        lease: LeaseId(3),
        epoch: Epoch(4),
        layer: LayerIndex(layer),
        first_block: 5,
        blocks: (0..).map(BlockIndex).take(blocks.len()).collect(),
        layout: LAYOUT,
        checksums: blocks.iter().map(|block| checksum(block)).collect(),
    }
}

pub fn blocks(seed: u8) -> Vec<Bytes> {
    (0..3).map(|index| ARENA.put(&vec![seed.wrapping_add(index); LAYOUT.layer_block_bytes()])).collect()
}

pub fn frame(layer: u32) -> Frame {
    let blocks = blocks(u8::try_from(layer % 251).unwrap());
    Frame::new(&header(layer, &blocks), blocks).unwrap()
}

/// A layer and its blocks.
pub type Arrived = (u32, Vec<Bytes>);

/// Notes what it receives; layers of 100 and more have lost their lease, those of 50 and more lose it while they are written.
#[derive(Default)]
pub struct Notes {
    finished: Arc<Mutex<Vec<Arrived>>>,
    num_admitted: AtomicUsize,
}

impl Notes {
    /// The frames that have arrived, in order.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.finished.lock().unwrap().clone()
    }

    /// Frames that were let in.
    pub fn num_admitted(&self) -> usize {
        self.num_admitted.load(Ordering::Relaxed)
    }
}

pub struct Notebook {
    layer: u32,
    blocks: Vec<Vec<u8>>,
    finished: Arc<Mutex<Vec<Arrived>>>,
}

impl FrameSink for Notes {
    type Writer = Notebook;

    fn admit(&self, header: &ArchivedKvBlocksHeader) -> Result<Notebook, Refusal> {
        let layer = header.layer.0.to_native();
        if layer >= 100 {
            return Err(Refusal::LeaseGone);
        }
        if header.layout() != LAYOUT {
            return Err(Refusal::Mismatch);
        }
        self.num_admitted.fetch_add(1, Ordering::Relaxed);
        Ok(Notebook { layer, blocks: vec![Vec::new(); header.blocks.len()], finished: Arc::clone(&self.finished) })
    }
}

impl FrameWriter for Notebook {
    fn write(&mut self, index: usize, offset: usize, piece: &[u8]) -> Result<(), Refusal> {
        if self.layer >= 50 {
            return Err(Refusal::LeaseGone);
        }
        assert_eq!(self.blocks[index].len(), offset, "pieces come in order");
        self.blocks[index].extend_from_slice(piece);
        Ok(())
    }

    fn finish(self) -> Result<(), Refusal> {
        let blocks = self.blocks.into_iter().map(Bytes::from).collect();
        self.finished.lock().unwrap().push((self.layer, blocks));
        Ok(())
    }
}

/// Waits for what has no event of its own.
///
/// # Panics
/// If it does not come about.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let wait = async {
        while !condition() {
            ticks.tick().await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "{what}: not within {DEADLINE:?}");
}
