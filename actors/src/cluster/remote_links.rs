//! The links for KV blocks to devices of other nodes, and the sink for those that come from there.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::{DashMap, Entry};
use relevo_transport::identity::{Name, PeerIdentity};
use relevo_transport::{BareError, BareLink, FrameSender, FrameSink, NodeEndpoint, Refusal};
use relevo_wire::{ArchivedKvBlocksHeader, ControlReply, DeviceId, Instant64, KvLayout, NodeId, Role, SharedRegion};
use tokio::task::{AbortHandle, JoinSet};

use super::directory::Directory;
use super::links::{LINK_CAPACITY, LinksError};
use super::options::RemoteCarrier;
use super::shared_memory::{self, NoMemoryLink, SharedMemory};
use crate::clock;
use crate::decode::LandingFrame;
use crate::link_bench::probe_device;
use crate::peers::{Network, Peer, Peers};

/// How long nothing is sent to a node after there was no way there: a sequence that tries in vain is computed again elsewhere.
const NO_WAY_PAUSE: Duration = Duration::from_secs(1);

/// A link for each pair of a device of this process and another node.
pub(crate) struct RemoteLinks {
    endpoint: NodeEndpoint,
    carrier: RemoteCarrier,
    layout: KvLayout,
    /// Absent where no blocks are taken by it.
    memory: Option<SharedMemory>,
    peers: Arc<Peers>,
    senders: DashMap<(DeviceId, NodeId), RemoteLink>,
    /// Nodes to which there was no way, since when and why.
    troubles: DashMap<NodeId, (Instant64, String)>,
    /// What carries the links' frames.
    carried: Mutex<JoinSet<()>>,
}

struct RemoteLink {
    sender: FrameSender,
    /// What it carries blocks from, if that is all that it does.
    region: Option<SharedRegion>,
    carries: AbortHandle,
}

impl RemoteLink {
    fn is_usable_for(&self, region: Option<&SharedRegion>) -> bool {
        let is_from_there = self.region.as_ref().is_none_or(|own| region.is_some_and(|other| other.is(own)));
        is_from_there && !self.sender.is_closed()
    }

    /// It ended while what it carried from was there, as the peer was.
    fn broke_over(&self, region: Option<&SharedRegion>) -> bool {
        self.region.as_ref().zip(region).is_some_and(|(own, other)| other.is(own))
    }
}

/// A new link.
struct Opened<F> {
    sender: FrameSender,
    region: Option<SharedRegion>,
    carried: F,
}

impl RemoteLinks {
    /// # Errors
    /// The system's, if memory is to be shared and cannot be.
    pub(super) fn new(network: &Network, peers: &Arc<Peers>, takes_blocks: bool) -> Result<Self, LinksError> {
        let is_shared = takes_blocks && network.carrier != RemoteCarrier::Quic;
        let memory = match is_shared.then(SharedMemory::open).transpose() {
            Ok(memory) => memory,
            Err(error) if network.carrier == RemoteCarrier::Shm => return Err(error.into()),
            Err(error) => {
                tracing::info!(%error, "no blocks are taken by shared memory");
                None
            }
        };
        Ok(Self {
            endpoint: network.endpoint.clone(),
            carrier: network.carrier,
            layout: network.model.layout,
            memory,
            peers: Arc::clone(peers),
            senders: DashMap::new(),
            troubles: DashMap::new(),
            carried: Mutex::default(),
        })
    }

