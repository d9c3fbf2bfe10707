//! How long the steps of a [`super::ScriptedModel`] take: a line through rows and context, with seeded jitter.

use std::time::Duration;

use relevo_wire::Instant64;

use super::scripted::mix;
use crate::compute::{Piece, StepPlan};

/// Reads the time. The caller's: nothing in this crate reads a clock of its own.
pub type Clock = fn() -> Instant64;

/// Linux wakes a thread up to this much later than it asked for (`timerslack_ns`): to wait for less is to wait too long.
const TIMER_SLACK: Duration = Duration::from_micros(60);

/// The time of a step: `fixed_us + prefill_token_us · prompt rows + decode_token_us · decode rows + context_token_ns · context tokens`, give
/// or take `jitter_percent`. All 0 by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScriptedTimings {
    /// Of every step, in microseconds.
    pub fixed_us: u32,
    /// Of each prompt row, in microseconds.
    pub prefill_token_us: u32,
    /// Of each decode row, in microseconds: one row that goes on after a token that was drawn.
    pub decode_token_us: u32,
    /// Of each token that a sequence of the step has in its context when the step ends, in nanoseconds.
    pub context_token_ns: u32,
    /// A step takes up to this much more or less, in percent of its time: 0 to 100, evenly.
    pub jitter_percent: u32,
    /// Of the jitter: a step's depends on it and on the step's number.
    pub jitter_seed: u64,
}

impl ScriptedTimings {
    /// The time of a step, counted from 0.
    pub fn step_time(&self, step_index: u64, plan: &StepPlan<'_>) -> Duration {
        let (mut prefill_rows, mut decode_rows, mut context_tokens) = (0, 0, 0);
        for piece in &plan.pieces {
            let rows = piece.tokens.len() as u64;
            *(if is_decode(piece) { &mut decode_rows } else { &mut prefill_rows }) += rows;
            context_tokens += piece.start as u64 + rows;
        }
        let microseconds = u64::from(self.fixed_us)
            .saturating_add(u64::from(self.prefill_token_us).saturating_mul(prefill_rows))
            .saturating_add(u64::from(self.decode_token_us).saturating_mul(decode_rows));
        let nanoseconds = microseconds
            .saturating_mul(1000)
            .saturating_add(u64::from(self.context_token_ns).saturating_mul(context_tokens));
        Duration::from_nanos(self.with_jitter(nanoseconds, step_index))
    }

    fn with_jitter(&self, nanoseconds: u64, step_index: u64) -> u64 {
        const ONE: i128 = 1 << 32;
        // From -1 to 1, in 32 binary places.
        let draw = 2 * i128::from(mix(self.jitter_seed, step_index) >> 32) - ONE;
        let change = i128::from(nanoseconds) * i128::from(self.jitter_percent.min(100)) * draw / (100 * ONE);
        u64::try_from(i128::from(nanoseconds) + change).unwrap_or(u64::MAX)
    }
}

fn is_decode(piece: &Piece<'_>) -> bool {
    let goes_on = |generated: &[_]| !generated.is_empty();
    piece.tokens.len() == 1
        && piece.outputs.iter().any(|output| output.sample.as_ref().is_some_and(|sample| goes_on(sample.generated)))
}

/// Timings at work: what of the step in flight is due when.
pub(super) struct Pace {
    timings: ScriptedTimings,
    clock: Clock,
    began: Instant64,
    time: Duration,
}

impl Pace {
    pub(super) const fn new(timings: ScriptedTimings, clock: Clock) -> Self {
        Self { timings, clock, began: Instant64(0), time: Duration::ZERO }
    }

    pub(super) fn begin(&mut self, step_index: u64, plan: &StepPlan<'_>) {
        self.time = self.timings.step_time(step_index, plan);
        if !self.time.is_zero() {
            self.began = (self.clock)();
        }
    }

