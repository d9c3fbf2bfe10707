//! The one place that reads the wall clock: for what people and certificates are told, never for a decision of a core.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970 by this machine's clock.
pub fn unix_seconds() -> u64 {
    since_1970().as_secs()
}

/// Nanoseconds since 1970 by this machine's clock.
pub fn unix_nanoseconds() -> u64 {
    u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
