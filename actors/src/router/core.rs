//! The router's decisions, pure: admit or queue, then the cheapest pair of workers that has room.
//!
//! **Invariant:** a sequence is in exactly one place: in line, among the suspects, or in flight; and no device has more sequences in
//! flight than its limits allow. New work goes only to devices that serve by the newest map that it has seen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use relevo_wire::{
    ClusterMap, DeviceId, DeviceRole, Epoch, GenerateRequest, Instant64, MapEntry, MapVersion, NodeId, RequestError,
    SequenceId, Standing, blocks_for_tokens,
};

use super::drain_rate::DrainRate;
use super::workers::{InFlight, Workers};
use crate::policy::fairness::{Age, FairQueue, GENERATED_TOKEN_COST, PROMPT_TOKEN_COST, Waiting};
use crate::policy::hint_keys::{HintKey, HintKeyer};
use crate::policy::hints::PrefixHints;
use crate::policy::pace::{FoundSlow, Gaps};
use crate::policy::prefix_news::PrefixBatch;
use crate::policy::routing::{self, Candidate, Disaggregate, Route, RoutingRule};

/// Longest wait of a suspect for a device where nothing else is unproven; after it, it runs in any company.
const MAX_SUSPECT_WAIT: Duration = Duration::from_secs(30);

/// How long a sequence in flight waits before it asks a decode worker that has refused it again.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(20);

/// How long sequences wait for a worker to come (back) before they are told that there is none.
const NO_WORKER_PATIENCE: Duration = Duration::from_secs(10);

/// How long there must have been nobody who could serve before new requests are told so at once: a map may lack for a moment those who are on their way
/// back, such as that of a coordinator which has just begun.
const FORSAKEN_AFTER: Duration = Duration::from_secs(2);

/// Bounds of the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterLimits {
    /// Sequences that may wait.
    pub max_waiting: usize,
    /// Sequences that a device may have in flight.
    pub max_running: usize,
    /// Of these, how many may wait for their first token: enough to fill every step, few enough to keep the order here.
    pub max_prefilling: usize,
    /// Whether prefill and decode may be apart.
    pub disaggregate: Disaggregate,
    /// See [`RoutingRule`].
    pub local_prefill_below_tokens: usize,
    /// How many times as long as its peers' the pauses between a device's tokens are when its streams go elsewhere; 0: never.
    pub slow_factor: u32,
}

