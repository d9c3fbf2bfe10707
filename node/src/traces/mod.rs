//! Where this process's spans of requests go, whatever its log shows: into a bounded memory for `relevo trace`, and to a collector if one is configured.
//!
//! **Invariant:** a span costs when it opens and when it closes, a handful of times for an answer; between the two, for each token, nothing is done.

mod exporter;
mod otlp_messages;
mod otlp_span;
mod recorder;

use std::sync::OnceLock;

use relevo_actors::traces::SpanIds;

pub use exporter::{Exporter, ExporterError, Exporting};
pub use recorder::{SpanRecorder, filter, recent};

/// What gives spans their ids in a process that is a cluster of its own: nobody else's are like them.
pub fn ids_alone() -> &'static SpanIds {
    static IDS: OnceLock<SpanIds> = OnceLock::new();
    IDS.get_or_init(|| {
        let mut secret = [0; 32];
        // Without random numbers nothing that is secret begins, and these are not.
        let _ = getrandom::fill(&mut secret);
        SpanIds::of_secret(&secret)
    })
}
