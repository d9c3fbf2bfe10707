//! How the actors of a process reach a device: its engine of the present epoch, its role actors, its way in for blocks.
//!
//! A port outlives the device's supervisor, so that a restarted one finds the engine (and the weights) of its predecessor.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use relevo_gpu::model::KvMemory;
use relevo_wire::{DeviceId, Epoch, SequenceId};
use tokio::sync::{mpsc, oneshot, watch};

use super::interface::{DeviceCommand, DeviceEvent, DeviceRole, EngineExit, EngineStats};
use crate::cluster::{DeviceSpec, Epochs, Slot};
use crate::decode::{DecodeEvent, DecodeMessage, LandingStrip};
use crate::prefill::{PrefillEvent, PrefillMessage, PushRoutes};

/// A device as the others see it.
pub(crate) struct DevicePort {
    pub(crate) id: DeviceId,
    pub(crate) name: String,
    /// What it could do: its actors of these roles run.
    pub(crate) able: Vec<DeviceRole>,
    pub(crate) prefill: Slot<PrefillMessage>,
    pub(crate) decode: Slot<DecodeMessage>,
    pub(crate) supervisor: Slot<super::supervisor::SupervisorMessage>,
    /// Leases that blocks may arrive under.
    pub(crate) landing: Arc<LandingStrip>,
    /// Where the layers of its sequences go.
    pub(crate) routes: PushRoutes,
    /// What it does.
    roles: RwLock<Vec<DeviceRole>>,
    draining: AtomicBool,
    epochs: Option<Epochs>,
    epoch: AtomicU64,
    engine: RwLock<Option<EngineLink>>,
    remains: Mutex<Option<Remains>>,
    past: Mutex<PastEpochs>,
}

/// An engine of one epoch.
#[derive(Clone)]
pub(crate) struct EngineLink {
    pub(crate) epoch: Epoch,
    pub(crate) commands: mpsc::Sender<DeviceCommand>,
    /// To see how full it is.
    pub(crate) events: mpsc::WeakSender<DeviceEvent>,
    pub(crate) kv: Arc<dyn KvMemory>,
    pub(crate) max_context: usize,
    pub(crate) stats: watch::Receiver<EngineStats>,
    pub(crate) progress: Arc<AtomicU64>,
}

/// What is left of an engine when its link is cut: to be waited for.
pub(crate) struct Remains {
    pub(crate) exited: oneshot::Receiver<EngineExit>,
    pub(crate) thread: JoinHandle<()>,
}

/// Counts of the epochs that are over.
#[derive(Clone, Copy, Debug, Default)]
struct PastEpochs {
    steps: u64,
    prefix_hit_tokens: u64,
    prefix_query_tokens: u64,
}

impl DevicePort {
    pub(crate) fn new(id: DeviceId, spec: &DeviceSpec, epochs: Option<Epochs>) -> Self {
        Self {
            id,
            name: spec.name.clone(),
            able: spec.able.clone(),
            prefill: Slot::default(),
            decode: Slot::default(),
            supervisor: Slot::default(),
            landing: Arc::default(),
            routes: PushRoutes::default(),
            roles: RwLock::new(spec.roles.clone()),
            draining: AtomicBool::new(false),
            epochs,
            epoch: AtomicU64::new(0),
            engine: RwLock::new(None),
            remains: Mutex::new(None),
            past: Mutex::new(PastEpochs::default()),
        }
    }

    /// The supervisor's name in the supervision tree; its children's begin with it.
    pub(crate) fn tree_name(&self) -> String {
        self.id.to_string()
    }

    pub(crate) fn engine_name(&self) -> String {
        format!("{}/engine", self.id)
    }

    pub(crate) fn prefill_name(&self) -> String {
        format!("{}/prefill", self.id)
    }

    pub(crate) fn decode_name(&self) -> String {
        format!("{}/decode", self.id)
    }

    /// What it does.
    pub(crate) fn roles(&self) -> Vec<DeviceRole> {
        self.roles.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// It does this from here on, as far as it is able to.
    pub(crate) fn set_roles(&self, roles: &[DeviceRole]) {
        let able: Vec<_> = roles.iter().copied().filter(|role| self.able.contains(role)).collect();
        if !able.is_empty() {
            *self.roles.write().unwrap_or_else(PoisonError::into_inner) = able;
        }
    }

    /// Whether it takes nothing new.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// It takes nothing new from here on, or does so again.
    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
    }

    /// Gives an order; `false` if there is no engine to take it.
    ///
    /// The channel holds a handful of orders for each live stream, so a full one means an engine that has not looked at it for long: the
    /// order is lost with the engine, which its supervisor will replace.
    #[must_use]
    pub(crate) fn command(&self, command: DeviceCommand) -> bool {
        self.engine().as_ref().is_some_and(|engine| engine.commands.try_send(command).is_ok())
    }

    /// Stops a sequence wherever it is on this device: through its role actors, so that the order overtakes no other, and past them, in case
    /// they die with it in their mailbox.
    pub(crate) fn abort(&self, sequence: SequenceId) {
        let _ = self.command(DeviceCommand::Abort { sequence });
        let _ = self.prefill.cast(PrefillMessage::Event(PrefillEvent::Abort(sequence)));
        let _ = self.decode.cast(DecodeMessage::Event(DecodeEvent::Abort(sequence)));
    }

    /// The present epoch.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Begins the next epoch.
    ///
    /// # Errors
    /// It cannot be kept that it has begun, so that a later one could bear its number.
    pub(crate) fn next_epoch(&self) -> io::Result<Epoch> {
        let epoch = match &self.epochs {
            Some(epochs) => epochs()?,
            None => Epoch(self.epoch().0 + 1),
        };
        self.epoch.store(epoch.0, Ordering::Release);
        Ok(epoch)
    }

    pub(crate) fn connect(&self, engine: EngineLink, remains: Remains) {
        *self.remains() = Some(remains);
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(engine);
    }

    /// Cuts the engine off: it ends when it notices. Orders given from here on are refused.
    pub(crate) fn disconnect(&self) -> Option<Remains> {
        let engine = self.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = engine {
            let stats = *engine.stats.borrow();
            let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            past.steps += stats.steps;
            past.prefix_hit_tokens += stats.prefix_hit_tokens;
            past.prefix_query_tokens += stats.prefix_query_tokens;
        }
        self.remains().take()
    }

    pub(crate) fn engine(&self) -> RwLockReadGuard<'_, Option<EngineLink>> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool's memory.
    pub(crate) fn kv_memory(&self) -> Option<Arc<dyn KvMemory>> {
        self.engine().as_ref().map(|engine| Arc::clone(&engine.kv))
    }

    /// The pool's memory, if `epoch` is the present one.
    pub(crate) fn kv_memory_of(&self, epoch: Epoch) -> Option<Arc<dyn KvMemory>> {
        self.engine().as_ref().filter(|engine| engine.epoch == epoch).map(|engine| Arc::clone(&engine.kv))
    }

    /// What the engine says of itself, and the counts of the epochs before added.
    pub(crate) fn stats(&self) -> EngineStats {
        let mut stats = self.engine().as_ref().map(|engine| *engine.stats.borrow()).unwrap_or_default();
        let past = *self.past.lock().unwrap_or_else(PoisonError::into_inner);
        stats.steps += past.steps;
        stats.prefix_hit_tokens += past.prefix_hit_tokens;
        stats.prefix_query_tokens += past.prefix_query_tokens;
        stats
    }

    fn remains(&self) -> MutexGuard<'_, Option<Remains>> {
        self.remains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
