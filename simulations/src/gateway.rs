//! The gateway's streams: as the real one keeps them, with what their clients have read.

use std::collections::BTreeMap;
use std::sync::Arc;

use relevo_actors::gateway::{Afterwards, Loss, Phase, Placement, StreamCore, Verdict, accused};
use relevo_actors::router::RouterEvent;
use relevo_wire::{DeviceId, GenerateRequest, Instant64, RequestError, RequestId, SequenceId, StreamEvent, TokenId};

use crate::checks::{Broken, ensure};
use crate::world::World;

/// A stream and its client.
pub(crate) struct Live {
    pub(crate) core: StreamCore,
    /// Its workers, while it has some.
    pub(crate) placement: Option<Placement>,
    pub(crate) read: Read,
    /// When it ended.
    pub(crate) ended: Option<Instant64>,
}

/// What a client has read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Read {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) num_prompt_logprobs: usize,
    pub(crate) last: Option<StreamEvent>,
}

pub(crate) type Streams = BTreeMap<RequestId, Live>;

impl World {
    pub(crate) fn admit(&mut self, request: GenerateRequest) {
        let shared = Arc::new(request.clone());
        let core = StreamCore::new(request, self.agenda.now());
        let live = Live { core, placement: None, read: Read::default(), ended: None };
        self.streams.insert(shared.sequence.request, live);
        self.tell_router(RouterEvent::Submit { request: shared, admitted: false, suspect: false });
    }

    /// What came out of a step.
    pub(crate) fn deliver(&mut self, events: Vec<(SequenceId, StreamEvent)>) -> Result<(), Broken> {
        let now = self.agenda.now();
        for (sequence, event) in events {
            let Some(live) = self.streams.get_mut(&sequence.request) else { continue };
            let is_present = live.core.sequence() == sequence;
            let mut emit = Vec::new();
            let verdict = live.core.handle(sequence.attempt, event, now, &mut emit);
            let is_heeded = !emit.is_empty() || matches!(verdict, Verdict::Started | Verdict::Over | Verdict::Lost);
            ensure(is_present || !is_heeded, || format!("{sequence} was given up, and is heeded: {verdict:?}"))?;
            live.read.take(&emit)?;
            match verdict {
                Verdict::Over => self.stream_ended(sequence),
                Verdict::Lost => self.lost(sequence, Loss::Elsewhere)?,
                Verdict::Contradicted => return Err(Broken(format!("{sequence} was told two different tokens"))),
                Verdict::Continues | Verdict::Started => {}
            }
        }
        Ok(())
    }

    /// This attempt cannot go on where it is.
    pub(crate) fn lost(&mut self, sequence: SequenceId, loss: Loss) -> Result<(), Broken> {
        let Some(live) = self.streams.get_mut(&sequence.request) else { return Ok(()) };
        match live.core.lost(sequence, loss) {
            Afterwards::Nothing => {}
            Afterwards::Replay { request, suspect } => {
                self.tally.replays += 1;
                self.note(|| format!("{sequence} is replayed{}", if suspect { ", as a suspect" } else { "" }));
                self.abort_everywhere(sequence);
                self.tell_router(RouterEvent::Ended(sequence));
                self.tell_router(RouterEvent::Submit { request, admitted: true, suspect });
            }
            Afterwards::Fail(error) => self.reject(sequence, error)?,
        }
        Ok(())
    }

    /// The router, or nobody, will serve it.
    pub(crate) fn reject(&mut self, sequence: SequenceId, error: RequestError) -> Result<(), Broken> {
        let now = self.agenda.now();
        let live = self.streams.get_mut(&sequence.request).filter(|live| live.core.sequence() == sequence);
        let Some(live) = live else { return Ok(()) };
        let mut emit = Vec::new();
        live.core.fail(error, now, &mut emit);
        live.read.take(&emit)?;
        self.abort_everywhere(sequence);
        self.stream_ended(sequence);
        Ok(())
    }

    /// Its client has gone.
    pub(crate) fn abandon(&mut self, request: RequestId) {
        let now = self.agenda.now();
        let Some(live) = self.streams.get_mut(&request).filter(|live| live.core.phase() != Phase::Over) else { return };
        live.core.abandon(now);
        let sequence = live.core.sequence();
        self.abort_everywhere(sequence);
        self.stream_ended(sequence);
    }

    /// A device's pool is gone with everything on it.
    pub(crate) fn device_lost(&mut self, device: DeviceId, stepping: &[SequenceId]) -> Result<(), Broken> {
        let suspects = stepping.iter().filter_map(|&sequence| {
            let live = self.streams.get(&sequence.request)?;
            (live.core.sequence() == sequence).then(|| (sequence, live.core.is_on_trial()))
        });
        let accused = accused(suspects.collect::<Vec<_>>().into_iter());
        let lost = self.select(|phase, placement| placement.needs_pool(phase, device));
        for sequence in lost {
            self.lost(sequence, if accused.contains(&sequence) { Loss::Stepping } else { Loss::Elsewhere })?;
        }
        Ok(())
    }

