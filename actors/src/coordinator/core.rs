//! The coordinator's decisions, pure: membership, roles, epochs, suspicion; the slow things, decided once for the cluster.
//!
//! Its state is rebuilt from what workers report, so losing it stops nothing but change.
//!
//! **Invariant:** map versions only grow within a term, and a device's epoch only grows.

use std::collections::BTreeMap;
use std::time::Duration;

use relevo_wire::{
    ClusterMap, DeviceId, DeviceRole, Epoch, Heartbeat, Instant64, MapEntry, MapVersion, NodeEntry, NodeId, Order,
    Standing,
};

/// Bounds of silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoordinatorLimits {
    /// Silence after which a device is suspected.
    ///
    /// Five heartbeats of 100 ms: a false alarm costs a re-prefill, a late one a second of a stream.
    pub silence: Duration,
    /// Time without progress of a busy engine after which it is suspected.
    pub no_progress: Duration,
    /// How often it is ticked: a tick that comes later says that we slept, not they.
    pub tick: Duration,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum CoordinatorEvent {
    /// A device speaks.
    Heartbeat(Heartbeat),
    /// A node has seen this map, by term and version; one without devices says it in no device's heartbeat.
    MapSeen((u64, MapVersion)),
    /// A device is given up, as it was in this epoch; only a later one brings it back.
    Left {
        /// It.
        device: DeviceId,
        /// Its last.
        epoch: Epoch,
    },
    /// A node has joined, or says anew where it is.
    Node(NodeEntry),
    /// An operator wants something.
    Order(Order),
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoordinatorEffect {
    /// Tell everyone.
    Publish(ClusterMap),
    /// It is silent or stuck; the map that follows sends nothing new there.
    Suspect(DeviceId),
    /// Tell the node that this is its part of an operator's order.
    Tell(NodeId, NodeOrder),
    /// The order cannot be carried out.
    Refuse(OrderError),
}

/// What a node is told to do with its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeOrder {
    /// Take nothing new, or do so again.
    SetDraining(bool),
    /// Play these roles.
    SetRoles(Vec<DeviceRole>),
}

/// Why an operator's order is not carried out. The operator's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// No node of that name is in the map.
    #[error("no node is named `{name}`{}", suggestion(.known))]
    UnknownNode {
        /// As asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// It has no devices.
    #[error("{0} has no devices: it neither prefills nor decodes")]
    NoDevices(String),
    /// Its certificate does not allow it.
    #[error("the certificate of {name} does not allow the role {}: issue one that does", .role.name())]
    NotAble {
        /// Whose.
        name: String,
        /// Which.
        role: DeviceRole,
    },
}

fn suggestion(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!(", there are {}", known.join(", ")) }
}

/// The coordinator.
#[derive(Clone, Debug)]
pub struct CoordinatorCore {
    limits: CoordinatorLimits,
    term: u64,
    /// The devices as it knows them now, by id.
    devices: Vec<MapEntry>,
    /// The nodes that have joined, by number.
    nodes: Vec<NodeEntry>,
    pulses: BTreeMap<DeviceId, Pulse>,
    /// The last epoch of each device that was given up: what it said then may still be on its way.
    departed: BTreeMap<DeviceId, Epoch>,
    last_tick: Option<Instant64>,
    /// Until then it only listens: it has succeeded another, and does not know everyone yet.
    listens_until: Option<Instant64>,
    published: ClusterMap,
}

#[derive(Clone, Copy, Debug)]
struct Pulse {
    heard: Instant64,
    progress: u64,
    progressed: Instant64,
}

impl Pulse {
    /// By what it has said: of what it does in silence nothing is known.
    fn is_stuck(&self, limits: CoordinatorLimits) -> bool {
        self.heard.since(self.progressed) >= limits.no_progress
    }
}

impl CoordinatorCore {
    /// A coordinator that knows nobody. `seen`: the highest (term, version) that its own node has seen, (0, 0) for none.
    pub fn new(limits: CoordinatorLimits, seen: (u64, MapVersion), now: Instant64) -> Self {
        let published = ClusterMap { term: 1, ..ClusterMap::default() };
        let mut core = Self {
            limits,
            term: published.term,
            devices: Vec::new(),
            nodes: Vec::new(),
            pulses: BTreeMap::new(),
            departed: BTreeMap::new(),
            last_tick: None,
            listens_until: None,
            published,
        };
        core.outbid(seen, now);
        core
    }

    /// The map in force: the last one that was published.
    pub fn map(&self) -> &ClusterMap {
        &self.published
    }

    /// Handles one event.
    pub fn handle(&mut self, event: CoordinatorEvent, now: Instant64, effects: &mut Vec<CoordinatorEffect>) {
        match event {
            CoordinatorEvent::Heartbeat(heartbeat) => self.heard(heartbeat, now),
            CoordinatorEvent::MapSeen(map) => self.outbid(map, now),
            CoordinatorEvent::Left { device, epoch } => self.left(device, epoch),
            CoordinatorEvent::Node(entry) => self.joined(entry),
            CoordinatorEvent::Order(order) => effects.push(self.order(order)),
            CoordinatorEvent::Tick => self.tick(now, effects),
        }
        let listens = self.listens_until.is_some_and(|until| now < until);
        // A higher term is news by itself: maps of this coordinator's earlier one were refused.
        let is_news = self.term != self.published.term
            || self.devices != self.published.devices
            || self.nodes != self.published.nodes;
        if is_news && !listens {
            let version = MapVersion(self.published.version.0 + 1);
            let (devices, nodes) = (self.devices.clone(), self.nodes.clone());
            self.published = ClusterMap { term: self.term, version, devices, nodes };
            effects.push(CoordinatorEffect::Publish(self.published.clone()));
        }
    }

