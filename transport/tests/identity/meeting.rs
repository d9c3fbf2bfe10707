//! A handshake in memory: what each side makes of the other.

use std::sync::Arc;

use relevo_transport::identity::{Expected, LiveIdentity, Moment, PROTOCOL, PeerIdentity, Refusal, Role};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, Connection, HandshakeKind, ServerConfig, ServerConnection};

use super::cluster::{NOW, name};

/// A clock that stands still.
#[derive(Debug)]
pub(crate) struct At(pub(crate) Moment);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.into())
    }
}

/// How a handshake ended for one side.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) connection: Connection,
    error: Option<rustls::Error>,
}

impl Side {
    /// The peer, if this side has found nothing wrong and not been refused.
    pub(crate) fn peer(&self) -> PeerIdentity {
        assert!(self.error.is_none() && !self.connection.is_handshaking(), "{self:?}");
        PeerIdentity::of_chain(self.connection.peer_certificates().unwrap()).unwrap()
    }

    /// Why there is no connection.
    #[track_caller]
    pub(crate) fn refusal(&self) -> Refusal {
        let error = self.error.as_ref().expect("the handshake failed");
        Refusal::of(error).unwrap_or_else(|| panic!("no refusal: {error:?}"))
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() != Some(HandshakeKind::Full)
    }

    fn send_to(&mut self, other: &mut Self) -> bool {
        let mut bytes = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut bytes).unwrap();
        }
        let mut unread = bytes.as_slice();
        while !unread.is_empty() && other.error.is_none() {
            other.connection.read_tls(&mut unread).unwrap();
            other.error = other.connection.process_new_packets().err();
        }
        !bytes.is_empty()
    }
}

/// Lets a client and a server meet: the client's side, the server's side.
pub(crate) fn meet(client: ClientConfig, server: ServerConfig) -> (Side, Side) {
    meet_again(&Arc::new(client), &Arc::new(server))
}

/// The same with configurations that have met others before.
pub(crate) fn meet_again(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (Side, Side) {
    let dialled = ServerName::try_from("127.0.0.1").unwrap();
    let client = ClientConnection::new(client.clone(), dialled).unwrap();
    let server = ServerConnection::new(server.clone()).unwrap();
    let mut client = Side { connection: client.into(), error: None };
    let mut server = Side { connection: server.into(), error: None };
    while client.send_to(&mut server) | server.send_to(&mut client) {}
    (client, server)
}

/// A server that lets in whoever has any role.
pub(crate) fn server(node: &LiveIdentity) -> ServerConfig {
    server_for(node, Expected::one_of(Role::ALL), NOW)
}

pub(crate) fn server_for(node: &LiveIdentity, expected: Expected, now: Moment) -> ServerConfig {
    node.server_config(expected, &[PROTOCOL], Arc::new(At(now))).unwrap()
}

/// A client that dials a node by its name.
pub(crate) fn client(node: &LiveIdentity, dials: &str) -> ClientConfig {
    client_for(node, Expected::node(name(dials)), NOW)
}

pub(crate) fn client_for(node: &LiveIdentity, expected: Expected, now: Moment) -> ClientConfig {
    node.client_config(expected, &[PROTOCOL], Arc::new(At(now))).unwrap()
}
