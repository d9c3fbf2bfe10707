//! A node's one UDP port: from here its peers are dialled, here they arrive, each known by its certificate; the protocol that both ends name in the
//! handshake says what a connection is for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, Incoming, TokioRuntime, VarInt};
use rustls::AlertDescription;
use rustls::pki_types::CertificateDer;
use rustls::time_provider::DefaultTimeProvider;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::bare::{self, BARE_ALPN, BareError, BareLink, BareRoom};
use super::control::ControlConnection;
use super::endpoint::{CLOSE_PATIENCE, MAX_CONNECTIONS, QuicError};
use super::settings::{self, ALPN, Patience};
use super::socket::{self, SocketBuffers};
use super::{dial, serve};
use crate::identity::{Expected, LiveIdentity, Name, PROTOCOL, PeerIdentity, Refusal, SubjectError};
use crate::link::{FrameSender, link};
use crate::receive::FrameSink;

/// Error codes of QUIC from this one on are TLS alerts.
const FIRST_ALERT: u64 = 0x100;

/// How long a peer may take for a handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(3);

/// Tells a peer that what it brings is not taken.
const NOT_TAKEN: VarInt = VarInt::from_u32(2);

/// A node's UDP port.
#[derive(Clone)]
pub struct NodeEndpoint {
    endpoint: Endpoint,
    address: SocketAddr,
    identity: LiveIdentity,
    server: Arc<QuicServerConfig>,
    buffers: SocketBuffers,
    patience: Patience,
}

/// Why a peer could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Our bug, or an identity that has been damaged.
    #[error("cannot use this node's identity: {0}")]
    Tls(#[from] rustls::Error),
    /// Nobody answers there, or not in time.
    #[error("nobody answers at {0}")]
    Silent(SocketAddr),
    /// It cannot be dialled.
    #[error("cannot dial {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: quinn::ConnectError,
    },
    /// Certificates are the reason.
    #[error("{address} refused, or was refused: {reason}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: Refusal,
    },
    /// Anything else.
    #[error("the handshake with {address} failed: {source}")]
    Handshake {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: quinn::ConnectionError,
    },
    /// Its certificate cannot be read, though it was accepted: our bug.
    #[error("the certificate at {address} cannot be read")]
    Certificate {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: SubjectError,
    },
}

impl NodeEndpoint {
    /// Opens `address` (port 0: any that is free) as the node that `identity` is. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`QuicError`].
    pub fn open(address: SocketAddr, identity: LiveIdentity, patience: Patience) -> Result<Self, QuicError> {
        let server = identity.server_config(anybody(), &[PROTOCOL, ALPN, BARE_ALPN], Arc::new(DefaultTimeProvider))?;
        let server = Arc::new(QuicServerConfig::try_from(server)?);
        let failed = |source| QuicError::Socket { address, source };
        let (socket, buffers) = socket::bind(address).map_err(failed)?;
        let config = Some(quinn::ServerConfig::with_crypto(server.clone()));
        let endpoint = Endpoint::new(settings::endpoint()?, config, socket, Arc::new(TokioRuntime)).map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        Ok(Self { endpoint, address, identity, server, buffers, patience })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the kernel gave its socket.
    pub fn socket_buffers(&self) -> SocketBuffers {
        self.buffers
    }

    /// Who it is, now.
    pub fn identity(&self) -> &LiveIdentity {
        &self.identity
    }

    /// Opens a control connection to whoever is expected at `address`.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(&self, address: SocketAddr, expected: Expected) -> Result<ControlConnection, DialError> {
        let connection = self.connect(address, expected, PROTOCOL).await?;
        let peer = peer_of(&connection).map_err(|source| DialError::Certificate { address, source })?;
        Ok(ControlConnection::new(connection, peer, true))
    }

    /// Opens a connection for bare copies to the node of this name at `address`.
    ///
    /// # Errors
    /// See [`BareError`].
    pub async fn bare_link(&self, address: SocketAddr, name: Name) -> Result<BareLink, BareError> {
        BareLink::open(self.connect(address, Expected::node(name), BARE_ALPN).await?).await
    }

    async fn connect(&self, address: SocketAddr, expected: Expected, protocol: &[u8]) -> Result<Connection, DialError> {
        let config = self.client(expected, protocol, settings::connection(address))?;
        let connecting = self
            .endpoint
            .connect_with(config, address, "node")
            .map_err(|source| DialError::Connect { address, source })?;
        let shaken = timeout(HANDSHAKE_PATIENCE, connecting).await.map_err(|_| DialError::Silent(address))?;
        shaken.map_err(|source| dial_error(address, source))
    }

    /// A link for KV blocks to the node of this name at `address`. It holds at most `capacity` frames. The future dials it, carries its frames and
    /// ends when every sender is gone or the connection is: to be spawned by the link's owner.
    ///
    /// # Errors
    /// Our bug.
    pub fn link(
        &self,
        address: SocketAddr,
        name: Name,
        capacity: usize,
    ) -> Result<(FrameSender, impl Future<Output = ()> + Send + 'static), rustls::Error> {
        let config = self.client(Expected::node(name), ALPN, settings::connection(address))?;
        let (sender, frames) = link("quic", capacity);
        let path = sender.path_slot();
        let dialled = dial::Dialled { endpoint: self.endpoint.clone(), config, address, name: "node".to_owned(), path };
        Ok((sender, dial::carry(dialled, frames, self.patience.answer)))
    }

