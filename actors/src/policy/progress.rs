//! Whether an engine still computes: one that hangs under a live runtime shows in nothing else.

use std::time::Duration;

use relevo_wire::Instant64;

/// Watches the progress counter of one engine.
#[derive(Clone, Copy, Debug)]
pub struct ProgressWatch {
    /// How long a busy engine may go without progress.
    patience: Duration,
    /// How often it is looked at: a look that comes later says that we slept, not the engine.
    period: Duration,
    looked: Instant64,
    progress: u64,
    progressed: Instant64,
}

impl ProgressWatch {
    /// Begins to watch an engine that has just begun.
    pub fn new(patience: Duration, period: Duration, now: Instant64) -> Self {
        Self { patience, period, looked: now, progress: 0, progressed: now }
    }

    /// Looks at the engine; whether it hangs.
    pub fn hangs(&mut self, progress: u64, busy: bool, now: Instant64) -> bool {
        let lateness = now.since(self.looked).saturating_sub(self.period);
        self.looked = now;
        if progress != self.progress || !busy {
            (self.progress, self.progressed) = (progress, now);
            return false;
        }
        self.progressed = self.progressed + lateness;
        now.since(self.progressed) >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks once a second from the first second on; the second at which it was found to hang.
    fn first_hang(looks: impl IntoIterator<Item = (u64, bool)>) -> Option<usize> {
        let mut watch = ProgressWatch::new(3 * SECOND, SECOND, Instant64(0));
        let mut now = Instant64(0);
        let hangs = looks.into_iter().map(|(progress, busy)| {
            now = now + SECOND;
            watch.hangs(progress, busy, now)
        });
        hangs.into_iter().position(|hangs| hangs).map(|index| index + 1)
    }

    #[test]
    fn a_busy_engine_that_stands_still_for_its_patience_hangs() {
        assert_eq!(first_hang([(1, true), (2, true), (2, true), (2, true), (2, true)]), Some(5));
        assert_eq!(first_hang([(0, true); 3]), Some(3), "one that never began its first layer");
    }

    #[test]
    fn an_idle_engine_and_a_slow_one_do_not_hang() {
        assert_eq!(first_hang([(5, false); 20]), None);
        assert_eq!(first_hang((0..20).map(|look| (look / 2, true))), None);
    }

    #[test]
    fn a_watcher_that_slept_does_not_take_it_for_a_hang() {
        let mut watch = ProgressWatch::new(3 * SECOND, SECOND, Instant64(0));
        let mut now = Instant64(0) + SECOND;
        assert!(!watch.hangs(1, true, now));
        now = now + 60 * SECOND;
        assert!(!watch.hangs(1, true, now), "the process was suspended, and the engine with it");
        for _ in 0..2 {
            now = now + SECOND;
            assert_eq!(watch.hangs(1, true, now), now.since(Instant64(0)) >= 63 * SECOND);
        }
    }
}
