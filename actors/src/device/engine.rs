//! The engine thread: owns the model, feeds the core, runs its steps, and carries its effects out.
//!
//! It waits for one thing only, the next order, and only when there is nothing to compute: what the runtime has no room for yet is kept in an
//! outbox, and while that holds more than a few steps' worth no further step is begun.
//!
//! **Invariant:** whatever happens in a step, the thread ends by saying so; a panic or a device error is a fault of the epoch, not of the process.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use relevo_gpu::compute::ComputeError;
use relevo_gpu::model::{KvMemory, Progress, StepModel};
use relevo_wire::{DeviceId, Epoch, SequenceId};
use tokio::sync::{mpsc, oneshot, watch};

use super::core::{CoreEvent, CoreLimits, DeviceCore, Effect, LimitsError, PlanBuffers};
use super::engine_metrics::{EngineMetrics, StepTimes};
use super::interface::{DeviceCommand, DeviceEvent, EngineExit, EnginePorts, EngineStats, TokenBatch};
use super::outbox::Outbox;
use super::pins::PinReturns;
use super::thread_waker::thread_waker;
use crate::clock;
use crate::traces::EngineHops;

/// Longest sleep: an idle engine shows that it lives as often as heartbeats are sent.
const IDLE_WAKE_UP: Duration = Duration::from_millis(100);

/// How soon a full channel is tried again; its reader does not wake this thread.
const CONGESTED_WAKE_UP: Duration = Duration::from_millis(1);

/// How long the last words may wait for room in their channel. The exit notice is not bounded by it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Orders taken in between two steps: more wait for the next one, so that a flood of them does not stop those who run.
const COMMANDS_PER_STEP: usize = 512;

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration's fault.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The operating system gave no thread. Transient.
    #[error("no thread for the engine")]
    Thread(#[from] std::io::Error),
}

/// Starts a device's engine on a thread of its own. The thread ends after [`DeviceCommand::Drain`], when its commands are closed, or by a fault;
/// whoever starts it joins it.
///
/// # Errors
/// See [`StartError`]. The ports, and the model in them, are lost with the thread that was not started.
pub fn start_engine(ports: EnginePorts, limits: CoreLimits) -> Result<JoinHandle<()>, StartError> {
    let core = DeviceCore::new(limits, ports.epoch)?;
    let name = format!("engine-{}", ports.device.0);
    Ok(std::thread::Builder::new().name(name).spawn(move || live(ports, core))?)
}

/// An engine thread's life, from its first breath to the exit notice.
fn live(ports: EnginePorts, core: DeviceCore) {
    let (mut engine, exited) = Engine::new(ports, core);
    let lived = catch_unwind(AssertUnwindSafe(|| engine.serve()));
    let fault = match lived {
        Ok(Ok(())) => None,
        Ok(Err(fault)) => Some(fault.to_string()),
        Err(panic) => Some(format!("panicked: {}", panic_text(panic.as_ref()))),
    };
    let model = engine.end(fault);
    // A supervisor that is gone has nobody to restart the engine for.
    _ = exited.send(EngineExit { model });
}

/// What ends an epoch before its time.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Compute(#[from] ComputeError),
    #[error("the model broke its contract: {0}")]
    Contract(String),
}

struct Engine {
    device: DeviceId,
    epoch: Epoch,
    model: Box<dyn StepModel>,
    commands: mpsc::Receiver<DeviceCommand>,
    events: mpsc::Sender<DeviceEvent>,
    tokens: mpsc::Sender<TokenBatch>,
    progress: Arc<AtomicU64>,
    stats: watch::Sender<EngineStats>,
    core: DeviceCore,
    kv: Arc<dyn KvMemory>,
    outbox: Outbox,
    pins: Arc<PinReturns>,
    waker: Waker,
    metrics: EngineMetrics,
    hops: EngineHops,
    buffers: PlanBuffers,
    effects: Vec<Effect>,
}

impl Engine {
    fn new(ports: EnginePorts, core: DeviceCore) -> (Self, oneshot::Sender<EngineExit>) {
        let EnginePorts {
            device,
            epoch,
            mut model,
            started,
            commands,
            events,
            tokens,
            progress,
            stats,
            traces,
            exited,
        } = ports;
        model.adopt_thread();
        let kv = model.kv_memory();
        // Whoever started it may have gone meanwhile; then the commands are closed.
        _ = started.send(Ok(kv.clone()));
        let engine = Self {
            device,
            epoch,
            model,
            commands,
            events,
            tokens,
            progress,
            stats,
            core,
            kv,
            outbox: Outbox::default(),
            pins: Arc::new(PinReturns::new(std::thread::current())),
            waker: thread_waker(),
            metrics: EngineMetrics::new(device),
            hops: EngineHops::new(device, traces),
            buffers: PlanBuffers::default(),
            effects: Vec::new(),
        };
        (engine, exited)
    }

