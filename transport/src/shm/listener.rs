//! Where links arrive: a socket with a name that is nowhere in the file system, and those who are expected.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::greeting::{self, GreetingError};
use super::guests::{Guest, Guests};
use super::peer_memory::{PeerMemory, PeerMemoryError};
use super::receiving;
use super::ticket::Ticket;
use crate::quic::Patience;
use crate::receive::FrameSink;

/// Connections that a listener serves at a time: a cluster's devices, and again as many that are being replaced.
const MAX_CONNECTIONS: usize = 256;

/// Pause after an accept that failed for want of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How all names begin.
const NAME: &str = "relevo-kv-";

/// Hexadecimal digits of a name.
const NAME_DIGITS: usize = 32;

/// Where a listener is found, on its host and in its network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShmAddress(String);

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no address of shared memory: expected {NAME} and {NAME_DIGITS} lower-case hexadecimal digits")]
pub struct NoShmAddress;

impl ShmAddress {
    fn random() -> Result<Self, getrandom::Error> {
        let mut number = [0; NAME_DIGITS / 2];
        getrandom::fill(&mut number)?;
        let digits: String = number.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(format!("{NAME}{digits}")))
    }

    /// As tokio wants it: a leading zero says that it is abstract.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("\0{}", self.0))
    }

    /// The abstract name.
    pub(super) fn name(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for ShmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ShmAddress {
    type Err = NoShmAddress;

    /// As it came from a peer.
    fn from_str(text: &str) -> Result<Self, NoShmAddress> {
        let digits = text.strip_prefix(NAME).ok_or(NoShmAddress)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_name = digits.len() == NAME_DIGITS && digits.bytes().all(is_digit);
        if is_name { Ok(Self(text.to_owned())) } else { Err(NoShmAddress) }
    }
}

/// A socket at which processes of the same host and user hand KV blocks over, if they are expected. It is closed when its last clone is gone.
#[derive(Clone)]
pub struct ShmListener {
    socket: Arc<UnixListener>,
    address: ShmAddress,
    guests: Arc<Mutex<Guests>>,
    patience: Patience,
}

/// Why a connection is not let in.
#[derive(Debug, thiserror::Error)]
enum NotLetIn {
    #[error("the peer is another user's")]
    Stranger,
    #[error("the peer did not say who it is within {0:?}")]
    Slow(Duration),
    #[error(transparent)]
    Greeting(#[from] GreetingError),
    #[error("nobody with the peer's ticket is expected")]
    Unexpected,
    #[error("no blocks are taken from {0}")]
    Unwanted(String),
    #[error(transparent)]
    Memory(#[from] PeerMemoryError),
    #[error("the peer's user is not known")]
    Io(#[from] io::Error),
}

impl ShmListener {
    /// Opens a socket with a name of its own. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The system's: no socket, or no random numbers.
    pub fn open(patience: Patience) -> io::Result<Self> {
        let address = ShmAddress::random().map_err(io::Error::other)?;
        let socket = Arc::new(UnixListener::bind(address.path())?);
        Ok(Self { socket, address, guests: Arc::default(), patience })
    }

    /// Where it is found.
    pub fn address(&self) -> &ShmAddress {
        &self.address
    }

    /// Lets in who shows `ticket`, once and within half a minute, as `peer`. Both must know it already over a connection that knows who they are.
    pub fn expect(&self, ticket: Ticket, peer: &str) {
        self.guests().expect(ticket, peer, Instant::now());
    }

    /// Ends the connections of a peer. It comes in again only by a ticket that is agreed on from here on.
    pub fn part_from(&self, peer: &str) {
        self.guests().part_from(peer);
    }

    /// Serves those who are let in; their blocks go to the sink that `sink_of` has for the peer, without one its connection is closed. Never ends; its
    /// connections end with it when it is dropped.
    pub async fn serve<S: FrameSink>(&self, sink_of: impl Fn(&str) -> Option<Arc<S>> + Clone + Send + Sync + 'static) {
        let mut connections = JoinSet::new();
        loop {
            let stream = match self.socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            if connections.len() >= MAX_CONNECTIONS {
                tracing::warn!("refused: {MAX_CONNECTIONS} connections are open");
                continue;
            }
            connections.spawn(self.clone().serve_one(stream, sink_of.clone()));
        }
    }

    async fn serve_one<S: FrameSink>(self, stream: UnixStream, sink_of: impl Fn(&str) -> Option<Arc<S>>) {
        let patience = self.patience.frame;
        let let_in = self.let_in(&stream, patience).await;
        // A listener that nobody serves any more closes, though a connection is still there.
        drop(self);
        let unwanted = |guest: &Guest| NotLetIn::Unwanted(guest.peer.clone());
        let wanted = let_in.and_then(|(guest, memory)| {
            let sink = sink_of(&guest.peer).ok_or_else(|| unwanted(&guest))?;
            Ok((guest, memory, sink))
        });
        let (Guest { peer, parted }, memory, sink) = match wanted {
            Ok(wanted) => wanted,
            // It has changed its mind, as when two links to here came about at a time.
            Err(NotLetIn::Greeting(GreetingError::Cut)) => {
                return tracing::debug!("a peer has gone before it was let in");
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, source, "a peer was refused");
                return;
            }
        };
        tokio::select! {
            biased;
            _ = parted => tracing::debug!(peer, "a connection ends with its peer"),
            () = receiving::serve(stream, memory, &peer, sink, patience) => {}
        }
    }

    /// Who has dialled, and the memory that it carries from.
    async fn let_in(&self, stream: &UnixStream, patience: Duration) -> Result<(Guest, PeerMemory), NotLetIn> {
        // Before a byte is read: files of other users are not even taken.
        if stream.peer_cred()?.uid() != geteuid().as_raw() {
            return Err(NotLetIn::Stranger);
        }
        let greeted = timeout(patience, greeting::receive(stream)).await;
        let (ticket, file) = greeted.map_err(|_| NotLetIn::Slow(patience))??;
        let guest = self.guests().let_in(&ticket, Instant::now()).ok_or(NotLetIn::Unexpected)?;
        Ok((guest, PeerMemory::map(&file)?))
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_was_written_and_nothing_else_is_one() {
        let address = ShmAddress::random().unwrap();
        let text = address.to_string();
        assert_eq!(text.parse(), Ok(address));
        for wrong in
            ["", NAME, "/tmp/socket", &text[1..], &text[..text.len() - 1], &text.to_uppercase(), &(text.clone() + "0")]
        {
            assert_eq!(wrong.parse::<ShmAddress>(), Err(NoShmAddress), "{wrong}");
        }
        let with_a_path = text.replace(|digit: char| digit.is_ascii_hexdigit(), "/");
        assert_eq!(with_a_path.parse::<ShmAddress>(), Err(NoShmAddress));
    }
}
