//! A device without a thread: a core and a scripted model, driven by hand, with every promise checked after every event.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the hands of tests, outside their functions")]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use relevo_actors::device::{
    CoreEvent, CoreLimits, Destination, DeviceCommand, DeviceCore, DeviceEvent, Effect, PinId, PlanBuffers,
    SequenceOutcome,
};
use relevo_actors::policy::prefix::PrefixIdentity;
use relevo_gpu::compute::{OutputRow, Piece, SampleRow, StepPlan};
use relevo_gpu::model::{Progress, ScriptedModel, ScriptedOptions, StepModel};
use relevo_wire::{
    BlockIndex, Epoch, GenerateRequest, Instant64, RequestId, SamplingParams, SequenceId, StreamEvent, TenantId,
    TokenId,
};

/// The device.
pub(crate) struct Rig {
    pub(crate) core: DeviceCore,
    pub(crate) model: ScriptedModel,
    pub(crate) now: Instant64,
    /// Everything told to actors, in order.
    pub(crate) told: Vec<DeviceEvent>,
    /// What each sequence has emitted.
    pub(crate) emitted: BTreeMap<SequenceId, Emitted>,
    /// Bytes in flight.
    pub(crate) pinned: VecDeque<PinId>,
    /// What was pushed: the layer, the first block's index within its sequence, the number of blocks.
    pub(crate) pushed: Vec<(u32, u32, usize)>,
    /// Rows of each step so far.
    pub(crate) step_rows: Vec<Vec<(SequenceId, usize)>>,
    ended: BTreeSet<SequenceId>,
    buffers: PlanBuffers,
    effects: Vec<Effect>,
}

/// One sequence's stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Emitted {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_logprobs: Vec<f32>,
    pub(crate) cached_tokens: Option<u32>,
    pub(crate) last: Option<StreamEvent>,
}

pub(crate) fn options(num_blocks: usize) -> ScriptedOptions {
    ScriptedOptions {
        num_layers: 2,
        max_rows: 64,
        max_outputs: 32,
        max_context: 256,
        num_blocks,
        vocab_size: 64,
        ..ScriptedOptions::default()
    }
}

pub(crate) fn limits(model: &ScriptedModel) -> CoreLimits {
    CoreLimits {
        max_running: 16,
        max_mixed_rows: 48,
        headroom_tokens: 32,
        prefix_identity: Some(PrefixIdentity { secret: [7; 32], content: "scripted".into() }),
        ..CoreLimits::of_model(model)
    }
}

/// A request for `max_tokens` greedy tokens after `prompt`.
pub(crate) fn request(id: u64, prompt: &[TokenId], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        sequence: SequenceId { request: RequestId(id), choice: 0, attempt: 0 },
        tenant: TenantId(0),
        prompt: prompt.into(),
        generated: Vec::new(),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        stop_ids: Arc::from([]),
        max_tokens,
        top_logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
    }
}

/// Tokens of a prompt that no other `kind` shares.
pub(crate) fn prompt(kind: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|place| (place * 7 + kind * 13 + place / 5) % 64).collect()
}

impl Rig {
    pub(crate) fn new(num_blocks: usize) -> Self {
        let model = ScriptedModel::new(options(num_blocks));
        let limits = limits(&model);
        Self::with_limits(model, limits)
    }

    pub(crate) fn with_limits(model: ScriptedModel, limits: CoreLimits) -> Self {
        Self {
            core: DeviceCore::new(limits, Epoch(3)).unwrap(),
            model,
            now: Instant64(0),
            told: Vec::new(),
            emitted: BTreeMap::new(),
            pinned: VecDeque::new(),
            pushed: Vec::new(),
            step_rows: Vec::new(),
            ended: BTreeSet::new(),
            buffers: PlanBuffers::default(),
            effects: Vec::new(),
        }
    }

    pub(crate) fn submit(&mut self, request: GenerateRequest) -> SequenceId {
        self.submit_to(request, Destination::SamePool)
    }

    pub(crate) fn submit_to(&mut self, request: GenerateRequest, destination: Destination) -> SequenceId {
        let id = request.sequence;
        self.command(DeviceCommand::Prefill { request: Arc::new(request), destination });
        id
    }

    pub(crate) fn command(&mut self, command: DeviceCommand) {
        self.handle(CoreEvent::Command(command));
    }

    pub(crate) fn handle(&mut self, event: CoreEvent) {
        let mut effects = std::mem::take(&mut self.effects);
        self.core.handle(event, self.now, &mut effects);
        self.carry_out(effects);
    }

    /// One whole step; false if there was nothing to do.
    pub(crate) fn step(&mut self) -> bool {
        self.begin_step() && {
            while self.advance_step() {}
            true
        }
    }

