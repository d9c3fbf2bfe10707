//! The decisions of one device: who computes what in the next step, and who holds which KV block.
//!
//! A pure state machine. The engine thread feeds it [`CoreEvent`]s and the time, carries out its [`Effect`]s, and asks it for the next
//! step with [`DeviceCore::plan_step`].
//!
//! **Invariant:** every block is free, cached, active or leased; a block is written only by the step in flight or by the writer of its
//! lease, never while somebody else reads it; each token of a sequence is emitted once, in order; who was taken ends once.

mod audit;
mod leasing;
mod lifecycle;
mod limits;
mod news;
mod planning;
mod pushing;
mod results;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use relevo_gpu::compute::RowOutput;
use relevo_wire::{BlockIndex, Epoch, Instant64, LayerIndex, LeaseId, SequenceId, StreamEvent};

use super::interface::{DeviceCommand, DeviceEvent, EngineStats};
use super::sequence::Sequence;
use crate::policy::blocks::BlockPool;
use crate::policy::fairness::{FairQueue, Waiting};
use crate::policy::prefix::{BuildPrefixKeyHasher, PrefixKey};
use crate::status::KvBlocks;

pub use limits::{CoreLimits, LimitsError, STEP_OUTPUTS, STEP_ROWS};
pub use planning::{PlanBuffers, StepShape};
pub use pushing::PinId;

use leasing::Lease;
use news::NewsClock;
use planning::Step;

/// What happened.
#[derive(Debug)]
pub enum CoreEvent {
    /// An actor orders something.
    Command(DeviceCommand),
    /// This layer of the step in flight is in the pool.
    LayerDone(LayerIndex),
    /// The step in flight is done: one output for each output row of its plan.
    StepDone(Vec<RowOutput>),
    /// The bytes of an [`Effect::Push`] are gone.
    Unpinned(PinId),
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Tell the gateway.
    Emit(SequenceId, StreamEvent),
    /// Tell an actor.
    Tell(DeviceEvent),
    /// Read these blocks of one layer and send them off as [`DeviceEvent::LayerReady`]; say [`CoreEvent::Unpinned`] when the bytes are gone.
    Push {
        /// What keeps the blocks from being reused.
        pin: PinId,
        /// Whose blocks.
        sequence: SequenceId,
        /// Under which lease.
        lease: LeaseId,
        /// The layer.
        layer: LayerIndex,
        /// Index within the sequence of the first block.
        first_block: u32,
        /// The blocks, in order.
        blocks: Vec<BlockIndex>,
    },
    /// The model broke its contract: treat it as a fault of the step.
    Fault(String),
}

/// What was counted since the epoch began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreCounters {
    /// Steps done.
    pub steps: u64,
    /// Prompt tokens computed, recomputations counted.
    pub prompt_tokens: u64,
    /// Tokens drawn.
    pub generated_tokens: u64,
    /// Sequences put back into the queue because blocks ran out.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_query_tokens: u64,
    /// Prompt tokens found there.
    pub prefix_hit_tokens: u64,
    /// Leases granted.
    pub leases_granted: u64,
    /// Leases refused.
    pub leases_refused: u64,
    /// Commits and releases that came after their lease had gone.
    pub leases_gone: u64,
}

/// The state machine of one device in one epoch.
#[derive(Debug)]
pub struct DeviceCore {
    limits: CoreLimits,
    /// Tokens that a sequence may have: the model's context, as far as the pool can hold it.
    max_context: usize,
    epoch: Epoch,
    pool: BlockPool,
    slots: Vec<Option<Sequence>>,
    free_slots: Vec<usize>,
    by_id: HashMap<SequenceId, usize>,
    queue: FairQueue,
    /// Who has a seat and blocks: higher priority first, then the older.
    running: Vec<usize>,
    num_awaiting_lease: usize,
    /// Full blocks that a running sequence is about to compute, by name: who wants the same prefix waits for it.
    claims: HashMap<PrefixKey, usize, BuildPrefixKeyHasher>,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: Option<LeaseId>,
    pins: BTreeMap<PinId, Vec<BlockIndex>>,
    next_pin: PinId,
    deadlines: BTreeSet<(Instant64, usize)>,
    step: Step,
    /// Reused by admission for those it passes over.
    passed_over: Vec<Waiting>,
    /// What routers were told of the prefix cache, and when.
    news: NewsClock,
    draining: Option<Instant64>,
    stopped: bool,
    num_taken: u64,
    counters: CoreCounters,
}

impl DeviceCore {
    /// A device with an empty pool.
    ///
    /// # Errors
    /// The configuration's fault: limits that contradict each other.
    pub fn new(limits: CoreLimits, epoch: Epoch) -> Result<Self, LimitsError> {
        let limits = limits.checked()?;
        Ok(Self {
            pool: BlockPool::new(limits.num_blocks),
            max_context: limits.served_context(),
            limits,
            epoch,
            slots: Vec::new(),
            free_slots: Vec::new(),
            by_id: HashMap::new(),
            queue: FairQueue::default(),
            running: Vec::new(),
            num_awaiting_lease: 0,
            claims: HashMap::default(),
            leases: BTreeMap::new(),
            last_lease: None,
            pins: BTreeMap::new(),
            next_pin: PinId(0),
            deadlines: BTreeSet::new(),
            step: Step::default(),
            passed_over: Vec::new(),
            news: NewsClock::default(),
            draining: None,
            stopped: false,
            num_taken: 0,
            counters: CoreCounters::default(),
        })
    }

