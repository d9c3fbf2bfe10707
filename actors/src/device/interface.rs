//! What role actors and an engine thread say to each other. Every channel that carries these is bounded.
//!
//! **Invariant:** a sequence that a device took (by [`DeviceCommand::Prefill`] or [`DeviceCommand::Commit`]) ends with exactly one
//! [`DeviceEvent::Ended`], its last event, unless the device stops ([`DeviceEvent::Faulted`]) before. A lease asked for by
//! [`DeviceCommand::Reserve`] is answered once, and what was reserved goes back by [`DeviceCommand::Commit`] or
//! [`DeviceCommand::Release`] alone: an abort or a deadline of the sequence does not touch blocks that somebody may be writing to.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use relevo_gpu::compute::ComputeError;
use relevo_gpu::model::{KvMemory, StepModel};
use relevo_wire::{DeviceId, Epoch, GenerateRequest, Instant64, LayerIndex, LeaseId, NodeId, RequestError, SequenceId};
pub use relevo_wire::{DeviceRole, GrantedLease, TokenBatch};
use tokio::sync::{mpsc, oneshot, watch};

use crate::policy::prefix_news::PrefixBatch;
use crate::status::KvBlocks;
use crate::traces::Traces;

/// An order to a device. A handful for each request, none for each token.
#[derive(Clone, Debug)]
pub enum DeviceCommand {
    /// From the PrefillActor: compute the context of `request` and its first token.
    Prefill {
        /// The sequence.
        request: Arc<GenerateRequest>,
        /// Who decodes it.
        destination: Destination,
    },
    /// From the PrefillActor: the lease that [`DeviceEvent::LeaseWanted`] asked for. A refusal is answered by the lease of
    /// another device, or by [`DeviceCommand::Abort`]. A sequence that does not wait for a lease ignores it: one whose lease was lost is
    /// aborted, and its next attempt finds its blocks in the prefix cache.
    UseLease {
        /// The sequence.
        sequence: SequenceId,
        /// What the decode side granted.
        lease: GrantedLease,
    },
    /// From the DecodeActor: reserve blocks for a sequence that is prefilled elsewhere.
    Reserve {
        /// Minted by the DecodeActor; ids only grow within an epoch, also over a restart of the actor.
        lease: LeaseId,
        /// The sequence; its leading blocks may be cached here already.
        request: Arc<GenerateRequest>,
    },
    /// From the DecodeActor: every block of the lease has arrived; decode from here on.
    Commit {
        /// The lease.
        lease: LeaseId,
        /// The token that prefill has drawn and emitted.
        first_token: u32,
        /// Prompt tokens that prefill took from its prefix cache, as [`DeviceEvent::PrefillFinished`] said.
        cached_tokens: u32,
    },
    /// From the DecodeActor: the lease is over (expired, aborted, its writer died); nobody writes to its blocks any more.
    Release {
        /// The lease.
        lease: LeaseId,
    },
    /// From either: stop the sequence wherever it is and free what it holds (a lease waits for its own [`DeviceCommand::Release`]).
    /// Unknown sequences are ignored: they may have ended while the order was on its way.
    Abort {
        /// The sequence.
        sequence: SequenceId,
    },
    /// From the supervisor: the role's actor is gone; abort every sequence that it owns. With [`DeviceRole::Decode`], leases are
    /// released too: the supervisor has made sure that no writer is left.
    AbortAll {
        /// Whose.
        role: DeviceRole,
    },
    /// From the cluster: the gateway that wanted these sequences is gone; abort every one that it minted.
    AbortGateway {
        /// Whose.
        gateway: NodeId,
    },
    /// From a router that has missed some of what was told of the prefix cache, or has just begun: tell all that is held, by
    /// [`DeviceEvent::PrefixChanged`].
    TellPrefixes,
    /// Take nothing new, finish what runs, then stop the thread; what still runs at the deadline fails with `ShuttingDown`.
    Drain {
        /// When to give up.
        deadline: Instant64,
    },
}

/// Who decodes a sequence after its prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The DecodeActor of the same device: the block table changes its owner, nothing is copied.
    SamePool,
    /// Another device: each layer's blocks are pushed under a lease.
    Remote,
}

