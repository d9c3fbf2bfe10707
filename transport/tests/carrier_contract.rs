//! The contract that each carrier keeps; a new carrier adds itself to `each_carrier`.
#![allow(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use relevo_transport::{
    Frame, FrameReceiver, FrameSender, FrameSink, PushError, Refusal, in_process, receive_frame, serve_frames,
};
use relevo_wire::{
    ArchivedKvBlocksHeader, BlockIndex, ElementType, Epoch, FrameError, HEADER_ALIGN, KvBlocksHeader, KvLayout,
    LayerIndex, LeaseId, PROTOCOL_VERSION, RequestId, SequenceId, checksum,
};
use rkyv::util::AlignedVec;
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(20);
const CAPACITY: usize = 4;

type Carrier = fn(usize) -> (FrameSender, FrameReceiver);

fn each_carrier() -> Vec<Carrier> {
    vec![in_process]
}

const LAYOUT: KvLayout =
    KvLayout { num_layers: 2, num_kv_heads: 1, key_dim: 2, value_dim: 2, element: ElementType::F16 };

fn header(layer: u32, blocks: &[Bytes]) -> KvBlocksHeader {
    KvBlocksHeader {
        protocol: PROTOCOL_VERSION,
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

fn blocks(seed: u8) -> Vec<Bytes> {
    (0..3).map(|index| Bytes::from(vec![seed.wrapping_add(index); LAYOUT.layer_block_bytes()])).collect()
}

fn frame(layer: u32) -> Frame {
    let blocks = blocks(u8::try_from(layer % 251).unwrap());
    Frame::new(&header(layer, &blocks), blocks).unwrap()
}

/// Notes what it receives; layers of 100 and more have lost their lease.
#[derive(Default)]
struct Notes(Mutex<Vec<(u32, Vec<Bytes>)>>);

impl FrameSink for Notes {
    fn receive(&self, header: &ArchivedKvBlocksHeader, blocks: &[Bytes]) -> Result<(), Refusal> {
        let layer = header.layer.0.to_native();
        assert_eq!((header.layout(), header.sequence().request), (LAYOUT, RequestId(7)));
        if layer >= 100 {
            return Err(Refusal::LeaseGone);
        }
        self.0.lock().unwrap().push((layer, blocks.to_vec()));
        Ok(())
    }
}

fn serve(receiver: FrameReceiver) -> (Arc<Notes>, JoinSet<()>) {
    let notes = Arc::new(Notes::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_frames(receiver, Arc::clone(&notes)));
    (notes, tasks)
}

#[tokio::test]
async fn frames_arrive_in_order_each_once_with_the_very_bytes() {
    for carrier in each_carrier() {
        let (sender, receiver) = carrier(CAPACITY);
        let (notes, mut tasks) = serve(receiver);
        for layer in 0..20 {
            assert_eq!(sender.push(frame(layer), DEADLINE).await, Ok(()));
        }
        drop(sender);
        tasks.join_next().await.unwrap().unwrap();
        let expected: Vec<_> = (0..20).map(|layer| (layer, blocks(u8::try_from(layer).unwrap()))).collect();
        assert_eq!(*notes.0.lock().unwrap(), expected);
    }
}

#[tokio::test]
async fn a_damaged_block_never_reaches_the_sink() {
    for carrier in each_carrier() {
        let (sender, receiver) = carrier(CAPACITY);
        let (notes, _tasks) = serve(receiver);
        let (header, mut damaged) = frame(1).into_parts();
        let mut bytes = damaged[2].to_vec();
        bytes[9] ^= 0x10;
        damaged[2] = Bytes::from(bytes);
        let answer = sender.push(Frame::from_parts(header, damaged), DEADLINE).await;
        assert_eq!(answer, Err(PushError::Corrupt { index: 2 }));
        assert!(notes.0.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_lease_that_is_gone_is_answered_so() {
    for carrier in each_carrier() {
        let (sender, receiver) = carrier(CAPACITY);
        let (_notes, _tasks) = serve(receiver);
        assert_eq!(sender.push(frame(100), DEADLINE).await, Err(PushError::LeaseGone));
        assert_eq!(sender.push(frame(1), DEADLINE).await, Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_holds_no_more_than_its_bound_and_a_sender_waits_no_longer_than_its_deadline() {
    for carrier in each_carrier() {
        let (sender, receiver) = carrier(CAPACITY);
        let mut pushes = JoinSet::new();
        for layer in 0..10 {
            let sender = sender.clone();
            pushes.spawn(async move { sender.push(frame(layer), DEADLINE).await });
        }
        let answers = pushes.join_all().await;
        assert!(answers.iter().all(|answer| *answer == Err(PushError::Deadline(DEADLINE))));
        assert_eq!(sender.depth(), (CAPACITY, CAPACITY));
        drop(receiver);
        assert_eq!(sender.push(frame(0), DEADLINE).await, Err(PushError::Closed));
    }
}

#[tokio::test]
async fn the_senders_bytes_are_let_go_of_once_the_frame_is_answered() {
    struct Pinned {
        _pin: Arc<()>,
        bytes: Vec<u8>,
    }
    impl AsRef<[u8]> for Pinned {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    for carrier in each_carrier() {
        let (sender, receiver) = carrier(CAPACITY);
        let (_notes, _tasks) = serve(receiver);
        let pin = Arc::new(());
        let block = Bytes::from_owner(Pinned { _pin: Arc::clone(&pin), bytes: vec![1; LAYOUT.layer_block_bytes()] });
        let header = KvBlocksHeader { layer: LayerIndex(100), ..header(100, std::slice::from_ref(&block)) };
        let frame = Frame::new(&header, vec![block]).unwrap();
        assert_eq!(sender.push(frame, DEADLINE).await, Err(PushError::LeaseGone));
        assert_eq!(Arc::strong_count(&pin), 1);
    }
}

#[test]
fn counts_and_lengths_that_contradict_each_other_are_refused() {
    let (header, mut blocks) = frame(1).into_parts();
    blocks.pop();
    let answer = receive_frame(&Frame::from_parts(header.clone(), blocks.clone()), &Notes::default());
    assert!(matches!(answer, Err(PushError::Malformed(FrameError::Inconsistent { num_blocks: 3, .. }))));
    blocks.push(Bytes::from_static(b"short"));
    let answer = receive_frame(&Frame::from_parts(header, blocks), &Notes::default());
    assert!(matches!(answer, Err(PushError::Malformed(FrameError::Inconsistent { .. }))));
}

proptest! {
    #[test]
    fn a_hostile_header_is_refused_without_a_panic(position in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0usize..64) {
        let (header, blocks) = frame(1).into_parts();
        let mut bytes = header.to_vec();
        let position = position.index(bytes.len());
        bytes[position] = byte;
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        let mut aligned = AlignedVec::<HEADER_ALIGN>::new();
        aligned.extend_from_slice(&bytes);
        struct Accepts;
        impl FrameSink for Accepts {
            fn receive(&self, header: &ArchivedKvBlocksHeader, blocks: &[Bytes]) -> Result<(), Refusal> {
                assert_eq!(header.blocks.len(), blocks.len());
                Ok(())
            }
        }
        let _ = receive_frame(&Frame::from_parts(aligned, blocks), &Accepts);
    }
}