    /// Takes in what happened; what is to be done is appended to `effects`, in order.
    pub fn handle(&mut self, event: CoreEvent, now: Instant64, effects: &mut Vec<Effect>) {
        match event {
            CoreEvent::Command(command) => self.obey(command, effects),
            CoreEvent::LayerDone(layer) => self.push_layer(layer, effects),
            CoreEvent::StepDone(outputs) => self.finish_step(outputs, effects),
            CoreEvent::Unpinned(pin) => self.unpin(pin),
            CoreEvent::Tick => {}
        }
        self.expire(now, effects);
        self.tell_news(now, effects);
    }

    fn obey(&mut self, command: DeviceCommand, effects: &mut Vec<Effect>) {
        match command {
            DeviceCommand::Prefill { request, destination } => self.take_in(request, destination, effects),
            DeviceCommand::UseLease { sequence, lease } => self.use_lease(sequence, &lease),
            DeviceCommand::Reserve { lease, request } => self.reserve(lease, request, effects),
            DeviceCommand::Commit { lease, first_token, cached_tokens } => {
                self.commit(lease, first_token, cached_tokens, effects);
            }
            DeviceCommand::Release { lease } => self.release(lease),
            DeviceCommand::Abort { sequence } => self.abort(sequence, effects),
            DeviceCommand::AbortAll { role } => self.abort_all(role, effects),
            DeviceCommand::AbortGateway { gateway } => self.abort_gateway(gateway, effects),
            DeviceCommand::TellPrefixes => self.pool.news().begin_snapshot(),
            DeviceCommand::Drain { deadline } => {
                self.draining = Some(self.draining.map_or(deadline, |earlier| earlier.min(deadline)));
            }
        }
    }

    /// When [`CoreEvent::Tick`] has something to do, if nothing else happens.
    pub fn next_deadline(&self) -> Option<Instant64> {
        let first = self.deadlines.first().map(|&(deadline, _)| deadline);
        let draining = self.draining.filter(|_| !self.stopped);
        let snapshot = self.pool.is_in_snapshot().then_some(Instant64(0));
        first.into_iter().chain(draining).chain(snapshot).min()
    }

    /// Whom the step in flight runs, in row order; nobody if there is none.
    pub fn stepping(&self) -> impl Iterator<Item = SequenceId> + '_ {
        let pieces = if self.step.in_flight { self.step.pieces.as_slice() } else { &[] };
        pieces.iter().filter_map(|piece| Some(self.slots[piece.slot].as_ref()?.id()))
    }

    /// Of these, who has rows of a prompt in it.
    pub fn prefilling(&self) -> impl Iterator<Item = SequenceId> + '_ {
        let pieces = if self.step.in_flight { self.step.pieces.as_slice() } else { &[] };
        let prefills = pieces.iter().filter(|piece| !piece.decodes);
        prefills.filter_map(|piece| Some(self.slots[piece.slot].as_ref()?.id()))
    }

    /// Whether a step was planned and is not done.
    pub fn is_stepping(&self) -> bool {
        self.step.in_flight
    }

    /// Drained: nothing will happen any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The epoch of its pool.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What it was told to keep to.
    pub fn limits(&self) -> &CoreLimits {
        &self.limits
    }

    /// What it has counted.
    pub fn counters(&self) -> CoreCounters {
        self.counters
    }

    /// Blocks by state.
    pub fn kv_blocks(&self) -> KvBlocks {
        self.pool.counts()
    }

    /// Sequences that have blocks and a seat.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait for their first chunk, or for their next after a preemption.
    pub fn num_waiting(&self) -> usize {
        self.queue.len() + self.num_awaiting_lease
    }

    /// Those that it has taken and that are not over.
    pub fn sequences(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.slots.iter().flatten().map(Sequence::id)
    }

    /// Leases in force.
    pub fn num_leases(&self) -> usize {
        self.leases.len()
    }

    /// Whose blocks a lease is for, if they can be committed.
    pub fn sequence_under(&self, lease: LeaseId) -> Option<SequenceId> {
        self.leases.get(&lease).map(|lease| lease.sequence.id()).filter(|id| !self.by_id.contains_key(id))
    }

    /// Their ids, in the order in which they were granted.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    /// A snapshot.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            steps: self.counters.steps,
            running: self.running.len() as u64,
            waiting: self.num_waiting() as u64,
            leases: self.leases.len() as u64,
            kv_blocks: self.pool.counts(),
            prefix_hit_tokens: self.counters.prefix_hit_tokens,
            prefix_query_tokens: self.counters.prefix_query_tokens,
            busy: self.step.in_flight || !self.running.is_empty() || !self.queue.is_empty(),
        }
    }
}
