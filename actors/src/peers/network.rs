//! What a node is started with to be one of many.

use std::net::SocketAddr;
use std::sync::Arc;

use relevo_transport::NodeEndpoint;
use relevo_transport::identity::{Name, PeerIdentity};
use relevo_wire::{ModelFacts, NodeId, Renewed, Roles};

use crate::cluster::RemoteCarrier;

/// What the cluster's secret is used for here, see [`blake3::derive_key`].
const SESSION_CONTEXT: &str = "relevo 2026-11 ractor_cluster cookie";

/// Signs the next certificate of a node for the key of its request, or says why not. May wait for the disk.
pub type Renewer = Arc<dyn Fn(&PeerIdentity, &[u8]) -> Result<Renewed, String> + Send + Sync>;

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
    /// What carries its KV blocks to other nodes.
    pub carrier: RemoteCarrier,
    /// Its name, as its certificate has it from the first to the last.
    pub name: Name,
    /// Of a coordinator that has the cluster's authority at hand.
    pub renewer: Option<Renewer>,
}

impl Network {
    /// What sessions begin with: known to the cluster's nodes and to nobody else.
    pub(super) fn session_secret(&self) -> [u8; 32] {
        blake3::derive_key(SESSION_CONTEXT, &self.endpoint.identity().present().cluster_secret())
    }

    /// Its number.
    pub fn node(&self) -> NodeId {
        NodeId::of_name(self.name.as_str())
    }
}
