//! What the actors of one process share: where to find each other, the streams that outlive them all, the fault switches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use relevo_transport::{FrameSender, SocketBuffers};
use relevo_wire::{ClusterMap, DeviceId, MapVersion, NodeEntry, NodeId, Role, Roles};

use super::links::{Links, LinksError};
use super::options::{ClusterOptions, Limits};
use super::pulse::Pulse;
use super::remote_links::RemoteLinks;
use super::slot::Slot;
use super::tree::SupervisionTree;
use crate::coordinator::CoordinatorMessage;
use crate::device::DevicePort;
use crate::faults::{FaultSwitches, MessageFault};
use crate::gateway::{GatewayMessage, Keeper};
use crate::link_bench::LinkProbe;
use crate::peers::{GOODBYE, MeshMessage, Network, Peers, Renewer};
use crate::policy::hand_over::HandOverStep;
use crate::policy::hint_keys::HintKeyer;
use crate::policy::routing::Disaggregate;
use crate::router::RouterMessage;
use crate::traces::{RecentSpans, SpanIds, Traces};

/// One for each cluster; every actor holds it.
pub(crate) struct Directory {
    /// This process's number, and its name in status.
    pub(crate) node: NodeId,
    pub(crate) name: String,
    roles: Roles,
    /// Itself, as the map of a cluster has it.
    pub(crate) own_entry: Option<NodeEntry>,
    pub(super) socket_buffers: Option<SocketBuffers>,
    pub(crate) mesh: Slot<MeshMessage>,
    pub(crate) peers: Arc<Peers>,
    /// What its devices said last of themselves.
    pub(crate) pulse: Pulse,
    /// How often it was started, as far as it counts.
    pub(crate) incarnation: u64,
    pub(crate) coordinator: Slot<CoordinatorMessage>,
    pub(crate) router: Slot<RouterMessage>,
    pub(crate) gateway: Slot<GatewayMessage>,
    pub(crate) devices: BTreeMap<DeviceId, Arc<DevicePort>>,
    pub(crate) links: Links,
    pub(crate) link_probe: LinkProbe,
    pub(crate) keeper: Keeper,
    pub(crate) traces: Traces,
    pub(crate) spans: Arc<RecentSpans>,
    pub(super) span_ids: SpanIds,
    pub(crate) tree: SupervisionTree,
    pub(crate) faults: Arc<FaultSwitches>,
    pub(crate) allow_faults: bool,
    pub(crate) limits: Limits,
    pub(crate) disaggregate: Disaggregate,
    /// Names prefixes to routers.
    pub(crate) hint_keyer: HintKeyer,
    /// Sequences that wait in the router, for those who look at the queues.
    pub(crate) router_waiting: AtomicUsize,
    /// This process has said goodbye to its peers.
    leaving: AtomicBool,
    /// Signs certificates, where the authority is at hand.
    pub(crate) renewer: Option<Renewer>,
    /// The last map that was published: what everyone acts on while the coordinator is away.
    map: RwLock<ClusterMap>,
}

