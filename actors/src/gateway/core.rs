//! The keeper of one stream, pure: the request and every token emitted, kept until the stream ends, so that it can be replayed elsewhere.
//!
//! Tokens carry (attempt, index). The keeper emits the index that is next, holds back what came too early, drops repeats, and counts a
//! *different* repeat as a bug of ours.
//!
//! **Invariant:** what it emits is the tokens 0, 1, 2… without a gap or a repeat, then exactly one `Finished` or `Failed`.

use std::collections::BTreeMap;
use std::sync::Arc;

use relevo_wire::{FinishReason, GenerateRequest, Instant64, RequestError, SequenceId, StreamEvent, Usage};

use super::phases::PhaseTimes;
use crate::policy::pace::Gaps;

/// Tokens that may have overtaken the one that is next, before the attempt counts as lost.
///
/// Devices send a token a step, so a sequence that changes devices can be ahead by a few; more than this means that one went missing.
const MAX_AHEAD: usize = 64;

/// Workers that may die stepping one sequence without a token in between.
const MAX_DEATHS: u32 = 2;

/// Workers that may die stepping one sequence in all: one that kills a worker now and then, and proves itself in between, ends too.
const MAX_DEATHS_IN_ALL: u32 = 5;

/// One stream: its request, what was emitted of it, and where it stands.
#[derive(Clone, Debug)]
pub struct StreamCore {
    request: GenerateRequest,
    phase: Phase,
    next_prompt_logprob: u32,
    told_prefilled: bool,
    ahead: BTreeMap<u32, StreamEvent>,
    finish: Option<(FinishReason, Usage)>,
    num_deaths: u32,
    num_deaths_in_all: u32,
    on_trial: bool,
    outcome: Option<StreamOutcome>,
    times: PhaseTimes,
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamOutcome {
    /// Well.
    Finished(FinishReason, Usage),
    /// With an error.
    Failed(RequestError),
    /// Nobody read it any more.
    Abandoned,
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// With the router.
    Queued,
    /// With a prefill worker; nothing of this attempt has come yet.
    Prefilling,
    /// The first token of this attempt has come, which its prefill worker has drawn: that may still owe the decode worker blocks, and its word.
    HandingOver,
    /// Tokens after the first have come: its prefill worker has no part in it any more.
    Decoding,
    /// Its last event is out.
    Over,
}

/// What a stream's owner does after an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Go on.
    Continues,
    /// As [`Verdict::Continues`], and this was the first token of the attempt.
    Started,
    /// The last event is out: forget the stream.
    Over,
    /// A worker said something else than before: count it. The stream goes on with what was emitted.
    Contradicted,
    /// The attempt is lost: its events have a hole, or its worker gave it up.
    Lost,
}

/// How far a stream was with the tokens of its decode worker.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    num_tokens: usize,
    last_token: Instant64,
}

/// Whom to blame for a worker's death: of the sequences in its last step, those on trial if there are any (the router lets one at a time
/// run, beside none that is unproven), else all of them.
pub fn accused(stepping: impl Iterator<Item = (SequenceId, bool)> + Clone) -> Vec<SequenceId> {
    let any_on_trial = stepping.clone().any(|(_, on_trial)| on_trial);
    stepping.filter(|(_, on_trial)| *on_trial || !any_on_trial).map(|(sequence, _)| sequence).collect()
}

/// How a worker was lost to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Something beside the sequence failed: an actor, a lease, another device.
    Elsewhere,
    /// Its worker died in a step that it had a part in, and it is among the [`accused`].
    Stepping,
}

/// What becomes of a stream whose worker was lost.
#[derive(Clone, Debug, PartialEq)]
pub enum Afterwards {
    /// The next attempt, for the router.
    Replay {
        /// With what was emitted as `generated`.
        request: Arc<GenerateRequest>,
        /// Its worker died stepping it: let it prove itself alone.
        suspect: bool,
    },
    /// It is over: the error to send.
    Fail(RequestError),
    /// Nothing: it was over, or an older attempt.
    Nothing,
}