/// News from a device to its role actors. A handful for each request, none for each token.
#[derive(Clone, Debug)]
pub enum DeviceEvent {
    /// To the PrefillActor: the first chunk of this sequence is about to be scheduled; its destination is remote.
    LeaseWanted {
        /// The sequence.
        sequence: SequenceId,
    },
    /// To the PrefillActor: blocks of one layer are final and must be pushed. They stay pinned while the bytes live.
    LayerReady {
        /// The sequence.
        sequence: SequenceId,
        /// Under which lease.
        lease: LeaseId,
        /// The layer.
        layer: LayerIndex,
        /// Index within the sequence of the first block.
        first_block: u32,
        /// The blocks' bytes, in order.
        blocks: Vec<Bytes>,
    },
    /// To the PrefillActor: the context is computed, the first token is drawn and emitted, every [`DeviceEvent::LayerReady`] is out.
    PrefillFinished {
        /// The sequence.
        sequence: SequenceId,
        /// The token drawn; `None` if `max_tokens` was 0.
        first_token: Option<u32>,
        /// It goes on decoding (false if that token ended it, or none was wanted: then it was told to the gateway).
        continues: bool,
        /// Prompt tokens taken from the prefix cache.
        cached_tokens: u32,
    },
    /// To both actors of one device: the block table changed hands within the pool; from here on the DecodeActor owns the sequence.
    HandedOver {
        /// The sequence.
        sequence: SequenceId,
        /// Blocks that its context fills or begins.
        num_blocks: u32,
    },
    /// To the DecodeActor: answer to [`DeviceCommand::Reserve`].
    Reserved {
        /// What was reserved.
        lease: GrantedLease,
        /// For whom.
        sequence: SequenceId,
    },
    /// To the DecodeActor: no room without eating into what running sequences will need.
    Refused {
        /// The lease asked for.
        lease: LeaseId,
        /// For whom.
        sequence: SequenceId,
    },
    /// To the DecodeActor: a [`DeviceCommand::Commit`] named a lease that is not, or no longer, in force. Nothing was done.
    LeaseGone {
        /// The lease.
        lease: LeaseId,
    },
    /// To the owner of the sequence: it is over here and its blocks are free (or cached).
    Ended {
        /// The sequence.
        sequence: SequenceId,
        /// Whose actor owned it.
        role: DeviceRole,
        /// How.
        outcome: SequenceOutcome,
    },
    /// To routers: blocks of prefixes that the device holds now, or no more. Some time after the fact, a few times a second.
    PrefixChanged {
        /// What has changed since the last, or what else there is to say.
        batch: PrefixBatch,
    },
    /// Drained: the thread ends.
    Stopped,
    /// To the supervisor: the step panicked or the device failed. The pool of this epoch is void, every sequence and lease in it is
    /// lost without a further event, and the thread ends.
    Faulted {
        /// The epoch that ended.
        epoch: Epoch,
        /// The sequences that the failed step ran, in row order: those that may be poison.
        stepping: Vec<SequenceId>,
        /// What happened, for the log.
        reason: String,
    },
}

impl DeviceEvent {
    /// Whose actor wants to know; `None` for the supervisor's and routers', and for [`DeviceEvent::HandedOver`], which goes to both.
    pub fn role(&self) -> Option<DeviceRole> {
        match self {
            Self::LeaseWanted { .. } | Self::LayerReady { .. } | Self::PrefillFinished { .. } => {
                Some(DeviceRole::Prefill)
            }
            Self::Reserved { .. } | Self::Refused { .. } | Self::LeaseGone { .. } => Some(DeviceRole::Decode),
            Self::Ended { role, .. } => Some(*role),
            Self::HandedOver { .. } | Self::PrefixChanged { .. } | Self::Stopped | Self::Faulted { .. } => None,
        }
    }
}

/// How a sequence ended on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SequenceOutcome {
    /// Finished, told to the gateway.
    Finished,
    /// Its context went to another device, which decodes it; [`DeviceEvent::PrefillFinished`] came before. Its blocks stay cached here.
    Pushed,
    /// Aborted on request.
    Aborted,
    /// Failed, told to the gateway.
    Failed(RequestError),
}

/// What `start_engine(ports, limits)` takes to start an engine thread. Its supervisor holds the other ends.
///
/// The engine never waits for the runtime: it keeps what a full `events` or `tokens` channel does not take, and pauses prefill while that is
/// more than a step's worth.
pub struct EnginePorts {
    /// The device.
    pub device: DeviceId,
    /// The pool starts empty in this epoch; every [`GrantedLease`] carries it.
    pub epoch: Epoch,
    /// The model, over an empty pool: as loaded, or as the epoch before has left it in its [`EngineExit`].
    pub model: Box<dyn StepModel>,
    /// Told once the thread runs: the model's KV memory, for those who move blocks. After an error the thread ends.
    pub started: oneshot::Sender<Result<Arc<dyn KvMemory>, ComputeError>>,
    /// Orders. Closed: stop at once, as after [`DeviceCommand::Drain`] with a deadline that has passed.
    pub commands: mpsc::Receiver<DeviceCommand>,
    /// News for the role actors.
    pub events: mpsc::Sender<DeviceEvent>,
    /// Tokens for the gateway: shared by all devices of a process, so that a sequence's tokens arrive in the order of their cause.
    pub tokens: mpsc::Sender<TokenBatch>,
    /// Grows with every layer computed and every idle wake-up; shows that the thread lives.
    pub progress: Arc<AtomicU64>,
    /// What the engine says of itself, after each step.
    pub stats: watch::Sender<EngineStats>,
    /// Where the spans of its sequences hang.
    pub traces: Traces,
    /// Sent when the thread ends, however it ends (also by a panic, which it catches), as the last thing it does.
    pub exited: oneshot::Sender<EngineExit>,
}

/// A snapshot of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Steps done since the epoch began.
    pub steps: u64,
    /// Sequences that have been scheduled and are not over.
    pub running: u64,
    /// Sequences that wait for their first chunk.
    pub waiting: u64,
    /// Leases reserved and neither committed nor released.
    pub leases: u64,
    /// Blocks by state.
    pub kv_blocks: KvBlocks,
    /// Prompt tokens taken from the prefix cache, since the epoch began.
    pub prefix_hit_tokens: u64,
    /// Prompt tokens looked up, since the epoch began.
    pub prefix_query_tokens: u64,
    /// Something is left to be stepped: progress must be seen.
    pub busy: bool,
}

/// What an engine thread leaves behind, after [`DeviceEvent::Stopped`] or [`DeviceEvent::Faulted`].
pub struct EngineExit {
    /// The model with its weights, over a fresh pool ([`StepModel::reset`]), for the next epoch: ask it for its new
    /// [`StepModel::kv_memory`]. Who still reads or writes the old one harms nobody. Absent if it could not be reset.
    pub model: Option<Box<dyn StepModel>>,
}
