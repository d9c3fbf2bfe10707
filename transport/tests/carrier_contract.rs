//! The contract that each carrier keeps.
#![allow(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod links;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use links::{ARENA, CAPACITY, CARRIERS, DEADLINE, LAYOUT, Link, Notes, blocks, frame, header, until};
use proptest::prelude::*;
use relevo_transport::{Frame, PushError, receive_frame};
use relevo_wire::{FrameError, HEADER_ALIGN, KvBlocksHeader, LayerIndex, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES};
use rkyv::util::AlignedVec;
use tokio::task::JoinSet;

#[tokio::test]
async fn frames_arrive_in_order_each_once_with_the_very_bytes() {
    for carrier in CARRIERS {
        let (sender, notes, mut tasks) = Link::new(carrier).serve();
        for layer in 0..20 {
            assert_eq!(sender.push(frame(layer), DEADLINE).await, Ok(()), "{carrier:?}");
        }
        drop(sender);
        tokio::time::timeout(DEADLINE, tasks.join_next()).await.unwrap().unwrap().unwrap();
        let expected: Vec<_> = (0..20).map(|layer| (layer, blocks(u8::try_from(layer).unwrap()))).collect();
        assert_eq!(notes.arrived(), expected, "{carrier:?}");
    }
}

#[tokio::test]
async fn frames_of_many_senders_at_once_arrive_each_once() {
    for carrier in CARRIERS {
        let (sender, notes, _tasks) = Link::new(carrier).serve();
        let mut pushes = JoinSet::new();
        for layer in 0..40 {
            let sender = sender.clone();
            pushes.spawn(async move { sender.push(frame(layer), DEADLINE).await });
        }
        assert!(pushes.join_all().await.iter().all(Result::is_ok), "{carrier:?}");
        let mut arrived = notes.arrived();
        arrived.sort_by_key(|(layer, _)| *layer);
        let expected: Vec<_> = (0..40).map(|layer| (layer, blocks(u8::try_from(layer).unwrap()))).collect();
        assert_eq!(arrived, expected, "{carrier:?}");
        assert_eq!(sender.depth(), (0, CAPACITY));
    }
}

#[tokio::test]
async fn a_large_frame_arrives_piece_by_piece() {
    let layout = relevo_wire::KvLayout { num_kv_heads: 8, key_dim: 128, value_dim: 128, ..LAYOUT };
    struct Sums(std::sync::Mutex<Vec<u32>>);
    struct Summing(Vec<u32>, Arc<Sums>);
    struct Sink(Arc<Sums>);
    impl relevo_transport::FrameSink for Sink {
        type Writer = Summing;
        fn admit(&self, header: &relevo_wire::ArchivedKvBlocksHeader) -> Result<Summing, relevo_transport::Refusal> {
            Ok(Summing(vec![0; header.blocks.len()], Arc::clone(&self.0)))
        }
    }
    impl relevo_transport::FrameWriter for Summing {
        fn write(&mut self, index: usize, _: usize, piece: &[u8]) -> Result<(), relevo_transport::Refusal> {
            self.0[index] = relevo_wire::checksum_on(self.0[index], piece);
            Ok(())
        }
        fn finish(self) -> Result<(), relevo_transport::Refusal> {
            *self.1.0.lock().unwrap() = self.0;
            Ok(())
        }
    }
    let bytes = |block: usize| -> Vec<u8> {
        (0..layout.layer_block_bytes()).map(|at| (at * 31 + at / 256 + block * 7) as u8).collect()
    };
    let anywhere: Vec<Bytes> = (0..96).map(bytes).map(Vec::into).collect();
    let in_the_pool: Vec<Bytes> = anywhere.iter().map(|block| ARENA.put(block)).collect();
    let header = KvBlocksHeader { layout, ..header(1, &anywhere) };
    for carrier in CARRIERS {
        let sums = Arc::new(Sums(std::sync::Mutex::default()));
        let (sender, _tasks) = Link::new(carrier).serve_to(Arc::new(Sink(Arc::clone(&sums))));
        // More than a stream's window.
        for blocks in [&in_the_pool, &anywhere, &in_the_pool, &anywhere] {
            assert_eq!(
                sender.push(Frame::new(&header, blocks.clone()).unwrap(), DEADLINE).await,
                Ok(()),
                "{carrier:?}"
            );
            assert_eq!(std::mem::take(&mut *sums.0.lock().unwrap()), header.checksums, "{carrier:?}");
        }
    }
}

#[tokio::test]
async fn a_frame_with_a_damaged_block_does_not_arrive_until_it_is_sent_again() {
    for carrier in CARRIERS {
        let (sender, notes, _tasks) = Link::new(carrier).serve();
        let (header, mut damaged) = frame(1).into_parts();
        let mut bytes = damaged[2].to_vec();
        bytes[9] ^= 0x10;
        damaged[2] = Bytes::from(bytes);
        let answer = sender.push(Frame::from_parts(header, damaged), DEADLINE).await;
        assert_eq!(answer, Err(PushError::Corrupt { index: 2 }), "{carrier:?}");
        assert!(notes.arrived().is_empty());
        assert_eq!(sender.push(frame(1), DEADLINE).await, Ok(()), "{carrier:?}");
        assert_eq!(notes.arrived().len(), 1);
    }
}