    /// The link from a device, whose blocks lie in `region`, to a node, a new one if the last was closed; none if there is no way there.
    pub(super) async fn sender(&self, from: DeviceId, to: NodeId, region: Option<SharedRegion>) -> Option<FrameSender> {
        let mut has_broken = false;
        if let Some(link) = self.senders.get(&(from, to)) {
            if link.is_usable_for(region.as_ref()) {
                return Some(link.sender.clone());
            }
            has_broken = link.broke_over(region.as_ref());
        }
        let peer = self.peers.find(to)?;
        // A peer may be within reach and still not let blocks in, such as one that may not map so much memory.
        let tries_memory = self.carrier == RemoteCarrier::Shm || (self.carrier == RemoteCarrier::Auto && !has_broken);
        let why_not = match tries_memory {
            true => match shared_memory::link_to(&peer, region.clone()).await {
                Ok((sender, carried)) => return self.keep(from, &peer, Opened { sender, region, carried }),
                Err(error) => Some(error),
            },
            false => None,
        };
        match (self.carrier, why_not) {
            (RemoteCarrier::Shm, Some(error)) => {
                self.no_way(&peer, &error);
                None
            }
            (_, why_not) => {
                let why_not = why_not.map(|error| error.to_string());
                tracing::debug!(peer = %peer.name, why_not, "blocks go over QUIC");
                let linked = self.endpoint.link(peer.listen, peer.name.clone(), LINK_CAPACITY);
                let (sender, carried) =
                    linked.inspect_err(|error| tracing::error!(%error, "no link for KV blocks")).ok()?;
                self.keep(from, &peer, Opened { sender, region: None, carried })
            }
        }
    }

    /// Has a link that is new carry its frames, unless there was time for another or for the peer's end meanwhile.
    fn keep(
        &self,
        from: DeviceId,
        peer: &Arc<Peer>,
        opened: Opened<impl Future<Output = ()> + Send + 'static>,
    ) -> Option<FrameSender> {
        let Opened { sender, region, carried } = opened;
        let key = (from, peer.node);
        let mut own = None;
        let kept = match self.senders.entry(key) {
            Entry::Occupied(entry) if entry.get().is_usable_for(region.as_ref()) => entry.get().sender.clone(),
            entry => {
                tracing::info!(%from, peer = %peer.name, carrier = sender.carrier(), "a link for KV blocks is up");
                let mut tasks = self.carried();
                while tasks.try_join_next().is_some() {}
                let carries = tasks.spawn(carried);
                own = Some(carries.id());
                entry.insert(RemoteLink { sender: sender.clone(), region, carries });
                sender
            }
        };
        // A peer that is lost leaves the table first, then its links are forgotten: as long as it is there, they will be.
        if self.peers.find(peer.node).is_some_and(|present| Arc::ptr_eq(&present, peer)) {
            self.troubles.remove(&peer.node);
            return Some(kept);
        }
        // Only this link: there may be one to the peer's next start by now.
        if let Some((_, link)) = self.senders.remove_if(&key, |_, link| Some(link.carries.id()) == own) {
            link.carries.abort();
        }
        None
    }

    /// There is no way to a peer by the one carrier that is allowed. Said once, and again when the reason is another one.
    fn no_way(&self, peer: &Peer, error: &NoMemoryLink) {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        let reason = format!("{error}{source}");
        let last = self.troubles.insert(peer.node, (clock::now(), reason.clone()));
        if last.is_none_or(|(_, last)| last != reason) {
            tracing::error!(
                peer = %peer.name,
                reason,
                "transport.carrier is \"shm\" and this peer cannot be reached by shared memory, it gets no KV blocks: \
                 run both on one host as one user with \"shm\" or \"auto\", or set \"auto\" or \"quic\" here"
            );
        }
    }

    /// Whether blocks have a way to a node, as far as is known.
    pub(super) fn reach(&self, to: NodeId) -> bool {
        self.troubles.get(&to).is_none_or(|trouble| clock::now().since(trouble.0) >= NO_WAY_PAUSE)
    }

    /// Lets go of the links to a node and from it, and of the bytes that they hold.
    pub(super) fn forget(&self, name: &Name) {
        let node = NodeId::of_name(name.as_str());
        self.troubles.remove(&node);
        if let Some(memory) = &self.memory {
            memory.part_from(name.as_str());
        }
        self.senders.retain(|(_, to), link| {
            if *to == node {
                link.carries.abort();
            }
            *to != node
        });
    }

