//! One device of the world: its cores of the present epoch, its scripted model, the leases that blocks land under.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use relevo_actors::decode::DecodeCore;
use relevo_actors::device::{CoreLimits, DeviceCommand, DeviceCore, GrantedLease, PlanBuffers};
use relevo_actors::policy::leases::Arrivals;
use relevo_actors::policy::prefix::PrefixIdentity;
use relevo_actors::prefill::PrefillCore;
use relevo_actors::router::WorkerFacts;
use relevo_gpu::model::{KvMemory, ScriptedModel, ScriptedOptions, StepModel};
use relevo_wire::{DeviceId, Epoch, LeaseId, SequenceId};

use crate::scenario::{CONTEXT, DeviceSpec, VOCABULARY};

/// Layers of the scripted model.
pub(crate) const NUM_LAYERS: u32 = 2;

/// Term of a lease.
const LEASE_TERM: Duration = Duration::from_millis(200);

pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) spec: DeviceSpec,
    pub(crate) epoch: Epoch,
    pub(crate) core: DeviceCore,
    pub(crate) model: ScriptedModel,
    pub(crate) buffers: PlanBuffers,
    pub(crate) prefill: PrefillCore,
    pub(crate) decode: DecodeCore,
    /// How often each role's actor was started: what was sent to an earlier one is lost with it.
    pub(crate) lives: [u64; 2],
    pub(crate) last_lease: LeaseId,
    pub(crate) landings: BTreeMap<LeaseId, Landing>,
    /// Where the layers of a sequence go.
    pub(crate) routes: BTreeMap<SequenceId, (DeviceId, GrantedLease)>,
    /// Orders that the engine takes in between two steps.
    pub(crate) inbox: VecDeque<DeviceCommand>,
    pub(crate) is_awake: bool,
    /// Between an engine's failure and its successor.
    pub(crate) is_down: bool,
}

/// An open lease.
pub(crate) struct Landing {
    pub(crate) sequence: SequenceId,
    pub(crate) granted: GrantedLease,
    pub(crate) arrivals: Arrivals,
    pub(crate) kv: Arc<dyn KvMemory>,
    pub(crate) is_closed: bool,
}

pub(crate) fn scripted(num_blocks: u32) -> ScriptedModel {
    ScriptedModel::new(ScriptedOptions {
        num_layers: NUM_LAYERS,
        vocab_size: VOCABULARY,
        max_rows: 64,
        max_outputs: 32,
        max_context: CONTEXT,
        num_blocks: num_blocks as usize,
    })
}

fn limits(model: &ScriptedModel, spec: &DeviceSpec) -> CoreLimits {
    let identity = PrefixIdentity { secret: [3; 32], content: "scripted".into() };
    CoreLimits {
        max_running: 12,
        max_mixed_rows: 48,
        headroom_tokens: 32,
        prefix_identity: spec.prefix_cache.then_some(identity),
        ..CoreLimits::of_model(model)
    }
}

impl Device {
    #[expect(clippy::expect_used, reason = "the limits are constants of this file")]
    fn fresh_core(model: &ScriptedModel, spec: &DeviceSpec, epoch: Epoch) -> DeviceCore {
        DeviceCore::new(limits(model, spec), epoch).expect("the limits fit each other")
    }

    pub(crate) fn new(index: usize, spec: DeviceSpec) -> Self {
        let id = DeviceId(u32::try_from(index).unwrap_or(u32::MAX));
        let model = scripted(spec.num_blocks);
        Self {
            id,
            epoch: Epoch(1),
            core: Self::fresh_core(&model, &spec, Epoch(1)),
            spec,
            model,
            buffers: PlanBuffers::default(),
            prefill: PrefillCore::new(id),
            decode: DecodeCore::new(LeaseId(0), LEASE_TERM),
            lives: [0; 2],
            last_lease: LeaseId(0),
            landings: BTreeMap::new(),
            routes: BTreeMap::new(),
            inbox: VecDeque::new(),
            is_awake: false,
            is_down: false,
        }
    }

    pub(crate) fn facts(&self) -> WorkerFacts {
        use relevo_actors::device::DeviceRole::{Decode, Prefill};
        WorkerFacts {
            device: self.id,
            epoch: self.epoch,
            prefill: self.spec.roles.contains(&Prefill),
            decode: self.spec.roles.contains(&Decode),
            num_blocks: self.spec.num_blocks as usize,
            max_context: CONTEXT,
        }
    }

    pub(crate) fn restart_prefill(&mut self) {
        self.lives[0] += 1;
        self.routes.clear();
        self.prefill = PrefillCore::new(self.id);
    }

    pub(crate) fn restart_decode(&mut self) {
        self.lives[1] += 1;
        self.landings.clear();
        self.decode = DecodeCore::new(self.last_lease, LEASE_TERM);
    }

    /// The pool is gone; the weights stay.
    pub(crate) fn begin_epoch(&mut self) {
        self.epoch.0 += 1;
        // A scripted pool always finds its memory.
        _ = self.model.reset();
        self.core = Self::fresh_core(&self.model, &self.spec, self.epoch);
        self.inbox.clear();
        self.restart_prefill();
        self.restart_decode();
    }

    /// Nothing is left of any sequence.
    pub(crate) fn is_quiet(&self) -> bool {
        let (stats, blocks) = (self.core.stats(), self.core.kv_blocks());
        let is_idle = stats.running + stats.waiting + stats.leases == 0 && self.inbox.is_empty();
        is_idle && blocks.active + blocks.leased == 0 && self.prefill.is_empty() && self.decode.num_leases() == 0
    }
}
