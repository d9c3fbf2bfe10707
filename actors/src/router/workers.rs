//! The workers as the router sees them: what is in flight where, who has room, who holds what.
//!
//! **Invariant:** the load of a device is the sum over what is in flight there, kept up at each change, so that to route a request takes a
//! time that depends on the number of workers alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use relevo_wire::{BLOCK_TOKENS, DeviceId, Epoch, GenerateRequest, Instant64, SequenceId, blocks_for_tokens};

use super::core::{RouterLimits, WorkerFacts};
use super::load::Load;
use crate::policy::hint_keys::{HintKey, HintKeyer};
use crate::policy::hints::{Heard, PrefixHints};
use crate::policy::pace::{FoundSlow, Gaps, Paces, Work};
use crate::policy::prefix_news::PrefixBatch;
use crate::policy::routing::{Candidate, Route};

/// How long a worker may take to answer a wish for its prefixes, or between two parts of the answer, before it is asked again: it answers
/// within a step, and a step of a large model takes a CPU about so long.
pub(super) const RESYNC_PATIENCE: Duration = Duration::from_secs(1);

/// The workers.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    limits: RouterLimits,
    keyer: HintKeyer,
    workers: BTreeMap<DeviceId, Worker>,
    in_flight: BTreeMap<SequenceId, InFlight>,
    /// Of the devices that have something in flight, whether or not they are workers at present.
    loads: BTreeMap<DeviceId, Load>,
    paces: Paces,
}

#[derive(Clone, Debug)]
struct Worker {
    facts: WorkerFacts,
    /// The latest that it was heard of, from itself or from the map: what it holds is of this one.
    epoch: Epoch,
    hints: PrefixHints,
    /// When it was asked for all its prefixes, or has last answered.
    asked: Option<Instant64>,
}

/// A sequence with its workers.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) request: Arc<GenerateRequest>,
    pub(super) keys: Arc<[HintKey]>,
    pub(super) route: Route,
    pub(super) started: bool,
    /// Nobody else may join it on its prefill device until it has started.
    pub(super) exclusive: bool,
}

impl InFlight {
    pub(super) fn new(request: Arc<GenerateRequest>, keys: Arc<[HintKey]>, route: Route, exclusive: bool) -> Self {
        Self { request, keys, route, started: false, exclusive }
    }
}

impl Workers {
    pub(super) fn new(limits: RouterLimits, keyer: HintKeyer) -> Self {
        Self {
            limits,
            keyer,
            workers: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            loads: BTreeMap::new(),
            paces: Paces::new(limits.slow_factor),
        }
    }

    pub(super) fn facts(&self) -> impl Iterator<Item = &WorkerFacts> {
        self.workers.values().map(|worker| &worker.facts)
    }

    pub(super) fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn in_flight(&self, sequence: SequenceId) -> Option<&InFlight> {
        self.in_flight.get(&sequence)
    }

    /// Whether any pair of workers is there at all.
    pub(super) fn can_serve(&self) -> bool {
        self.facts().any(|facts| facts.prefill) && self.facts().any(|facts| facts.decode)
    }

    pub(super) fn update(&mut self, facts: &[WorkerFacts]) {
        self.workers.retain(|device, _| facts.iter().any(|facts| facts.device == *device));
        for &facts in facts {
            let worker = self.workers.entry(facts.device).or_insert_with(|| Worker::new(facts));
            worker.reach(facts.epoch);
            worker.facts = facts;
        }
        let is_current = |device, epoch| self.workers.get(&device).is_some_and(|worker| worker.epoch == epoch);
        self.paces.retain(is_current);
    }

    /// Pauses between tokens of a device. If it is found slow by them: the sequences that others have room for.
    pub(super) fn paced(
        &mut self,
        device: DeviceId,
        gaps: Gaps,
        now: Instant64,
    ) -> Option<(FoundSlow, Vec<SequenceId>)> {
        let (worker, load) = (self.workers.get(&device)?, self.loads.get(&device)?);
        let is_prefilling = load.pending_prompt_tokens > self.limits.local_prefill_below_tokens;
        let work = Work { num_running: load.num_running, is_prefilling };
        let found = self.paces.seen((device, worker.epoch), gaps, work, now)?;
        let others = self.facts().filter(|facts| facts.decode && !self.paces.is_slow(facts.device));
        let num_running = |device| self.loads.get(&device).map_or(0, |load| load.num_running);
        let room: usize = others.map(|facts| self.limits.max_running.saturating_sub(num_running(facts.device))).sum();
        let decodes = |in_flight: &&InFlight| in_flight.started && in_flight.route.decode == device;
        let moved = self.in_flight.values().filter(decodes).map(|in_flight| in_flight.request.sequence);
        Some((found, moved.take(room).collect()))
    }

