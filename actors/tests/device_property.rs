//! A `DeviceCore` under random interleavings of orders, steps, aborts, leases and time: every promise is checked after every event.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the hands of tests, outside their functions")]

mod device_rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use device_rig::{Rig, limits, options, prompt, reference, request};
use proptest::prelude::*;
use relevo_actors::device::{
    CoreEvent, CoreLimits, Destination, DeviceCommand, DeviceEvent, DeviceRole, GrantedLease, SequenceOutcome,
};
use relevo_actors::policy::hint_keys::HintKey;
use relevo_actors::policy::hints::{Heard, PrefixHints};
use relevo_actors::policy::prefix_news::PrefixWords;
use relevo_gpu::model::{ScriptedModel, ScriptedOptions, StepModel};
use relevo_wire::{BlockIndex, Epoch, GenerateRequest, Instant64, LayerIndex, LeaseId, SequenceId, TenantId};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Action {
    Submit(Wish),
    /// Reserve blocks for a sequence that somebody else prefills.
    Reserve(Wish),
    /// Commit (its blocks written) or release one of the leases.
    Settle {
        lease: usize,
        commit: bool,
    },
    /// Answer one of the leases that were wanted, or abort its sequence.
    Answer {
        wanted: usize,
        grant: bool,
        num_present: u32,
    },
    Abort(usize),
    AbortAll(DeviceRole),
    Step,
    /// Begin a step and leave it, with this many layers done.
    Half(usize),
    Unpin,
    Wait(u64),
    /// A router that knows nothing takes the place of the one there is.
    NewRouter,
}

#[derive(Clone, Debug)]
struct Wish {
    kind: u32,
    len: usize,
    max_tokens: u32,
    tenant: u32,
    priority: i32,
    deadline: Option<u64>,
    prompt_logprobs: bool,
    remote: bool,
}

fn wish() -> impl Strategy<Value = Wish> {
    (0..4_u32, 1..90_usize, 0..24_u32, 0..3_u32, -1..2_i32, prop::option::weighted(0.2, 1..60_u64), any::<u8>())
        .prop_map(|(kind, len, max_tokens, tenant, priority, deadline, flags)| Wish {
            kind,
            len,
            max_tokens,
            tenant,
            priority,
            deadline,
            prompt_logprobs: flags % 7 == 0,
            remote: flags % 3 == 0,
        })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => wish().prop_map(Action::Submit),
        2 => wish().prop_map(Action::Reserve),
        2 => (any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(lease, commit)| Action::Settle { lease: lease.index(64), commit }),
        3 => (any::<prop::sample::Index>(), prop::bool::weighted(0.8), 0..3_u32)
            .prop_map(|(wanted, grant, num_present)| Action::Answer { wanted: wanted.index(64), grant, num_present }),
        1 => any::<prop::sample::Index>().prop_map(|index| Action::Abort(index.index(64))),
        1 => prop_oneof![Just(DeviceRole::Prefill), Just(DeviceRole::Decode)].prop_map(Action::AbortAll),
        10 => Just(Action::Step),
        3 => (0..4_usize).prop_map(Action::Half),
        3 => Just(Action::Unpin),
        1 => (1..20_u64).prop_map(Action::Wait),
        // Long enough for the news of the prefix cache.
        1 => Just(Action::Wait(100)),
        1 => Just(Action::NewRouter),
    ]
}

/// The rig, and what the model of its promises knows.
struct World {
    rig: Rig,
    requests: BTreeMap<SequenceId, GenerateRequest>,
    leases: BTreeMap<LeaseId, (GrantedLease, GenerateRequest)>,
    /// In the order in which the same tenant submitted them with the same priority.
    num_ids: u64,
    num_leases: u64,
    heard: usize,
    wanted: Vec<SequenceId>,
    stepping: bool,
    /// What a router knows.
    hints: PrefixHints,
    /// The names of all blocks of all sequences, as far as they came.
    chains: BTreeMap<SequenceId, Vec<HintKey>>,
}

impl World {
    fn new() -> Self {
        let model = ScriptedModel::new(ScriptedOptions { max_context: 128, ..options(20) });
        let limits = CoreLimits { max_running: 6, max_waiting: 20, max_news_keys: 3, ..limits(&model) };
        Self {
            rig: Rig::with_limits(model, limits),
            requests: BTreeMap::new(),
            leases: BTreeMap::new(),
            num_ids: 0,
            num_leases: 0,
            heard: 0,
            wanted: Vec::new(),
            stepping: false,
            hints: PrefixHints::default(),
            chains: BTreeMap::new(),
        }
    }

