//! What a node is started with to be one of many.

use std::net::SocketAddr;

use relevo_transport::NodeEndpoint;
use relevo_transport::identity::Name;
use relevo_wire::{ModelFacts, NodeId, Roles};

/// A node's place in a cluster.
#[derive(Clone)]
pub struct Network {
    /// Its UDP port.
    pub endpoint: NodeEndpoint,
    /// Where others dial it: the endpoint's address, unless that is behind something.
    pub listen: SocketAddr,
    /// What it plays, not more than its certificate allows.
    pub roles: Roles,
    /// Where to find the coordinator.
    pub seeds: Vec<SocketAddr>,
    /// How often this node was started, this time counted: see [`relevo_wire::Hello`].
    pub incarnation: u64,
    /// What it computes or serves.
    pub model: ModelFacts,
    /// Known to the cluster's nodes and to nobody else: sessions begin with it.
    pub session_secret: [u8; 32],
}

impl Network {
    /// Its name, by its certificate.
    pub fn name(&self) -> &Name {
        &self.endpoint.own().name
    }

    /// Its number.
    pub fn node(&self) -> NodeId {
        NodeId::of_name(self.name().as_str())
    }
}