    pub(crate) fn begin_step(&mut self) -> bool {
        let mut effects = std::mem::take(&mut self.effects);
        let planned = self.core.plan_step(self.now, &mut effects);
        self.carry_out(effects);
        if planned {
            let plan = self.core.step_plan(&mut self.buffers);
            let rows = self.core.stepping().zip(plan.pieces.iter().map(|piece| piece.tokens.len())).collect();
            self.step_rows.push(rows);
            self.model.begin_step(&plan).unwrap();
            self.buffers.reclaim(plan);
        }
        planned
    }

    /// One layer, or the end of the step; false after that.
    pub(crate) fn advance_step(&mut self) -> bool {
        match self.model.advance().unwrap() {
            Progress::LayerDone(layer) => {
                self.handle(CoreEvent::LayerDone(layer));
                true
            }
            Progress::Done => {
                let outputs = self.model.finish_step().unwrap();
                self.handle(CoreEvent::StepDone(outputs));
                false
            }
        }
    }

    /// Steps until there is nothing to do; panics if that takes suspiciously long.
    pub(crate) fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("still stepping after 10,000 steps: {:?}", self.core.stats());
    }

    pub(crate) fn unpin_all(&mut self) {
        while let Some(pin) = self.pinned.pop_front() {
            self.handle(CoreEvent::Unpinned(pin));
        }
    }

    pub(crate) fn tokens(&self, id: SequenceId) -> &[TokenId] {
        &self.emitted[&id].tokens
    }

    pub(crate) fn outcome(&self, id: SequenceId) -> Option<SequenceOutcome> {
        self.told.iter().rev().find_map(|event| match event {
            DeviceEvent::Ended { sequence, outcome, .. } if *sequence == id => Some(outcome.clone()),
            _ => None,
        })
    }

    fn carry_out(&mut self, mut effects: Vec<Effect>) {
        self.core.audit().unwrap();
        for effect in effects.drain(..) {
            match effect {
                Effect::Emit(id, event) => self.receive(id, event),
                Effect::Tell(event) => self.hear(event),
                Effect::Push { pin, layer, first_block, blocks, .. } => {
                    self.pinned.push_back(pin);
                    self.pushed.push((layer.0, first_block, blocks.len()));
                }
                Effect::Fault(reason) => panic!("{reason}"),
            }
        }
        self.effects = effects;
    }

    fn receive(&mut self, id: SequenceId, event: StreamEvent) {
        assert!(!self.ended.contains(&id), "{id} emits {event:?} after its end");
        let emitted = self.emitted.entry(id).or_default();
        assert!(emitted.last.is_none(), "{id} emits {event:?} after {:?}", emitted.last);
        match event {
            StreamEvent::Token { index, token, .. } => {
                assert_eq!(index as usize, emitted.tokens.len(), "{id}: token index");
                emitted.tokens.push(token);
            }
            StreamEvent::PromptLogprobs { first, logprobs } => {
                assert_eq!(first as usize, emitted.prompt_logprobs.len() + 1, "{id}: first prompt log-probability");
                emitted.prompt_logprobs.extend(logprobs.iter().map(|entry| entry.logprob));
            }
            StreamEvent::Prefilled { cached_tokens } => emitted.cached_tokens = Some(cached_tokens),
            last => emitted.last = Some(last),
        }
    }

    fn hear(&mut self, event: DeviceEvent) {
        if let DeviceEvent::Ended { sequence, .. } = event {
            assert!(self.ended.insert(sequence), "{sequence} ended twice");
        }
        self.told.push(event);
    }
}

/// What `request` must yield: computed alone, one step for the whole context, then a step for each token.
pub(crate) fn reference(request: &GenerateRequest) -> Vec<TokenId> {
    let mut model = ScriptedModel::new(ScriptedOptions { max_rows: 256, ..options(16) });
    let table: Vec<BlockIndex> = (0..16).map(BlockIndex).collect();
    let mut tokens = request.prompt.to_vec();
    let mut start = 0;
    while tokens.len() - request.prompt.len() < request.max_tokens as usize && tokens.len() < 256 {
        let (prompt, generated) = tokens.split_at(request.prompt.len());
        let sample = SampleRow { params: &request.sampling, choice: 0, prompt, generated, banned: &[] };
        let row = OutputRow { row: tokens.len() - 1 - start, sample: Some(sample), ..OutputRow::default() };
        let piece = Piece { tokens: &tokens[start..], start, block_table: &table, outputs: vec![row] };
        model.begin_step(&StepPlan { pieces: vec![piece] }).unwrap();
        while model.advance().unwrap() != Progress::Done {}
        start = tokens.len();
        let token = model.finish_step().unwrap()[0].token.unwrap();
        tokens.push(token);
        if request.stop_ids.contains(&token) {
            break;
        }
    }
    tokens.split_off(request.prompt.len())
}
