//! One device of the world: its engine of the present epoch, its role actors, the leases that blocks land under.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use relevo_actors::coordinator::{DeviceFacts, Heartbeat};
use relevo_actors::decode::DecodeCore;
use relevo_actors::device::{CoreLimits, DeviceCommand, DeviceCore, DeviceRole, GrantedLease, PlanBuffers};
use relevo_actors::policy::hint_keys::HintKeyer;
use relevo_actors::policy::leases::Arrivals;
use relevo_actors::policy::prefix::PrefixIdentity;
use relevo_actors::policy::progress::ProgressWatch;
use relevo_actors::prefill::PrefillCore;
use relevo_gpu::model::{KvMemory, ScriptedModel, ScriptedOptions};
use relevo_wire::{DeviceId, Epoch, Instant64, LeaseId, MapVersion, SequenceId};

use crate::scenario::{CONTEXT, DeviceSpec, VOCABULARY};
use crate::supervisors::{HANG_AFTER, HEARTBEAT};

/// Layers of the scripted model.
pub(crate) const NUM_LAYERS: u32 = 2;

/// What the names of prefixes depend on.
pub(crate) const SECRET: [u8; 32] = [3; 32];

/// A device, as its port and its supervisor know it.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) node: usize,
    pub(crate) spec: DeviceSpec,
    /// What it does.
    pub(crate) roles: Vec<DeviceRole>,
    /// It was told to take nothing new.
    pub(crate) is_draining: bool,
    /// Of its last engine.
    pub(crate) epoch: Epoch,
    /// Whether orders reach the engine; it may be gone, or cut off.
    pub(crate) is_connected: bool,
    pub(crate) engine: Option<Engine>,
    /// What a failed engine leaves to the next one.
    pub(crate) model: Option<ScriptedModel>,
    pub(crate) prefill: PrefillCore,
    pub(crate) decode: DecodeCore,
    /// Whether each role's actor is there.
    pub(crate) has_actor: [bool; 2],
    /// How often each role's actor was started: what was sent to an earlier one is lost with it.
    pub(crate) lives: [u64; 2],
    lease_term: Duration,
    pub(crate) last_lease: LeaseId,
    pub(crate) landings: BTreeMap<LeaseId, Landing>,
    /// Where the layers of a sequence go.
    pub(crate) routes: BTreeMap<SequenceId, (DeviceId, GrantedLease)>,
    pub(crate) watch: ProgressWatch,
    /// It is given up: nobody speaks for it.
    pub(crate) is_away: bool,
    /// Until then its supervisor says nothing.
    pub(crate) silent_until: Instant64,
    /// Until then it takes longer for everything.
    pub(crate) slow_until: Instant64,
    /// What its supervisor said last, and when.
    pub(crate) pulse: Option<(Instant64, Heartbeat)>,
}

/// An engine thread.
pub(crate) struct Engine {
    pub(crate) epoch: Epoch,
    pub(crate) core: DeviceCore,
    pub(crate) model: ScriptedModel,
    pub(crate) buffers: PlanBuffers,
    /// Orders that it takes in between two steps.
    pub(crate) inbox: VecDeque<DeviceCommand>,
    pub(crate) is_awake: bool,
    pub(crate) progress: u64,
    /// It hangs in the next step that it computes, for so long.
    pub(crate) will_hang: Option<Duration>,
    /// Since when it computes nothing of the step in flight.
    pub(crate) hangs_since: Option<Instant64>,
    /// When it hung last.
    pub(crate) hung_until: Instant64,
}

/// An open lease.
pub(crate) struct Landing {
    pub(crate) sequence: SequenceId,
    pub(crate) granted: GrantedLease,
    pub(crate) arrivals: Arrivals,
    pub(crate) kv: Arc<dyn KvMemory>,
    /// Blocks of layers that were written, each once unless it came again.
    pub(crate) num_written: usize,
}

pub(crate) fn scripted(num_blocks: u32) -> ScriptedModel {
    ScriptedModel::new(ScriptedOptions {
        num_layers: NUM_LAYERS,
        vocab_size: VOCABULARY,
        max_rows: 64,
        max_outputs: 32,
        max_context: CONTEXT,
        num_blocks: num_blocks as usize,
        ..ScriptedOptions::default()
    })
}

pub(crate) const fn role_index(role: DeviceRole) -> usize {
    match role {
        DeviceRole::Prefill => 0,
        DeviceRole::Decode => 1,
    }
}

impl Engine {
    #[expect(clippy::expect_used, reason = "the limits are constants of this file")]
    fn new(model: ScriptedModel, spec: &DeviceSpec, epoch: Epoch) -> Self {
        let identity = PrefixIdentity { secret: SECRET, content: "scripted".into() };
        let limits = CoreLimits {
            max_running: 12,
            max_mixed_rows: 48,
            headroom_tokens: 32,
            prefix_identity: spec.prefix_cache.then_some(identity),
            hint_keyer: HintKeyer::new(SECRET),
            // Few enough that a snapshot of a small pool has many parts.
            max_news_keys: 5,
            ..CoreLimits::of_model(&model)
        };
        Self {
            epoch,
            core: DeviceCore::new(limits, epoch).expect("the limits fit each other"),
            model,
            buffers: PlanBuffers::default(),
            inbox: VecDeque::new(),
            is_awake: false,
            progress: 0,
            will_hang: None,
            hangs_since: None,
            hung_until: Instant64(0),
        }
    }

