//! Frames of the data plane: an rkyv header, read in place after validation, then the KV blocks as they lie in the pool.

use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;

use crate::kv::ArchivedElementType;
use crate::{BlockIndex, DeviceId, ElementType, Epoch, KvLayout, LayerIndex, LeaseId, RequestId, SequenceId};

/// Version of every frame; two that differ by more than one do not talk.
pub const PROTOCOL_VERSION: u16 = 1;

/// Alignment that a received header must have to be read in place.
pub const HEADER_ALIGN: usize = 16;

/// Longest header that is accepted: 4096 block indices and the fixed part.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Most bytes of a frame's blocks that are accepted: a layer of a chunk of 8192 rows of a model with 64 heads in f32, and as much again.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 30;

/// Announces the blocks of one layer that follow it, in `blocks` order, each of `layout.layer_block_bytes()`.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct KvBlocksHeader {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub protocol: u16,
    /// The sequence that the blocks belong to.
    pub sequence: SequenceId,
    /// The receiving device.
    pub device: DeviceId,
    /// The lease they are pushed under.
    pub lease: LeaseId,
    /// The receiver's epoch when it granted the lease.
    pub epoch: Epoch,
    /// The layer.
    pub layer: LayerIndex,
    /// Index within the sequence of the first block.
    pub first_block: u32,
    /// The receiver's blocks that they go to, as granted.
    pub blocks: Vec<BlockIndex>,
    /// Shape of each block.
    pub layout: KvLayout,
    /// [`checksum`] of each block's bytes.
    pub checksums: Vec<u32>,
}

/// CRC32C of a block's bytes: a rkyv header validates structure only, so the data needs a guard of its own.
pub fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c(block)
}

/// The [`checksum`] of a block that comes in pieces: of what has come so far, whose checksum is `so_far` (0 at first), and of `piece` after it.
pub fn checksum_on(so_far: u32, piece: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, piece)
}

/// What is wrong with a frame. The peer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_HEADER_BYTES`].
    #[error("a header of {byte_len} bytes, at most {MAX_HEADER_BYTES} are accepted")]
    HeaderTooLong {
        /// As announced.
        byte_len: usize,
    },
    /// More bytes than [`MAX_PAYLOAD_BYTES`].
    #[error("{byte_len} bytes of blocks, at most {MAX_PAYLOAD_BYTES} are accepted")]
    PayloadTooLong {
        /// As announced.
        byte_len: usize,
    },
    /// No frame begins here.
    #[error("the bytes are no frame of this version")]
    NoFrame,
    /// The bytes are no header.
    #[error("the header is malformed: {0}")]
    Malformed(String),
    /// A protocol version that we do not speak.
    #[error("protocol version {0}, expected {PROTOCOL_VERSION}")]
    Protocol(u16),
    /// Counts or lengths contradict each other.
    #[error("{num_blocks} blocks, {num_checksums} checksums, {payload_bytes} payload bytes do not fit together")]
    Inconsistent {
        /// Block indices in the header.
        num_blocks: usize,
        /// Checksums in the header.
        num_checksums: usize,
        /// Bytes that came.
        payload_bytes: usize,
    },
    /// A block's bytes are not those that were sent.
    #[error("block {index} of the frame fails its checksum")]
    Checksum {
        /// Index within the frame.
        index: usize,
    },
}

impl KvBlocksHeader {
    /// The header as bytes, aligned to [`HEADER_ALIGN`].
    ///
    /// # Errors
    /// Our bug: a header that cannot be archived.
    pub fn to_bytes(&self) -> Result<AlignedVec<HEADER_ALIGN>, FrameError> {
        let mut bytes = AlignedVec::<HEADER_ALIGN>::new();
        rkyv::api::high::to_bytes_in::<_, RkyvError>(self, &mut bytes)
            .map_err(|error| FrameError::Malformed(error.to_string()))?;
        Ok(bytes)
    }

    /// Reads a header in place. `bytes` must be aligned to [`HEADER_ALIGN`].
    ///
    /// # Errors
    /// The peer's fault: too long, malformed, another protocol version, or counts that contradict each other.
    pub fn access(bytes: &[u8]) -> Result<&ArchivedKvBlocksHeader, FrameError> {
        if bytes.len() > MAX_HEADER_BYTES {
            return Err(FrameError::HeaderTooLong { byte_len: bytes.len() });
        }
        let header = rkyv::access::<ArchivedKvBlocksHeader, RkyvError>(bytes)
            .map_err(|error| FrameError::Malformed(error.to_string()))?;
        if header.protocol.to_native() != PROTOCOL_VERSION {
            return Err(FrameError::Protocol(header.protocol.to_native()));
        }
        if header.blocks.len() != header.checksums.len() {
            return Err(FrameError::Inconsistent {
                num_blocks: header.blocks.len(),
                num_checksums: header.checksums.len(),
                payload_bytes: 0,
            });
        }
        Ok(header)
    }
}

impl ArchivedKvBlocksHeader {
    /// Bytes of each block by the sender's layout; nothing if that is absurd.
    pub fn layout_block_bytes(&self) -> Option<usize> {
        self.layout().checked_layer_block_bytes()
    }

    /// The sender's layout.
    pub fn layout(&self) -> KvLayout {
        let layout = &self.layout;
        KvLayout {
            num_layers: layout.num_layers.to_native(),
            num_kv_heads: layout.num_kv_heads.to_native(),
            key_dim: layout.key_dim.to_native(),
            value_dim: layout.value_dim.to_native(),
            element: match layout.element {
                ArchivedElementType::F32 => ElementType::F32,
                ArchivedElementType::F16 => ElementType::F16,
                ArchivedElementType::Bf16 => ElementType::Bf16,
            },
        }
    }

    /// The sequence that the blocks belong to.
    pub fn sequence(&self) -> SequenceId {
        SequenceId {
            request: RequestId(self.sequence.request.0.to_native()),
            choice: self.sequence.choice.to_native(),
            attempt: self.sequence.attempt.to_native(),
        }
    }

    /// The receiving device.
    pub fn device(&self) -> DeviceId {
        DeviceId(self.device.0.to_native())
    }

    /// The lease they are pushed under.
    pub fn lease(&self) -> LeaseId {
        LeaseId(self.lease.0.to_native())
    }

    /// The receiver's blocks that they go to.
    pub fn targets(&self) -> impl ExactSizeIterator<Item = BlockIndex> + '_ {
        self.blocks.iter().map(|block| BlockIndex(block.0.to_native()))
    }
}
