//! What the actors of one process share: where to find each other, the streams that outlive them all, the fault switches.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError, RwLock};

use relevo_wire::{DeviceId, MapVersion};

use super::links::{Links, LinksError};
use super::options::{ClusterOptions, Limits};
use super::slot::Slot;
use super::tree::SupervisionTree;
use crate::coordinator::{ClusterMap, CoordinatorMessage};
use crate::device::DevicePort;
use crate::faults::{FaultSwitches, MessageFault};
use crate::gateway::{GatewayMessage, Keeper};
use crate::policy::hint_keys::HintKeyer;
use crate::policy::routing::Disaggregate;
use crate::router::RouterMessage;
use crate::traces::Traces;

/// One for each cluster; every actor holds it.
pub(crate) struct Directory {
    pub(crate) node: String,
    pub(crate) coordinator: Slot<CoordinatorMessage>,
    pub(crate) router: Slot<RouterMessage>,
    pub(crate) gateway: Slot<GatewayMessage>,
    pub(crate) devices: BTreeMap<DeviceId, Arc<DevicePort>>,
    pub(crate) links: Links,
    pub(crate) keeper: Keeper,
    pub(crate) traces: Traces,
    pub(crate) tree: SupervisionTree,
    pub(crate) faults: Arc<FaultSwitches>,
    pub(crate) allow_faults: bool,
    pub(crate) limits: Limits,
    pub(crate) disaggregate: Disaggregate,
    /// Names prefixes to routers.
    pub(crate) hint_keyer: HintKeyer,
    /// Sequences that wait in the router, for those who look at the queues.
    pub(crate) router_waiting: AtomicUsize,
    /// The last map that was published: what everyone acts on while the coordinator is away.
    map: RwLock<ClusterMap>,
}

impl Directory {
    pub(super) fn new(options: &ClusterOptions) -> Result<Self, LinksError> {
        let devices = (0u32..).map(DeviceId).zip(&options.devices);
        let links = Links::new(options.carrier, devices.clone().map(|(id, _)| id))?;
        let port = |id, spec: &super::DeviceSpec| Arc::new(DevicePort::new(id, spec.name.clone(), spec.roles.clone()));
        Ok(Self {
            node: options.node.clone(),
            coordinator: Slot::default(),
            router: Slot::default(),
            gateway: Slot::default(),
            devices: devices.map(|(id, spec)| (id, port(id, spec))).collect(),
            links,
            keeper: Keeper::new(options.max_live()),
            traces: Traces::default(),
            tree: SupervisionTree::default(),
            faults: Arc::new(FaultSwitches::new(options.faults.clone().unwrap_or_default())),
            allow_faults: options.faults.is_some(),
            limits: options.limits,
            disaggregate: options.disaggregate,
            hint_keyer: HintKeyer::new(options.hint_secret),
            router_waiting: AtomicUsize::new(0),
            map: RwLock::default(),
        })
    }

    /// The device, if there is one of that id.
    pub(crate) fn device(&self, device: DeviceId) -> Option<&Arc<DevicePort>> {
        self.devices.get(&device)
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

    /// The last map that was published.
    pub(crate) fn map(&self) -> ClusterMap {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its term and version.
    pub(crate) fn map_seen(&self) -> (u64, MapVersion) {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        (map.term, map.version)
    }

    /// Keeps a map, unless a newer one is there.
    pub(crate) fn publish(&self, map: ClusterMap) {
        let mut kept = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if (map.term, map.version) > (kept.term, kept.version) {
            *kept = map;
        }
    }
}
