//! The links between devices: who sends KV blocks to whom, over what.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use relevo_transport::identity::Name;
use relevo_transport::{
    BareLink, EphemeralAuthority, EphemeralError, FrameSender, FrameSink, Patience, QuicEndpoint, QuicError,
    in_process, serve_frames,
};
use relevo_wire::{ControlReply, DeviceId, KvLayout, NodeId, SharedRegion};
use tokio::task::JoinSet;

use super::options::Carrier;
use super::queues::Fill;
use super::remote_links::RemoteLinks;
use super::shared_memory::SharedMemory;
use crate::peers::Peer;

/// Frames that a link holds: a frame is a layer of a chunk.
pub(super) const LINK_CAPACITY: usize = 32;

/// The links of a process: among its devices, and to those of other nodes.
pub(crate) struct Links {
    local: LocalLinks,
    remote: Option<RemoteLinks>,
}

/// The links between the devices of a process.
enum LocalLinks {
    /// Buffers change hands. All senders of a device share its one link.
    InProcess(DashMap<DeviceId, FrameSender>),
    /// A connection for each pair.
    Quic(QuicLinks),
}

/// Each device with a port on loopback and a certificate of its own, by an authority that nobody else has.
struct QuicLinks {
    endpoints: BTreeMap<DeviceId, QuicEndpoint>,
    /// By sender and receiver.
    senders: DashMap<(DeviceId, DeviceId), FrameSender>,
    /// What carries their frames.
    carried: Mutex<JoinSet<()>>,
}