/// What the router knows of a worker from the cluster map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkerFacts {
    pub(super) device: DeviceId,
    /// Its prefix cache is empty at the start of each.
    pub(super) epoch: Epoch,
    /// It takes prompts.
    pub(super) prefill: bool,
    /// It generates.
    pub(super) decode: bool,
    /// Blocks of its pool.
    pub(super) num_blocks: usize,
    /// Positions that it can hold.
    pub(super) max_context: usize,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum RouterEvent {
    /// A sequence wants to be served.
    Submit {
        /// It.
        request: Arc<GenerateRequest>,
        /// It was admitted before: the bound of the line does not hold for it.
        admitted: bool,
        /// A worker died stepping it: until its first token it is the only one on its prefill device that has yet to show one.
        suspect: bool,
    },
    /// A sequence was placed by an earlier router.
    Placed {
        /// It.
        request: Arc<GenerateRequest>,
        /// Where it is prefilled.
        prefill: DeviceId,
        /// Where it decodes.
        decode: DeviceId,
        /// Its first token is out.
        started: bool,
    },
    /// Its first token is out.
    Started(SequenceId),
    /// It is over, or given up; wherever it is.
    Ended(SequenceId),
    /// Its decode worker has refused a lease.
    Refused(SequenceId),
    /// The coordinator has published: those that serve by it are the workers now, others are gone.
    Map(ClusterMap),
    /// These nodes can be reached from here, and no others. Without this event it is the node that is alone.
    Reachable(BTreeSet<NodeId>),
    /// A worker says what has changed in its prefix cache.
    PrefixChanged {
        /// Who.
        device: DeviceId,
        /// Of its pool.
        epoch: Epoch,
        /// What.
        batch: PrefixBatch,
    },
    /// What pauses were seen between the tokens of decode devices since the last such event.
    Paced(Vec<(DeviceId, Gaps)>),
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum RouterEffect {
    /// Hand it to its prefill worker.
    Dispatch {
        /// It.
        request: Arc<GenerateRequest>,
        /// Where it goes.
        route: Route,
    },
    /// Tell its prefill worker to ask another decode worker.
    Redirect {
        /// It.
        sequence: SequenceId,
        /// Where it is prefilled.
        prefill: DeviceId,
        /// Whom to ask.
        decode: DeviceId,
    },
    /// Send it again from the start: the only decode worker left is the one that prefills it for another, and waits for a lease; or the one it has is
    /// slow.
    Misplaced {
        /// It.
        sequence: SequenceId,
    },
    /// Tell the operator: a device decodes far more slowly than its peers, and is avoided for a while.
    Slow {
        /// Which.
        device: DeviceId,
        /// A pause between two of its tokens.
        gap: Duration,
        /// What it would be, were it like its peers.
        peers: Duration,
    },
    /// Tell its client.
    Reject {
        /// It.
        sequence: SequenceId,
        /// Why.
        error: RequestError,
    },
    /// Tell the keeper (again) that a node is lost: it may have let go of that node before this router knew, and sequences were placed there in
    /// between, whose tokens would not get here.
    NodeLost {
        /// Which.
        node: NodeId,
    },
    /// Ask it for all the prefixes that it holds, by [`crate::device::DeviceCommand::TellPrefixes`]. If the wish is lost, it comes again.
    ResyncPrefixes {
        /// Whom.
        device: DeviceId,
    },
}

/// The router.
#[derive(Clone, Debug)]
pub struct RouterCore {
    limits: RouterLimits,
    /// The newest map that it has seen.
    map: (u64, MapVersion),
    /// The devices of that map.
    entries: Vec<MapEntry>,
    reachable: BTreeSet<NodeId>,
    /// Since when nobody could come who would serve.
    forsaken_since: Option<Instant64>,
    workers: Workers,
    queue: FairQueue,
    waiting: BTreeMap<usize, Entry>,
    slots: BTreeMap<SequenceId, usize>,
    next_slot: usize,
    suspects: VecDeque<Entry>,
    refused: BTreeMap<SequenceId, Refusal>,
    drain: DrainRate,
}

#[derive(Clone, Debug)]
struct Entry {
    request: Arc<GenerateRequest>,
    /// Of its prompt's blocks.
    keys: Arc<[HintKey]>,
    since: Instant64,
}

#[derive(Clone, Debug)]
struct Refusal {
    by: BTreeSet<DeviceId>,
    last: Instant64,
    is_waiting: bool,
}

impl RouterCore {
    /// A router that knows no worker yet. `keyer` names prefixes as the workers do.
    pub fn new(limits: RouterLimits, keyer: HintKeyer) -> Self {
        Self {
            limits,
            map: (0, MapVersion(0)),
            entries: Vec::new(),
            reachable: BTreeSet::from([NodeId::ALONE]),
            forsaken_since: None,
            workers: Workers::new(limits, keyer),
            queue: FairQueue::default(),
            waiting: BTreeMap::new(),
            slots: BTreeMap::new(),
            next_slot: 0,
            suspects: VecDeque::new(),
            refused: BTreeMap::new(),
            drain: DrainRate::default(),
        }
    }

    /// Term and version of the newest map that it has seen.
    pub fn map(&self) -> (u64, MapVersion) {
        self.map
    }

    /// Sequences in line, suspects included.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len() + self.suspects.len()
    }

    /// Sequences with workers.
    pub fn num_in_flight(&self) -> usize {
        self.workers.num_in_flight()
    }

    /// A sequence that has workers.
    pub fn in_flight(&self, sequence: SequenceId) -> Option<Arc<GenerateRequest>> {
        self.workers.in_flight(sequence).map(|in_flight| Arc::clone(&in_flight.request))
    }

    /// What it knows of the prefixes that a worker holds.
    pub fn hints(&self, device: DeviceId) -> Option<&PrefixHints> {
        self.workers.hints(device)
    }

    /// Handles one event.
    pub fn handle(&mut self, event: RouterEvent, now: Instant64, effects: &mut Vec<RouterEffect>) {
        match event {
            RouterEvent::Submit { request, admitted, suspect } => {
                self.submit(request, Admission { admitted, suspect }, now, effects);
            }
            RouterEvent::Placed { request, prefill, decode, started } => {
                let route = Route { prefill, decode, skipped: None };
                let sequence = request.sequence;
                let keys = self.workers.keys_of(&request);
                self.workers.place(InFlight::new(request, keys, route, false));
                if started {
                    self.workers.started(sequence);
                }
                // The earlier router may not have known.
                self.tell_of_lost(BTreeSet::from([prefill.node(), decode.node()]), effects);
            }
            RouterEvent::Started(sequence) => {
                self.refused.remove(&sequence);
                self.workers.started(sequence);
            }
            RouterEvent::Ended(sequence) => self.ended(sequence, now),
            RouterEvent::Refused(sequence) => self.refused(sequence, now),
            RouterEvent::Map(map) => {
                self.adopt(map);
                self.ask_for_prefixes(now, effects);
            }
            RouterEvent::Reachable(nodes) => {
                let before = std::mem::replace(&mut self.reachable, nodes);
                self.tell_of_lost(before, effects);
                self.update_workers();
                self.ask_for_prefixes(now, effects);
            }
            RouterEvent::PrefixChanged { device, epoch, batch } => {
                self.workers.prefix_changed(device, epoch, &batch, now);
                // Nobody who waits has more room by it.
                return self.ask_for_prefixes(now, effects);
            }
            RouterEvent::Paced(paces) => {
                for (device, gaps) in paces {
                    self.paced(device, gaps, now, effects);
                }
            }
            RouterEvent::Tick => {
                self.workers.tick(now);
                self.ask_for_prefixes(now, effects);
                self.give_up_waiting(now, effects);
            }
        }
        self.forsaken_since = self.is_forsaken().then(|| self.forsaken_since.unwrap_or(now));
        self.retry_refused(now, effects);
        self.dispatch_suspects(now, effects);
        self.dispatch_waiting(now, effects);
    }

    /// An older map is one that was overtaken, or of a coordinator that has been replaced.
    fn adopt(&mut self, map: ClusterMap) {
        if (map.term, map.version) <= self.map {
            return;
        }
        self.map = (map.term, map.version);
        self.entries = map.devices;
        self.update_workers();
    }

    /// The workers are those that serve and can be reached. A role that none of them plays is played by all that are able.
    fn update_workers(&mut self) {
        let is_there = |entry: &&MapEntry| self.is_reachable(entry) && entry.standing == Standing::Serving;
        let serving: Vec<&MapEntry> = self.entries.iter().filter(is_there).collect();
        let is_played = |role| serving.iter().any(|entry| entry.facts.roles.contains(&role));
        let (prefill, decode) = (is_played(DeviceRole::Prefill), is_played(DeviceRole::Decode));
        let workers: Vec<_> = serving.iter().map(|entry| worker(entry, prefill, decode)).collect();
        self.workers.update(&workers);
    }

    /// Those of them that cannot be reached.
    fn tell_of_lost(&self, nodes: BTreeSet<NodeId>, effects: &mut Vec<RouterEffect>) {
        effects.extend(nodes.difference(&self.reachable).map(|&node| RouterEffect::NodeLost { node }));
    }

    fn is_reachable(&self, entry: &MapEntry) -> bool {
        self.reachable.contains(&entry.facts.device.node())
    }

    /// Whether there has been nobody for a while: who asks now need not wait to be told.
    fn has_long_been_forsaken(&self, now: Instant64) -> bool {
        self.forsaken_since.is_some_and(|since| now.since(since) >= FORSAKEN_AFTER)
    }

    /// Whether there is none that serves, and none that is about to.
    fn is_forsaken(&self) -> bool {
        let may_come = |role| {
            let may = |entry: &MapEntry| self.is_reachable(entry) && entry.facts.able.contains(&role);
            self.entries.iter().any(may)
        };
        self.map > (0, MapVersion(0)) && !(may_come(DeviceRole::Prefill) && may_come(DeviceRole::Decode))
    }

    fn ask_for_prefixes(&mut self, now: Instant64, effects: &mut Vec<RouterEffect>) {
        effects.extend(self.workers.ask_for_prefixes(now).map(|device| RouterEffect::ResyncPrefixes { device }));
    }

    /// A stream that goes elsewhere costs a re-prefill, as if its device had died.
    fn paced(&mut self, device: DeviceId, gaps: Gaps, now: Instant64, effects: &mut Vec<RouterEffect>) {
        let Some((FoundSlow { gap, peers }, moved)) = self.workers.paced(device, gaps, now) else { return };
        effects.push(RouterEffect::Slow { device, gap, peers });
        effects.extend(moved.into_iter().map(|sequence| RouterEffect::Misplaced { sequence }));
    }

    fn submit(
        &mut self,
        request: Arc<GenerateRequest>,
        admission: Admission,
        now: Instant64,
        effects: &mut Vec<RouterEffect>,
    ) {
        let sequence = request.sequence;
        // A router that was restarted finds it in the gateway's keeping, and perhaps again in its own mailbox.
        if self.has(sequence) {
            return;
        }
        if let Some(error) = self.never_fits(&request) {
            effects.push(RouterEffect::Reject { sequence, error });
            return;
        }
        if !admission.admitted && self.has_long_been_forsaken(now) {
            let error = RequestError::NoWorker { retry_after: NO_WORKER_PATIENCE };
            effects.push(RouterEffect::Reject { sequence, error });
            return;
        }
        let keys = self.workers.keys_of(&request);
        let entry = Entry { request, keys, since: now };
        if admission.suspect {
            self.suspects.push_back(entry);
            return;
        }
        // What has room at once does not count as waiting.
        let is_free = || self.num_waiting() == 0 && self.route(&entry).is_some();
        if !admission.admitted && self.num_waiting() >= self.limits.max_waiting && !is_free() {
            let error = RequestError::QueueFull {
                num_waiting: self.num_waiting(),
                limit: self.limits.max_waiting,
                retry_after: self.drain.time_for(1),
            };
            effects.push(RouterEffect::Reject { sequence, error });
            return;
        }
        self.enqueue(entry);
    }

    fn has(&self, sequence: SequenceId) -> bool {
        self.slots.contains_key(&sequence)
            || self.workers.in_flight(sequence).is_some()
            || self.suspects.iter().any(|entry| entry.request.sequence == sequence)
    }

    fn enqueue(&mut self, entry: Entry) {
        let slot = self.next_slot;
        self.next_slot += 1;
        self.queue.push(waiting(&entry.request, slot));
        self.slots.insert(entry.request.sequence, slot);
        self.waiting.insert(slot, entry);
    }

    /// Only a device that is known can say that it is too small: while none is, everybody waits.
    fn never_fits(&self, request: &GenerateRequest) -> Option<RequestError> {
        let num_tokens = request.prompt.len() + request.max_tokens as usize;
        let max_context = self.workers.facts().map(|facts| facts.max_context).max()?;
        if num_tokens > max_context {
            return Some(RequestError::ContextTooLong { num_tokens, max_context });
        }
        let num_blocks = blocks_for_tokens(num_tokens);
        let pool_blocks = self.workers.facts().map(|facts| facts.num_blocks).max()?;
        (num_blocks > pool_blocks).then_some(RequestError::KvPoolTooSmall { num_blocks, pool_blocks })
    }

    fn ended(&mut self, sequence: SequenceId, now: Instant64) {
        self.refused.remove(&sequence);
        if let Some(entry) = self.slots.remove(&sequence).and_then(|slot| {
            let entry = self.waiting.remove(&slot)?;
            self.queue.remove(waiting(&entry.request, slot));
            Some(entry)
        }) {
            drop(entry);
        } else if self.workers.remove(sequence) {
            self.drain.ended(now);
        } else {
            self.suspects.retain(|entry| entry.request.sequence != sequence);
        }
    }

    fn refused(&mut self, sequence: SequenceId, now: Instant64) {
        // One that has started has had its lease.
        let Some(in_flight) = self.workers.in_flight(sequence).filter(|in_flight| !in_flight.started) else { return };
        let refusal = self.refused.entry(sequence).or_insert_with(|| Refusal {
            by: BTreeSet::new(),
            last: now,
            is_waiting: true,
        });
        refusal.by.insert(in_flight.route.decode);
        refusal.last = now;
        refusal.is_waiting = true;
    }

    /// Another decode worker at once if there is one; else the same ones again after a while.
    fn retry_refused(&mut self, now: Instant64, effects: &mut Vec<RouterEffect>) {
        let waiting: Vec<_> =
            self.refused.iter().filter(|(_, refusal)| refusal.is_waiting).map(|(&sequence, _)| sequence).collect();
        for sequence in waiting {
            let Some(refusal) = self.refused.get_mut(&sequence) else { continue };
            let mut decode = self.workers.other_decode(sequence, &refusal.by);
            if decode.is_none() && now.since(refusal.last) >= REFUSAL_PATIENCE {
                refusal.by.clear();
                decode = self.workers.other_decode(sequence, &refusal.by);
            }
            let Some(decode) = decode else {
                if self.workers.is_left_alone(sequence) {
                    refusal.is_waiting = false;
                    effects.push(RouterEffect::Misplaced { sequence });
                }
                continue;
            };
            refusal.is_waiting = false;
            if let Some(prefill) = self.workers.redirect(sequence, decode) {
                effects.push(RouterEffect::Redirect { sequence, prefill, decode });
            }
        }
    }

    /// A suspect goes before all others, and nothing unproven beside it, until its first token shows that it is harmless: should its
    /// worker die before, there is no doubt whose step it was.
    fn dispatch_suspects(&mut self, now: Instant64, effects: &mut Vec<RouterEffect>) {
        while let Some(entry) = self.suspects.front() {
            let impatient = now.since(entry.since) >= MAX_SUSPECT_WAIT;
            let candidates = self.workers.candidates(&entry.request, &entry.keys, !impatient);
            let Some(route) = self.choose(&entry.request, &candidates) else { return };
            let Some(entry) = self.suspects.pop_front() else { return };
            self.dispatch(entry, route, !impatient, effects);
        }
    }

    fn dispatch_waiting(&mut self, now: Instant64, effects: &mut Vec<RouterEffect>) {
        // Suspects wait for a device to run dry; new work would keep it from that.
        let held_back = self.suspects.front().is_some_and(|entry| now.since(entry.since) < MAX_SUSPECT_WAIT);
        if held_back && !self.workers.has_room_beside_suspects() {
            return;
        }
        while let Some(next) = self.queue.pop() {
            let route = self.waiting.get(&next.slot).and_then(|entry| self.route(entry));
            let Some(route) = route else {
                self.queue.push(next);
                return;
            };
            let Some(entry) = self.waiting.remove(&next.slot) else { continue };
            self.slots.remove(&entry.request.sequence);
            self.queue.charge(next.tenant, service(&entry.request));
            self.dispatch(entry, route, false, effects);
        }
    }

    fn route(&self, entry: &Entry) -> Option<Route> {
        self.choose(&entry.request, &self.workers.candidates(&entry.request, &entry.keys, false))
    }

    fn choose(&self, request: &GenerateRequest, candidates: &[Candidate]) -> Option<Route> {
        let RouterLimits { disaggregate, local_prefill_below_tokens, .. } = self.limits;
        let rule = RoutingRule { disaggregate, local_prefill_below_tokens };
        routing::choose(candidates, request.num_context_tokens(), rule)
    }

    fn dispatch(&mut self, entry: Entry, route: Route, exclusive: bool, effects: &mut Vec<RouterEffect>) {
        let Entry { request, keys, .. } = entry;
        self.workers.place(InFlight::new(Arc::clone(&request), keys, route, exclusive));
        effects.push(RouterEffect::Dispatch { request, route });
    }

    fn give_up_waiting(&mut self, now: Instant64, effects: &mut Vec<RouterEffect>) {
        if self.workers.can_serve() {
            return;
        }
        let is_tired = |entry: &Entry| now.since(entry.since) >= NO_WORKER_PATIENCE;
        let tired: Vec<_> = self.waiting.values().chain(&self.suspects).filter(|entry| is_tired(entry)).collect();
        let tired: Vec<_> = tired.into_iter().map(|entry| entry.request.sequence).collect();
        for sequence in tired {
            self.ended(sequence, now);
            let error = RequestError::NoWorker { retry_after: NO_WORKER_PATIENCE };
            effects.push(RouterEffect::Reject { sequence, error });
        }
    }
}

/// `prefill`, `decode`: whether anybody plays the role.
fn worker(entry: &MapEntry, prefill: bool, decode: bool) -> WorkerFacts {
    let facts = &entry.facts;
    let plays = |role, is_played: bool| (if is_played { &facts.roles } else { &facts.able }).contains(&role);
    WorkerFacts {
        device: facts.device,
        epoch: facts.epoch,
        prefill: plays(DeviceRole::Prefill, prefill),
        decode: plays(DeviceRole::Decode, decode),
        num_blocks: facts.num_blocks,
        max_context: facts.max_context,
    }
}

struct Admission {
    admitted: bool,
    suspect: bool,
}

fn waiting(request: &GenerateRequest, slot: usize) -> Waiting {
    Waiting { priority: request.priority, tenant: request.tenant, age: Age(slot as u64), slot }
}

/// What a request will cost its tenant, if it generates all that it may.
fn service(request: &GenerateRequest) -> u64 {
    PROMPT_TOKEN_COST * request.num_context_tokens() as u64 + GENERATED_TOKEN_COST * u64::from(request.max_tokens)
}

#[cfg(test)]
#[path = "core/tests.rs"]
mod tests;
