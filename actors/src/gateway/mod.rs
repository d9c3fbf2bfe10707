//! The gateway's side of a sequence: it keeps the request and what was emitted until the stream ends, and replays it elsewhere.

mod handle;

pub use handle::{Gateway, SequenceStream, Submission, gateway_channel};