impl Directory {
    pub(super) fn new(options: &ClusterOptions) -> Result<Self, LinksError> {
        let node = options.network.as_ref().map_or(NodeId::ALONE, Network::node);
        let devices = (0u8..).map(|index| DeviceId::of(node, index)).zip(&options.devices);
        let peers = Arc::<Peers>::default();
        let takes_blocks = !options.devices.is_empty();
        let remote =
            options.network.as_ref().map(|network| RemoteLinks::new(network, &peers, takes_blocks)).transpose()?;
        let links = Links::new(options.carrier, devices.clone().map(|(id, _)| id), remote)?;
        let port = |id, spec: &super::DeviceSpec| Arc::new(DevicePort::new(id, spec, options.epochs.clone()));
        Ok(Self {
            node,
            name: options.node.clone(),
            roles: options.network.as_ref().map_or_else(|| roles_alone(options), |network| network.roles),
            socket_buffers: options.network.as_ref().map(|network| network.endpoint.socket_buffers()),
            own_entry: options.network.as_ref().map(own_entry),
            mesh: Slot::default(),
            peers,
            pulse: Pulse::default(),
            incarnation: options.network.as_ref().map_or(1, |network| network.incarnation),
            coordinator: Slot::default(),
            router: Slot::default(),
            gateway: Slot::default(),
            devices: devices.map(|(id, spec)| (id, port(id, spec))).collect(),
            links,
            link_probe: LinkProbe::default(),
            keeper: Keeper::new(options.max_live()),
            traces: Traces::default(),
            spans: Arc::clone(&options.spans),
            span_ids: options.span_ids.clone(),
            tree: SupervisionTree::default(),
            faults: Arc::new(FaultSwitches::new(options.faults.clone().unwrap_or_default())),
            allow_faults: options.faults.is_some(),
            limits: options.limits,
            disaggregate: options.disaggregate,
            hint_keyer: HintKeyer::new(options.hint_secret),
            router_waiting: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
            renewer: options.network.as_ref().and_then(|network| network.renewer.clone()),
            map: RwLock::default(),
        })
    }

    /// Whether this process plays the role.
    pub(crate) fn plays(&self, role: Role) -> bool {
        self.roles.contains(role)
    }

    /// What this process plays.
    pub(crate) fn roles(&self) -> Roles {
        self.roles
    }

    /// The device, if there is one of that id in this process.
    pub(crate) fn device(&self, device: DeviceId) -> Option<&Arc<DevicePort>> {
        self.devices.get(&device)
    }

    /// A role actor takes a step of a hand-over: the fault switches may end the process here.
    pub(crate) fn on_hand_over(&self, step: HandOverStep) {
        if self.faults.on_hand_over(step) {
            tracing::error!(%step, "fault switch: the process ends");
            std::process::abort();
        }
    }

    /// Each actor calls it for each message that is not the clock's, so that the fault switches can have their way.
    ///
    /// # Panics
    /// If a switch says so.
    #[expect(clippy::panic, reason = "this is what the switch is for")]
    pub(crate) fn on_message(&self, actor: &str) {
        match self.faults.on_message(actor) {
            None => {}
            Some(MessageFault::LoseReaders) => self.keeper.abandon_all(self),
            Some(MessageFault::Panic) => panic!("fault switch: {actor} panics"),
        }
    }

    /// The link for KV blocks from a device of this process to another; none if there is no way there.
    pub(crate) async fn frame_link(&self, from: DeviceId, to: DeviceId) -> Option<FrameSender> {
        let region = || self.device(from)?.kv_memory()?.shared_region();
        self.links.sender(from, to, region).await
    }

    /// Ends the links to other nodes in good order, for good.
    pub(super) fn say_goodbye(&self) {
        self.leaving.store(true, Ordering::Release);
        for peer in self.peers.all() {
            peer.connection.close(GOODBYE);
        }
    }

    /// Whether it has said goodbye.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// The last map that was published.
    pub(crate) fn map(&self) -> ClusterMap {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its term and version.
    pub(crate) fn map_seen(&self) -> (u64, MapVersion) {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        (map.term, map.version)
    }

    /// Keeps a map, unless a newer one is there; whether it was kept.
    pub(crate) fn publish(&self, map: ClusterMap) -> bool {
        let mut kept = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let is_newer = (map.term, map.version) > (kept.term, kept.version);
        if is_newer {
            *kept = map;
        }
        is_newer
    }
}

fn own_entry(network: &Network) -> NodeEntry {
    let (node, name) = (network.node(), network.name.to_string());
    NodeEntry { node, name, roles: network.roles, listen: network.listen }
}

/// A process alone plays all that there is.
fn roles_alone(options: &ClusterOptions) -> Roles {
    let devices = options.devices.iter().flat_map(|spec| &spec.roles).map(|&role| Role::from(role));
    [Role::Gateway, Role::Coordinator].into_iter().chain(devices).collect()
}