    /// Nothing is left of any sequence.
    fn is_quiet(&self) -> bool {
        let (stats, blocks) = (self.core.stats(), self.core.kv_blocks());
        let is_idle = stats.running + stats.waiting + stats.leases == 0 && self.inbox.is_empty();
        is_idle && blocks.active + blocks.leased == 0
    }
}

impl Device {
    /// A device that serves in its first epoch.
    pub(crate) fn new(id: DeviceId, node: usize, spec: DeviceSpec, lease_term: Duration) -> Self {
        let mut device = Self {
            id,
            node,
            roles: spec.roles.clone(),
            is_draining: false,
            epoch: Epoch(0),
            is_connected: false,
            engine: None,
            model: Some(scripted(spec.num_blocks)),
            spec,
            prefill: PrefillCore::new(id),
            decode: DecodeCore::new(LeaseId(0), lease_term),
            has_actor: [false; 2],
            lives: [0; 2],
            lease_term,
            last_lease: LeaseId(0),
            landings: BTreeMap::new(),
            routes: BTreeMap::new(),
            watch: ProgressWatch::new(HANG_AFTER, HEARTBEAT, Instant64(0)),
            is_away: false,
            silent_until: Instant64(0),
            slow_until: Instant64(0),
            pulse: None,
        };
        device.begin_epoch(Instant64(0));
        device
    }

    /// A new pool; the weights are the last engine's, if it has left them.
    pub(crate) fn begin_epoch(&mut self, now: Instant64) {
        self.epoch.0 += 1;
        let model = self.model.take().unwrap_or_else(|| scripted(self.spec.num_blocks));
        self.engine = Some(Engine::new(model, &self.spec, self.epoch));
        self.is_connected = true;
        self.watch = ProgressWatch::new(HANG_AFTER, HEARTBEAT, now);
        self.spec.able.clone().into_iter().for_each(|role| self.start_role(role));
    }

    /// Nobody takes sequences any more, no block lands or leaves.
    pub(crate) fn stop(&mut self) {
        self.is_connected = false;
        self.stop_role(DeviceRole::Prefill);
        self.stop_role(DeviceRole::Decode);
        self.landings.clear();
        self.routes.clear();
    }

    /// The actor of a role is gone, with all in its mailbox.
    pub(crate) fn stop_role(&mut self, role: DeviceRole) {
        self.lives[role_index(role)] += 1;
        self.has_actor[role_index(role)] = false;
    }

    pub(crate) fn start_role(&mut self, role: DeviceRole) {
        self.has_actor[role_index(role)] = true;
        match role {
            DeviceRole::Prefill => {
                self.routes.clear();
                self.prefill = PrefillCore::new(self.id);
            }
            DeviceRole::Decode => {
                self.landings.clear();
                self.decode = DecodeCore::new(self.last_lease, self.lease_term);
            }
        }
    }

    /// What it says of itself.
    pub(crate) fn heartbeat(&self, map: (u64, MapVersion)) -> Heartbeat {
        let engine = self.engine.as_ref().filter(|_| self.is_connected);
        let facts = DeviceFacts {
            device: self.id,
            name: format!("cpu{}", self.id.index()),
            roles: self.roles.clone(),
            able: self.spec.able.clone(),
            epoch: self.epoch,
            num_blocks: engine.map_or(0, |_| self.spec.num_blocks as usize),
            max_context: engine.map_or(0, |_| CONTEXT),
        };
        let (progress, busy) = engine.map_or((0, false), |engine| (engine.progress, engine.core.stats().busy));
        Heartbeat { facts, serving: engine.is_some(), progress, busy, draining: self.is_draining, map }
    }

    /// Its process is gone, and what it was told by operators; only its weights can be mapped again, and its epoch was kept.
    pub(crate) fn die(&mut self) -> Option<Epoch> {
        self.stop();
        (self.is_away, self.pulse, self.silent_until) = (false, None, Instant64(0));
        (self.is_draining, self.roles) = (false, self.spec.roles.clone());
        (self.model, self.prefill) = (None, PrefillCore::new(self.id));
        self.decode = DecodeCore::new(self.last_lease, self.lease_term);
        self.engine.take().map(|engine| engine.epoch)
    }

    /// It serves, or would if somebody asked it to.
    pub(crate) fn is_well(&self) -> bool {
        let plays = |role| self.has_actor[role_index(role)];
        let engine = self.engine.as_ref().filter(|_| self.is_connected);
        engine.is_some_and(|engine| engine.hangs_since.is_none()) && self.spec.able.iter().all(|&role| plays(role))
    }

    /// Nothing is left of any sequence.
    pub(crate) fn is_quiet(&self) -> bool {
        let engine = self.engine.as_ref().is_some_and(Engine::is_quiet);
        engine && self.is_well() && self.prefill.is_empty() && self.decode.num_leases() == 0
    }
}
