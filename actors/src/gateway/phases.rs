//! When a stream passed which point, for the latency metrics.

use std::time::Duration;

use relevo_wire::Instant64;

/// The points in time of one stream. Replays do not turn them back: the client waited all the while.
#[derive(Clone, Copy, Debug, Default)]
pub struct PhaseTimes {
    submitted: Instant64,
    dispatched: Option<Instant64>,
    first_token: Option<Instant64>,
    last_token: Option<Instant64>,
    ended: Option<Instant64>,
    num_tokens: u32,
}

impl PhaseTimes {
    /// Submitted now.
    pub fn new(now: Instant64) -> Self {
        Self { submitted: now, ..Self::default() }
    }

    pub(super) fn dispatched(&mut self, now: Instant64) {
        self.dispatched.get_or_insert(now);
    }

    pub(super) fn token(&mut self, now: Instant64) {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.num_tokens += 1;
    }

    pub(super) fn ended(&mut self, now: Instant64) {
        self.ended.get_or_insert(now);
    }

    /// The last token's time; submission before the first.
    pub fn last_token(&self) -> Option<Instant64> {
        self.last_token
    }

    /// From submission to a prefill worker.
    pub fn queue(&self) -> Option<Duration> {
        self.dispatched.map(|at| at.since(self.submitted))
    }

    /// From the prefill worker to the first token.
    pub fn prefill(&self) -> Option<Duration> {
        Some(self.first_token?.since(self.dispatched?))
    }

    /// From the first token to the last.
    pub fn decode(&self) -> Option<Duration> {
        Some(self.last_token?.since(self.first_token?))
    }

    /// From submission to the first token.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        self.first_token.map(|at| at.since(self.submitted))
    }

    /// The mean time between two tokens; nothing with less than two.
    pub fn time_per_output_token(&self) -> Option<Duration> {
        self.decode()?.checked_div(self.num_tokens.checked_sub(1)?)
    }

    /// From submission to the end.
    pub fn end_to_end(&self) -> Option<Duration> {
        self.ended.map(|at| at.since(self.submitted))
    }
}