    /// The present attempts whose phase and workers match.
    pub(crate) fn select(&self, matches: impl Fn(Phase, Placement) -> bool) -> Vec<SequenceId> {
        let is_match = |live: &&Live| live.placement.is_some_and(|placement| matches(live.core.phase(), placement));
        self.streams.values().filter(is_match).map(|live| live.core.sequence()).collect()
    }

    /// Deadlines that have passed.
    pub(crate) fn sweep(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        let late = self.streams.values().filter(|live| live.core.is_late(now)).map(|live| live.core.sequence());
        for sequence in late.collect::<Vec<_>>() {
            self.reject(sequence, RequestError::DeadlineExceeded)?;
        }
        Ok(())
    }

    /// Whether this attempt has workers.
    pub(crate) fn is_placed(&self, sequence: SequenceId) -> bool {
        let live = self.streams.get(&sequence.request).filter(|live| live.core.sequence() == sequence);
        live.is_some_and(|live| live.placement.is_some())
    }

    /// The router has found workers; false if the stream, or this attempt, is gone.
    pub(crate) fn placed(&mut self, sequence: SequenceId, placement: Placement) -> bool {
        let now = self.agenda.now();
        let live = self.streams.get_mut(&sequence.request).filter(|live| live.core.sequence() == sequence);
        let Some(live) = live.filter(|live| live.core.phase() != Phase::Over) else { return false };
        live.placement = Some(placement);
        live.core.dispatched(now);
        true
    }

    /// Nobody was there to take it: it is placed again at the next tick, by this router or the next one.
    pub(crate) fn undelivered(&mut self, request: Arc<GenerateRequest>) -> Result<(), Broken> {
        let sequence = request.sequence;
        self.note(|| format!("{sequence} was not delivered"));
        let live = self.streams.get_mut(&sequence.request).filter(|live| live.core.sequence() == sequence);
        if let Some(live) = live {
            live.placement = None;
        }
        self.tally.undelivered += 1;
        self.route(RouterEvent::Ended(sequence))?;
        self.undelivered.push(request);
        Ok(())
    }

    /// What could not be delivered is placed again.
    pub(crate) fn tick_router(&mut self) -> Result<(), Broken> {
        for request in std::mem::take(&mut self.undelivered) {
            let live = self.streams.get(&request.sequence.request);
            let suspect = live.is_some_and(|live| live.core.is_on_trial());
            self.route(RouterEvent::Submit { request, admitted: true, suspect })?;
        }
        self.route(RouterEvent::Tick)
    }

    /// A new router learns who is where.
    pub(crate) fn restore_router(&mut self) -> Result<(), Broken> {
        let live = self.streams.values().filter(|live| live.core.phase() != Phase::Over);
        let events: Vec<_> = live.map(Live::for_a_new_router).collect();
        events.into_iter().try_for_each(|event| self.route(event))
    }

    fn stream_ended(&mut self, sequence: SequenceId) {
        let now = self.agenda.now();
        if let Some(live) = self.streams.get_mut(&sequence.request) {
            live.ended = Some(now);
            let end = live.core.end().cloned();
            self.note(|| format!("{sequence} ends: {end:?}"));
        }
        self.tell_router(RouterEvent::Ended(sequence));
    }

    fn abort_everywhere(&mut self, sequence: SequenceId) {
        let placement = self.streams.get_mut(&sequence.request).and_then(|live| live.placement.take());
        let Some(Placement { prefill, decode }) = placement else { return };
        self.abort_on(prefill, sequence);
        if decode != prefill {
            self.abort_on(decode, sequence);
        }
    }
}

impl Live {
    fn for_a_new_router(&self) -> RouterEvent {
        let request = Arc::new(self.core.request().clone());
        match self.placement {
            Some(Placement { prefill, decode }) => {
                RouterEvent::Placed { request, prefill, decode, started: self.core.phase() == Phase::Decoding }
            }
            None => RouterEvent::Submit { request, admitted: true, suspect: self.core.is_on_trial() },
        }
    }
}

impl Read {
    fn take(&mut self, events: &[StreamEvent]) -> Result<(), Broken> {
        for event in events {
            ensure(self.last.is_none(), || format!("{event:?} came after {:?}", self.last))?;
            match event {
                StreamEvent::Token { index, token, .. } => {
                    let expected = self.tokens.len();
                    ensure(*index as usize == expected, || format!("token {index} came, {expected} was next"))?;
                    self.tokens.push(*token);
                }
                StreamEvent::PromptLogprobs { first, logprobs } => {
                    let expected = self.num_prompt_logprobs + 1;
                    ensure(*first as usize == expected, || format!("prompt token {first}, {expected} was next"))?;
                    self.num_prompt_logprobs += logprobs.len();
                }
                StreamEvent::Prefilled { .. } => {}
                last => self.last = Some(last.clone()),
            }
        }
        Ok(())
    }
}
