//! The one place that reads the clock: shells ask it, cores get the time as an argument.

use std::sync::OnceLock;
use std::time::Instant;

use relevo_wire::Instant64;

/// Nanoseconds since this process first asked.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub fn now() -> Instant64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    Instant64(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}