#[tokio::test]
async fn a_lease_that_is_gone_is_answered_so_whenever_it_went() {
    for carrier in CARRIERS {
        let (sender, notes, _tasks) = Link::new(carrier).serve();
        assert_eq!(sender.push(frame(100), DEADLINE).await, Err(PushError::LeaseGone), "{carrier:?}");
        assert_eq!(notes.num_admitted(), 0);
        assert_eq!(sender.push(frame(50), DEADLINE).await, Err(PushError::LeaseGone), "{carrier:?}");
        assert_eq!(notes.num_admitted(), 1);
        assert_eq!(sender.push(frame(1), DEADLINE).await, Ok(()), "{carrier:?}");
    }
}

#[tokio::test]
async fn a_frame_that_makes_no_sense_is_answered_so_and_the_next_one_arrives() {
    for carrier in CARRIERS {
        let (sender, notes, _tasks) = Link::new(carrier).serve();
        let push = async |header: &[u8], blocks: Vec<Bytes>| {
            let mut aligned = AlignedVec::<HEADER_ALIGN>::new();
            aligned.extend_from_slice(header);
            sender.push(Frame::from_parts(aligned, blocks), DEADLINE).await
        };
        let too_long = vec![0; MAX_HEADER_BYTES + 1];
        let byte_len = too_long.len();
        let expected = Err(PushError::Malformed(FrameError::HeaderTooLong { byte_len }));
        assert_eq!(push(&too_long, blocks(1)).await, expected, "{carrier:?}");
        assert!(matches!(push(&[7; 99], blocks(1)).await, Err(PushError::Malformed(FrameError::Malformed(_)))));
        let (good, mut few) = frame(1).into_parts();
        let byte_len = few[0].len() * 2;
        few.pop();
        let inconsistent = FrameError::Inconsistent { num_blocks: 3, num_checksums: 3, payload_bytes: byte_len };
        assert_eq!(push(&good, few).await, Err(PushError::Malformed(inconsistent)), "{carrier:?}");
        let other = KvBlocksHeader { protocol: 99, ..header(1, &blocks(1)) }.to_bytes().unwrap();
        assert_eq!(push(&other, blocks(1)).await, Err(PushError::Malformed(FrameError::Protocol(99))));
        let many = vec![ARENA.put(&[1; 1 << 20]); (MAX_PAYLOAD_BYTES >> 20) + 1];
        let too_much = push(&good, many).await;
        assert!(matches!(too_much, Err(PushError::Malformed(_))), "{carrier:?}: {too_much:?}");
        assert_eq!(notes.num_admitted(), 0, "{carrier:?}");
        assert_eq!(push(&good, blocks(1)).await, Ok(()), "{carrier:?}");
    }
}

#[tokio::test]
async fn a_link_holds_no_more_than_its_bound_and_a_sender_waits_no_longer_than_its_deadline() {
    let deadline = Duration::from_millis(300);
    for carrier in CARRIERS {
        let link = Link::new(carrier);
        let mut pushes = JoinSet::new();
        for layer in 0..10 {
            let sender = link.sender.clone();
            pushes.spawn(async move { sender.push(frame(layer), deadline).await });
        }
        let answers = pushes.join_all().await;
        assert!(answers.iter().all(|answer| *answer == Err(PushError::Deadline(deadline))), "{carrier:?}: {answers:?}");
        assert_eq!(link.sender.depth(), (CAPACITY, CAPACITY), "{carrier:?}");
        let (sender, _tasks) = link.cut();
        assert_eq!(sender.push(frame(0), DEADLINE).await, Err(PushError::Closed), "{carrier:?}");
        until("the link is closed", || sender.is_closed()).await;
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
    for carrier in CARRIERS {
        let (sender, _notes, _tasks) = Link::new(carrier).serve();
        for layer in [1, 50, 100] {
            let pin = Arc::new(());
            let bytes = vec![1; LAYOUT.layer_block_bytes()];
            let block = Bytes::from_owner(Pinned { _pin: Arc::clone(&pin), bytes });
            let header = KvBlocksHeader { layer: LayerIndex(layer), ..header(layer, std::slice::from_ref(&block)) };
            let frame = Frame::new(&header, vec![block]).unwrap();
            let expected = if layer < 50 { Ok(()) } else { Err(PushError::LeaseGone) };
            assert_eq!(sender.push(frame, DEADLINE).await, expected);
            until("the bytes are let go of", || Arc::strong_count(&pin) == 1).await;
        }
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
        let _ = receive_frame(&Frame::from_parts(aligned, blocks), &Notes::default());
    }
}