    fn joined(&mut self, entry: NodeEntry) {
        match self.nodes.binary_search_by_key(&entry.node, |known| known.node) {
            Ok(index) => self.nodes[index] = entry,
            Err(index) => self.nodes.insert(index, entry),
        }
    }

    /// An order concerns a node's devices, all of them.
    fn order(&self, order: Order) -> CoordinatorEffect {
        let (name, order, role) = match order {
            Order::Drain(name) => (name, NodeOrder::SetDraining(true), None),
            Order::Undrain(name) => (name, NodeOrder::SetDraining(false), None),
            Order::SetRole(name, role) => (name, NodeOrder::SetRoles(vec![role]), Some(role)),
        };
        let Some(node) = self.nodes.iter().find(|entry| entry.name == name).map(|entry| entry.node) else {
            let mut known: Vec<_> = self.nodes.iter().map(|entry| entry.name.clone()).collect();
            known.sort_unstable();
            return CoordinatorEffect::Refuse(OrderError::UnknownNode { name, known });
        };
        let mut devices = self.devices.iter().filter(|entry| entry.facts.device.node() == node).peekable();
        if devices.peek().is_none() {
            return CoordinatorEffect::Refuse(OrderError::NoDevices(name));
        }
        match role.filter(|role| devices.any(|entry| !entry.facts.able.contains(role))) {
            Some(role) => CoordinatorEffect::Refuse(OrderError::NotAble { name, role }),
            None => CoordinatorEffect::Tell(node, order),
        }
    }

    fn left(&mut self, device: DeviceId, epoch: Epoch) {
        if self.known(device).is_some_and(|entry| entry.facts.epoch > epoch) {
            return;
        }
        let last = self.departed.entry(device).or_insert(epoch);
        *last = epoch.max(*last);
        self.pulses.remove(&device);
        self.devices.retain(|entry| entry.facts.device != device);
    }

    fn known(&self, device: DeviceId) -> Option<&MapEntry> {
        self.devices.iter().find(|entry| entry.facts.device == device)
    }

    /// Whether a device that speaks of this epoch is one that was given up, or has begun another since.
    fn is_over(&self, device: DeviceId, epoch: Epoch) -> bool {
        self.departed.get(&device).is_some_and(|last| epoch <= *last)
            || self.known(device).is_some_and(|entry| entry.facts.epoch > epoch)
    }

    /// Somebody has seen a map of an earlier coordinator: this one goes on above it.
    fn outbid(&mut self, (term, version): (u64, MapVersion), now: Instant64) {
        if (term, version) > (self.term, self.published.version) {
            self.term = term + 1;
            self.listens_until.get_or_insert(now + self.limits.silence);
        }
    }

    fn heard(&mut self, heartbeat: Heartbeat, now: Instant64) {
        let Heartbeat { facts, serving, progress, busy, draining, map } = heartbeat;
        self.outbid(map, now);
        if self.is_over(facts.device, facts.epoch) {
            return;
        }
        let pulse = self.pulses.entry(facts.device).or_insert(Pulse { heard: now, progress, progressed: now });
        pulse.heard = now;
        if pulse.progress != progress || !busy {
            pulse.progress = progress;
            pulse.progressed = now;
        }
        let is_stuck = pulse.is_stuck(self.limits);
        let standing = match self.known(facts.device).map(|entry| entry.standing) {
            _ if !serving => Standing::Starting,
            // A tick suspects; only progress clears.
            Some(Standing::Suspected) if is_stuck => Standing::Suspected,
            _ if draining => Standing::Draining,
            _ => Standing::Serving,
        };
        self.put(MapEntry { facts, standing });
    }

    fn put(&mut self, entry: MapEntry) {
        match self.devices.binary_search_by_key(&entry.facts.device, |known| known.facts.device) {
            Ok(index) => self.devices[index] = entry,
            Err(index) => self.devices.insert(index, entry),
        }
    }

    fn tick(&mut self, now: Instant64, effects: &mut Vec<CoordinatorEffect>) {
        let lateness = self.last_tick.map_or(Duration::ZERO, |last| now.since(last).saturating_sub(self.limits.tick));
        self.last_tick = Some(now);
        for entry in &mut self.devices {
            let Some(pulse) = self.pulses.get_mut(&entry.facts.device) else { continue };
            // We were away, and what they said meanwhile may still be on its way to us.
            pulse.heard = now.min(pulse.heard + lateness);
            pulse.progressed = now.min(pulse.progressed + lateness);
            let is_silent = now.since(pulse.heard) >= self.limits.silence;
            let is_stuck = pulse.is_stuck(self.limits);
            if (is_silent || is_stuck) && matches!(entry.standing, Standing::Serving | Standing::Draining) {
                entry.standing = Standing::Suspected;
                effects.push(CoordinatorEffect::Suspect(entry.facts.device));
            }
        }
    }
}

#[cfg(test)]
#[path = "core/tests.rs"]
mod tests;
