//! The DeviceSupervisor: the actor that *is* the device in the supervision tree.
//!
//! It owns the engine thread and is the parent of the device's role actors. An actor that dies leaves the engine running: what it owned is
//! aborted there and replayed by the gateway. An engine that dies takes its pool along: a new epoch begins with an empty one and the same
//! weights, and both role actors begin anew with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use relevo_gpu::model::StepModel;
use relevo_wire::{DeviceFacts, Epoch, Heartbeat, SequenceId, Stepping};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::core::CoreLimits;
use super::engine::start_engine;
use super::faulty_model::FaultyModel;
use super::interface::{DeviceCommand, DeviceRole, EnginePorts, EngineStats, TokenBatch};
use super::port::{DevicePort, EngineLink, Remains};
use super::pump::pump;
use crate::clock;
use crate::cluster::{DeviceSpec, Directory, Ticker};
use crate::coordinator::CoordinatorMessage;
use crate::decode::{DecodeActor, DecodeArguments};
use crate::policy::progress::ProgressWatch;
use crate::policy::restarts::RestartHistory;
use crate::prefill::{PrefillActor, PrefillArguments};

/// Events that an engine may be ahead of the runtime: two chunks' layers.
const EVENT_CAPACITY: usize = 256;

/// Orders for each live stream: one to begin, one to end, the same again for a lease, and room for repeats.
const COMMANDS_PER_STREAM: usize = 8;

/// How often a device says that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

/// How long an engine that was cut off may take to end: a step at most.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// The supervisor's actor.
pub(crate) struct DeviceSupervisor;

/// Its messages.
#[derive(RactorMessage)]
pub(crate) enum SupervisorMessage {
    /// The engine of this epoch has ended; `stepping` and `reason` if by a fault.
    EngineEnded { epoch: Epoch, stepping: Vec<SequenceId>, reason: Option<String> },
    /// Time to say that the device lives.
    Heartbeat,
    /// To see whether the fault switches let it live.
    Poke,
}

/// What it is started with.
pub(crate) struct SupervisorArguments {
    pub(crate) directory: Arc<Directory>,
    pub(crate) port: Arc<DevicePort>,
    pub(crate) spec: DeviceSpec,
    pub(crate) tokens: mpsc::Sender<TokenBatch>,
}

pub(crate) struct SupervisorState {
    arguments: SupervisorArguments,
    history: RestartHistory,
    roles: Vec<(DeviceRole, ActorCell)>,
    watch: ProgressWatch,
    /// Dropped with the state, which ends the tasks.
    tasks: JoinSet<()>,
    _ticker: Ticker,
}

impl Actor for DeviceSupervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let SupervisorArguments { directory, port, .. } = &arguments;
        port.supervisor.set(myself.clone());
        let mut tasks = JoinSet::new();
        directory.links.serve(port.id, Arc::clone(&port.landing), &mut tasks);
        let history = RestartHistory::new(directory.limits.restarts);
        let watch = ProgressWatch::new(directory.limits.hang_after, HEARTBEAT, clock::now());
        let ticker = Ticker::start(myself.clone(), HEARTBEAT, || SupervisorMessage::Heartbeat);
        let mut state = SupervisorState { arguments, history, roles: Vec::new(), watch, tasks, _ticker: ticker };
        state.begin_epoch(Stepping::Nothing).await?;
        state.start_roles(&myself).await?;
        state.heartbeat();
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if !matches!(message, SupervisorMessage::Heartbeat) {
            state.arguments.directory.on_message(&state.arguments.port.tree_name());
        }
        match message {
            SupervisorMessage::EngineEnded { epoch, stepping, reason } => {
                if epoch == state.arguments.port.epoch() {
                    state.engine_ended(&myself, stepping, reason).await?;
                }
            }
            SupervisorMessage::Heartbeat => {
                state.replace_if_stuck(&myself).await?;
                state.heartbeat();
            }
            SupervisorMessage::Poke => {}
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (SupervisionEvent::ActorFailed(cell, _) | SupervisionEvent::ActorTerminated(cell, _, _)) = event else {
            return Ok(());
        };
        let Some(index) = state.roles.iter().position(|(_, role)| role.get_id() == cell.get_id()) else {
            return Ok(());
        };
        let (role, _) = state.roles.swap_remove(index);
        state.role_ended(&myself, role).await
    }
}

