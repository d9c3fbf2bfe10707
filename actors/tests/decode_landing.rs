//! Blocks that arrive under a lease in pieces: what counts, what is refused, and when nobody writes any more.
#![allow(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use relevo_actors::decode::{LandingEvent, LandingStrip};
use relevo_actors::device::GrantedLease;
use relevo_gpu::cpu::KvPool;
use relevo_gpu::model::KvMemory;
use relevo_transport::{Frame, FrameSink, FrameWriter, PushError, Refusal, receive_frame};
use relevo_wire::{
    BlockIndex, DeviceId, ElementType, Epoch, KvBlocksHeader, KvLayout, LayerIndex, LeaseId, PROTOCOL_VERSION,
    RequestId, SequenceId, checksum,
};

const LAYOUT: KvLayout =
    KvLayout { num_layers: 2, num_kv_heads: 1, key_dim: 4, value_dim: 4, element: ElementType::F16 };
const LEASE: LeaseId = LeaseId(9);
const SEQUENCE: SequenceId = SequenceId { request: RequestId(1), choice: 0, attempt: 0 };

/// A lease of blocks 4 and 2 of a pool of six, and what it said.
struct Scene {
    pool: Arc<KvPool>,
    strip: LandingStrip,
    events: Arc<Mutex<Vec<LandingEvent>>>,
}

impl Scene {
    fn new() -> Self {
        let pool = Arc::new(KvPool::new(LAYOUT, 6).unwrap());
        let (strip, events) = (LandingStrip::default(), Arc::new(Mutex::new(Vec::new())));
        let blocks = vec![BlockIndex(4), BlockIndex(2)];
        let granted = GrantedLease { lease: LEASE, epoch: Epoch(3), blocks, num_present: 0 };
        let (kv, said): (Arc<dyn KvMemory>, _) = (pool.clone(), Arc::clone(&events));
        strip.open((SEQUENCE, DeviceId(7)), granted, kv, move |event| said.lock().unwrap().push(event));
        Self { pool, strip, events }
    }

    fn push(&self, header: &KvBlocksHeader, blocks: Vec<Bytes>) -> Result<(), PushError> {
        receive_frame(&Frame::new(header, blocks).unwrap(), &self.strip)
    }

    fn admit(&self, header: &KvBlocksHeader) -> Result<impl FrameWriter + use<>, Refusal> {
        let bytes = header.to_bytes().unwrap();
        self.strip.admit(KvBlocksHeader::access(&bytes).unwrap())
    }

    fn held(&self, layer: u32) -> [Bytes; 2] {
        [4, 2].map(|block| self.pool.read(LayerIndex(layer), BlockIndex(block)))
    }

    fn events(&self) -> Vec<LandingEvent> {
        self.events.lock().unwrap().clone()
    }
}

fn blocks(value: u8) -> Vec<Bytes> {
    (0..2).map(|index| Bytes::from(vec![value + index; LAYOUT.layer_block_bytes()])).collect()
}

fn header(layer: u32, blocks: &[Bytes]) -> KvBlocksHeader {
    KvBlocksHeader {
        protocol: PROTOCOL_VERSION,
        device: DeviceId(0),
        sequence: SEQUENCE,
        lease: LEASE,
        epoch: Epoch(3),
        layer: LayerIndex(layer),
        first_block: 0,
        blocks: vec![BlockIndex(4), BlockIndex(2)],
        layout: LAYOUT,
        checksums: blocks.iter().map(|block| checksum(block)).collect(),
    }
}

#[test]
fn a_lease_is_complete_when_every_layer_has_arrived_once_undamaged() {
    let scene = Scene::new();
    let good = blocks(10);
    assert_eq!(scene.push(&header(0, &good), good.clone()), Ok(()));
    let mut damaged = good.clone();
    damaged[1] = Bytes::from(vec![99; LAYOUT.layer_block_bytes()]);
    assert_eq!(scene.push(&header(1, &good), damaged), Err(PushError::Corrupt { index: 1 }));
    assert!(scene.events().is_empty() && scene.strip.last_arrival(LEASE).is_some());
    assert_eq!(scene.push(&header(1, &good), good.clone()), Ok(()));
    assert_eq!(scene.events(), [LandingEvent::Complete(LEASE)]);
    for layer in [0, 1] {
        assert_eq!(scene.held(layer).to_vec(), good);
    }
    // Once more, with other bytes: what has arrived stays.
    assert_eq!(scene.push(&header(1, &blocks(50)), blocks(50)), Ok(()));
    assert_eq!((scene.held(1).to_vec(), scene.events().len()), (good, 1));
}