    fn request(&mut self, wish: &Wish) -> GenerateRequest {
        self.num_ids += 1;
        let deadline = wish.deadline.map(|after| self.rig.now + Duration::from_millis(after));
        GenerateRequest {
            tenant: TenantId(wish.tenant),
            priority: wish.priority,
            deadline,
            prompt_logprobs: wish.prompt_logprobs.then_some(1),
            ..request(self.num_ids, &prompt(wish.kind, wish.len), wish.max_tokens)
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Submit(wish) => {
                let request = self.request(wish);
                let destination = if wish.remote { Destination::Remote } else { Destination::SamePool };
                self.requests.insert(request.sequence, request.clone());
                self.rig.submit_to(request, destination);
            }
            Action::Reserve(wish) => self.reserve(wish),
            Action::Settle { lease, commit } => self.settle(*lease, *commit),
            Action::Answer { wanted, grant, num_present } => self.answer(*wanted, *grant, *num_present),
            Action::Abort(index) => {
                let num_ids = self.num_ids;
                if num_ids > 0 {
                    let sequence = request(*index as u64 % num_ids + 1, &[0], 0).sequence;
                    self.rig.command(DeviceCommand::Abort { sequence });
                }
            }
            Action::AbortAll(role) => {
                self.rig.command(DeviceCommand::AbortAll { role: *role });
                if *role == DeviceRole::Decode {
                    self.leases.clear();
                }
            }
            Action::Step => {
                self.finish_step();
                self.rig.step();
            }
            Action::Half(layers) => {
                self.finish_step();
                self.stepping = self.rig.begin_step();
                for _ in 0..*layers {
                    self.stepping = self.stepping && self.rig.advance_step();
                }
            }
            Action::Unpin => {
                if let Some(pin) = self.rig.pinned.pop_front() {
                    self.rig.handle(CoreEvent::Unpinned(pin));
                }
            }
            Action::Wait(millis) => {
                self.rig.now = self.rig.now + Duration::from_millis(*millis);
                self.rig.handle(CoreEvent::Tick);
            }
            Action::NewRouter => {
                self.hints = PrefixHints::default();
                self.rig.command(DeviceCommand::TellPrefixes);
            }
        }
        self.listen();
        self.check();
        if let Action::Wait(100) = action {
            self.check_hints();
        }
    }

    fn reserve(&mut self, wish: &Wish) {
        // Prefill draws the first token, so there are at least two.
        let request = self.request(&Wish { max_tokens: wish.max_tokens + 2, prompt_logprobs: false, ..wish.clone() });
        self.num_leases += 1;
        let lease = LeaseId(self.num_leases);
        self.rig.command(DeviceCommand::Reserve { lease, request: Arc::new(request.clone()) });
        let granted = self.rig.told.iter().rev().find_map(|event| match event {
            DeviceEvent::Reserved { lease: granted, .. } if granted.lease == lease => Some(granted.clone()),
            _ => None,
        });
        if let Some(granted) = granted {
            self.leases.insert(lease, (granted, request));
        }
    }

    /// Writes what prefill would have written, and commits; or releases.
    fn settle(&mut self, index: usize, commit: bool) {
        let Some(&lease) = self.leases.keys().nth(index % self.leases.len().max(1)) else { return };
        let (granted, request) = self.leases.remove(&lease).unwrap();
        if !commit {
            return self.rig.command(DeviceCommand::Release { lease });
        }
        let first_token = reference(&request)[0];
        let mut prefill = Rig::new(16);
        prefill.submit(GenerateRequest { max_tokens: 1, deadline: None, ..request.clone() });
        prefill.run();
        let (from, to) = (prefill.model.kv_memory(), self.rig.model.kv_memory());
        for layer in (0..2).map(LayerIndex) {
            for (source, &target) in (0..).map(BlockIndex).zip(&granted.blocks).skip(granted.num_present as usize) {
                to.write(layer, target, &from.read(layer, source)).unwrap();
            }
        }
        self.rig.emitted.entry(request.sequence).or_default().tokens = vec![first_token];
        self.requests.insert(request.sequence, request);
        self.rig.command(DeviceCommand::Commit { lease, first_token, cached_tokens: 0 });
    }

    fn answer(&mut self, index: usize, grant: bool, num_present: u32) {
        if self.wanted.is_empty() {
            return;
        }
        let sequence = self.wanted.remove(index % self.wanted.len());
        self.rig.command(if grant {
            let lease = GrantedLease { lease: LeaseId(9999), epoch: Epoch(1), blocks: Vec::new(), num_present };
            DeviceCommand::UseLease { sequence, lease }
        } else {
            DeviceCommand::Abort { sequence }
        });
    }

