//! Where this process's spans of requests go, whatever its log shows: into a bounded memory for `relevo trace`, and to a collector if one is configured.
//!
//! **Invariant:** a span costs when it opens and when it closes, a handful of times for an answer; between the two, for each token, nothing is done.

mod recorder;

pub use recorder::{SpanRecorder, filter, recent};
