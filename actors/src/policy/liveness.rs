//! Whether a peer lives, by its heartbeats alone.

use std::time::Duration;

use relevo_wire::Instant64;

/// Silence after which a peer counts as lost.
///
/// Five heartbeats of 100 ms: a pause of 300 ms is no death, and a false alarm costs a re-prefill.
pub const SILENCE: Duration = Duration::from_millis(500);

/// Watches one peer.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    heard: Instant64,
    ticked: Instant64,
    tick: Duration,
}

impl Liveness {
    /// Of a peer that was heard now. It is ticked every `tick`.
    pub fn new(tick: Duration, now: Instant64) -> Self {
        Self { heard: now, ticked: now, tick }
    }

    /// It speaks.
    pub fn heard(&mut self, now: Instant64) {
        self.heard = self.heard.max(now);
    }

    /// Time went by: whether the peer is lost. A tick that comes late says that we slept, not it: what it said meanwhile may still be on its way to
    /// us, so its time is longer by as much.
    pub fn is_lost(&mut self, now: Instant64) -> bool {
        let lateness = now.since(self.ticked).saturating_sub(self.tick);
        self.ticked = now;
        self.heard = now.min(self.heard + lateness);
        now.since(self.heard) >= SILENCE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(50);

    fn at(ms: u64) -> Instant64 {
        Instant64(ms * 1_000_000)
    }

    #[test]
    fn half_a_second_of_silence_is_a_loss_and_less_is_none() {
        let mut liveness = Liveness::new(TICK, at(0));
        assert!(!liveness.is_lost(at(50)));
        assert!(!liveness.is_lost(at(100)));
        liveness.heard(at(100));
        let lost: Vec<u64> = (3..20).map(|tick| tick * 50).filter(|&ms| liveness.is_lost(at(ms))).collect();
        assert_eq!(lost.first(), Some(&600));
    }

    #[test]
    fn who_slept_gives_the_others_their_time() {
        let mut liveness = Liveness::new(TICK, at(0));
        assert!(!liveness.is_lost(at(50)));
        assert!(!liveness.is_lost(at(5000)), "nobody ticked for five seconds");
        assert!(!liveness.is_lost(at(5400)));
        let lost = (0..20).any(|tick| liveness.is_lost(at(5450 + tick * 50)));
        assert!(lost, "it does not speak now that we are awake");
    }

    proptest! {
        #[test]
        fn a_peer_that_speaks_every_third_of_the_time_is_never_lost(gaps in prop::collection::vec(0_u64..300, 1..100)) {
            let mut liveness = Liveness::new(TICK, at(0));
            let (mut now, mut heard) = (0, 0);
            for gap in gaps {
                heard += gap;
                while now < heard {
                    now += 50;
                    prop_assert!(!liveness.is_lost(at(now)));
                }
                liveness.heard(at(now));
            }
        }
    }
}
