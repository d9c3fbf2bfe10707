//! The shared vocabulary of Relevo: ids, units, shapes and messages, known to every other crate.
//!
//! **Invariant:** no I/O, no clock, no async, no model mathematics in here.

mod cluster;
mod control;
mod ids;
mod kv;
mod lease;
mod message;
mod prefixes;
mod region;
mod request;
mod role;
mod sent_request;
mod time;
mod trace_context;

pub use cluster::{
    Beat, ClusterMap, DeviceFacts, DeviceRole, Heartbeat, Hello, MapEntry, ModelFacts, NodeEntry, Standing,
};
pub use control::{
    ControlMessage, ControlReply, LinkBench, MAX_BLOCK_KIB, MAX_CERTIFICATE_REQUEST_BYTES, MAX_CONTROL_BYTES,
    MAX_PROBE_BYTES, MAX_ROUNDS, MAX_TOKEN_BYTES, MemoryInvitation, MessageError, Order, Renewed, Stepping, ToDecode,
    ToGateway, ToPrefill, ToProbe, TokenBatch,
};
pub use ids::{DeviceId, Epoch, LeaseId, MapVersion, NodeId, NotAnId, RequestId, SequenceId, TenantId, TokenId};
pub use kv::{BLOCK_TOKENS, BlockIndex, ElementType, KvLayout, LayerIndex, blocks_for_tokens};
pub use lease::{GrantedLease, HandOver};
pub use message::{
    ArchivedKvBlocksHeader, FrameError, HEADER_ALIGN, KvBlocksHeader, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES,
    PROTOCOL_VERSION, checksum, checksum_on,
};
pub use prefixes::{HintKey, PrefixBatch, PrefixChange, PrefixWords};
pub use region::SharedRegion;
pub use request::{
    FinishReason, GenerateRequest, Numerics, RequestError, SamplingParams, StreamEvent, TokenLogprobs, Usage,
};
pub use role::{Role, Roles, UnknownRole};
pub use sent_request::SentRequest;
pub use time::Instant64;
pub use trace_context::TraceContext;
