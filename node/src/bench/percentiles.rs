//! Percentiles of what was measured.

use std::time::Duration;

/// Three percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(super) struct Percentiles {
    /// Half are at most this.
    pub(super) p50: f64,
    /// Nine of ten.
    pub(super) p90: f64,
    /// 99 of 100.
    pub(super) p99: f64,
}

impl Percentiles {
    /// Of these samples, by linear interpolation between the two nearest ranks (numpy's default). `None` if there are none.
    pub(super) fn of(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let at = |fraction: f64| {
            let place = fraction * (samples.len() - 1) as f64;
            let (below, above) = (samples[place.floor() as usize], samples[place.ceil() as usize]);
            let milliseconds = |span: Duration| span.as_secs_f64() * 1e3;
            let exact = milliseconds(below) + (milliseconds(above) - milliseconds(below)) * place.fract();
            (exact * 1e3).round() / 1e3
        };
        (!samples.is_empty()).then(|| Self { p50: at(0.50), p90: at(0.90), p99: at(0.99) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_that_numpy_gives() {
        // numpy.percentile(range(1, 102), [50, 90, 99]) and numpy.percentile([10, 20], …)
        let hundred: Vec<_> = (1..=101).rev().map(Duration::from_millis).collect();
        assert_eq!(Percentiles::of(hundred), Some(Percentiles { p50: 51.0, p90: 91.0, p99: 100.0 }));
        let two = vec![Duration::from_millis(20), Duration::from_millis(10)];
        assert_eq!(Percentiles::of(two), Some(Percentiles { p50: 15.0, p90: 19.0, p99: 19.9 }));
        assert_eq!(Percentiles::of(Vec::new()), None);
    }
}
