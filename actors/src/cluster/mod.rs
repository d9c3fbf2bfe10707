//! A cluster in this process: started with its devices, handed out as a gateway, asked for its status, drained at the end.

mod directory;
mod gathered_trace;
mod links;
mod options;
mod post;
mod pulse;
mod queues;
mod remote_links;
mod retirement;
mod root;
mod runner;
mod shared_memory;
mod slot;
mod snapshot;
mod ticker;
mod tree;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

pub use crate::peers::{Network, Renewer};
pub(crate) use directory::Directory;
pub use links::LinksError;
pub use options::{Carrier, ClusterOptions, DeviceSpec, Epochs, Limits, ModelFactory, RemoteCarrier, TuneLimits};
pub(crate) use queues::{Fill, fill_of, fill_of_weak};
pub(crate) use remote_links::PeerSink;
pub(crate) use slot::Slot;
pub(crate) use ticker::Ticker;

use relevo_transport::identity::PeerIdentity;
use relevo_wire::{ControlMessage, ControlReply, DeviceFacts, LinkBench, NodeEntry, NodeId, Order, Renewed, Role};

use self::queues::Queues;
use self::root::{RootArguments, RootMessage};
use self::runner::Runner;
use crate::clock;
use crate::coordinator::{CoordinatorMessage, Standing};
use crate::device::{DeviceRole, SupervisorMessage};
use crate::faults::Fault;
use crate::gateway::{Gateway, GatewayMessage, Intake, gateway_channel};
use crate::link_bench::{self, LinkMeasurement};
use crate::peers::MeshMessage;
use crate::status::ClusterStatus;
use crate::traces::{RecentSpans, RequestTrace};

/// Submissions on their way to the keeper: a burst of connections.
const SUBMISSION_CAPACITY: usize = 256;

/// Steps' tokens that the engines may be ahead of the gateway.
const TOKEN_CAPACITY: usize = 1024;

/// How often the map is looked at while a cluster starts: the devices have reported, only two mailboxes are between.
const MAP_POLL: Duration = Duration::from_millis(1);

/// How long an order may take to be answered.
const ORDER_PATIENCE: Duration = Duration::from_secs(3);

/// How long an authority may take to sign, which waits for its disk.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(20);

/// How long a measurement may take.
const MEASUREMENT_PATIENCE: Duration = Duration::from_secs(60);

const NO_COORDINATOR: &str = "the coordinator cannot be reached: what it decides waits until it is back";

const NO_ORDERS: &str = "the coordinator cannot be reached, and nothing is changed: the cluster serves on as it is; drains and changes of roles wait \
                         until it is back, so ask again then";

/// How long the first map may take.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// What is kept back of the time for a shutdown, to stop the tree and the engines once the streams are over.
const STOP_TIME: Duration = Duration::from_secs(1);

/// A running cluster. Dropping it without [`Cluster::shutdown`] ends its streams without a word.
pub struct Cluster {
    directory: Arc<Directory>,
    gateway: Gateway,
    queues: Queues,
    intake: Intake,
    root: Arc<Slot<RootMessage>>,
    stop: watch::Sender<bool>,
    failed: watch::Receiver<bool>,
    runner: Mutex<JoinSet<()>>,
}

/// Why a cluster does not start, or cannot be broken.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The configuration's fault.
    #[error("no device plays {0}, and one must")]
    RoleMissing(&'static str),
    /// A device does not start.
    #[error("the cluster does not start: {0}")]
    Start(String),
    /// Nothing to carry KV blocks from one device to another.
    #[error("there are no links between the devices")]
    Links(#[from] LinksError),
    /// Fault switches without leave.
    #[error("fault switches are not allowed here")]
    FaultsForbidden,
    /// No actor of that name.
    #[error("no actor is named {0}")]
    UnknownActor(String),
}

/// Why an operator's order is not carried out, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderFailure {
    /// Transient: there is no coordinator to decide.
    #[error("{0}")]
    Unavailable(String),
    /// The operator's fault, or that of the node that the order is for.
    #[error("{0}")]
    Refused(String),
}