/// Why there are no links.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    /// Our bug.
    #[error("a device gets no certificate")]
    Certificate(#[from] EphemeralError),
    /// The machine's fault.
    #[error("a device gets no port")]
    Endpoint(#[from] QuicError),
    /// The machine's fault.
    #[error("this system shares no memory, which transport.carrier insists on: set it to \"auto\"")]
    Memory(#[from] io::Error),
}

impl Links {
    /// Makes ready what the carrier needs.
    pub(super) fn new(
        carrier: Carrier,
        devices: impl Iterator<Item = DeviceId>,
        remote: Option<RemoteLinks>,
    ) -> Result<Self, LinksError> {
        let local = match carrier {
            Carrier::InProcess => LocalLinks::InProcess(DashMap::new()),
            Carrier::Quic => LocalLinks::Quic(QuicLinks::new(devices)?),
        };
        Ok(Self { local, remote })
    }

    /// Lets frames in to `device`; `tasks` own what receives them. Links to whoever received them before are closed with it.
    pub(crate) fn serve(&self, device: DeviceId, sink: Arc<impl FrameSink>, tasks: &mut JoinSet<()>) {
        match &self.local {
            LocalLinks::InProcess(senders) => {
                let (sender, receiver) = in_process(LINK_CAPACITY);
                senders.insert(device, sender);
                tasks.spawn(serve_frames(receiver, sink));
            }
            LocalLinks::Quic(links) => {
                if let Some(endpoint) = links.endpoints.get(&device).cloned() {
                    tasks.spawn(async move { endpoint.serve(sink).await });
                }
            }
        }
    }

    /// The link of this pair, a new one if the last was closed. `region` is where the sender's blocks lie.
    pub(crate) async fn sender(
        &self,
        from: DeviceId,
        to: DeviceId,
        region: impl FnOnce() -> Option<SharedRegion>,
    ) -> Option<FrameSender> {
        if from.node() != to.node() {
            return self.remote.as_ref()?.sender(from, to.node(), region()).await;
        }
        match &self.local {
            LocalLinks::InProcess(senders) => senders.get(&to).map(|sender| sender.clone()),
            LocalLinks::Quic(links) => links.sender(from, to),
        }
    }

    /// Whether blocks for this device have a way there, as far as is known.
    pub(crate) fn reach(&self, to: DeviceId) -> bool {
        self.remote.as_ref().is_none_or(|remote| remote.reach(to.node()))
    }

    /// A node is gone: the links to it and from it are.
    pub(crate) fn forget(&self, name: &Name) {
        if let Some(remote) = &self.remote {
            remote.forget(name);
        }
    }

    /// A fault: the link of this pair breaks, with the frames on it. Within a process there is none that could.
    pub(crate) fn break_link(&self, from: DeviceId, to: DeviceId) {
        if let Some(remote) = &self.remote {
            remote.break_link(from, to.node());
        }
    }

    /// Ends a link to another node whose owner needs it no more.
    pub(crate) fn end_link(&self, from: DeviceId, to: NodeId) {
        if let Some(remote) = &self.remote {
            remote.end_link(from, to);
        }
    }

    /// Where other nodes of the host hand their blocks over.
    pub(crate) fn memory(&self) -> Option<SharedMemory> {
        self.remote.as_ref()?.memory()
    }

    /// Lets a link of shared memory in from a peer.
    pub(crate) fn invite(&self, peer: &Peer) -> ControlReply {
        match &self.remote {
            Some(remote) => remote.invite(peer),
            None => ControlReply::Refused("it is alone".to_owned()),
        }
    }

    /// What the blocks of this node's model are like, if it has peers.
    pub(crate) fn layout(&self) -> Option<KvLayout> {
        Some(self.remote.as_ref()?.layout())
    }

    /// A connection for bare copies to a peer.
    pub(crate) async fn bare_link(&self, peer: &Peer) -> Result<BareLink, String> {
        let remote = self.remote.as_ref().ok_or("this node has no peers")?;
        remote.bare_link(peer).await.map_err(|error| error.to_string())
    }

    /// Bytes of blocks that have gone to a node over the links that there are now, as those count them.
    pub(crate) fn delivered_bytes_to(&self, node: NodeId) -> u64 {
        self.remote.as_ref().map_or(0, |remote| remote.delivered_bytes_to(node))
    }

    /// What carries blocks to a node now: carriers by name, none while nothing was sent.
    pub(super) fn carriers_to(&self, node: NodeId) -> BTreeSet<&'static str> {
        self.remote.as_ref().map(|remote| remote.carriers_to(node)).unwrap_or_default()
    }

    /// Frames on their way to `device`, until they are answered.
    pub(crate) fn fill(&self, device: DeviceId) -> Fill {
        match &self.local {
            LocalLinks::InProcess(senders) => senders.get(&device).map_or((0, 0), |sender| sender.depth()),
            LocalLinks::Quic(links) => {
                let to_it = links.senders.iter().filter(|entry| entry.key().1 == device);
                to_it.map(|entry| entry.depth()).fold((0, 0), |sum, fill| (sum.0 + fill.0, sum.1 + fill.1))
            }
        }
    }

    /// Closes all of them, for good.
    pub(super) async fn close(&self) {
        if let Some(remote) = &self.remote {
            remote.close().await;
        }
        if let LocalLinks::Quic(links) = &self.local {
            let endpoints = links.endpoints.values().cloned();
            let closing: JoinSet<()> = endpoints.map(|endpoint| async move { endpoint.close().await }).collect();
            closing.join_all().await;
            let mut carried = std::mem::take(&mut *links.carried());
            carried.shutdown().await;
        }
    }
}

impl QuicLinks {
    fn new(devices: impl Iterator<Item = DeviceId>) -> Result<Self, LinksError> {
        let authority = EphemeralAuthority::new()?;
        let open = |device: DeviceId| {
            let (server, client) = authority.admit(&device.to_string())?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            Ok((device, QuicEndpoint::open(address, server, client, Patience::default())?))
        };
        let endpoints = devices.map(open).collect::<Result<_, LinksError>>()?;
        Ok(Self { endpoints, senders: DashMap::new(), carried: Mutex::default() })
    }

    fn sender(&self, from: DeviceId, to: DeviceId) -> Option<FrameSender> {
        if let Some(sender) = self.senders.get(&(from, to)).filter(|sender| !sender.is_closed()) {
            return Some(sender.clone());
        }
        let address = self.endpoints.get(&to)?.address();
        let (sender, carried) = self.endpoints.get(&from)?.link(address, &to.to_string(), LINK_CAPACITY);
        let mut tasks = self.carried();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(carried);
        self.senders.insert((from, to), sender.clone());
        Some(sender)
    }

    fn carried(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
