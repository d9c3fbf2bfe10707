//! The receiving side: a frame is let in by its header alone, then its blocks are put in their place piece by piece as they come, and it counts
//! once all of them are there and are those that were sent.

use std::sync::Arc;

use relevo_wire::{ArchivedKvBlocksHeader, FrameError, KvBlocksHeader, checksum_on};

use crate::frame::Frame;
use crate::link::{FrameReceiver, PushError};

/// Decides which frames are let in, and takes their blocks.
pub trait FrameSink: Send + Sync + 'static {
    /// Takes the blocks of one frame.
    type Writer: FrameWriter;

    /// Looks at a valid header before any of its blocks is read.
    ///
    /// # Errors
    /// The lease is over, or does not fit.
    fn admit(&self, header: &ArchivedKvBlocksHeader) -> Result<Self::Writer, Refusal>;
}

/// Puts a frame's blocks where they belong, as they come. If it is dropped before it is finished, the frame has not arrived.
pub trait FrameWriter: Send {
    /// Puts a piece of the block of this index within the frame to `offset`. Pieces come in order and go up to the block's length.
    ///
    /// **What is written need not be what was sent**: a block's checksum is known with its last piece. A sink must not use a block, and must count it
    /// as missing, until [`FrameWriter::finish`]; the sender sends the frame again, over what was damaged.
    ///
    /// # Errors
    /// The lease has ended meanwhile, or does not fit.
    fn write(&mut self, index: usize, offset: usize, piece: &[u8]) -> Result<(), Refusal>;

    /// Every block is in its place and is what was sent.
    ///
    /// # Errors
    /// The lease has ended meanwhile.
    fn finish(self) -> Result<(), Refusal>;
}

/// Why a sink does not take a valid frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The lease is over, or of another epoch: nobody's fault.
    LeaseGone,
    /// The blocks are not those that were leased, or have another shape.
    Mismatch,
}

impl From<Refusal> for PushError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::LeaseGone => Self::LeaseGone,
            Refusal::Mismatch => Self::Mismatch,
        }
    }
}

/// Receives frames until the link closes.
pub async fn serve_frames(mut receiver: FrameReceiver, sink: Arc<impl FrameSink>) {
    while let Some(delivery) = receiver.next().await {
        let answer = receive_frame(delivery.frame(), sink.as_ref());
        delivery.answer(answer);
    }
}

/// Receives a frame that is here as a whole.
///
/// # Errors
/// What to answer the sender.
pub fn receive_frame(frame: &Frame, sink: &impl FrameSink) -> Result<(), PushError> {
    let header = KvBlocksHeader::access(frame.header()).map_err(PushError::Malformed)?;
    let mut arrival = FrameArrival::begin(header, frame.payload_bytes(), sink);
    frame.blocks().iter().for_each(|block| arrival.take(block));
    arrival.finish()
}

/// A frame whose header has been validated, and whose blocks are coming: carriers give it what they get, of whatever length.
pub(crate) struct FrameArrival<'h, W> {
    header: &'h ArchivedKvBlocksHeader,
    block_bytes: usize,
    payload_bytes: usize,
    num_taken: usize,
    /// Of the block that is coming.
    checksum: u32,
    /// Once there is an answer, what still comes is passed over.
    writer: Result<W, PushError>,
}

impl<'h, W: FrameWriter> FrameArrival<'h, W> {
    /// Begins with a frame of `payload_bytes`.
    pub(crate) fn begin(
        header: &'h ArchivedKvBlocksHeader,
        payload_bytes: usize,
        sink: &impl FrameSink<Writer = W>,
    ) -> Self {
        let block_bytes = header.layout_block_bytes().unwrap_or(0);
        let fits = block_bytes > 0 && header.blocks.len().checked_mul(block_bytes) == Some(payload_bytes);
        let writer = match fits {
            true => sink.admit(header).map_err(PushError::from),
            false => Err(inconsistent(header, payload_bytes)),
        };
        Self { header, block_bytes, payload_bytes, num_taken: 0, checksum: 0, writer }
    }

    /// The next bytes of the blocks.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.writer.is_ok() {
            let (index, offset) = (self.num_taken / self.block_bytes, self.num_taken % self.block_bytes);
            let (piece, rest) = bytes.split_at(bytes.len().min(self.block_bytes - offset));
            bytes = rest;
            self.num_taken += piece.len();
            if let Err(error) = self.take_piece(index, offset, piece) {
                self.writer = Err(error);
            }
        }
    }

    /// The checksum comes before the write: a block that comes as a whole is not written if it is damaged.
    fn take_piece(&mut self, index: usize, offset: usize, piece: &[u8]) -> Result<(), PushError> {
        let Some(sum) = self.header.checksums.get(index) else {
            return Err(inconsistent(self.header, self.payload_bytes));
        };
        self.checksum = checksum_on(self.checksum, piece);
        if offset + piece.len() == self.block_bytes && std::mem::take(&mut self.checksum) != sum.to_native() {
            return Err(PushError::Corrupt { index });
        }
        match &mut self.writer {
            Ok(writer) => Ok(writer.write(index, offset, piece)?),
            Err(error) => Err(error.clone()),
        }
    }

    /// Whether the answer no longer depends on what still comes.
    pub(crate) fn is_decided(&self) -> bool {
        self.writer.is_err()
    }

    /// What to answer, now that all of it has come.
    pub(crate) fn finish(self) -> Result<(), PushError> {
        let writer = self.writer?;
        match self.num_taken == self.payload_bytes {
            true => Ok(writer.finish()?),
            false => Err(inconsistent(self.header, self.payload_bytes)),
        }
    }
}

fn inconsistent(header: &ArchivedKvBlocksHeader, payload_bytes: usize) -> PushError {
    PushError::Malformed(FrameError::Inconsistent {
        num_blocks: header.blocks.len(),
        num_checksums: header.checksums.len(),
        payload_bytes,
    })
}
