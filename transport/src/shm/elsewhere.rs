//! The carrier of shared memory where the system has none that can be handed over: the same names, so that those who use it need not know, and errors.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use relevo_wire::SharedRegion;

use crate::link::FrameSender;
use crate::quic::Patience;
use crate::receive::FrameSink;

mod ticket;

pub use ticket::Ticket;

/// Where a listener is found: there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShmAddress {}

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this system has no shared memory that can be handed over")]
pub struct NoShmAddress;

impl fmt::Display for ShmAddress {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl FromStr for ShmAddress {
    type Err = NoShmAddress;

    fn from_str(_: &str) -> Result<Self, NoShmAddress> {
        Err(NoShmAddress)
    }
}

/// A socket for KV blocks of the same host: there is none.
#[derive(Clone)]
pub enum ShmListener {}

impl ShmListener {
    /// Fails.
    ///
    /// # Errors
    /// The system's: it has no such memory.
    pub fn open(_: Patience) -> io::Result<Self> {
        Err(io::Error::other(NoShmAddress))
    }

    /// Where it is found.
    pub fn address(&self) -> &ShmAddress {
        match *self {}
    }

    /// Lets in who shows `ticket`.
    pub fn expect(&self, _: Ticket, _: &str) {
        match *self {}
    }

    /// Ends the connections of a peer.
    pub fn part_from(&self, _: &str) {
        match *self {}
    }

    /// Serves those who are let in.
    #[expect(clippy::unused_async, reason = "as where it waits for somebody")]
    pub async fn serve<S: FrameSink>(&self, _: impl Fn(&str) -> Option<Arc<S>> + Clone + Send + Sync + 'static) {
        match *self {}
    }
}

/// Why there is no link by shared memory.
#[derive(Debug, thiserror::Error)]
pub enum ShmDialError {}

/// A link to the listener at `address`: there is none.
///
/// # Errors
/// None: there is no address.
pub fn shm_link(
    address: &ShmAddress,
    _: Ticket,
    _: SharedRegion,
    _: usize,
    _: Patience,
) -> Result<(FrameSender, impl Future<Output = ()> + Send + 'static + use<>), ShmDialError> {
    match *address {}
    #[expect(unreachable_code, reason = "it says which future does not come")]
    Ok((crate::link::link("shm", 1).0, std::future::ready(())))
}
