//! How many bytes a second go over a link, from a count of all of them.

use std::time::Duration;

use relevo_wire::Instant64;

/// The stretch that a rate is of.
const STRETCH: Duration = Duration::from_secs(1);

/// A count that was looked at, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    total: u64,
    since: Instant64,
}

impl Rate {
    /// From here on, where the count is `total`.
    pub(crate) const fn new(total: u64, now: Instant64) -> Self {
        Self { total, since: now }
    }

    /// The rate of the stretch that is over, if one is. A count that begins anew makes one stretch too low.
    pub(crate) fn at(&mut self, total: u64, now: Instant64) -> Option<u64> {
        let took = now.since(self.since);
        if took < STRETCH {
            return None;
        }
        let bytes = u128::from(total.saturating_sub(self.total));
        *self = Self::new(total, now);
        Some(u64::try_from(bytes * 1_000_000_000 / took.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant64 {
        Instant64(millis * 1_000_000)
    }

    #[test]
    fn a_rate_is_told_once_a_second_and_of_that_second() {
        let mut rate = Rate::new(1000, at(0));
        assert_eq!(rate.at(5000, at(999)), None);
        assert_eq!(rate.at(5000, at(1000)), Some(4000));
        assert_eq!(rate.at(6000, at(1500)), None);
        assert_eq!(rate.at(6000, at(3000)), Some(500));
        assert_eq!(rate.at(6000, at(4000)), Some(0));
    }

    #[test]
    fn a_count_that_begins_anew_is_no_rate_below_zero() {
        let mut rate = Rate::new(1000, at(0));
        assert_eq!(rate.at(10, at(2000)), Some(0));
        assert_eq!(rate.at(u64::MAX, at(3000)), Some(u64::MAX - 10));
    }
}
