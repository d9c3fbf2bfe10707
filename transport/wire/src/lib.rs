//! The shared vocabulary of Relevo: ids, units, shapes and messages, known to every other crate.
//!
//! **Invariant:** no I/O, no clock, no async, no model mathematics in here.

mod ids;
mod kv;
mod message;
mod region;
mod request;
mod time;

pub use ids::{DeviceId, Epoch, LeaseId, MapVersion, RequestId, SequenceId, TenantId, TokenId};
pub use kv::{BLOCK_TOKENS, BlockIndex, ElementType, KvLayout, LayerIndex, blocks_for_tokens};
pub use message::{
    ArchivedKvBlocksHeader, FrameError, HEADER_ALIGN, KvBlocksHeader, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES,
    PROTOCOL_VERSION, checksum, checksum_on,
};
pub use region::SharedRegion;
pub use request::{
    FinishReason, GenerateRequest, Numerics, RequestError, SamplingParams, StreamEvent, TokenLogprobs, Usage,
};
pub use time::Instant64;
