//! Restart intensity as OTP has it: at most so many restarts in so long a time, then the supervisor gives up and its own supervisor decides.

use std::collections::VecDeque;
use std::time::Duration;

use relevo_wire::Instant64;

/// At most `max_restarts` within `period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RestartIntensity {
    /// Restarts that are allowed.
    pub max_restarts: usize,
    /// Within this long.
    pub period: Duration,
}

impl Default for RestartIntensity {
    /// Ten in ten seconds: a poison request takes its engine down twice, and several may come at once before the device counts as broken.
    fn default() -> Self {
        Self { max_restarts: 10, period: Duration::from_secs(10) }
    }
}

/// The restarts of one supervisor's children.
#[derive(Clone, Debug)]
pub struct RestartHistory {
    intensity: RestartIntensity,
    recent: VecDeque<Instant64>,
}

impl RestartHistory {
    /// None so far.
    pub fn new(intensity: RestartIntensity) -> Self {
        Self { intensity, recent: VecDeque::new() }
    }

    /// A child has died: whether to restart it. `false` means escalate.
    #[must_use]
    pub fn allows(&mut self, now: Instant64) -> bool {
        while self.recent.front().is_some_and(|&at| now.since(at) > self.intensity.period) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        self.recent.len() <= self.intensity.max_restarts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_spread_over_time_are_allowed_for_ever_and_a_burst_escalates() {
        let period = Duration::from_secs(5);
        let mut history = RestartHistory::new(RestartIntensity { max_restarts: 3, period });
        let mut now = Instant64(0);
        for _ in 0..20 {
            assert!(history.allows(now));
            now = now + period;
        }
        now = now + period;
        assert!((0..3).all(|_| history.allows(now)));
        assert!(!history.allows(now));
    }
}