    /// Breaks a link with the frames on it.
    pub(super) fn break_link(&self, from: DeviceId, to: NodeId) {
        if let Some(link) = self.senders.get(&(from, to)) {
            link.carries.abort();
        }
    }

    /// Ends a link whose owner needs it no more.
    pub(super) fn end_link(&self, from: DeviceId, to: NodeId) {
        if let Some((_, link)) = self.senders.remove(&(from, to)) {
            link.carries.abort();
        }
    }

    /// Where other nodes of the host hand their blocks over.
    pub(super) fn memory(&self) -> Option<SharedMemory> {
        self.memory.clone()
    }

    /// Lets a link of shared memory in from a peer, if this node takes blocks that way.
    pub(super) fn invite(&self, peer: &Peer) -> ControlReply {
        match &self.memory {
            Some(memory) => memory.invite(peer),
            None if self.carrier == RemoteCarrier::Quic => {
                ControlReply::Refused("transport.carrier is \"quic\" there".to_owned())
            }
            None => ControlReply::Refused("it takes no blocks by shared memory".to_owned()),
        }
    }

    /// What the blocks of this node's model are like.
    pub(super) const fn layout(&self) -> KvLayout {
        self.layout
    }

    /// A connection for bare copies to a peer.
    pub(super) async fn bare_link(&self, peer: &Peer) -> Result<BareLink, BareError> {
        self.endpoint.bare_link(peer.listen, peer.name.clone()).await
    }

    /// Bytes of blocks that have gone to a node over the links that there are now.
    pub(super) fn delivered_bytes_to(&self, node: NodeId) -> u64 {
        self.senders.iter().filter(|link| link.key().1 == node).map(|link| link.sender.delivered_bytes()).sum()
    }

    /// What carries blocks to a node now.
    pub(super) fn carriers_to(&self, node: NodeId) -> BTreeSet<&'static str> {
        let open = self.senders.iter().filter(|link| link.key().1 == node && !link.sender.is_closed());
        open.map(|link| link.sender.carrier()).collect()
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
    /// That it pushes into leases of others is said once for a connection, and counted for each frame: the log is not the peer's to fill.
    has_trespassed: AtomicBool,
}

impl PeerSink {
    /// For this peer; none if its certificate does not let it prefill.
    pub(crate) fn of(directory: &Arc<Directory>, peer: &PeerIdentity) -> Option<Self> {
        let node = NodeId::of_name(peer.name.as_str());
        peer.roles.contains(Role::Prefill).then(|| Self {
            directory: Arc::clone(directory),
            node,
            has_trespassed: AtomicBool::new(false),
        })
    }
}

impl FrameSink for PeerSink {
    type Writer = LandingFrame;

    fn admit(&self, header: &ArchivedKvBlocksHeader) -> Result<LandingFrame, Refusal> {
        let landing = match self.directory.device(header.device()) {
            Some(port) => &port.landing,
            None if header.device() == probe_device(self.directory.node) => self.directory.link_probe.landing(),
            None => return Err(Refusal::LeaseGone),
        };
        let prefill = landing.prefill_of(header.lease()).ok_or(Refusal::LeaseGone)?;
        // Before the frame is let in, which takes its layer's turn from the one before it.
        if prefill.node() == self.node {
            return landing.admit(header);
        }
        metrics::counter!("relevo_messages_refused_total", "reason" => "foreign_lease").increment(1);
        if !self.has_trespassed.swap(true, Ordering::Relaxed) {
            let sequence = header.sequence();
            tracing::warn!(peer = %self.node, %sequence, "a peer pushes into a lease that is not its own");
        }
        Err(Refusal::Mismatch)
    }
}

#[cfg(test)]
#[path = "remote_links/tests.rs"]
mod tests;