impl SupervisorState {
    /// A role's actor died: the engine lets go of what it owned, and the gateway replays it.
    async fn role_ended(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        role: DeviceRole,
    ) -> Result<(), ActorProcessingErr> {
        let (directory, port) = (Arc::clone(&self.arguments.directory), Arc::clone(&self.arguments.port));
        let name = role_name(&port, role);
        directory.tree.stopped(&name);
        tracing::error!(actor = name, "died, is restarted");
        if !self.history.allows(clock::now()) {
            return Err(format!("the roles of {} die too often", port.name).into());
        }
        match role {
            DeviceRole::Prefill => port.routes.close_all(),
            DeviceRole::Decode => port.landing.close_all_and_wait().await,
        }
        // An engine that does not take the order has died as well, which the gateway is told in its turn.
        let _ = port.command(DeviceCommand::AbortAll { role });
        self.start_role(myself, role).await?;
        directory.role_lost(port.id, role);
        Ok(())
    }

    async fn engine_ended(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        stepping: Vec<SequenceId>,
        reason: Option<String>,
    ) -> Result<(), ActorProcessingErr> {
        let SupervisorArguments { directory, port, .. } = &self.arguments;
        directory.tree.stopped(&port.engine_name());
        let reason = reason.unwrap_or_else(|| "it ended without a word".into());
        tracing::error!(device = port.name, reason, "the engine died, a new epoch begins");
        if !self.history.allows(clock::now()) {
            return Err(format!("the engine of {} dies too often", port.name).into());
        }
        self.restart_device(myself, Stepping::These(stepping)).await
    }

    async fn restart_device(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        stepping: Stepping,
    ) -> Result<(), ActorProcessingErr> {
        self.roles.clear();
        self.begin_epoch(stepping).await?;
        self.start_roles(myself).await?;
        self.heartbeat();
        Ok(())
    }

    /// A new pool, the same weights if the last engine has left them.
    async fn begin_epoch(&mut self, stepping: Stepping) -> Result<(), ActorProcessingErr> {
        let SupervisorArguments { directory, port, spec, tokens } = &self.arguments;
        let remains = port.disconnect();
        // Only when nobody takes sequences any more can be said which are lost: what is sent here from now on comes back undelivered.
        port.prefill.kill().await;
        port.decode.kill().await;
        port.landing.close_all();
        port.routes.close_all();
        self.heartbeat();
        directory.device_lost(port.id, &stepping);
        let revived = match remains {
            Some(remains) => bury(remains).await,
            None => None,
        };
        let model = match revived {
            Some(model) => model,
            None => self.make_model().await?,
        };
        let tuned = (spec.tune)(CoreLimits::of_model(model.as_ref()));
        let limits = CoreLimits { hint_keyer: directory.hint_keyer, ..tuned };
        let (link, remains, events) = start(directory, port, model, limits, tokens.clone()).await?;
        let epoch = link.epoch;
        port.connect(link, remains);
        directory.tree.started(&port.engine_name(), Some(&port.tree_name()));
        let (directory, port) = (Arc::clone(directory), Arc::clone(port));
        self.watch = ProgressWatch::new(directory.limits.hang_after, HEARTBEAT, clock::now());
        self.tasks.spawn(pump(directory, port, epoch, events));
        Ok(())
    }

    async fn make_model(&self) -> Result<Box<dyn StepModel>, ActorProcessingErr> {
        let SupervisorArguments { directory, port, spec, .. } = &self.arguments;
        let factory = Arc::clone(&spec.model);
        let model = tokio::task::spawn_blocking(move || factory()).await??;
        if !directory.allow_faults {
            return Ok(model);
        }
        let faults = Arc::clone(&directory.faults);
        Ok(Box::new(FaultyModel::new(model, faults, port.name.clone(), port.engine_name())))
    }

    async fn start_roles(&mut self, myself: &ActorRef<SupervisorMessage>) -> Result<(), ActorProcessingErr> {
        for role in self.arguments.port.able.clone() {
            self.start_role(myself, role).await?;
        }
        Ok(())
    }

    async fn start_role(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        role: DeviceRole,
    ) -> Result<(), ActorProcessingErr> {
        let SupervisorArguments { directory, port, .. } = &self.arguments;
        let (directory, port) = (Arc::clone(directory), Arc::clone(port));
        let (name, parent) = (role_name(&port, role), port.tree_name());
        let cell = match role {
            DeviceRole::Prefill => {
                let arguments = PrefillArguments { directory: Arc::clone(&directory), port };
                Actor::spawn_linked(None, PrefillActor, arguments, myself.get_cell()).await?.0.get_cell()
            }
            DeviceRole::Decode => {
                let arguments = DecodeArguments { directory: Arc::clone(&directory), port };
                Actor::spawn_linked(None, DecodeActor, arguments, myself.get_cell()).await?.0.get_cell()
            }
        };
        directory.tree.started(&name, Some(&parent));
        self.roles.push((role, cell));
        Ok(())
    }

