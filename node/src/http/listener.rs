//! The listener: connections with limits and deadlines, and a shutdown that lets open answers end.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::socket::ImpatientSocket;
use super::{Service, routes};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Kernel buffer of a connection's answers: a second of 1,000 events of 250 bytes. A reader who falls behind further
/// is waited for, and cut by the write timeout.
const SEND_BUFFER_BYTES: u32 = 256 << 10;

/// hyper's own bounds, beyond ours: a request over ours gets an error object, one over these a bare 431.
const HARD_MAX_HEADERS: usize = 256;
const HARD_BUFFER_BYTES: usize = 128 << 10;

/// Pause after an accept that failed for want of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time for the last error events after the drain.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The connection that finds no room gets this.
const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
retry-after: 1\r\nconnection: close\r\ncontent-length: 130\r\n\r\n\
{\"error\":{\"message\":\"The server has too many open connections.\",\"type\":\"server_error\",\
\"param\":null,\"code\":\"too_many_connections\"}}";

/// Why the gateway cannot serve. The operator's fault, or the system's.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// As asked for.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An address that others can reach, without keys.
    #[error(
        "{0} is not a loopback address: others could use the model; give --api-key-file FILE, or listen on 127.0.0.1"
    )]
    OpenDoor(SocketAddr),
    /// The listener broke.
    #[error("the listener failed")]
    Listener(#[source] io::Error),
}

/// Refuses an address other than loopback unless callers need a key.
///
/// # Errors
/// The operator's fault: [`ServeError::OpenDoor`].
pub fn check_listen_address(address: SocketAddr, has_keys: bool) -> Result<(), ServeError> {
    if address.ip().is_loopback() || has_keys { Ok(()) } else { Err(ServeError::OpenDoor(address)) }
}

/// Listens on `address`, with the buffers that [`serve`] wants.
///
/// # Errors
/// The operator's or the system's fault: [`ServeError::Bind`].
pub fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        // Accepted sockets inherit it.
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ServeError::Bind { address, source })
}

/// Serves until `shutdown` is cancelled and every connection has ended.
///
/// From then on nothing new is accepted; open answers may go on for [`super::Limits::drain_timeout`], then streams end
/// with an error event; it returns a second later at the latest.
///
/// # Errors
/// The operator's fault: an open door. The system's: a listener that breaks.
pub async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listener)?;
    check_listen_address(address, service.options.api_keys.is_some())?;
    let router = routes::router(Arc::clone(&service), address.ip().is_loopback());
    let mut server = Server {
        permits: Arc::new(Semaphore::new(service.options.limits.max_connections)),
        connections: JoinSet::new(),
        router,
        service,
        shutdown,
    };
    server.accept(&listener).await;
    drop(listener);
    server.drain().await;
    Ok(())
}

struct Server {
    permits: Arc<Semaphore>,
    connections: JoinSet<()>,
    router: Router,
    service: Arc<Service>,
    shutdown: CancellationToken,
}

impl Server {
    async fn accept(&mut self, listener: &TcpListener) {
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                Some(ended) = self.connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a connection task failed");
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.admit(stream),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn admit(&mut self, stream: TcpStream) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            metrics::counter!("relevo_http_connections_refused_total").increment(1);
            // A fresh socket takes a few hundred bytes without waiting; if not, the close alone says it.
            let _ = stream.into_std().and_then(|mut stream| stream.write(TOO_MANY_CONNECTIONS));
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it began");
            return;
        }
        let connection = Connection {
            router: self.router.clone(),
            service: Arc::clone(&self.service),
            shutdown: self.shutdown.clone(),
            permit,
        };
        self.connections.spawn(connection.run(stream));
    }

    async fn drain(mut self) {
        self.service.drain();
        let limits = &self.service.options.limits;
        let connections = &mut self.connections;
        if timeout(limits.drain_timeout, async { while connections.join_next().await.is_some() {} }).await.is_ok() {
            return;
        }
        self.service.closing.cancel();
        if timeout(LAST_WORDS, async { while connections.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!(num_connections = connections.len(), "connections are cut at the end of the shutdown");
            connections.shutdown().await;
        }
    }
}

struct Connection {
    router: Router,
    service: Arc<Service>,
    shutdown: CancellationToken,
    permit: OwnedSemaphorePermit,
}

/// In a request's extensions: cancelled, it lets the connection end with the current answer.
#[derive(Clone, Debug)]
pub(super) struct LastAnswer(pub(super) CancellationToken);

impl Connection {
    async fn run(self, stream: TcpStream) {
        let limits = &self.service.options.limits;
        let io = TokioIo::new(ImpatientSocket::new(stream, limits.write_timeout));
        let last_answer = CancellationToken::new();
        let router = &self.router;
        let marker = LastAnswer(last_answer.clone());
        let handler = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(marker.clone());
            router.clone().oneshot(request.map(Body::new))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_headers(HARD_MAX_HEADERS)
            .max_buf_size(HARD_BUFFER_BYTES)
            .serve_connection(io, handler);
        let mut connection = std::pin::pin!(connection);
        let gauge = metrics::gauge!("relevo_http_connections");
        gauge.increment(1.0);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = async { tokio::select! { () = self.shutdown.cancelled() => {}, () = last_answer.cancelled() => {} } } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        gauge.decrement(1.0);
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(self.permit);
    }
}
