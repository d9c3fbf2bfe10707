//! The links for KV blocks to devices of other nodes, and the sink for those that come from there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use relevo_transport::identity::PeerIdentity;
use relevo_transport::{FrameSender, FrameSink, NodeEndpoint, Refusal};
use relevo_wire::{ArchivedKvBlocksHeader, DeviceId, NodeId, Role};
use tokio::task::{AbortHandle, JoinSet};

use super::directory::Directory;
use super::links::LINK_CAPACITY;
use crate::decode::LandingFrame;
use crate::peers::Peers;

/// A connection for each pair of a device of this process and another node.
pub(crate) struct RemoteLinks {
    endpoint: NodeEndpoint,
    peers: Arc<Peers>,
    senders: DashMap<(DeviceId, NodeId), RemoteLink>,
    /// What carries their frames.
    carried: Mutex<JoinSet<()>>,
}

struct RemoteLink {
    sender: FrameSender,
    carries: AbortHandle,
}

impl RemoteLinks {
    pub(super) fn new(endpoint: NodeEndpoint, peers: &Arc<Peers>) -> Self {
        Self { endpoint, peers: Arc::clone(peers), senders: DashMap::new(), carried: Mutex::default() }
    }

    /// The link from a device to a node, a new one if the last was closed; none if the node cannot be reached.
    pub(super) fn sender(&self, from: DeviceId, to: NodeId) -> Option<FrameSender> {
        if let Some(link) = self.senders.get(&(from, to)).filter(|link| !link.sender.is_closed()) {
            return Some(link.sender.clone());
        }
        let peer = self.peers.find(to)?;
        let linked = self.endpoint.link(peer.listen, peer.name.clone(), LINK_CAPACITY);
        let (sender, carried) = linked.inspect_err(|error| tracing::error!(%error, "no link for KV blocks")).ok()?;
        let mut tasks = self.carried();
        while tasks.try_join_next().is_some() {}
        let carries = tasks.spawn(carried);
        self.senders.insert((from, to), RemoteLink { sender: sender.clone(), carries });
        Some(sender)
    }

    /// Lets go of the links to a node, and of the bytes that they hold.
    pub(super) fn forget(&self, node: NodeId) {
        self.senders.retain(|(_, to), link| {
            if *to == node {
                link.carries.abort();
            }
            *to != node
        });
    }

    /// Closes all of them, for good.
    pub(super) async fn close(&self) {
        let mut carried = std::mem::take(&mut *self.carried());
        carried.shutdown().await;
        self.endpoint.close().await;
    }

    fn carried(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes what one node pushes: into leases that name one of its devices, and nowhere else.
pub(crate) struct PeerSink {
    directory: Arc<Directory>,
    node: NodeId,
}

impl PeerSink {
    /// For this peer; none if its certificate does not let it prefill.
    pub(crate) fn of(directory: &Arc<Directory>, peer: &PeerIdentity) -> Option<Self> {
        let node = NodeId::of_name(peer.name.as_str());
        peer.roles.contains(Role::Prefill).then(|| Self { directory: Arc::clone(directory), node })
    }
}

impl FrameSink for PeerSink {
    type Writer = LandingFrame;

    fn admit(&self, header: &ArchivedKvBlocksHeader) -> Result<LandingFrame, Refusal> {
        let port = self.directory.device(header.device()).ok_or(Refusal::LeaseGone)?;
        let prefill = port.landing.prefill_of(header.lease()).ok_or(Refusal::LeaseGone)?;
        // Before the frame is let in, which takes its layer's turn from the one before it.
        if prefill.node() == self.node {
            return port.landing.admit(header);
        }
        metrics::counter!("relevo_messages_refused_total", "reason" => "foreign_lease").increment(1);
        tracing::warn!(peer = %self.node, sequence = %header.sequence(), "a peer pushes into a lease that is not its own");
        Err(Refusal::Mismatch)
    }
}
