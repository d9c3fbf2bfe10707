//! How fast requests end, so that one that finds the line full can be told when to come back.

use std::time::Duration;

use relevo_wire::Instant64;

/// Weight of the latest interval: the last ten or so count.
const SMOOTHING: f64 = 0.1;

/// What to say before anything has ended.
const DEFAULT: Duration = Duration::from_secs(1);

/// Bounds of the answer: HTTP's `Retry-After` counts whole seconds, and nobody waits for more than a minute.
const BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A moving average of the time between two endings.
#[derive(Clone, Debug, Default)]
pub(super) struct DrainRate {
    last: Option<Instant64>,
    mean_seconds: Option<f64>,
}

impl DrainRate {
    /// A request has ended.
    pub(super) fn ended(&mut self, now: Instant64) {
        if let Some(last) = self.last.replace(now) {
            let seconds = now.since(last).as_secs_f64();
            let mean = self.mean_seconds.get_or_insert(seconds);
            *mean += SMOOTHING * (seconds - *mean);
        }
    }

    /// How long until `num_places` are free.
    pub(super) fn time_for(&self, num_places: usize) -> Duration {
        let seconds = self.mean_seconds.map_or(DEFAULT.as_secs_f64(), |mean| mean * num_places as f64);
        Duration::try_from_secs_f64(seconds).unwrap_or(BOUNDS.1).clamp(BOUNDS.0, BOUNDS.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_the_rate_at_which_requests_end() {
        let mut rate = DrainRate::default();
        assert_eq!(rate.time_for(1), DEFAULT);
        for second in 0..100 {
            rate.ended(Instant64(second * 3_000_000_000));
        }
        assert_eq!(rate.time_for(4), Duration::from_secs(12));
        assert_eq!(rate.time_for(1000), BOUNDS.1);
    }
}
