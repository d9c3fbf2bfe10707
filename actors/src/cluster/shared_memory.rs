//! Links of shared memory between nodes of one host: agreed on over the control connection of two nodes, which knows who both are, and over with it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use relevo_transport::{FrameSender, NoShmAddress, Patience, ShmAddress, ShmDialError, ShmListener, Ticket, shm_link};
use relevo_wire::{ControlMessage, ControlReply, MemoryInvitation, NodeId, SharedRegion};

use super::directory::Directory;
use super::links::LINK_CAPACITY;
use super::remote_links::PeerSink;
use crate::peers::{AskError, Peer};

/// How long a peer may take to invite: a part of what a frame may take.
const INVITATION_PATIENCE: Duration = Duration::from_millis(500);

/// Where other nodes of the host hand their blocks over.
#[derive(Clone)]
pub(crate) struct SharedMemory(ShmListener);

/// Why there is no link of shared memory to a peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoMemoryLink {
    #[error("this device's KV blocks lie in memory of its own")]
    OwnMemory,
    #[error("it was asked: {0}")]
    NotAsked(#[from] AskError),
    #[error("it refuses: {0}")]
    Refused(String),
    #[error("its invitation makes no sense: {0}")]
    BadAddress(#[from] NoShmAddress),
    #[error("its answer is none")]
    NoAnswer,
    #[error(transparent)]
    NotDialled(#[from] ShmDialError),
}

impl SharedMemory {
    /// Opens a socket of a name that nobody can guess.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(ShmListener::open(Patience::default())?))
    }

    /// Lets one link of `peer` in, if it dials soon.
    pub(super) fn invite(&self, peer: &Peer) -> ControlReply {
        match Ticket::random() {
            Ok(ticket) => {
                let (address, secret) = (self.0.address().to_string(), *ticket.as_bytes());
                self.0.expect(ticket, peer.name.as_str());
                ControlReply::Invited(MemoryInvitation { address, ticket: secret })
            }
            Err(error) => ControlReply::Refused(format!("its system gives no random numbers: {error}")),
        }
    }

    /// Ends the links of a peer.
    pub(super) fn part_from(&self, peer: &str) {
        self.0.part_from(peer);
    }

    /// Takes what those who were invited push, each into leases that name its devices.
    pub(crate) async fn serve(&self, directory: Arc<Directory>) {
        let sink_of = move |peer: &str| {
            let peer = directory.peers.find(NodeId::of_name(peer))?;
            PeerSink::of(&directory, peer.connection.peer()).map(Arc::new)
        };
        self.0.serve(sink_of).await;
    }
}

/// A link to a peer for blocks that lie in `region`, and what carries its frames.
pub(super) async fn link_to(
    peer: &Peer,
    region: Option<SharedRegion>,
) -> Result<(FrameSender, impl Future<Output = ()> + Send + 'static + use<>), NoMemoryLink> {
    let region = region.ok_or(NoMemoryLink::OwnMemory)?;
    let MemoryInvitation { address, ticket } =
        match peer.remote.ask(&ControlMessage::AskMemoryLink, INVITATION_PATIENCE).await? {
            ControlReply::Invited(invitation) => invitation,
            ControlReply::Refused(reason) => return Err(NoMemoryLink::Refused(reason)),
            _ => return Err(NoMemoryLink::NoAnswer),
        };
    let address: ShmAddress = address.parse()?;
    Ok(shm_link(&address, Ticket::from_bytes(ticket), region, LINK_CAPACITY, Patience::default())?)
}