    /// Time went by.
    pub(super) fn tick(&mut self, now: Instant64) {
        self.paces.tick(now);
    }

    pub(super) fn hints(&self, device: DeviceId) -> Option<&PrefixHints> {
        self.workers.get(&device).map(|worker| &worker.hints)
    }

    /// A worker speaks of its prefix cache. What it says of an older pool than its latest is of no use any more.
    pub(super) fn prefix_changed(&mut self, device: DeviceId, epoch: Epoch, batch: &PrefixBatch, now: Instant64) {
        if let Some(worker) = self.workers.get_mut(&device)
            && worker.reach(epoch)
        {
            worker.hear(batch, now);
        }
    }

    /// Whom to ask for all its prefixes: those of whom something is not known and who were not asked, or have not answered for long.
    pub(super) fn ask_for_prefixes(&mut self, now: Instant64) -> impl Iterator<Item = DeviceId> + '_ {
        self.workers.iter_mut().filter_map(move |(&device, worker)| worker.ask(now).then_some(device))
    }

    /// Of a prompt's blocks; none where there is no choice of workers that they could guide.
    pub(super) fn keys_of(&self, request: &GenerateRequest) -> Arc<[HintKey]> {
        if self.workers.len() > 1 { self.keyer.keys(request.tenant, &request.prompt).into() } else { Arc::default() }
    }

    pub(super) fn place(&mut self, in_flight: InFlight) {
        self.remove(in_flight.request.sequence);
        self.on_loads(&in_flight, Load::enter);
        self.in_flight.insert(in_flight.request.sequence, in_flight);
        self.check();
    }

    pub(super) fn started(&mut self, sequence: SequenceId) {
        if let Some(mut in_flight) = self.in_flight.remove(&sequence) {
            self.on_loads(&in_flight, Load::leave);
            in_flight.started = true;
            self.on_loads(&in_flight, Load::enter);
            self.in_flight.insert(sequence, in_flight);
            self.check();
        }
    }

    pub(super) fn remove(&mut self, sequence: SequenceId) -> bool {
        let Some(in_flight) = self.in_flight.remove(&sequence) else { return false };
        self.on_loads(&in_flight, Load::leave);
        self.check();
        true
    }

    fn on_loads(&mut self, in_flight: &InFlight, act: impl Fn(&mut Load, &InFlight, DeviceId)) {
        let Route { prefill, decode, .. } = in_flight.route;
        for device in [prefill].into_iter().chain((decode != prefill).then_some(decode)) {
            let load = self.loads.entry(device).or_default();
            act(load, in_flight, device);
            if load.is_none() {
                self.loads.remove(&device);
            }
        }
    }

    /// In tests and simulations: the loads are what a recount finds.
    fn check(&self) {
        debug_assert_eq!(self.loads, self.recount());
    }

    fn recount(&self) -> BTreeMap<DeviceId, Load> {
        let mut recount = Self::new(self.limits, self.keyer);
        self.in_flight.values().for_each(|in_flight| recount.on_loads(in_flight, Load::enter));
        recount.loads
    }

    /// Moves a sequence to another decode worker; returns its prefill worker.
    pub(super) fn redirect(&mut self, sequence: SequenceId, decode: DeviceId) -> Option<DeviceId> {
        let mut in_flight = self.in_flight.get(&sequence)?.clone();
        in_flight.route.decode = decode;
        let prefill = in_flight.route.prefill;
        self.place(in_flight);
        Some(prefill)
    }

    /// The least loaded decode worker with room beside the prefill worker (whose engine waits for a lease of another) and `refused_by`.
    /// The one it has already keeps its place for it.
    pub(super) fn other_decode(&self, sequence: SequenceId, refused_by: &BTreeSet<DeviceId>) -> Option<DeviceId> {
        let in_flight = self.in_flight.get(&sequence)?;
        let num_blocks = blocks_needed(&in_flight.request);
        self.facts()
            .filter(|facts| facts.decode && facts.num_blocks >= num_blocks)
            .map(|facts| facts.device)
            .filter(|device| *device != in_flight.route.prefill && !refused_by.contains(device))
            .map(|device| {
                let num_running = self.loads.get(&device).map_or(0, |load| load.num_running);
                (self.paces.is_slow(device), num_running, device)
            })
            .filter(|&(_, num_running, device)| {
                num_running < self.limits.max_running || device == in_flight.route.decode
            })
            .min()
            .map(|(_, _, device)| device)
    }

    /// Whether nobody but its prefill worker could decode it, now that others have left or changed their role.
    pub(super) fn is_left_alone(&self, sequence: SequenceId) -> bool {
        let Some(in_flight) = self.in_flight.get(&sequence) else { return false };
        let num_blocks = blocks_needed(&in_flight.request);
        let mut able = self.facts().filter(|facts| facts.decode && facts.num_blocks >= num_blocks).peekable();
        able.peek().is_some() && able.all(|facts| facts.device == in_flight.route.prefill)
    }

    /// Whether new work could go to a device without keeping the suspects from theirs: there must be a prefill device to spare.
    pub(super) fn has_room_beside_suspects(&self) -> bool {
        self.facts().filter(|facts| facts.prefill).count() > 1
    }

    /// The workers as they stand for this request. `alone`: only prefill devices where everything has proved itself by a first token.
    pub(super) fn candidates(&self, request: &GenerateRequest, keys: &[HintKey], alone: bool) -> Vec<Candidate> {
        let num_blocks = blocks_needed(request);
        let max_tokens = request.prompt.len() + request.max_tokens as usize;
        let (idle, mut num_held) = (Load::default(), 0);
        self.workers
            .values()
            .filter(|worker| worker.facts.num_blocks >= num_blocks && worker.facts.max_context >= max_tokens)
            .map(|worker| {
                let facts = &worker.facts;
                let load = self.loads.get(&facts.device).unwrap_or(&idle);
                let has_room = load.num_running < self.limits.max_running && load.num_exclusive == 0;
                let is_calm = !alone || load.num_prefilling == 0;
                // Workers tend to hold a popular prefix all equally far.
                num_held = worker.hints.leading_blocks(keys, num_held);
                Candidate {
                    device: facts.device,
                    can_prefill: facts.prefill
                        && has_room
                        && is_calm
                        && load.num_prefilling < self.limits.max_prefilling,
                    can_decode: facts.decode && has_room,
                    cached_tokens: num_held.max(load.in_hand.leading_blocks(keys)) * BLOCK_TOKENS,
                    pending_prompt_tokens: load.pending_prompt_tokens,
                    num_running: load.num_running,
                    is_slow: self.paces.is_slow(facts.device),
                }
            })
            .collect()
    }
}

