//! The workers as the router sees them: what is in flight where, and who has room.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use relevo_wire::{DeviceId, Epoch, GenerateRequest, SequenceId, blocks_for_tokens};

use super::core::WorkerFacts;
use crate::policy::hints::{HintKey, PrefixChange, PrefixHints, extend_keys};
use crate::policy::routing::{Candidate, Route};

/// The workers.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    max_running: usize,
    max_prefilling: usize,
    workers: BTreeMap<DeviceId, Worker>,
    in_flight: BTreeMap<SequenceId, InFlight>,
}

#[derive(Clone, Debug)]
struct Worker {
    facts: WorkerFacts,
    hints: PrefixHints,
    /// The latest that it was heard of, from itself or from the map: what it holds is of this one.
    epoch: Epoch,
}

/// A sequence with its workers.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) request: Arc<GenerateRequest>,
    keys: Arc<[HintKey]>,
    pub(super) route: Route,
    pub(super) started: bool,
    /// Nobody else may join it on its prefill device until it has started.
    exclusive: bool,
}

/// What a device has in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    num_running: usize,
    num_prefilling: usize,
    pending_prompt_tokens: usize,
    is_exclusive: bool,
}

impl InFlight {
    pub(super) fn new(request: Arc<GenerateRequest>, keys: Arc<[HintKey]>, route: Route, exclusive: bool) -> Self {
        Self { request, keys, route, started: false, exclusive }
    }
}

impl Workers {
    pub(super) fn new(max_running: usize, max_prefilling: usize) -> Self {
        Self { max_running, max_prefilling, workers: BTreeMap::new(), in_flight: BTreeMap::new() }
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
            let worker = self.workers.entry(facts.device).or_insert_with(|| Worker {
                facts,
                hints: PrefixHints::default(),
                epoch: facts.epoch,
            });
            worker.reach(facts.epoch);
            worker.facts = facts;
        }
    }

    pub(super) fn hints(&self, device: DeviceId) -> Option<&PrefixHints> {
        self.workers.get(&device).map(|worker| &worker.hints)
    }

    /// A worker speaks of its prefix cache. What it says of an older pool than its latest is of no use any more.
    pub(super) fn prefix_changed(&mut self, device: DeviceId, epoch: Epoch, change: &PrefixChange) {
        if let Some(worker) = self.workers.get_mut(&device)
            && worker.reach(epoch)
        {
            worker.hints.heard(change);
            // More than its pool holds cannot be true: better to know nothing.
            if worker.hints.num_held() > worker.facts.num_blocks {
                worker.hints.clear();
            }
        }
    }

    /// Of a prompt's blocks; none where there is no choice of workers that they could guide.
    pub(super) fn keys_of(&self, request: &GenerateRequest) -> Arc<[HintKey]> {
        let mut keys = Vec::new();
        if self.workers.len() > 1 {
            extend_keys(&mut keys, request.tenant, &request.prompt);
        }
        keys.into()
    }

    pub(super) fn place(&mut self, in_flight: InFlight) {
        self.remove(in_flight.request.sequence);
        let Route { prefill, decode, .. } = in_flight.route;
        for device in BTreeSet::from([prefill, decode]) {
            self.on_hints(device, |hints| hints.sent(&in_flight.keys));
        }
        self.in_flight.insert(in_flight.request.sequence, in_flight);
    }

    fn on_hints(&mut self, device: DeviceId, act: impl FnOnce(&mut PrefixHints)) {
        if let Some(worker) = self.workers.get_mut(&device) {
            act(&mut worker.hints);
        }
    }

    pub(super) fn started(&mut self, sequence: SequenceId) {
        if let Some(in_flight) = self.in_flight.get_mut(&sequence) {
            in_flight.started = true;
        }
    }

    pub(super) fn remove(&mut self, sequence: SequenceId) -> bool {
        let Some(in_flight) = self.in_flight.remove(&sequence) else { return false };
        for device in BTreeSet::from([in_flight.route.prefill, in_flight.route.decode]) {
            self.on_hints(device, |hints| hints.over(&in_flight.keys));
        }
        true
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
        let (num_blocks, loads) = (blocks_needed(&in_flight.request), self.loads());
        self.facts()
            .filter(|facts| facts.decode && facts.num_blocks >= num_blocks)
            .map(|facts| facts.device)
            .filter(|device| *device != in_flight.route.prefill && !refused_by.contains(device))
            .map(|device| (loads.get(&device).map_or(0, |load| load.num_running), device))
            .filter(|&(num_running, device)| num_running < self.max_running || device == in_flight.route.decode)
            .min()
            .map(|(_, device)| device)
    }

    /// Whether new work could go to a device without keeping the suspects from theirs: there must be a prefill device to spare.
    pub(super) fn has_room_beside_suspects(&self) -> bool {
        self.facts().filter(|facts| facts.prefill).count() > 1
    }

    /// The workers as they stand for this request. `alone`: only prefill devices where everything has proved itself by a first token.
    pub(super) fn candidates(&self, request: &GenerateRequest, keys: &[HintKey], alone: bool) -> Vec<Candidate> {
        let num_blocks = blocks_needed(request);
        let max_tokens = request.prompt.len() + request.max_tokens as usize;
        let loads = self.loads();
        self.workers
            .values()
            .filter(|worker| worker.facts.num_blocks >= num_blocks && worker.facts.max_context >= max_tokens)
            .map(|worker| {
                let facts = &worker.facts;
                let load = loads.get(&facts.device).copied().unwrap_or_default();
                let has_room = load.num_running < self.max_running && !load.is_exclusive;
                let is_calm = !alone || load.num_prefilling == 0;
                Candidate {
                    device: facts.device,
                    can_prefill: facts.prefill && has_room && is_calm && load.num_prefilling < self.max_prefilling,
                    can_decode: facts.decode && has_room,
                    cached_tokens: worker.hints.cached_tokens(keys),
                    pending_prompt_tokens: load.pending_prompt_tokens,
                    num_running: load.num_running,
                }
            })
            .collect()
    }

    fn loads(&self) -> BTreeMap<DeviceId, Load> {
        let mut loads: BTreeMap<DeviceId, Load> = BTreeMap::new();
        for in_flight in self.in_flight.values() {
            let Route { prefill, decode, .. } = in_flight.route;
            if !in_flight.started {
                let load = loads.entry(prefill).or_default();
                load.num_prefilling += 1;
                load.pending_prompt_tokens += in_flight.request.num_context_tokens();
                load.is_exclusive |= in_flight.exclusive;
                load.num_running += usize::from(prefill != decode);
            }
            loads.entry(decode).or_default().num_running += 1;
        }
        loads
    }
}

impl Worker {
    /// Whether `epoch` is its latest; what it held in an older one is forgotten.
    fn reach(&mut self, epoch: Epoch) -> bool {
        if epoch > self.epoch {
            self.hints.clear();
            self.epoch = epoch;
        }
        epoch == self.epoch
    }
}

fn blocks_needed(request: &GenerateRequest) -> usize {
    blocks_for_tokens(request.prompt.len() + request.max_tokens as usize)
}
