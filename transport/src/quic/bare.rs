//! A bare copy: bytes as they are over a connection like those for KV blocks, from memory to memory that is there. It is what frames, checksums and leases are
//! held against, on the same link with the same settings.
//!
//! Each copy is its length in eight bytes, little-endian, then the bytes; one byte comes back when the last of them lies in the receiver's memory.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::control::PathFacts;
use super::node_endpoint::DialError;

/// The protocol's name in the handshake.
pub(super) const BARE_ALPN: &[u8] = b"relevo-bare/1";

/// Longest copy.
const MAX_BYTES: u64 = 1 << 30;

const LENGTH_BYTES: usize = 8;

/// The sending end of bare copies.
#[derive(Debug)]
pub struct BareLink {
    connection: Connection,
    outgoing: SendStream,
    incoming: RecvStream,
}

/// Why there is no bare copy.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// The peer cannot be dialled.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Our bug, or an identity that has been damaged.
    #[error("cannot use this node's identity: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer has gone, or takes no copies.
    #[error("the connection is lost: {0}")]
    Lost(#[from] quinn::ConnectionError),
    /// The same, while bytes are sent.
    #[error("a copy cannot be sent: {0}")]
    Write(#[from] quinn::WriteError),
    /// The same, while its answer is awaited.
    #[error("a copy is not answered: {0}")]
    Read(#[from] quinn::ReadExactError),
    /// It takes too long.
    #[error("a copy was not answered within {0:?}")]
    Deadline(Duration),
}

impl BareLink {
    pub(super) async fn open(connection: Connection) -> Result<Self, BareError> {
        let (outgoing, incoming) = connection.open_bi().await?;
        Ok(Self { connection, outgoing, incoming })
    }

    /// Copies these bytes, at most a GiB, and waits until the peer has them.
    ///
    /// # Errors
    /// See [`BareError`].
    pub async fn copy(&mut self, mut pieces: Vec<Bytes>, deadline: Duration) -> Result<(), BareError> {
        let num_bytes: usize = pieces.iter().map(Bytes::len).sum();
        let exchange = async {
            self.outgoing.write_all(&(num_bytes as u64).to_le_bytes()).await?;
            self.outgoing.write_all_chunks(&mut pieces).await?;
            self.incoming.read_exact(&mut [0]).await?;
            Ok(())
        };
        timeout(deadline, exchange).await.unwrap_or(Err(BareError::Deadline(deadline)))
    }

    /// What its connection has measured.
    pub fn path(&self) -> PathFacts {
        PathFacts::of(&self.connection)
    }
}

impl Drop for BareLink {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"the copies are over");
    }
}

/// Where a peer's copies go, and until when.
#[derive(Debug)]
pub struct BareRoom {
    /// It is there, and written to from its beginning by each copy.
    pub memory: Vec<u8>,
    /// The memory is wanted back when the other half is gone.
    pub over: oneshot::Receiver<()>,
}

/// Takes a peer's copies, one over the other, until its connection ends or its time is over.
pub(super) async fn serve(connection: Connection, room: BareRoom, patience: Duration) {
    let BareRoom { memory, over } = room;
    tokio::select! {
        () = take_all(&connection, memory, patience) => {}
        _ = over => connection.close(VarInt::from_u32(0), b"the measurement is over"),
    }
}

async fn take_all(connection: &Connection, mut memory: Vec<u8>, patience: Duration) {
    let Ok((mut outgoing, mut incoming)) = connection.accept_bi().await else { return };
    loop {
        let mut length = [0; LENGTH_BYTES];
        // Between copies a peer may take its time.
        if incoming.read_exact(&mut length).await.is_err() {
            return;
        }
        let num_bytes = u64::from_le_bytes(length);
        let is_taken = num_bytes <= MAX_BYTES
            && matches!(timeout(patience, take(&mut incoming, num_bytes, &mut memory)).await, Ok(Some(())));
        if !is_taken || outgoing.write_all(&[1]).await.is_err() {
            return connection.close(VarInt::from_u32(1), b"that is no copy");
        }
    }
}

/// `None` if they do not come.
async fn take(incoming: &mut RecvStream, num_bytes: u64, memory: &mut [u8]) -> Option<()> {
    let (mut num_left, mut place) = (usize::try_from(num_bytes).ok()?, 0);
    while num_left > 0 {
        let chunk = incoming.read_chunk(num_left, true).await.ok()??;
        num_left -= chunk.bytes.len();
        let mut bytes = &chunk.bytes[..];
        while !bytes.is_empty() {
            place = if place == memory.len() { 0 } else { place };
            let room = memory.get_mut(place..).filter(|room| !room.is_empty())?;
            let (now, rest) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            place += now.len();
            bytes = rest;
        }
    }
    Some(())
}