impl Worker {
    fn new(facts: WorkerFacts) -> Self {
        Self { facts, epoch: facts.epoch, hints: PrefixHints::default(), asked: None }
    }

    /// Whether `epoch` is its latest; what it held in an older one is forgotten.
    fn reach(&mut self, epoch: Epoch) -> bool {
        if epoch > self.epoch {
            (self.epoch, self.hints, self.asked) = (epoch, PrefixHints::default(), None);
        }
        epoch == self.epoch
    }

    fn hear(&mut self, batch: &PrefixBatch, now: Instant64) {
        let was_current = self.hints.is_current();
        let heard = self.hints.heard(batch);
        // More than its pool holds cannot be true: better to know nothing.
        if self.hints.num_held() > self.facts.num_blocks {
            self.hints.forget();
        } else if heard == Heard::Applied {
            // The rest of the answer will come.
            self.asked = Some(now);
        } else if heard == Heard::Gap && was_current {
            self.asked = None;
        }
    }

    /// Whether it is to be asked for all its prefixes now.
    fn ask(&mut self, now: Instant64) -> bool {
        let is_due = self.asked.is_none_or(|asked| now.since(asked) >= RESYNC_PATIENCE);
        let asks = is_due && !self.hints.is_current();
        if asks {
            self.asked = Some(now);
        }
        asks
    }
}

fn blocks_needed(request: &GenerateRequest) -> usize {
    blocks_for_tokens(request.prompt.len() + request.max_tokens as usize)
}
