//! What a cluster is started with.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use relevo_gpu::compute::ComputeError;
use relevo_gpu::model::StepModel;

use relevo_wire::Epoch;

use crate::device::{CoreLimits, DeviceRole};
use crate::faults::Fault;
use crate::peers::Network;
use crate::policy::pace::SLOW_FACTOR;
use crate::policy::restarts::RestartIntensity;
use crate::policy::routing::{Disaggregate, LOCAL_PREFILL_BELOW_TOKENS};
use crate::traces::{RecentSpans, SpanIds};

/// Makes a device's model: at its start, and again if its engine cannot be revived. It may take its time; weights that are mapped once and
/// shared make the second time short.
pub type ModelFactory = Arc<dyn Fn() -> Result<Box<dyn StepModel>, ComputeError> + Send + Sync>;

/// Adjusts the limits that were derived from the model.
pub type TuneLimits = Arc<dyn Fn(CoreLimits) -> CoreLimits + Send + Sync>;

/// Gives the next epoch of a device: each is greater than all that this node has ever begun.
pub type Epochs = Arc<dyn Fn() -> io::Result<Epoch> + Send + Sync>;

/// What carries KV blocks from one device of a process to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// The buffers change hands.
    #[default]
    InProcess,
    /// Connections over loopback with mutual TLS, as between hosts.
    Quic,
}

/// What carries KV blocks from this node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RemoteCarrier {
    /// Shared memory to a node that shares this host, its network namespace and its user; else connections with mutual TLS.
    #[default]
    Auto,
    /// Connections with mutual TLS, and nothing else.
    Quic,
    /// Shared memory, and nothing else: what cannot be reached by it gets nothing.
    Shm,
}

/// A cluster, or this process's part of one.
pub struct ClusterOptions {
    /// The process's name, in status.
    pub node: String,
    /// Its devices; ids are given in this order. Alone, at least one plays prefill, at least one decode.
    pub devices: Vec<DeviceSpec>,
    /// Whether prefill and decode of a request may be on two devices.
    pub disaggregate: Disaggregate,
    /// What carries KV blocks from one device to another.
    pub carrier: Carrier,
    /// What the names of prefixes that devices and routers agree on depend on: the same on all nodes of a cluster, and known to nobody else,
    /// so that no tenant can guess the names of another's prompts or make its own collide with them.
    pub hint_secret: [u8; 32],
    /// Where this process's spans are kept, if by anybody.
    pub spans: Arc<RecentSpans>,
    /// What gives them their ids: the same on all nodes of a cluster.
    pub span_ids: SpanIds,
    /// Bounds.
    pub limits: Limits,
    /// Its place among other nodes; without one it is a cluster of its own.
    pub network: Option<Network>,
    /// Counts the epochs of its devices; without, they are counted from 1 and forgotten with the process.
    pub epochs: Option<Epochs>,
    /// Fault switches: `None` forbids them, an empty list allows [`super::Cluster::inject`].
    pub faults: Option<Vec<Fault>>,
}

/// A device.
#[derive(Clone)]
pub struct DeviceSpec {
    /// Such as `cpu0`.
    pub name: String,
    /// What it does.
    pub roles: Vec<DeviceRole>,
    /// What it could do, should nobody else; what it does at least.
    pub able: Vec<DeviceRole>,
    /// Its model.
    pub model: ModelFactory,
    /// Its limits, from those of the model.
    pub tune: TuneLimits,
}

impl DeviceSpec {
    /// A device with the limits of its model.
    pub fn new(
        name: impl Into<String>,
        roles: &[DeviceRole],
        model: impl Fn() -> Result<Box<dyn StepModel>, ComputeError> + Send + Sync + 'static,
    ) -> Self {
        let (roles, able) = (roles.to_vec(), roles.to_vec());
        Self { name: name.into(), roles, able, model: Arc::new(model), tune: Arc::new(|limits| limits) }
    }
}

/// Bounds of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that may wait for a worker.
    pub max_waiting: usize,
    /// Sequences that a device may have in flight.
    pub max_running: usize,
    /// Of these, how many may wait for their first token.
    pub max_prefilling: usize,
    /// Uncached prompt tokens below which a prompt is prefilled where it decodes, if prefill and decode may be apart.
    pub local_prefill_below_tokens: usize,
    /// How many times as long as its peers' the pauses between a device's tokens are when its streams go elsewhere; 0: never.
    pub slow_factor: u32,
    /// How long a lease lives without a layer arriving.
    pub lease_term: Duration,
    /// How long a busy engine may go without computing a layer.
    pub hang_after: Duration,
    /// How often children may die before their supervisor does.
    pub restarts: RestartIntensity,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_waiting: 1024,
            max_running: 256,
            // A few steps' worth of prompts: the order among those that wait is kept by the router.
            max_prefilling: 32,
            local_prefill_below_tokens: LOCAL_PREFILL_BELOW_TOKENS,
            slow_factor: SLOW_FACTOR,
            // Longer than any step of a prefill that goes well, shorter than a client's patience.
            lease_term: Duration::from_secs(10),
            // A layer of a full chunk of a large model takes a CPU about a second.
            hang_after: Duration::from_secs(30),
            restarts: RestartIntensity::default(),
        }
    }
}

impl ClusterOptions {
    /// One process with these devices, everything else by default, no faults.
    pub fn new(devices: Vec<DeviceSpec>) -> Self {
        Self {
            node: "relevo".into(),
            devices,
            disaggregate: Disaggregate::default(),
            carrier: Carrier::default(),
            hint_secret: [0; 32],
            spans: Arc::default(),
            span_ids: SpanIds::default(),
            limits: Limits::default(),
            network: None,
            epochs: None,
            faults: None,
        }
    }

    /// Streams that a gateway keeps. Of the devices of other nodes it knows later: it keeps as many as it would for sixteen.
    pub(super) fn max_live(&self) -> usize {
        let num_devices = if self.network.is_some() { REMOTE_DEVICES } else { self.devices.len() };
        self.limits.max_waiting + self.limits.max_running * num_devices
    }
}

/// Devices whose streams a gateway has room for.
const REMOTE_DEVICES: usize = 16;
