//! One node of the world: a process that lives, pauses and dies, what it has seen of the map, and its ends of the links to its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use relevo_actors::coordinator::ClusterMap;
use relevo_actors::device::DeviceRole;
use relevo_actors::policy::liveness::Liveness;
use relevo_wire::{Instant64, MapVersion, NodeEntry, NodeId, Role, Roles};

use crate::links::Envelope;
use crate::scenario::{NodeSpec, node_id, node_name};

/// The first pause before a peer is dialled again, and the longest, as of the real links.
pub(crate) const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A process.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) plays_gateway: bool,
    pub(crate) plays_coordinator: bool,
    /// Its devices, among those of the world.
    pub(crate) devices: Range<usize>,
    roles: Roles,
    name: String,
    pub(crate) is_up: bool,
    /// How often it was started: what was under way to an earlier process is lost.
    pub(crate) incarnation: u64,
    pub(crate) paused_until: Instant64,
    /// The last map that it has seen.
    pub(crate) map: ClusterMap,
    pub(crate) peers: BTreeMap<usize, Peer>,
}

/// Another node, as this one sees it.
pub(crate) struct Peer {
    /// It knows where to dial it.
    pub(crate) is_known: bool,
    pub(crate) end: Option<End>,
    /// A dial is under way; it is given up then.
    pub(crate) dials_until: Option<Instant64>,
    pub(crate) redial: Duration,
    pub(crate) redial_at: Instant64,
    /// Since when there is no link, after there was one.
    pub(crate) parted: Option<Instant64>,
    /// Since when nothing of it can be heard, whatever this node believes.
    pub(crate) unheard: Option<Instant64>,
}

/// This node's end of a link.
pub(crate) struct End {
    /// No two links have one number.
    pub(crate) link: u64,
    pub(crate) incarnation: u64,
    pub(crate) dialler: usize,
    pub(crate) since: Instant64,
    /// The session has begun: what is said here gets there.
    pub(crate) is_reachable: bool,
    /// What has come before that.
    pub(crate) unread: Vec<Envelope>,
    pub(crate) liveness: Liveness,
}

impl Node {
    pub(crate) fn new(index: usize, spec: &NodeSpec, devices: Range<usize>, num_nodes: usize) -> Self {
        let able = |role| spec.devices.iter().any(|device| device.able.contains(&role));
        let roles = [
            spec.gateway.then_some(Role::Gateway),
            spec.coordinator.then_some(Role::Coordinator),
            able(DeviceRole::Prefill).then_some(Role::Prefill),
            able(DeviceRole::Decode).then_some(Role::Decode),
        ];
        let peers = (0..num_nodes).filter(|&peer| peer != index);
        Self {
            id: node_id(index),
            plays_gateway: spec.gateway,
            plays_coordinator: spec.coordinator,
            devices,
            roles: roles.into_iter().flatten().collect(),
            name: node_name(index),
            is_up: true,
            incarnation: 1,
            paused_until: Instant64(0),
            map: ClusterMap::default(),
            peers: peers.map(|peer| (peer, Peer::unknown())).collect(),
        }
    }

    /// As the map has it.
    pub(crate) fn entry(&self) -> NodeEntry {
        let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 7400));
        NodeEntry { node: self.id, name: self.name.clone(), roles: self.roles, listen }
    }

    /// Whether its process lives and gets to do something.
    pub(crate) fn is_awake(&self, now: Instant64) -> bool {
        self.is_up && now >= self.paused_until
    }

    /// Term and version of the last map that it has seen.
    pub(crate) fn map_seen(&self) -> (u64, MapVersion) {
        (self.map.term, self.map.version)
    }

    /// Its end of a link that what it says gets over.
    pub(crate) fn link_to(&self, peer: usize) -> Option<u64> {
        let end = self.peers.get(&peer)?.end.as_ref()?;
        end.is_reachable.then_some(end.link)
    }

    /// Its end of a link, whether or not what it says gets over it yet.
    pub(crate) fn end_to(&self, peer: usize) -> Option<u64> {
        Some(self.peers.get(&peer)?.end.as_ref()?.link)
    }

    /// The peers that it has a link to.
    pub(crate) fn linked(&self) -> Vec<usize> {
        let is_linked = |peer: &&usize| self.link_to(**peer).is_some();
        self.peers.keys().filter(is_linked).copied().collect()
    }

    /// The nodes that can be reached from it.
    pub(crate) fn reachable(&self) -> BTreeSet<NodeId> {
        self.linked().into_iter().map(node_id).chain([self.id]).collect()
    }

    /// The process is gone with all that it knew.
    pub(crate) fn die(&mut self) {
        self.is_up = false;
        self.incarnation += 1;
        self.paused_until = Instant64(0);
        self.map = ClusterMap::default();
        self.peers.values_mut().for_each(|peer| *peer = Peer::unknown());
    }
}

impl Peer {
    fn unknown() -> Self {
        Self {
            is_known: false,
            end: None,
            dials_until: None,
            redial: REDIAL.0,
            redial_at: Instant64(0),
            parted: None,
            unheard: None,
        }
    }

    /// Since when whatever hung on it ought to be let go of.
    pub(crate) fn lost_since(&self) -> Option<Instant64> {
        [self.parted, self.unheard].into_iter().flatten().min()
    }
}
