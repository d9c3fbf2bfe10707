//! The sessions of `ractor_cluster`: one for each link, on the link's own stream.
//!
//! Its TCP listener cannot be switched off: it listens on loopback, and its cookie is derived from the cluster's secret, so that nobody gets a session
//! by it.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use ractor::{Actor, ActorCell, ActorRef, MessagingErr, SpawnErr};
use ractor_cluster::node::{NodeConnectionMode, NodeServerMessage};
use ractor_cluster::{BoxRead, BoxWrite, ClientConnectErr, ClusterBidiStream, NodeServer, client_connect_external};
use relevo_transport::{MessageReader, MessageWriter};
use relevo_wire::MAX_CONTROL_BYTES;

use super::network::Network;
use super::own_words::{HOST, Heard, OwnWords, session_name};

/// Room in a frame for what `ractor_cluster` puts around a message.
const FRAME_OVERHEAD: u64 = 64 << 10;

/// Longest frame.
const MAX_FRAME_BYTES: u64 = MAX_CONTROL_BYTES as u64 + FRAME_OVERHEAD;

/// The sessions' actor: a child of whoever starts it.
#[derive(Clone)]
pub(super) struct Sessions(ActorRef<NodeServerMessage>);

impl Sessions {
    /// Of this node, in this start of it: of two sessions of one name `ractor_cluster` would keep one, perhaps that of the start before.
    pub(super) async fn start(network: &Network, parent: ActorCell) -> Result<Self, SpawnErr> {
        let mut cookie = String::new();
        for byte in network.session_secret() {
            // A string takes all that is written to it.
            let _ = write!(cookie, "{byte:02x}");
        }
        let name = session_name(&network.name, network.incarnation);
        let server = NodeServer::new(0, cookie, name, HOST.to_owned(), None, Some(NodeConnectionMode::Isolated))
            .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
            .with_max_inbound_frame_size(MAX_FRAME_BYTES);
        let (server, _) = Actor::spawn_linked(None, server, (), parent).await?;
        Ok(Self(server))
    }

    /// Begins a session on a link's stream; the dialler is its client.
    pub(super) async fn begin(&self, stream: LinkStream, is_dialler: bool) -> Result<(), SessionError> {
        let stream = Box::new(stream);
        if is_dialler {
            return Ok(client_connect_external(&self.0, stream).await?);
        }
        let opened = NodeServerMessage::ConnectionOpenedExternal { stream, is_server: true };
        Ok(self.0.cast(opened).map_err(Box::new)?)
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("no session: {0}")]
    Client(#[from] ClientConnectErr),
    #[error("no session: {0}")]
    Server(#[from] Box<MessagingErr<NodeServerMessage>>),
}

/// A link's stream, as sessions take it.
pub(super) struct LinkStream {
    pub(super) reader: MessageReader,
    pub(super) writer: MessageWriter,
    pub(super) own: OwnWords,
}

impl ClusterBidiStream for LinkStream {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let Self { reader, writer, own } = *self;
        (Box::new(Heard::new(reader.into_inner(), own, MAX_FRAME_BYTES)), Box::new(writer.into_inner()))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.own.peer.to_string())
    }
}