    /// Returns when this many of the step's layers are due: each takes its share. The last is never early, and late by what the system's timer
    /// is (about 60 µs); those before it may be early by as much, so that many short layers do not add up to a long step.
    pub(super) fn wait_for_layer(&self, num_done: u32, num_layers: u32) {
        if self.time.is_zero() {
            return;
        }
        let share = self.time.as_nanos() * u128::from(num_done) / u128::from(num_layers.max(1));
        let due = self.began + Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX));
        let least = if num_done < num_layers { TIMER_SLACK } else { Duration::ZERO };
        loop {
            let left = due.since((self.clock)());
            if left <= least {
                return;
            }
            // Whoever has an order for this thread unparks it; the order waits as it does while a real device computes.
            std::thread::park_timeout(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use relevo_wire::{BlockIndex, SamplingParams, TokenId};

    use super::*;
    use crate::compute::{OutputRow, SampleRow};

    const TIMINGS: ScriptedTimings = ScriptedTimings {
        fixed_us: 1000,
        prefill_token_us: 10,
        decode_token_us: 100,
        context_token_ns: 500,
        jitter_percent: 0,
        jitter_seed: 7,
    };

    fn with_plan<T>(chunks: &[(&[TokenId], usize, &[TokenId])], look: impl FnOnce(&StepPlan<'_>) -> T) -> T {
        let params = SamplingParams::default();
        let table = [BlockIndex(0); 64];
        let pieces = chunks.iter().map(|&(tokens, start, generated)| {
            let sample = Some(SampleRow { params: &params, choice: 0, prompt: &[1], generated, banned: &[] });
            let outputs = vec![OutputRow { row: tokens.len() - 1, sample, ..OutputRow::default() }];
            Piece { tokens, start, block_table: &table, outputs }
        });
        look(&StepPlan { pieces: pieces.collect() })
    }

    #[test]
    fn a_step_takes_its_fixed_time_and_that_of_its_rows_and_context() {
        let time = |chunks: &[(&[TokenId], usize, &[TokenId])]| with_plan(chunks, |plan| TIMINGS.step_time(0, plan));
        assert_eq!(time(&[(&[1; 32], 0, &[])]), Duration::from_nanos(1_000_000 + 320_000 + 16_000));
        assert_eq!(time(&[(&[1], 99, &[5])]), Duration::from_nanos(1_000_000 + 100_000 + 50_000));
        assert_eq!(time(&[(&[1], 16, &[])]), Duration::from_nanos(1_000_000 + 10_000 + 8_500), "a prompt's last row");
        let both = time(&[(&[1], 99, &[5]), (&[1; 32], 0, &[])]);
        assert_eq!(both, Duration::from_nanos(1_000_000 + 100_000 + 320_000 + 66_000));
        with_plan(&[(&[1; 32], 0, &[])], |plan| {
            assert_eq!(ScriptedTimings::default().step_time(3, plan), Duration::ZERO);
        });
    }

    #[test]
    fn jitter_is_drawn_from_the_seed_and_the_step_and_keeps_its_bounds() {
        let jittery = |jitter_seed| ScriptedTimings { fixed_us: 1000, jitter_percent: 20, jitter_seed, ..TIMINGS };
        with_plan(&[(&[1], 0, &[5])], |plan| {
            let base = TIMINGS.step_time(0, plan).as_secs_f64();
            let times: Vec<f64> = (0..1000).map(|step| jittery(7).step_time(step, plan).as_secs_f64() / base).collect();
            let again: Vec<f64> = (0..1000).map(|step| jittery(7).step_time(step, plan).as_secs_f64() / base).collect();
            assert_eq!(times, again);
            assert!(times.iter().all(|time| (0.8..=1.2).contains(time)));
            assert!(times.iter().any(|time| *time < 0.82) && times.iter().any(|time| *time > 1.18));
            let mean = times.iter().sum::<f64>() / 1000.0;
            assert!((0.98..1.02).contains(&mean), "{mean}");
            assert_ne!(jittery(8).step_time(0, plan), jittery(7).step_time(0, plan));
        });
    }

    #[test]
    fn the_largest_figures_do_not_overflow() {
        let most = u32::MAX;
        let timings = ScriptedTimings {
            fixed_us: most,
            prefill_token_us: most,
            decode_token_us: most,
            context_token_ns: most,
            jitter_percent: most,
            jitter_seed: u64::MAX,
        };
        with_plan(&[(&[1; 32], usize::MAX / 2, &[])], |plan| {
            assert!(timings.step_time(u64::MAX, plan) > Duration::from_secs(1));
        });
    }
}