impl Cluster {
    /// Starts the tree: coordinator, router, gateway, and each device with its engine and roles. When it returns, it serves.
    ///
    /// Install a metrics recorder before, if there is to be one. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        for role in [DeviceRole::Prefill, DeviceRole::Decode] {
            let is_played = options.devices.iter().any(|device| device.roles.contains(&role));
            if options.network.is_none() && !is_played {
                return Err(ClusterError::RoleMissing(role.name()));
            }
        }
        let directory = Arc::new(Directory::new(&options)?);
        let (gateway, submissions) = gateway_channel(SUBMISSION_CAPACITY);
        let (tokens, token_receiver) = mpsc::channel(TOKEN_CAPACITY);
        let queues = Queues::new(Arc::clone(&directory), &gateway, &tokens);
        let intake =
            Intake { submissions: Arc::new(Mutex::new(submissions)), tokens: Arc::new(Mutex::new(token_receiver)) };
        let arguments = RootArguments {
            directory: Arc::clone(&directory),
            specs: options.devices.into(),
            intake: intake.clone(),
            tokens,
            network: options.network,
        };
        let root = Arc::new(Slot::default());
        let (stop, stopped) = watch::channel(false);
        let (failed_sender, failed) = watch::channel(false);
        let runner = Runner::start(arguments, Arc::clone(&root), failed_sender)
            .await
            .map_err(|error| ClusterError::Start(error.to_string()))?;
        if directory.plays(Role::Coordinator) {
            wait_for_all(&directory).await;
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(runner.run(stopped.clone()));
        tasks.spawn(queues.clone().report(stopped));
        Ok(Self { directory, gateway, queues, intake, root, stop, failed, runner: Mutex::new(tasks) })
    }

    /// The way in.
    pub fn gateway(&self) -> Gateway {
        self.gateway.clone()
    }

    /// A snapshot of the whole; other nodes are asked, and get a moment to answer.
    pub async fn status_of_all(&self) -> ClusterStatus {
        snapshot::status(&self.directory, self.queues.status()).await
    }

    /// What was done for a request, by any of its names, on all nodes; they are asked, and get a moment to answer. None if nothing is kept of it.
    pub async fn trace(&self, name: &str) -> Option<RequestTrace> {
        gathered_trace::trace(&self.directory, name).await
    }

    /// Where this process's spans are kept.
    pub fn spans(&self) -> &Arc<RecentSpans> {
        &self.directory.spans
    }

    /// What this process says of itself, at once.
    pub fn status(&self) -> ClusterStatus {
        snapshot::alone(&self.directory, self.queues.status())
    }

    /// Whether a prefill and a decode worker serve now.
    pub fn is_ready(&self) -> bool {
        let serving = self.serving();
        let serves = |role| serving.iter().any(|facts| facts.roles.contains(&role));
        !*self.failed.borrow() && serves(DeviceRole::Prefill) && serves(DeviceRole::Decode)
    }

    /// The devices that serve and can be reached from here.
    pub fn serving(&self) -> Vec<DeviceFacts> {
        let (map, directory) = (self.directory.map(), &self.directory);
        let is_reachable = |node| node == directory.node || directory.peers.find(node).is_some();
        let serving = map.devices.into_iter().filter(|entry| entry.standing == Standing::Serving);
        serving.map(|entry| entry.facts).filter(|facts| is_reachable(facts.device.node())).collect()
    }

    /// Ends the links to peers whose certificate is no longer good.
    pub fn part_from(&self, is_revoked: impl Fn(&PeerIdentity) -> bool) {
        for peer in self.directory.peers.all() {
            if is_revoked(peer.connection.peer()) {
                tracing::warn!(peer = %peer.name, "its certificate is revoked");
                peer.connection.close("its certificate is revoked");
            }
        }
    }

    /// Whether the supervision tree works: it has not given up, and the supervisor of each device has spoken lately.
    pub fn is_well(&self) -> bool {
        let directory = &self.directory;
        !*self.failed.borrow() && directory.pulse.recent(clock::now()).len() == directory.devices.len()
    }

    /// Whether this process is the coordinator, or has a link to it.
    pub fn reaches_coordinator(&self) -> bool {
        self.directory.plays(Role::Coordinator) || !self.directory.peers.playing(Role::Coordinator).is_empty()
    }

    /// Gets the next certificate of this node, `own`, for the key of this request: from the authority at hand, or from the coordinator.
    ///
    /// # Errors
    /// Why there is none, in words for the operator.
    pub async fn renew(&self, own: PeerIdentity, request: Vec<u8>) -> Result<Renewed, String> {
        let directory = &self.directory;
        if directory.renewer.is_some() {
            return directory.renew(own, request).await;
        }
        let Some(coordinator) = directory.peers.playing(Role::Coordinator).first().cloned() else {
            return Err(NO_COORDINATOR.to_owned());
        };
        match coordinator.remote.ask(&ControlMessage::Renew(request), RENEWAL_PATIENCE).await {
            Ok(ControlReply::Renewed(renewed)) => Ok(renewed),
            Ok(ControlReply::Refused(reason)) => Err(format!("the coordinator refuses: {reason}")),
            Ok(_) => Err("the coordinator does not renew certificates".to_owned()),
            Err(error) => Err(format!("the coordinator: {error}")),
        }
    }

    /// Carries out an operator's order, or has the coordinator do so.
    ///
    /// # Errors
    /// Why it is not carried out.
    pub async fn order(&self, order: Order) -> Result<(), OrderFailure> {
        if self.directory.plays(Role::Coordinator) {
            return self.directory.obey(order, ORDER_PATIENCE).await.map_err(OrderFailure::Refused);
        }
        let coordinators = self.directory.peers.playing(Role::Coordinator);
        let Some(coordinator) = coordinators.first() else {
            return Err(OrderFailure::Unavailable(NO_ORDERS.to_owned()));
        };
        let asked = self.directory.peers.ask(coordinator.node, &ControlMessage::Order(order), ORDER_PATIENCE).await;
        match asked {
            Ok(ControlReply::Taken) => Ok(()),
            Ok(ControlReply::Refused(reason)) => Err(OrderFailure::Refused(reason)),
            Ok(_) => Err(OrderFailure::Refused("the coordinator does not do so for this node".to_owned())),
            Err(error) => Err(OrderFailure::Unavailable(format!(
                "the coordinator: {error}; `relevo status` shows whether it has done so, and to ask again does no harm"
            ))),
        }
    }

    /// Has the KV path to the node of this name measured, from another that may prefill, the first by name unless `from` says which.
    ///
    /// # Errors
    /// Why it is not, in words for the operator.
    pub async fn measure_link(&self, to: &str, from: Option<&str>, wish: LinkBench) -> Result<LinkMeasurement, String> {
        let directory = &self.directory;
        let mut nodes = directory.map().nodes;
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        let (from, to) = ends_of(&nodes, to, from)?;
        if from.node == directory.node {
            let measured = link_bench::measure(directory, to.node, wish).await;
            return measured.map_err(|reason| format!("{}: {reason}", from.name));
        }
        let message = ControlMessage::MeasureLink(to.node, wish);
        match directory.peers.ask(from.node, &message, MEASUREMENT_PATIENCE).await {
            Ok(ControlReply::Measured(json)) => serde_json::from_str(&json).map_err(|error| error.to_string()),
            Ok(ControlReply::Refused(reason)) => Err(format!("{}: {reason}", from.name)),
            Ok(_) => Err(format!("{} measures no links", from.name)),
            Err(error) => Err(format!("{}: {error}", from.name)),
        }
    }

    /// Returns when the cluster has given itself up: its root died too often, or its last device cannot be started again.
    pub async fn failed(&self) {
        let mut failed = self.failed.clone();
        // An error says that the runner has ended, by a shutdown: then this never returns.
        if failed.wait_for(|failed| *failed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Drains: takes nothing new, lets streams end, and at the deadline fails those that are still open with `ShuttingDown`; then stops
    /// the tree and the engines. It is done about when `deadline` has gone by, at the latest a step later.
    ///
    /// The devices of a node of many finish what they have, too; what they have still at the deadline goes on elsewhere.
    pub async fn shutdown(&self, deadline: Duration) {
        let directory = &self.directory;
        directory.keeper.close();
        let patience = deadline.saturating_sub(STOP_TIME);
        // Alone, what still waits has nobody else to go to.
        if directory.node == NodeId::ALONE {
            directory.keeper.drain(directory, patience).await;
        } else {
            tokio::join!(directory.keeper.drain(directory, patience), directory.retire(patience));
            directory.say_goodbye();
        }
        // Fails when the runner has ended already.
        let _ = self.stop.send(true);
        let mut runner = self.runner.lock().await;
        while runner.join_next().await.is_some() {}
        // Whoever submits from here on is told so.
        let mut submissions = self.intake.submissions.lock().await;
        submissions.close();
        while let Some(submission) = submissions.recv().await {
            self.directory.keeper.admit(&self.directory, submission);
        }
    }

    /// Throws a fault switch.
    ///
    /// # Errors
    /// [`ClusterError::FaultsForbidden`], unless the options allow them.
    pub fn inject(&self, fault: Fault) -> Result<(), ClusterError> {
        if !self.directory.allow_faults {
            return Err(ClusterError::FaultsForbidden);
        }
        self.directory.faults.add(fault);
        Ok(())
    }

    /// Lets an actor (or an engine) panic, by its name in the supervision tree. An engine dies at its next step.
    ///
    /// # Errors
    /// [`ClusterError::FaultsForbidden`], unless the options allow faults; [`ClusterError::UnknownActor`].
    pub fn kill(&self, name: &str) -> Result<(), ClusterError> {
        if !self.directory.allow_faults {
            return Err(ClusterError::FaultsForbidden);
        }
        if !self.directory.tree.status().iter().any(|actor| actor.name == name) {
            return Err(ClusterError::UnknownActor(name.to_owned()));
        }
        self.directory.faults.doom(name);
        self.poke_all();
        Ok(())
    }

    /// Wakes every actor, so that the one that is doomed meets its fate.
    fn poke_all(&self) {
        let directory = &self.directory;
        let mut poked = self.root.cast(RootMessage::Poke);
        poked &= directory.coordinator.cast(CoordinatorMessage::Poke);
        poked &= directory.router.cast(crate::router::RouterMessage::Poke);
        poked &= directory.gateway.cast(GatewayMessage::Poke);
        poked &= directory.mesh.cast(MeshMessage::Poke);
        for port in directory.devices.values() {
            poked &= port.supervisor.cast(SupervisorMessage::Poke);
            poked &= port.prefill.cast(crate::prefill::PrefillMessage::Poke);
            poked &= port.decode.cast(crate::decode::DecodeMessage::Poke);
        }
        tracing::debug!(all_alive = poked, "poked every actor");
    }
}

/// The two ends of a KV path that is to be measured.
fn ends_of<'n>(nodes: &'n [NodeEntry], to: &str, from: Option<&str>) -> Result<(&'n NodeEntry, &'n NodeEntry), String> {
    let find = |name: &str| {
        let names = || nodes.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
        nodes
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| format!("no node is named {name}: there are {}", names()))
    };
    let to = find(to)?;
    if !to.roles.contains(Role::Prefill) && !to.roles.contains(Role::Decode) {
        return Err(format!("{} has no device, and no KV blocks go there", to.name));
    }
    let from = match from {
        Some(name) => find(name)?,
        None => nodes
            .iter()
            .find(|entry| entry.roles.contains(Role::Prefill) && entry.node != to.node)
            .ok_or_else(|| format!("no node but {} may prefill, and who may not sends no KV blocks", to.name))?,
    };
    if from.node == to.node {
        return Err(format!("{} needs no link to itself", to.name));
    }
    if !from.roles.contains(Role::Prefill) {
        return Err(format!("{} may not prefill, and who may not sends no KV blocks", from.name));
    }
    Ok((from, to))
}

/// Waits until the published map has every device serving, so that the first request sees the whole cluster. A device that fails meanwhile
/// is its supervisor's business: the wait has an end.
async fn wait_for_all(directory: &Directory) {
    let mut ticks = tokio::time::interval(MAP_POLL);
    let all_serve = async {
        loop {
            let map = directory.map();
            let num_serving = map.devices.iter().filter(|entry| entry.standing == Standing::Serving).count();
            if num_serving == directory.devices.len() {
                return;
            }
            ticks.tick().await;
        }
    };
    // At the deadline it serves with those that are there.
    let _ = tokio::time::timeout(START_PATIENCE, all_serve).await;
}
