//! The peers that can be reached now.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use dashmap::DashMap;
use relevo_transport::ControlConnection;
use relevo_transport::identity::Name;
use relevo_wire::{ControlMessage, ControlReply, NodeEntry, NodeId, Role, Roles, TokenBatch};
use tokio::sync::mpsc;

use super::remote_ref::{AskError, RemoteRef};

/// A peer with a link.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) name: Name,
    /// What it plays, which its certificate allows.
    pub(crate) roles: Roles,
    /// Where it is dialled.
    pub(crate) listen: SocketAddr,
    pub(crate) incarnation: u64,
    pub(crate) connection: ControlConnection,
    pub(crate) remote: RemoteRef,
    /// To its gateway.
    pub(crate) tokens: mpsc::Sender<TokenBatch>,
    /// Bytes that went there in the last second, KV blocks included.
    pub(crate) sent_bytes_per_s: Arc<AtomicU64>,
}

impl Peer {
    /// As the map has it.
    pub(crate) fn entry(&self) -> NodeEntry {
        NodeEntry { node: self.node, name: self.name.to_string(), roles: self.roles, listen: self.listen }
    }
}

/// The peers with a link, by number.
#[derive(Debug, Default)]
pub(crate) struct Peers(DashMap<NodeId, Arc<Peer>>);

impl Peers {
    pub(super) fn insert(&self, peer: Arc<Peer>) {
        self.0.insert(peer.node, peer);
    }

    /// Forgets the link to a node.
    pub(super) fn remove(&self, node: NodeId) {
        self.0.remove(&node);
    }

    /// A peer, if there is a link.
    pub(crate) fn find(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.0.get(&node).map(|peer| Arc::clone(&peer))
    }

    /// All of them, by number.
    pub(crate) fn all(&self) -> Vec<Arc<Peer>> {
        let mut peers: Vec<_> = self.0.iter().map(|peer| Arc::clone(&peer)).collect();
        peers.sort_by_key(|peer| peer.node);
        peers
    }

    /// Those that play this role, by number.
    pub(crate) fn playing(&self, role: Role) -> Vec<Arc<Peer>> {
        self.all().into_iter().filter(|peer| peer.roles.contains(role)).collect()
    }

    /// Their numbers.
    pub(crate) fn nodes(&self) -> BTreeSet<NodeId> {
        self.0.iter().map(|peer| *peer.key()).collect()
    }

    /// Sends; `false` if there is no link. A message that is lost takes its link with it, so that nobody need wait for an answer.
    #[must_use]
    pub(crate) fn send(&self, node: NodeId, message: &ControlMessage) -> bool {
        self.find(node).is_some_and(|peer| peer.remote.send(message))
    }

    /// Sends to every peer that plays this role.
    pub(crate) fn send_to_all(&self, role: Role, message: &ControlMessage) {
        for peer in self.playing(role) {
            // A peer that has just gone need not know.
            let _ = peer.remote.send(message);
        }
    }

    /// Sends, and waits for the answer.
    pub(crate) async fn ask(
        &self,
        node: NodeId,
        message: &ControlMessage,
        patience: Duration,
    ) -> Result<ControlReply, AskError> {
        let peer = self.find(node).ok_or(AskError::NoLink)?;
        peer.remote.ask(message, patience).await
    }
}