#[test]
fn a_lease_that_is_closed_between_two_pieces_waits_for_nobody() {
    let scene = Scene::new();
    let good = blocks(10);
    let mut writer = scene.admit(&header(0, &good)).unwrap();
    writer.write(0, 0, &good[0][..7]).unwrap();
    assert!(scene.strip.close(LEASE), "nobody is inside between two pieces");
    assert_eq!(writer.write(0, 7, &good[0][7..]), Err(Refusal::LeaseGone));
    assert_eq!(writer.finish(), Err(Refusal::LeaseGone));
    assert!(scene.held(0)[0][7..].iter().all(|&byte| byte == 0), "nothing is written after the close");
    assert_eq!(scene.push(&header(0, &good), good), Err(PushError::LeaseGone));
    assert!(scene.events().is_empty());
}

#[test]
fn a_frame_that_comes_anew_supersedes_the_one_before() {
    let scene = Scene::new();
    let (stale, good) = (blocks(70), blocks(10));
    let mut before = scene.admit(&header(0, &stale)).unwrap();
    before.write(0, 0, &stale[0]).unwrap();
    let mut anew = scene.admit(&header(0, &good)).unwrap();
    let mut other_layer = scene.admit(&header(1, &good)).unwrap();
    for (index, block) in good.iter().enumerate() {
        anew.write(index, 0, block).unwrap();
        other_layer.write(index, 0, block).unwrap();
        assert_eq!(before.write(index, 0, &stale[index]), Err(Refusal::LeaseGone));
    }
    assert_eq!(before.finish(), Err(Refusal::LeaseGone));
    assert!(scene.events().is_empty());
    assert_eq!((anew.finish(), other_layer.finish()), (Ok(()), Ok(())));
    assert_eq!(scene.events(), [LandingEvent::Complete(LEASE)]);
    assert_eq!(scene.held(0).to_vec(), good);
}

#[test]
fn what_does_not_fit_its_lease_is_refused_before_a_byte_is_written() {
    let scene = Scene::new();
    let good = header(0, &blocks(10));
    let refused = |header: &KvBlocksHeader| scene.admit(header).err();
    assert_eq!(refused(&KvBlocksHeader { lease: LeaseId(8), ..good.clone() }), Some(Refusal::LeaseGone));
    assert_eq!(refused(&KvBlocksHeader { epoch: Epoch(2), ..good.clone() }), Some(Refusal::LeaseGone));
    let other = SequenceId { attempt: 1, ..SEQUENCE };
    let mismatches = [
        KvBlocksHeader { sequence: other, ..good.clone() },
        KvBlocksHeader { layer: LayerIndex(2), ..good.clone() },
        KvBlocksHeader { layer: LayerIndex(u32::MAX), ..good.clone() },
        KvBlocksHeader { first_block: 1, ..good.clone() },
        KvBlocksHeader { first_block: u32::MAX, ..good.clone() },
        KvBlocksHeader { blocks: vec![BlockIndex(4), BlockIndex(3)], ..good.clone() },
        KvBlocksHeader { layout: KvLayout { key_dim: 8, value_dim: 0, ..LAYOUT }, ..good.clone() },
    ];
    for header in &mismatches {
        assert_eq!(refused(header), Some(Refusal::Mismatch), "{header:?}");
    }
    assert!(scene.held(0).iter().flatten().all(|&byte| byte == 0));
    let mut writer = scene.admit(&good).unwrap();
    assert_eq!(writer.write(2, 0, &[1]), Err(Refusal::Mismatch), "a block beyond the frame's");
    assert_eq!(writer.write(0, 255, &[1, 1]), Err(Refusal::Mismatch), "bytes beyond the block's");
}