    /// Takes orders and runs steps until there will be none any more.
    fn serve(&mut self) -> Result<(), Fault> {
        loop {
            self.take_orders()?;
            self.outbox.flush(&self.tokens, &self.events);
            if self.core.is_stopped() {
                return Ok(());
            }
            if self.outbox.is_congested() || !self.run_step()? {
                self.publish();
                self.sleep();
            }
        }
    }

    fn take_orders(&mut self) -> Result<(), Fault> {
        for _ in 0..COMMANDS_PER_STEP {
            match self.commands.poll_recv(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Some(command)) => {
                    match &command {
                        DeviceCommand::Prefill { request, .. } => self.hops.queued(request.sequence),
                        DeviceCommand::Commit { lease, .. } => {
                            self.core.sequence_under(*lease).into_iter().for_each(|it| self.hops.committed(it));
                        }
                        _ => {}
                    }
                    self.tell_core(CoreEvent::Command(command))?;
                }
                // Nobody is left to give orders, so nobody is left to answer to.
                Poll::Ready(None) => {
                    self.tell_core(CoreEvent::Command(DeviceCommand::Drain { deadline: clock::now() }))?;
                    break;
                }
                Poll::Pending => break,
            }
        }
        while let Some(pin) = self.pins.take() {
            self.tell_core(CoreEvent::Unpinned(pin))?;
        }
        Ok(())
    }

    /// Plans and computes one step; false if there is nothing to do.
    fn run_step(&mut self) -> Result<bool, Fault> {
        let mut times = StepTimes::start();
        let planned = self.core.plan_step(clock::now(), &mut self.effects);
        self.carry_out()?;
        if !planned {
            return Ok(false);
        }
        self.hops.prefilling(self.core.prefilling());
        let shape = self.core.step_shape();
        let plan = self.core.step_plan(&mut self.buffers);
        let begun = self.model.begin_step(&plan);
        self.buffers.reclaim(plan);
        begun?;
        times.planned();
        // An idle engine that hangs in its first step must not pass for idle.
        if !self.stats.borrow().busy {
            self.publish();
        }
        while let Progress::LayerDone(layer) = self.model.advance()? {
            self.progress.fetch_add(1, Ordering::Relaxed);
            self.tell_core(CoreEvent::LayerDone(layer))?;
            // Blocks that are final travel while the next layer is computed.
            self.outbox.flush(&self.tokens, &self.events);
        }
        let outputs = self.model.finish_step()?;
        times.computed();
        self.tell_core(CoreEvent::StepDone(outputs))?;
        self.outbox.flush(&self.tokens, &self.events);
        self.publish();
        self.metrics.record_step(shape, times.emitted());
        Ok(true)
    }

    fn tell_core(&mut self, event: CoreEvent) -> Result<(), Fault> {
        self.core.handle(event, clock::now(), &mut self.effects);
        self.carry_out()
    }

    fn carry_out(&mut self) -> Result<(), Fault> {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Emit(sequence, event) => self.outbox.emit(sequence, event),
                Effect::Tell(event) => {
                    self.hops.told(&event);
                    self.outbox.tell(event);
                }
                Effect::Push { pin, sequence, lease, layer, first_block, blocks } => {
                    let guard = self.pins.guard(pin);
                    let blocks = blocks.iter().map(|&block| guard.wrap(self.kv.read(layer, block))).collect();
                    self.outbox.tell(DeviceEvent::LayerReady { sequence, lease, layer, first_block, blocks });
                }
                Effect::Fault(reason) => return Err(Fault::Contract(reason)),
            }
        }
        Ok(())
    }

    /// Until an order comes, bytes in flight are gone, or a deadline is due. Waking up early does no harm.
    fn sleep(&self) {
        let most = if self.outbox.is_empty() { IDLE_WAKE_UP } else { CONGESTED_WAKE_UP };
        let left = self.core.next_deadline().map_or(most, |deadline| deadline.since(clock::now()));
        std::thread::park_timeout(left.min(most));
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    fn publish(&mut self) {
        let stats = self.core.stats();
        self.stats.send_if_modified(|last| std::mem::replace(last, stats) != stats);
        self.metrics.record_state(stats, self.core.counters());
    }

    /// The last words, and the model back to whoever starts the next epoch, over an empty pool.
    fn end(mut self, fault: Option<String>) -> Option<Box<dyn StepModel>> {
        if let Some(reason) = fault {
            let stepping: Vec<SequenceId> = self.core.stepping().collect();
            tracing::error!(device = %self.device, epoch = %self.epoch, ?stepping, reason, "the engine failed");
            self.outbox.tell(DeviceEvent::Faulted { epoch: self.epoch, stepping, reason });
        }
        let deadline = clock::now() + LAST_WORDS;
        while !self.outbox.flush(&self.tokens, &self.events) && clock::now() < deadline {
            std::thread::park_timeout(CONGESTED_WAKE_UP);
        }
        drop(self.kv);
        let mut model = self.model;
        let reset = catch_unwind(AssertUnwindSafe(|| model.reset()));
        matches!(reset, Ok(Ok(()))).then_some(model)
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
