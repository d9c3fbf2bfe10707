//! A control connection: one to each peer, with nothing on it but messages, heartbeats and tokens, so that no transfer of KV blocks stands in their way.
//!
//! It has one bidirectional stream, which its dialler opens, for messages; datagrams for heartbeats; and a stream each way for tokens.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use relevo_wire::HEADER_ALIGN;
use rkyv::util::AlignedVec;
use tokio::io::{AsyncRead, AsyncWrite};

use super::link_facts::LinkFacts;
use crate::identity::PeerIdentity;

/// Length of what stands before each message of a stream: how long it is, little-endian.
const LENGTH_BYTES: usize = 4;

/// A connection whose other end has shown who it is.
#[derive(Clone, Debug)]
pub struct ControlConnection {
    connection: Connection,
    peer: PeerIdentity,
    is_dialler: bool,
    facts: LinkFacts,
}

/// Why a control connection does not carry something. The peer is gone, or breaks the rules: either way its connection is over.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It is closed, by either end or by silence.
    #[error("the connection is lost: {0}")]
    Lost(#[from] quinn::ConnectionError),
    /// Nothing more can be written.
    #[error("a message cannot be written: {0}")]
    Write(#[from] quinn::WriteError),
    /// The stream ended in the middle of a message, or was reset.
    #[error("a message cannot be read: {0}")]
    Read(#[from] quinn::ReadExactError),
    /// Longer than what is accepted.
    #[error("a message of {byte_len} bytes, at most {max_bytes} are accepted")]
    TooLong {
        /// As announced.
        byte_len: usize,
        /// Of this stream.
        max_bytes: usize,
    },
    /// Datagrams are off, or it is too long for one.
    #[error("a heartbeat cannot be sent: {0}")]
    Beat(#[from] quinn::SendDatagramError),
}

/// What a connection has measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PathFacts {
    /// The latest estimate of a round trip.
    pub round_trip: Duration,
    /// Packets sent, and how many of them were lost.
    pub sent_packets: u64,
    /// Packets that the peer has not seen.
    pub lost_packets: u64,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Bytes that may be under way.
    pub congestion_window: u64,
    /// The largest UDP payload that the path was found to carry.
    pub mtu: u16,
}

/// The sending end of a stream of messages.
#[derive(Debug)]
pub struct MessageWriter(SendStream);

/// The receiving end.
#[derive(Debug)]
pub struct MessageReader {
    stream: RecvStream,
    max_bytes: usize,
    message: AlignedVec<HEADER_ALIGN>,
}

impl ControlConnection {
    pub(super) fn new(connection: Connection, peer: PeerIdentity, is_dialler: bool) -> Self {
        let facts = LinkFacts::of(connection.remote_address());
        Self { connection, peer, is_dialler, facts }
    }

    /// Who is at the other end, by its certificate.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// Whether it was dialled from here.
    pub fn is_dialler(&self) -> bool {
        self.is_dialler
    }

    /// Where its packets come from.
    pub fn address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// 256 bits that only the two ends of this connection know, different for each label (RFC 8446 section 7.5).
    ///
    /// `None`: our bug.
    pub fn secret(&self, label: &[u8]) -> Option<[u8; 32]> {
        let mut secret = [0; 32];
        self.connection.export_keying_material(&mut secret, label, b"relevo control").ok()?;
        Some(secret)
    }

    /// The stream for messages, in both directions: opened by the dialler, which must say something first, and awaited by the other. From the peer
    /// messages of at most `max_bytes` are accepted.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn messages(&self, max_bytes: usize) -> Result<(MessageWriter, MessageReader), ControlError> {
        let (outgoing, incoming) = match self.is_dialler {
            true => self.connection.open_bi().await?,
            false => self.connection.accept_bi().await?,
        };
        Ok((MessageWriter(outgoing), MessageReader::new(incoming, max_bytes)))
    }

    /// A stream of messages to the peer.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn open_messages(&self) -> Result<MessageWriter, ControlError> {
        Ok(MessageWriter(self.connection.open_uni().await?))
    }

    /// A stream of messages from the peer, each of at most `max_bytes`.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn accept_messages(&self, max_bytes: usize) -> Result<MessageReader, ControlError> {
        Ok(MessageReader::new(self.connection.accept_uni().await?, max_bytes))
    }

    /// Sends a heartbeat. It may be lost; an older one that still waits to be sent is dropped for it.
    ///
    /// # Errors
    /// The connection is lost, or the peer takes no datagrams of that length.
    pub fn send_beat(&self, beat: Bytes) -> Result<(), ControlError> {
        Ok(self.connection.send_datagram(beat)?)
    }

    /// The next heartbeat.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn next_beat(&self) -> Result<Bytes, ControlError> {
        Ok(self.connection.read_datagram().await?)
    }

    /// Ends it. The peer reads the reason in its log.
    pub fn close(&self, reason: &str) {
        self.connection.close(VarInt::from_u32(0), reason.as_bytes());
    }

    /// Returns when it is over, with the reason.
    pub async fn closed(&self) -> String {
        self.connection.closed().await.to_string()
    }

    /// What the kernel knew of the way to the peer when this was opened, and what its packets are like therefore.
    pub fn link_facts(&self) -> LinkFacts {
        self.facts
    }

    /// What it has measured of the path.
    pub fn path(&self) -> PathFacts {
        PathFacts::of(&self.connection)
    }
}

impl PathFacts {
    pub(super) fn of(connection: &Connection) -> Self {
        let stats = connection.stats();
        Self {
            round_trip: stats.path.rtt,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            congestion_window: stats.path.cwnd,
            mtu: stats.path.current_mtu,
        }
    }
}

impl MessageWriter {
    /// Sends a message and its length; waits for room.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn send(&mut self, message: Bytes) -> Result<(), ControlError> {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes();
        Ok(self.0.write_all_chunks(&mut [Bytes::copy_from_slice(&length), message]).await?)
    }

    /// The stream, for what comes after the messages.
    pub fn into_inner(self) -> impl AsyncWrite + Send + Unpin + 'static {
        self.0
    }
}

impl MessageReader {
    fn new(stream: RecvStream, max_bytes: usize) -> Self {
        Self { stream, max_bytes, message: AlignedVec::new() }
    }

    /// The next message, aligned to be read in place. Its memory grows with what has come, not with what was announced.
    ///
    /// # Errors
    /// The connection is lost, or the message is too long.
    pub async fn next(&mut self) -> Result<&[u8], ControlError> {
        let mut length = [0; LENGTH_BYTES];
        self.stream.read_exact(&mut length).await?;
        let byte_len = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if byte_len > self.max_bytes {
            return Err(ControlError::TooLong { byte_len, max_bytes: self.max_bytes });
        }
        self.message.clear();
        while self.message.len() < byte_len {
            let chunk = self.stream.read_chunk(byte_len - self.message.len(), true).await;
            let chunk = chunk.map_err(quinn::ReadExactError::ReadError)?;
            let chunk = chunk.ok_or(quinn::ReadExactError::FinishedEarly(self.message.len()))?;
            self.message.extend_from_slice(&chunk.bytes);
        }
        Ok(&self.message)
    }

    /// The stream, for what comes after the messages.
    pub fn into_inner(self) -> impl AsyncRead + Send + Unpin + 'static {
        self.stream
    }
}
