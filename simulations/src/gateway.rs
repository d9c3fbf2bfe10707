//! The gateways' streams: as the real ones keep them, with what their clients have read.

use std::collections::BTreeMap;
use std::sync::Arc;

use relevo_actors::device::DeviceRole;
use relevo_actors::gateway::{Afterwards, Loss, Phase, Placement, StreamCore, Verdict, accused};
use relevo_actors::policy::pace::Gaps;
use relevo_actors::router::{RouterCore, RouterEvent};
use relevo_wire::{
    DeviceId, GenerateRequest, Instant64, NodeId, RequestError, RequestId, SequenceId, Stepping, StreamEvent, TokenId,
};

use crate::agenda::Place;
use crate::checks::{Broken, ensure};
use crate::world::World;

/// A gateway: its router, and the streams that outlive it.
pub(crate) struct Gateway {
    pub(crate) node: usize,
    pub(crate) router: RouterCore,
    /// How often the router was started.
    pub(crate) router_life: u64,
    /// What it could not deliver, and will place again.
    pub(crate) undelivered: Vec<Arc<GenerateRequest>>,
    pub(crate) streams: Streams,
    /// Pauses between tokens that the router has not been told of.
    paces: BTreeMap<DeviceId, Gaps>,
}

impl Gateway {
    pub(crate) fn new(node: usize, router: RouterCore) -> Self {
        Self { node, router, router_life: 0, undelivered: Vec::new(), streams: Streams::new(), paces: BTreeMap::new() }
    }
}

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
    /// The gateway that keeps the streams of a request, if it is there.
    pub(crate) fn gateway_of(&self, request: RequestId) -> Option<usize> {
        self.gateways.iter().position(|gateway| self.nodes[gateway.node].id == request.gateway())
    }

    /// The gateway of a node, if it has one.
    pub(crate) fn gateway_on(&self, node: usize) -> Option<usize> {
        self.gateways.iter().position(|gateway| gateway.node == node)
    }

    /// A request has come to its gateway.
    pub(crate) fn admit(&mut self, request: GenerateRequest) {
        let Some(gateway) = self.gateway_of(request.sequence.request) else { return };
        if !self.nodes[self.gateways[gateway].node].is_up {
            self.turned_away.insert(request.sequence.request);
            return;
        }
        let shared = Arc::new(request.clone());
        let core = StreamCore::new(request, self.agenda.now());
        let live = Live { core, placement: None, read: Read::default(), ended: None };
        self.gateways[gateway].streams.insert(shared.sequence.request, live);
        self.tell_router(gateway, RouterEvent::Submit { request: shared, admitted: false, suspect: false });
    }

    /// What came out of a step on a node. What that says of sequences that are with others now is passed over.
    pub(crate) fn deliver(
        &mut self,
        gateway: usize,
        from: usize,
        events: Vec<(SequenceId, StreamEvent)>,
    ) -> Result<(), Broken> {
        let (now, from) = (self.agenda.now(), self.nodes[from].id);
        for (sequence, event) in events {
            let Gateway { streams, paces, .. } = &mut self.gateways[gateway];
            let Some(live) = streams.get_mut(&sequence.request) else { continue };
            let is_present = live.core.sequence() == sequence;
            if is_present && live.placement.is_some_and(|placement| !placement.is_on(from)) {
                continue;
            }
            let mut emit = Vec::new();
            let decoded = live.core.decoded();
            let verdict = live.core.handle(sequence.attempt, event, now, &mut emit);
            if let (Some(gaps), Some(placement)) = (live.core.gaps_since(decoded, now), live.placement) {
                paces.entry(placement.decode).or_default().add(gaps);
            }
            let is_heeded = !emit.is_empty() || matches!(verdict, Verdict::Started | Verdict::Over | Verdict::Lost);
            ensure(is_present || !is_heeded, || format!("{sequence} was given up, and is heeded: {verdict:?}"))?;
            live.read.take(&emit)?;
            let num_read = live.read.tokens.len();
            self.sees_tokens(sequence, num_read);
            match verdict {
                Verdict::Over => self.stream_ended(gateway, sequence),
                Verdict::Lost => self.lost(gateway, sequence, Loss::Elsewhere)?,
                Verdict::Contradicted => return Err(Broken(format!("{sequence} was told two different tokens"))),
                Verdict::Continues | Verdict::Started => {}
            }
        }
        Ok(())
    }

    /// This attempt cannot go on where it is.
    pub(crate) fn lost(&mut self, gateway: usize, sequence: SequenceId, loss: Loss) -> Result<(), Broken> {
        let Some(live) = self.gateways[gateway].streams.get_mut(&sequence.request) else { return Ok(()) };
        match live.core.lost(sequence, loss) {
            Afterwards::Nothing => {}
            Afterwards::Replay { request, suspect } => {
                self.tally.replays += 1;
                self.note(|| format!("{sequence} is replayed{}", if suspect { ", as a suspect" } else { "" }));
                self.abort_everywhere(gateway, sequence);
                self.tell_router(gateway, RouterEvent::Ended(sequence));
                self.tell_router(gateway, RouterEvent::Submit { request, admitted: true, suspect });
            }
            Afterwards::Fail(error) => self.reject(gateway, sequence, error)?,
        }
        Ok(())
    }

    /// The router, or nobody, will serve it.
    pub(crate) fn reject(&mut self, gateway: usize, sequence: SequenceId, error: RequestError) -> Result<(), Broken> {
        let now = self.agenda.now();
        let Some(live) = self.present(gateway, sequence) else { return Ok(()) };
        let mut emit = Vec::new();
        live.core.fail(error, now, &mut emit);
        live.read.take(&emit)?;
        self.abort_everywhere(gateway, sequence);
        self.stream_ended(gateway, sequence);
        Ok(())
    }

    /// Its client has gone.
    pub(crate) fn abandon(&mut self, request: RequestId) {
        let now = self.agenda.now();
        let Some(gateway) = self.gateway_of(request) else { return };
        let live = self.gateways[gateway].streams.get_mut(&request);
        let Some(live) = live.filter(|live| live.core.phase() != Phase::Over) else { return };
        live.core.abandon(now);
        let sequence = live.core.sequence();
        self.abort_everywhere(gateway, sequence);
        self.stream_ended(gateway, sequence);
    }

    /// The stream of this attempt, if it is the present one.
    fn present(&mut self, gateway: usize, sequence: SequenceId) -> Option<&mut Live> {
        let live = self.gateways[gateway].streams.get_mut(&sequence.request);
        live.filter(|live| live.core.sequence() == sequence)
    }

    /// A device's pool is gone with everything on it.
    pub(crate) fn device_lost(&mut self, gateway: usize, device: DeviceId, stepping: &Stepping) -> Result<(), Broken> {
        let stepping = match stepping {
            Stepping::Nothing => Vec::new(),
            Stepping::These(sequences) => sequences.clone(),
            Stepping::AllThatRun => self.select(gateway, |phase, placement| placement.steps_on(phase, device)),
        };
        let streams = &self.gateways[gateway].streams;
        let suspects = stepping.iter().filter_map(|&sequence| {
            let live = streams.get(&sequence.request)?;
            (live.core.sequence() == sequence).then(|| (sequence, live.core.is_on_trial()))
        });
        let accused = accused(suspects.collect::<Vec<_>>().into_iter());
        let lost = self.select(gateway, |phase, placement| placement.needs_pool(phase, device));
        for sequence in lost {
            self.lost(gateway, sequence, if accused.contains(&sequence) { Loss::Stepping } else { Loss::Elsewhere })?;
        }
        Ok(())
    }

    /// The actor of a role of a device is gone.
    pub(crate) fn role_lost(&mut self, gateway: usize, device: DeviceId, role: DeviceRole) -> Result<(), Broken> {
        let lost = self.select(gateway, |phase, placement| placement.needs_actor(phase, device, role));
        lost.into_iter().try_for_each(|sequence| self.lost(gateway, sequence, Loss::Elsewhere))
    }

    /// A node cannot be reached any more: whatever of its devices a sequence needs is gone for it.
    pub(crate) fn node_lost(&mut self, gateway: usize, node: NodeId) -> Result<(), Broken> {
        let lost = self.select(gateway, |phase, placement| placement.needs_node(phase, node));
        lost.into_iter().try_for_each(|sequence| self.lost(gateway, sequence, Loss::Elsewhere))
    }

    /// Whether this attempt is with a device of that node.
    pub(crate) fn is_with(&self, gateway: usize, sequence: SequenceId, node: usize) -> bool {
        let live = self.gateways[gateway].streams.get(&sequence.request);
        let live = live.filter(|live| live.core.sequence() == sequence);
        live.is_some_and(|live| live.placement.is_some_and(|placement| placement.is_on(self.nodes[node].id)))
    }

    /// The present attempts whose phase and workers match.
    pub(crate) fn select(&self, gateway: usize, matches: impl Fn(Phase, Placement) -> bool) -> Vec<SequenceId> {
        let is_match = |live: &&Live| live.placement.is_some_and(|placement| matches(live.core.phase(), placement));
        self.gateways[gateway].streams.values().filter(is_match).map(|live| live.core.sequence()).collect()
    }

    /// Deadlines that have passed.
    pub(crate) fn sweep(&mut self, gateway: usize) -> Result<(), Broken> {
        let now = self.agenda.now();
        let streams = self.gateways[gateway].streams.values();
        let late = streams.filter(|live| live.core.is_late(now)).map(|live| live.core.sequence());
        for sequence in late.collect::<Vec<_>>() {
            self.reject(gateway, sequence, RequestError::DeadlineExceeded)?;
        }
        Ok(())
    }

    /// Whether this attempt has workers.
    pub(crate) fn is_placed(&self, gateway: usize, sequence: SequenceId) -> bool {
        let live =
            self.gateways[gateway].streams.get(&sequence.request).filter(|live| live.core.sequence() == sequence);
        live.is_some_and(|live| live.placement.is_some())
    }

    /// The router has found workers; false if the stream, or this attempt, is gone.
    pub(crate) fn placed(&mut self, gateway: usize, sequence: SequenceId, placement: Placement) -> bool {
        let now = self.agenda.now();
        let Some(live) = self.present(gateway, sequence).filter(|live| live.core.phase() != Phase::Over) else {
            return false;
        };
        live.placement = Some(placement);
        live.core.dispatched(now);
        true
    }

    /// Nobody was there to take it: it is placed again at the next tick, by this router or the next one.
    pub(crate) fn undelivered(&mut self, gateway: usize, sequence: SequenceId) -> Result<(), Broken> {
        // One that is not in flight has been given up meanwhile.
        let Some(request) = self.gateways[gateway].router.in_flight(sequence) else { return Ok(()) };
        self.note(|| format!("{sequence} was not delivered"));
        if let Some(live) = self.present(gateway, sequence) {
            live.placement = None;
        }
        self.tally.undelivered += 1;
        self.route(gateway, RouterEvent::Ended(sequence))?;
        self.gateways[gateway].undelivered.push(request);
        Ok(())
    }

    /// What could not be delivered is placed again.
    pub(crate) fn tick_router(&mut self, gateway: usize) -> Result<(), Broken> {
        for request in std::mem::take(&mut self.gateways[gateway].undelivered) {
            let live = self.gateways[gateway].streams.get(&request.sequence.request);
            let suspect = live.is_some_and(|live| live.core.is_on_trial());
            self.route(gateway, RouterEvent::Submit { request, admitted: true, suspect })?;
        }
        let paces: Vec<_> = std::mem::take(&mut self.gateways[gateway].paces).into_iter().collect();
        if !paces.is_empty() {
            self.route(gateway, RouterEvent::Paced(paces))?;
        }
        self.route(gateway, RouterEvent::Tick)
    }

    /// A new router learns who is where.
    pub(crate) fn restore_router(&mut self, gateway: usize) -> Result<(), Broken> {
        let live = self.gateways[gateway].streams.values().filter(|live| live.core.phase() != Phase::Over);
        let events: Vec<_> = live.map(Live::for_a_new_router).collect();
        events.into_iter().try_for_each(|event| self.route(gateway, event))
    }

    pub(crate) fn tell_router(&mut self, gateway: usize, event: RouterEvent) {
        self.send_to_router(gateway, Place::Gateway(gateway), event);
    }

    fn stream_ended(&mut self, gateway: usize, sequence: SequenceId) {
        let now = self.agenda.now();
        if let Some(live) = self.gateways[gateway].streams.get_mut(&sequence.request) {
            live.ended = Some(now);
            let end = live.core.end().cloned();
            self.note(|| format!("{sequence} ends: {end:?}"));
        }
        self.tell_router(gateway, RouterEvent::Ended(sequence));
    }

    fn abort_everywhere(&mut self, gateway: usize, sequence: SequenceId) {
        let live = self.gateways[gateway].streams.get_mut(&sequence.request);
        let placement = live.and_then(|live| live.placement.take());
        let Some(Placement { prefill, decode }) = placement else { return };
        self.abort_from(gateway, prefill, sequence);
        if decode != prefill {
            self.abort_from(gateway, decode, sequence);
        }
    }
}

impl Live {
    fn for_a_new_router(&self) -> RouterEvent {
        let request = Arc::new(self.core.request().clone());
        match self.placement {
            Some(Placement { prefill, decode }) => {
                let started = matches!(self.core.phase(), Phase::HandingOver | Phase::Decoding);
                RouterEvent::Placed { request, prefill, decode, started }
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