    fn client(
        &self,
        expected: Expected,
        protocol: &[u8],
        transport: Arc<quinn::TransportConfig>,
    ) -> Result<quinn::ClientConfig, rustls::Error> {
        let client = self.identity.client_config(expected, &[protocol], Arc::new(DefaultTimeProvider))?;
        let crypto = QuicClientConfig::try_from(client).map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport);
        Ok(config)
    }

    /// Serves those who dial, until the endpoint closes: control connections go to `controls`, KV blocks to the sink that `sink_of` has for the
    /// peer, bare copies to the room that `room_of` has for it; without one its connection is closed. `refused` hears of each peer that was not
    /// let in.
    pub async fn serve<S: FrameSink>(
        &self,
        controls: mpsc::Sender<ControlConnection>,
        sink_of: impl Fn(&PeerIdentity) -> Option<Arc<S>> + Clone + Send + Sync + 'static,
        room_of: impl Fn(&PeerIdentity) -> Option<BareRoom> + Clone + Send + Sync + 'static,
        refused: impl Fn(Option<Refusal>) + Clone + Send + Sync + 'static,
    ) {
        let mut connections = JoinSet::new();
        while let Some(incoming) = self.endpoint.accept().await {
            while connections.try_join_next().is_some() {}
            if connections.len() >= MAX_CONNECTIONS {
                tracing::warn!(peer = %incoming.remote_address(), "refused: {MAX_CONNECTIONS} connections are open");
                incoming.refuse();
                continue;
            }
            let (controls, sink_of, room_of, refused, patience) =
                (controls.clone(), sink_of.clone(), room_of.clone(), refused.clone(), self.patience);
            let server = self.server.clone();
            connections.spawn(async move {
                let Some((connection, peer)) = shake_hands(incoming, server, refused).await else { return };
                let protocol = protocol_of(&connection).unwrap_or_default();
                if protocol == ALPN {
                    match sink_of(&peer) {
                        Some(sink) => serve::serve(connection, sink, patience.frame).await,
                        None => connection.close(NOT_TAKEN, b"this node takes no blocks from you"),
                    }
                } else if protocol == BARE_ALPN {
                    match room_of(&peer) {
                        Some(room) => bare::serve(connection, room, patience.frame).await,
                        None => connection.close(NOT_TAKEN, b"no link is measured"),
                    }
                } else if let Err(unwanted) = controls.send(ControlConnection::new(connection, peer, false)).await {
                    unwanted.0.close("this node is stopping");
                }
            });
        }
    }

    /// Closes every connection, tells the peers so, and takes no new ones.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"the node stops");
        // A peer that does not hear it finds out by its silence.
        let _ = timeout(CLOSE_PATIENCE, self.endpoint.wait_idle()).await;
    }
}

/// Whoever has a certificate of this cluster: what each may do is decided by message.
fn anybody() -> Expected {
    Expected::one_of(relevo_wire::Role::ALL)
}

async fn shake_hands(
    incoming: Incoming,
    server: Arc<QuicServerConfig>,
    refused: impl Fn(Option<Refusal>),
) -> Option<(Connection, PeerIdentity)> {
    let address = incoming.remote_address();
    let mut config = quinn::ServerConfig::with_crypto(server);
    config.transport_config(settings::connection(address));
    let shaking = async { incoming.accept_with(Arc::new(config))?.await };
    let shaken = match timeout(HANDSHAKE_PATIENCE, shaking).await {
        Ok(shaken) => shaken,
        Err(_) => {
            tracing::debug!(peer = %address, "a peer did not finish its handshake in time");
            return None;
        }
    };
    match shaken {
        Ok(connection) => match peer_of(&connection) {
            Ok(peer) => Some((connection, peer)),
            Err(error) => {
                tracing::warn!(peer = %address, %error, "a peer's certificate cannot be read");
                refused(None);
                None
            }
        },
        Err(error) => {
            let reason = refusal_of(&error);
            match &error {
                quinn::ConnectionError::TransportError(fault) => {
                    tracing::warn!(peer = %address, error = %fault, "a peer was refused");
                    refused(reason);
                }
                // It has looked at our certificate before we could look at its own.
                _ if reason.is_some() => {
                    tracing::warn!(peer = %address, %error, "a peer refused this node");
                    refused(reason);
                }
                _ => tracing::debug!(peer = %address, %error, "a peer has gone before it was let in"),
            }
            None
        }
    }
}

fn peer_of(connection: &Connection) -> Result<PeerIdentity, SubjectError> {
    let identity = connection.peer_identity().ok_or(SubjectError::Missing)?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| SubjectError::Missing)?;
    PeerIdentity::of_chain(&chain)
}

fn protocol_of(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

fn dial_error(address: SocketAddr, source: quinn::ConnectionError) -> DialError {
    match refusal_of(&source) {
        Some(reason) => DialError::Refused { address, reason },
        None => DialError::Handshake { address, source },
    }
}

/// The reason in a failed handshake, if certificates are the reason: TLS has a word for it, an alert, which QUIC carries in its error code (RFC 9001
/// section 4.8).
fn refusal_of(error: &quinn::ConnectionError) -> Option<Refusal> {
    let code = match error {
        quinn::ConnectionError::TransportError(error) => u64::from(error.code),
        quinn::ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => return None,
    };
    let alert = u8::try_from(code.checked_sub(FIRST_ALERT)?).ok()?;
    Refusal::of(&rustls::Error::AlertReceived(AlertDescription::from(alert)))
}