    /// A busy engine that computes no layer for long hangs: its thread is left to itself, and the device begins anew with a fresh model.
    async fn replace_if_stuck(&mut self, myself: &ActorRef<SupervisorMessage>) -> Result<(), ActorProcessingErr> {
        let SupervisorArguments { directory, port, .. } = &self.arguments;
        let now = clock::now();
        let Some((progress, busy)) = port.engine().as_ref().map(progress_of) else { return Ok(()) };
        if !self.watch.hangs(progress, busy, now) {
            return Ok(());
        }
        tracing::error!(device = port.name, "the engine hangs, a new epoch begins");
        directory.tree.stopped(&port.engine_name());
        drop(port.disconnect());
        if !self.history.allows(now) {
            return Err(format!("the engine of {} hangs too often", port.name).into());
        }
        self.restart_device(myself, Stepping::AllThatRun).await
    }

    fn heartbeat(&self) {
        let SupervisorArguments { directory, port, .. } = &self.arguments;
        let engine = port.engine().clone();
        let facts = DeviceFacts {
            device: port.id,
            name: port.name.clone(),
            roles: port.roles(),
            able: port.able.clone(),
            epoch: port.epoch(),
            num_blocks: engine.as_ref().map_or(0, |engine| engine.kv.num_blocks()),
            max_context: engine.as_ref().map_or(0, |engine| engine.max_context),
        };
        let (progress, busy) = engine.as_ref().map_or((0, false), progress_of);
        let map = directory.map_seen();
        let (serving, draining) = (engine.is_some(), port.is_draining());
        let heartbeat = Heartbeat { facts, serving, progress, busy, draining, map };
        directory.pulse.note(heartbeat.clone(), clock::now());
        // A coordinator that is not there will hear the next one.
        let _ = directory.coordinator.cast(CoordinatorMessage::Heartbeat(heartbeat));
    }
}

fn role_name(port: &DevicePort, role: DeviceRole) -> String {
    match role {
        DeviceRole::Prefill => port.prefill_name(),
        DeviceRole::Decode => port.decode_name(),
    }
}

fn progress_of(engine: &EngineLink) -> (u64, bool) {
    (engine.progress.load(Ordering::Relaxed), engine.stats.borrow().busy)
}

/// Starts an engine and waits until it is ready.
async fn start(
    directory: &Directory,
    port: &DevicePort,
    model: Box<dyn StepModel>,
    limits: CoreLimits,
    tokens: mpsc::Sender<TokenBatch>,
) -> Result<(EngineLink, Remains, mpsc::Receiver<super::interface::DeviceEvent>), ActorProcessingErr> {
    let max_context = model.max_context().min(limits.max_context);
    let (commands, command_receiver) = mpsc::channel(directory.keeper.depth().1 * COMMANDS_PER_STREAM);
    let (event_sender, events) = mpsc::channel(EVENT_CAPACITY);
    let (stats_sender, stats) = watch::channel(EngineStats::default());
    let (exit_sender, exited) = oneshot::channel();
    let (started_sender, started) = oneshot::channel();
    let weak_events = event_sender.downgrade();
    let progress = Arc::new(AtomicU64::new(0));
    let epoch = port.next_epoch()?;
    let ports = EnginePorts {
        device: port.id,
        epoch,
        model,
        started: started_sender,
        commands: command_receiver,
        events: event_sender,
        tokens,
        progress: Arc::clone(&progress),
        stats: stats_sender,
        traces: directory.traces.clone(),
        exited: exit_sender,
    };
    let thread = start_engine(ports, limits)?;
    let kv = started.await??;
    let link = EngineLink { epoch, commands, events: weak_events, kv, max_context, stats, progress };
    Ok((link, Remains { exited, thread }, events))
}

/// Waits for an engine to end and takes its model over, if it has left one.
pub(crate) async fn bury(remains: Remains) -> Option<Box<dyn StepModel>> {
    let Remains { exited, thread } = remains;
    let exit = tokio::time::timeout(EXIT_PATIENCE, exited).await.ok()?;
    // Its exit notice is the last thing that a thread does: the join does not wait.
    let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    exit.ok()?.model
}
