//! A frame: the header's bytes, then the blocks as they lie in the pool.

use bytes::Bytes;
use relevo_wire::{FrameError, HEADER_ALIGN, KvBlocksHeader};
use rkyv::util::AlignedVec;

/// One layer's blocks on their way. Cheap to build: the blocks are the pool's own memory, pinned while the frame lives.
#[derive(Debug)]
pub struct Frame {
    header: AlignedVec<HEADER_ALIGN>,
    blocks: Vec<Bytes>,
}

impl Frame {
    /// A frame of `blocks`, which are announced by `header`.
    ///
    /// # Errors
    /// Our bug: a header that cannot be archived.
    pub fn new(header: &KvBlocksHeader, blocks: Vec<Bytes>) -> Result<Self, FrameError> {
        Ok(Self { header: header.to_bytes()?, blocks })
    }

    /// A frame as it came from a peer, not validated.
    pub fn from_parts(header: AlignedVec<HEADER_ALIGN>, blocks: Vec<Bytes>) -> Self {
        Self { header, blocks }
    }

    /// The header's bytes, aligned to be read in place.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Bytes] {
        &self.blocks
    }

    /// Bytes of the blocks.
    pub fn payload_bytes(&self) -> usize {
        self.blocks.iter().map(Bytes::len).sum()
    }

    /// Takes it apart, for a carrier that sends the pieces.
    pub fn into_parts(self) -> (AlignedVec<HEADER_ALIGN>, Vec<Bytes>) {
        (self.header, self.blocks)
    }
}