    fn finish_step(&mut self) {
        while std::mem::take(&mut self.stepping) {
            self.stepping = self.rig.advance_step();
        }
    }

    fn listen(&mut self) {
        for event in &self.rig.told[self.heard..] {
            if let DeviceEvent::LeaseWanted { sequence } = event {
                self.wanted.push(*sequence);
            }
            if let DeviceEvent::PrefixChanged { batch } = event {
                let num_keys = match &batch.words {
                    PrefixWords::Changed(change) => change.added.len() + change.removed.len(),
                    PrefixWords::Snapshot { keys, .. } => keys.len(),
                };
                assert!(num_keys <= self.rig.core.limits().max_news_keys);
                let heard = self.hints.heard(batch);
                assert!(heard != Heard::Gap || !self.hints.is_current());
            }
        }
        self.heard = self.rig.told.len();
    }

    fn check(&self) {
        let (stats, blocks) = (self.rig.core.stats(), self.rig.core.kv_blocks());
        assert_eq!(blocks.free + blocks.cached + blocks.active + blocks.leased, 20);
        assert!(stats.running + stats.leases <= 6, "{stats:?}");
        assert_eq!(stats.leases as usize, self.leases.len());
    }

    /// Everything has been told: a router knows the blocks that are held, and no others, and of each all before it.
    fn check_hints(&mut self) {
        for _ in 0..20 {
            self.rig.handle(CoreEvent::Tick);
            self.listen();
        }
        assert!(self.hints.is_current(), "a snapshot of 20 blocks has no more than 20 parts");
        let held: BTreeSet<_> = self.rig.core.prefixes().collect();
        assert!(held.iter().all(|key| self.hints.holds(*key)), "{held:?} {:?}", self.hints);
        assert_eq!(self.hints.num_held(), held.len());
        self.check_chains(&held);
    }

    /// No block is held without those before it.
    fn check_chains(&mut self, held: &BTreeSet<HintKey>) {
        let keyer = self.rig.core.limits().hint_keyer;
        for (id, request) in &self.requests {
            let generated = self.rig.emitted.get(id).map_or(&[][..], |emitted| &emitted.tokens);
            self.chains.insert(*id, keyer.keys(request.tenant, &[&request.prompt, generated].concat()));
        }
        for (id, chain) in &self.chains {
            let num_held = chain.iter().take_while(|key| held.contains(key)).count();
            assert!(!chain[num_held..].iter().any(|key| held.contains(key)), "{id} has a hole after {num_held}");
            assert_eq!(self.hints.leading_blocks(chain, 0), num_held);
        }
    }

    /// Lets everything come to its end, and looks back.
    fn finish(mut self) {
        self.finish_step();
        for _ in 0..200 {
            self.rig.run();
            self.listen();
            self.rig.unpin_all();
            self.answer(0, true, 0);
            self.settle(0, false);
        }
        self.rig.now = Instant64(u64::MAX);
        self.rig.handle(CoreEvent::Tick);
        self.listen();
        self.check_hints();
        let (stats, blocks) = (self.rig.core.stats(), self.rig.core.kv_blocks());
        assert_eq!((blocks.active, blocks.leased, stats.running, stats.waiting, stats.leases), (0, 0, 0, 0, 0));
        for (id, request) in &self.requests {
            self.look_back(*id, request);
        }
    }

    fn look_back(&self, id: SequenceId, request: &GenerateRequest) {
        let outcome = self.rig.outcome(id).unwrap_or_else(|| panic!("{id} never ended"));
        let emitted = self.rig.emitted.get(&id).cloned().unwrap_or_default();
        let mut expected = reference(&GenerateRequest { max_tokens: request.max_tokens, ..request.clone() });
        expected.truncate(128_usize.saturating_sub(request.prompt.len()));
        match outcome {
            SequenceOutcome::Finished => assert_eq!(emitted.tokens, expected, "{id}"),
            SequenceOutcome::Pushed => assert_eq!(emitted.tokens, expected[..1], "{id}"),
            _ => assert!(expected.starts_with(&emitted.tokens), "{id}"),
        }
        if outcome == SequenceOutcome::Finished && request.prompt_logprobs.is_some() {
            assert_eq!(emitted.prompt_logprobs.len(), request.prompt.len() - 1, "{id}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_interleaving_breaks_a_promise(actions in prop::collection::vec(action(), 1..120)) {
        let mut world = World::new();
        world.act(&Action::NewRouter);
        for action in &actions {
            world.act(action);
        }
        world.finish();
    }
}
