//! One UDP port with its certificate: from here links are dialled, and here they arrive.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, Endpoint, Incoming, TokioRuntime, VarInt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::settings::{self, ALPN, Patience};
use super::{dial, serve, socket};
use crate::link::{FrameSender, link};
use crate::receive::FrameSink;

/// Connections that an endpoint serves at a time: a cluster's devices, and again as many that are being replaced.
pub(super) const MAX_CONNECTIONS: usize = 256;

/// How long peers get to hear that an endpoint closes.
pub(super) const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// A UDP port that speaks QUIC with peers of its own certificate authority, and with nobody else.
#[derive(Clone)]
pub struct QuicEndpoint {
    endpoint: Endpoint,
    address: SocketAddr,
    server: Arc<QuicServerConfig>,
    client: Arc<QuicClientConfig>,
    patience: Patience,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The user's fault, or the machine's.
    #[error("cannot open UDP {address}")]
    Socket {
        /// As asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Our bug: a TLS configuration without the cipher suite that QUIC begins with.
    #[error("the TLS configuration does not fit QUIC")]
    Tls(#[from] NoInitialCipherSuite),
    /// Our bug, or an identity that has been damaged.
    #[error("the TLS configuration cannot be made")]
    Identity(#[from] rustls::Error),
    /// Our bug: settings that QUIC does not allow.
    #[error("the settings do not fit QUIC")]
    Settings(#[from] quinn::ConfigError),
}

impl QuicEndpoint {
    /// Opens `address` (port 0: any that is free) as the peer that the certificates of both configurations name. They must ask the other side for
    /// its certificate. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`QuicError`].
    pub fn open(
        address: SocketAddr,
        mut server: rustls::ServerConfig,
        mut client: rustls::ClientConfig,
        patience: Patience,
    ) -> Result<Self, QuicError> {
        server.alpn_protocols = vec![ALPN.to_vec()];
        client.alpn_protocols = vec![ALPN.to_vec()];
        let (server, client) =
            (Arc::new(QuicServerConfig::try_from(server)?), Arc::new(QuicClientConfig::try_from(client)?));
        let failed = |source| QuicError::Socket { address, source };
        let (socket, _) = socket::bind(address).map_err(failed)?;
        let config = quinn::ServerConfig::with_crypto(server.clone());
        let endpoint =
            Endpoint::new(settings::endpoint()?, Some(config), socket, Arc::new(TokioRuntime)).map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        Ok(Self { endpoint, address, server, client, patience })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A link to the endpoint at `address`, whose certificate must carry `name`. It holds at most `capacity` frames. The future dials it, carries its
    /// frames and ends when every sender is gone or the connection is: to be spawned by the link's owner.
    pub fn link(
        &self,
        address: SocketAddr,
        name: &str,
        capacity: usize,
    ) -> (FrameSender, impl Future<Output = ()> + Send + 'static) {
        let (sender, frames) = link("quic", capacity);
        let path = sender.path_slot();
        let mut config = quinn::ClientConfig::new(self.client.clone());
        config.transport_config(settings::connection(address));
        let dialled = dial::Dialled { endpoint: self.endpoint.clone(), config, address, name: name.to_owned(), path };
        (sender, dial::carry(dialled, frames, self.patience.answer))
    }

    /// Serves those who dial, until the endpoint closes.
    pub async fn serve(&self, sink: Arc<impl FrameSink>) {
        let mut connections = JoinSet::new();
        while let Some(incoming) = self.endpoint.accept().await {
            while connections.try_join_next().is_some() {}
            if connections.len() >= MAX_CONNECTIONS {
                tracing::warn!(peer = %incoming.remote_address(), "refused: {MAX_CONNECTIONS} connections are open");
                incoming.refuse();
                continue;
            }
            connections.spawn(serve_incoming(incoming, self.server.clone(), Arc::clone(&sink), self.patience.frame));
        }
    }

    /// Closes every connection, tells the peers so, and takes no new ones.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"the endpoint closes");
        // A peer that does not hear it finds out by its silence.
        let _ = timeout(CLOSE_PATIENCE, self.endpoint.wait_idle()).await;
    }
}

async fn serve_incoming(
    incoming: Incoming,
    crypto: Arc<QuicServerConfig>,
    sink: Arc<impl FrameSink>,
    patience: Duration,
) {
    let peer = incoming.remote_address();
    let mut config = quinn::ServerConfig::with_crypto(crypto);
    config.transport_config(settings::connection(peer));
    let shaken = match incoming.accept_with(Arc::new(config)) {
        Ok(connecting) => connecting.await,
        Err(error) => Err(error),
    };
    match shaken {
        Ok(connection) => serve::serve(connection, sink, patience).await,
        Err(ConnectionError::TransportError(error)) => tracing::warn!(%peer, %error, "a peer was refused"),
        Err(error) => tracing::debug!(%peer, %error, "a peer has gone before it was let in"),
    }
}