impl StreamCore {
    /// A stream that the router has yet to place.
    pub fn new(request: GenerateRequest, now: Instant64) -> Self {
        let times = PhaseTimes::new(now);
        let next_prompt_logprob = 1;
        Self {
            request,
            phase: Phase::Queued,
            next_prompt_logprob,
            told_prefilled: false,
            ahead: BTreeMap::new(),
            finish: None,
            num_deaths: 0,
            num_deaths_in_all: 0,
            on_trial: false,
            outcome: None,
            times,
        }
    }

    /// The request as it was asked for, in its latest attempt.
    pub fn request(&self) -> &GenerateRequest {
        &self.request
    }

    /// The attempt that counts now.
    pub fn sequence(&self) -> SequenceId {
        self.request.sequence
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// A worker died stepping it, and no token since has cleared it.
    pub fn is_on_trial(&self) -> bool {
        self.on_trial
    }

    /// How it ended, if it is over.
    pub fn end(&self) -> Option<&StreamOutcome> {
        self.outcome.as_ref()
    }

    /// When it passed which point.
    pub fn times(&self) -> &PhaseTimes {
        &self.times
    }

    /// Whether its deadline has gone by.
    pub fn is_late(&self, now: Instant64) -> bool {
        self.phase != Phase::Over && self.request.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// How far it is with the tokens of its decode worker, if it is there.
    pub fn decoded(&self) -> Option<Decoded> {
        let last_token = self.times.last_token().filter(|_| self.phase == Phase::Decoding)?;
        Some(Decoded { num_tokens: self.request.generated.len(), last_token })
    }

    /// The pauses between what was out `before` and what is out now.
    pub fn gaps_since(&self, before: Option<Decoded>, now: Instant64) -> Option<Gaps> {
        let before = before?;
        let count = u32::try_from(self.request.generated.len() - before.num_tokens).ok().filter(|count| *count > 0)?;
        Some(Gaps { count, total: now.since(before.last_token) })
    }

    /// A prefill worker has it.
    pub fn dispatched(&mut self, now: Instant64) {
        if self.phase == Phase::Queued {
            self.phase = Phase::Prefilling;
            self.times.dispatched(now);
        }
    }

    /// An event of `attempt` came from a worker. What is to be sent is appended to `emit`.
    pub fn handle(&mut self, attempt: u32, event: StreamEvent, now: Instant64, emit: &mut Vec<StreamEvent>) -> Verdict {
        if self.phase == Phase::Over {
            return Verdict::Continues;
        }
        match event {
            StreamEvent::Token { index, token, .. } if (index as usize) < self.request.generated.len() => {
                self.repeated(index, token)
            }
            // An attempt that was given up may still speak; what it would have said next, the present one says.
            _ if attempt != self.request.sequence.attempt => Verdict::Continues,
            StreamEvent::Token { index, .. } => self.token(index, event, now, emit),
            StreamEvent::PromptLogprobs { first, logprobs } => {
                self.prompt_logprobs(first, logprobs, emit);
                Verdict::Continues
            }
            StreamEvent::Prefilled { .. } => {
                if !std::mem::replace(&mut self.told_prefilled, true) {
                    emit.push(event);
                }
                Verdict::Continues
            }
            StreamEvent::Finished { reason, usage } => {
                self.finish = Some((reason, usage));
                self.end_if_complete(now, emit)
            }
            // A worker speaks for itself, not for the cluster: another one may serve.
            StreamEvent::Failed(
                RequestError::ShuttingDown | RequestError::NoWorker { .. } | RequestError::QueueFull { .. },
            ) => Verdict::Lost,
            StreamEvent::Failed(error) => {
                self.fail(error, now, emit);
                Verdict::Over
            }
        }
    }

    /// Ends it with an error, unless it is over.
    pub fn fail(&mut self, error: RequestError, now: Instant64, emit: &mut Vec<StreamEvent>) {
        if self.phase != Phase::Over {
            self.over(StreamOutcome::Failed(error.clone()), now);
            emit.push(StreamEvent::Failed(error));
        }
    }

    /// Ends it without a word: nobody reads it any more.
    pub fn abandon(&mut self, now: Instant64) {
        if self.phase != Phase::Over {
            self.over(StreamOutcome::Abandoned, now);
        }
    }

    fn over(&mut self, outcome: StreamOutcome, now: Instant64) {
        self.phase = Phase::Over;
        self.outcome = Some(outcome);
        self.times.ended(now);
    }

    /// The worker of `sequence` was lost.
    pub fn lost(&mut self, sequence: SequenceId, loss: Loss) -> Afterwards {
        if self.phase == Phase::Over || sequence != self.request.sequence {
            return Afterwards::Nothing;
        }
        if loss == Loss::Stepping {
            self.num_deaths += 1;
            self.num_deaths_in_all += 1;
            self.on_trial = true;
            if self.num_deaths >= MAX_DEATHS || self.num_deaths_in_all >= MAX_DEATHS_IN_ALL {
                return Afterwards::Fail(RequestError::Poisoned { num_deaths: self.num_deaths_in_all });
            }
        }
        self.request.sequence.attempt += 1;
        self.phase = Phase::Queued;
        self.ahead.clear();
        self.finish = None;
        Afterwards::Replay { request: Arc::new(self.request.clone()), suspect: self.on_trial }
    }

    fn repeated(&self, index: u32, token: u32) -> Verdict {
        if self.request.generated.get(index as usize) == Some(&token) {
            Verdict::Continues
        } else {
            Verdict::Contradicted
        }
    }

    fn token(&mut self, index: u32, event: StreamEvent, now: Instant64, emit: &mut Vec<StreamEvent>) -> Verdict {
        if index as usize != self.request.generated.len() {
            self.ahead.insert(index, event);
            return if self.ahead.len() > MAX_AHEAD { Verdict::Lost } else { Verdict::Continues };
        }
        let started = !matches!(self.phase, Phase::HandingOver | Phase::Decoding);
        self.on_trial = false;
        self.num_deaths = 0;
        self.emit_token(event, now, emit);
        while let Some(event) = self.ahead.remove(&self.next_index()) {
            self.emit_token(event, now, emit);
        }
        match self.end_if_complete(now, emit) {
            Verdict::Continues if started => Verdict::Started,
            verdict => verdict,
        }
    }

    fn next_index(&self) -> u32 {
        u32::try_from(self.request.generated.len()).unwrap_or(u32::MAX)
    }

    fn emit_token(&mut self, event: StreamEvent, now: Instant64, emit: &mut Vec<StreamEvent>) {
        if let StreamEvent::Token { token, .. } = event {
            self.request.generated.push(token);
            self.phase = match self.phase {
                Phase::Queued | Phase::Prefilling => Phase::HandingOver,
                Phase::HandingOver | Phase::Decoding => Phase::Decoding,
                Phase::Over => Phase::Over,
            };
            self.times.token(now);
            emit.push(event);
        }
    }

    /// A replay computes them again from the start: what was sent is cut off.
    fn prompt_logprobs(
        &mut self,
        first: u32,
        mut logprobs: Vec<relevo_wire::TokenLogprobs>,
        emit: &mut Vec<StreamEvent>,
    ) {
        let sent = (self.next_prompt_logprob.saturating_sub(first) as usize).min(logprobs.len());
        let rest = logprobs.split_off(sent);
        if rest.is_empty() {
            return;
        }
        let first = first.max(self.next_prompt_logprob);
        self.next_prompt_logprob = first.saturating_add(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        emit.push(StreamEvent::PromptLogprobs { first, logprobs: rest });
    }

    /// The end waits for tokens that it has overtaken.
    fn end_if_complete(&mut self, now: Instant64, emit: &mut Vec<StreamEvent>) -> Verdict {
        match self.finish {
            Some((reason, usage)) if self.request.generated.len() >= usage.completion_tokens as usize => {
                self.over(StreamOutcome::Finished(reason, usage), now);
                emit.push(StreamEvent::Finished { reason, usage });
                Verdict::Over
            }
            _ => Verdict::Continues,
        }
    }
}

#[cfg(test)]
#[path = "core/tests.rs"]
mod tests;
