//! The log: `tracing` to stderr, by a filter, as text or JSON; and beside it what takes down the spans of requests.

use std::io::{self, IsTerminal};

use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use crate::config::LogFormat;
use crate::traces::SpanRecorder;
use crate::{environment, traces};

/// Whether `filter` is one.
///
/// # Errors
/// The user's fault: what would have been right.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter)
        .map(drop)
        .map_err(|error| format!("levels by module such as \"info,relevo=debug\" ({error})"))
}

/// The filter, with the sessions of `ractor_cluster` quiet unless it names them: what a lost link means is said by those whose link it was.
fn without_sessions(filter: &str) -> String {
    if filter.contains("ractor") { filter.to_owned() } else { format!("{filter},ractor=error,ractor_cluster=error") }
}

/// Starts the log of this process. Later calls change nothing: a test may have set its own.
///
/// # Errors
/// As [`check_filter`].
pub fn start(filter: &str, format: LogFormat) -> Result<(), String> {
    check_filter(filter)?;
    let lines = tracing_subscriber::fmt::layer()
        // Each hop of a request is told when it is done, with the time that it took.
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal() && !environment::no_color()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Each with a filter of its own: a quiet log does not keep `relevo trace` from seeing.
    let subscriber = tracing_subscriber::registry()
        .with(lines.with_filter(EnvFilter::new(without_sessions(filter))))
        .with(SpanRecorder.with_filter(traces::filter()));
    let _ = subscriber.try_init();
    Ok(())
}
