//! The root of the supervision tree: parent of the coordinator, the router, the gateway, and a supervisor for each device.

use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;
use relevo_wire::{DeviceId, Epoch, Role};
use tokio::sync::mpsc;

use super::directory::Directory;
use super::options::DeviceSpec;
use crate::clock;
use crate::coordinator::{self, CoordinatorActor};
use crate::device::{DeviceSupervisor, SupervisorArguments, TokenBatch};
use crate::gateway::{self, GatewayActor, GatewayArguments, Intake};
use crate::peers::{self, MeshActor, MeshArguments, Network};
use crate::policy::restarts::RestartHistory;
use crate::router::{self, RouterActor};

/// Name in the supervision tree.
pub(super) const NAME: &str = "root";

/// The root's actor.
pub(super) struct RootActor;

/// What it is started with: all that a new tree needs to go on where an old one has fallen.
#[derive(Clone)]
pub(super) struct RootArguments {
    pub(super) directory: Arc<Directory>,
    pub(super) specs: Arc<[DeviceSpec]>,
    pub(super) intake: Intake,
    pub(super) tokens: mpsc::Sender<TokenBatch>,
    pub(super) network: Option<Network>,
}

/// Its messages.
#[derive(RactorMessage)]
pub(super) enum RootMessage {
    /// To see whether the fault switches let it live.
    Poke,
}

/// Who a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Child {
    Coordinator,
    Router,
    Gateway,
    Mesh,
    Device(DeviceId),
}

pub(super) struct RootState {
    arguments: RootArguments,
    history: RestartHistory,
    children: Vec<(Child, ActorCell)>,
}

impl Actor for RootActor {
    type Msg = RootMessage;
    type State = RootState;
    type Arguments = RootArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        arguments.directory.tree.started(NAME, None);
        let history = RestartHistory::new(arguments.directory.limits.restarts);
        let children = children(&arguments);
        let mut state = RootState { arguments, history, children: Vec::new() };
        for child in children {
            state.start(&myself, child).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        RootMessage::Poke: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.arguments.directory.on_message(NAME);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, reason) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => (cell, reason.unwrap_or_else(|| "stopped".into())),
            _ => return Ok(()),
        };
        let Some(index) = state.children.iter().position(|(_, child)| child.get_id() == cell.get_id()) else {
            return Ok(());
        };
        let (child, _) = state.children.swap_remove(index);
        state.restart(&myself, child, &reason).await
    }
}

/// What a node of these roles consists of. Every node has what hands tokens out; where there is no gateway, they all go to others.
fn children(arguments: &RootArguments) -> Vec<Child> {
    let directory = &arguments.directory;
    let decides = directory.plays(Role::Coordinator).then_some(Child::Coordinator);
    let routes = directory.plays(Role::Gateway).then_some(Child::Router);
    let is_linked = arguments.network.is_some().then_some(Child::Mesh);
    let devices = directory.devices.keys().map(|&device| Child::Device(device));
    decides.into_iter().chain(routes).chain([Child::Gateway]).chain(is_linked).chain(devices).collect()
}

impl RootState {
    async fn restart(
        &mut self,
        myself: &ActorRef<RootMessage>,
        child: Child,
        reason: &str,
    ) -> Result<(), ActorProcessingErr> {
        let name = self.name(child);
        self.arguments.directory.tree.stopped(&name);
        tracing::error!(actor = name, reason, "died, is restarted");
        if !self.history.allows(clock::now()) {
            return Err(format!("the children of the root die too often, the last was {name}: {reason}").into());
        }
        match (self.start(myself, child).await, child) {
            (Ok(()), _) => Ok(()),
            (Err(error), Child::Device(device)) => self.give_up(device, error),
            (Err(error), _) => Err(error),
        }
    }

    /// A device that cannot be started again leaves the cluster; with the last one the root gives up.
    fn give_up(&mut self, device: DeviceId, error: ActorProcessingErr) -> Result<(), ActorProcessingErr> {
        let directory = &self.arguments.directory;
        tracing::error!(%device, error, "cannot be started again, and is given up");
        let port = directory.device(device);
        drop(port.map(|port| port.disconnect()));
        directory.keeper.device_lost(directory, device, &[]);
        let epoch = port.map_or_else(Epoch::default, |port| port.epoch());
        directory.left(device, epoch);
        let any_device = self.children.iter().any(|(child, _)| matches!(child, Child::Device(_)));
        if any_device { Ok(()) } else { Err(error) }
    }

    async fn start(&mut self, myself: &ActorRef<RootMessage>, child: Child) -> Result<(), ActorProcessingErr> {
        let (parent, directory) = (myself.get_cell(), Arc::clone(&self.arguments.directory));
        let cell = match child {
            Child::Coordinator => {
                Actor::spawn_linked(None, CoordinatorActor, Arc::clone(&directory), parent).await?.0.get_cell()
            }
            Child::Router => Actor::spawn_linked(None, RouterActor, Arc::clone(&directory), parent).await?.0.get_cell(),
            Child::Gateway => {
                let arguments =
                    GatewayArguments { directory: Arc::clone(&directory), intake: self.arguments.intake.clone() };
                Actor::spawn_linked(None, GatewayActor, arguments, parent).await?.0.get_cell()
            }
            Child::Mesh => {
                let Some(network) = self.arguments.network.clone() else { return Err("there is no network".into()) };
                let arguments = MeshArguments { directory: Arc::clone(&directory), network };
                Actor::spawn_linked(None, MeshActor, arguments, parent).await?.0.get_cell()
            }
            Child::Device(device) => self.start_device(parent, device).await?,
        };
        if !matches!(child, Child::Device(_)) {
            directory.tree.started(&self.name(child), Some(NAME));
        }
        self.children.push((child, cell));
        Ok(())
    }

    async fn start_device(&self, parent: ActorCell, device: DeviceId) -> Result<ActorCell, ActorProcessingErr> {
        let RootArguments { directory, specs, tokens, .. } = &self.arguments;
        let (Some(port), Some(spec)) = (directory.device(device), specs.get(device.index() as usize)) else {
            return Err(format!("{device} is unknown").into());
        };
        // One that was killed with an earlier root must not connect an engine behind our back.
        port.supervisor.kill().await;
        directory.tree.started(&port.tree_name(), Some(NAME));
        let arguments = SupervisorArguments {
            directory: Arc::clone(directory),
            port: Arc::clone(port),
            spec: spec.clone(),
            tokens: tokens.clone(),
        };
        Ok(Actor::spawn_linked(None, DeviceSupervisor, arguments, parent).await?.0.get_cell())
    }

    fn name(&self, child: Child) -> String {
        match child {
            Child::Coordinator => coordinator::NAME.into(),
            Child::Router => router::NAME.into(),
            Child::Gateway => gateway::NAME.into(),
            Child::Mesh => peers::NAME.into(),
            Child::Device(device) => device.to_string(),
        }
    }
}
