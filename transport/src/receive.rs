//! The receiving side: each frame is validated in place before a single byte of it counts.

use std::sync::Arc;

use bytes::Bytes;
use relevo_wire::{ArchivedKvBlocksHeader, FrameError, KvBlocksHeader, checksum};

use crate::frame::Frame;
use crate::link::{FrameReceiver, PushError};

/// Takes blocks whose frame is valid and whose bytes are those that were sent.
pub trait FrameSink: Send + Sync {
    /// Puts the blocks where they belong.
    ///
    /// # Errors
    /// The lease is over, or does not fit.
    fn receive(&self, header: &ArchivedKvBlocksHeader, blocks: &[Bytes]) -> Result<(), Refusal>;
}

/// Why a sink does not take a valid frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The lease is over, or of another epoch: nobody's fault.
    LeaseGone,
    /// The blocks are not those that were leased, or have another shape.
    Mismatch,
}

/// Receives frames until the link closes.
pub async fn serve_frames(mut receiver: FrameReceiver, sink: Arc<impl FrameSink>) {
    while let Some(delivery) = receiver.next().await {
        let answer = receive_frame(delivery.frame(), sink.as_ref());
        delivery.answer(answer);
    }
}

/// Validates a frame and gives it to the sink.
///
/// # Errors
/// What to answer the sender.
pub fn receive_frame(frame: &Frame, sink: &impl FrameSink) -> Result<(), PushError> {
    let header = KvBlocksHeader::access(frame.header()).map_err(PushError::Malformed)?;
    check_blocks(header, frame.blocks()).map_err(|error| match error {
        FrameError::Checksum { index } => PushError::Corrupt { index },
        other => PushError::Malformed(other),
    })?;
    sink.receive(header, frame.blocks()).map_err(|refusal| match refusal {
        Refusal::LeaseGone => PushError::LeaseGone,
        Refusal::Mismatch => PushError::Mismatch,
    })
}

/// Compares the blocks that came with those that the header announces: how many, how long, which bytes.
///
/// # Errors
/// The peer's fault, or damage on the way.
pub fn check_blocks(header: &ArchivedKvBlocksHeader, blocks: &[Bytes]) -> Result<(), FrameError> {
    let block_bytes = header.layout_block_bytes();
    let fits = header.blocks.len() == blocks.len() && blocks.iter().all(|block| Some(block.len()) == block_bytes);
    if !fits {
        return Err(FrameError::Inconsistent {
            num_blocks: header.blocks.len(),
            num_checksums: header.checksums.len(),
            payload_bytes: blocks.iter().map(Bytes::len).sum(),
        });
    }
    let damaged =
        blocks.iter().zip(header.checksums.iter()).position(|(block, sum)| checksum(block) != sum.to_native());
    damaged.map_or(Ok(()), |index| Err(FrameError::Checksum { index }))
}
