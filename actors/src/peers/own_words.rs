//! What a peer's session may say of itself, held against who its certificate says it is.
//!
//! All nodes know the secret that sessions begin with, and `ractor_cluster` believes whoever knows it: of two sessions of one name it ends one, and a
//! group takes in every actor that any session names. So a session is read through here, frame by frame, before it gets that far.
//!
//! **Invariant:** over a link come the name and the groups of its peer, and of nobody else.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use prost::Message;
use relevo_transport::identity::Name;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

/// Length of what stands before each frame: how long it is, big-endian.
const LENGTH_BYTES: usize = 8;

/// How much is read at once, so that memory grows with what has come and not with what was announced.
const CHUNK_BYTES: usize = 16 << 10;

/// What sessions put after a node's name, as if it were a host.
pub(super) const HOST: &str = "relevo";

/// The name of a node's sessions, in this start of it.
pub(super) fn session_name(node: &Name, incarnation: u64) -> String {
    format!("{node}.{incarnation:016x}")
}

/// How all groups of a node begin.
pub(super) fn group_prefix(node: &Name) -> String {
    format!("relevo/{node}/")
}

/// Whose words may come, and who hears of others.
#[derive(Debug)]
pub(super) struct OwnWords {
    pub(super) peer: Name,
    pub(super) incarnation: u64,
    /// Told when the peer breaks the rules.
    pub(super) failed: mpsc::Sender<String>,
}

/// A link's stream, of which nothing gets through but whole frames with its peer's own words.
pub(super) struct Heard<R> {
    inner: R,
    own: OwnWords,
    max_bytes: u64,
    /// The frame that is coming, or that is being handed on.
    frame: Vec<u8>,
    /// How much of it has been handed on; `None` while it is coming.
    num_passed: Option<usize>,
}

/// The parts of `ractor_cluster`'s messages that say who speaks. Where it has a choice of one, all that came are looked at.
#[derive(Clone, PartialEq, Message)]
struct Packet {
    #[prost(message, optional, tag = "1")]
    auth: Option<Auth>,
    #[prost(message, optional, tag = "3")]
    control: Option<Control>,
}

#[derive(Clone, PartialEq, Message)]
struct Auth {
    #[prost(message, optional, tag = "1")]
    name: Option<Named>,
    #[prost(message, optional, tag = "4")]
    challenge: Option<Named>,
}

#[derive(Clone, PartialEq, Message)]
struct Control {
    #[prost(message, optional, tag = "5")]
    join: Option<Named>,
    #[prost(message, optional, tag = "6")]
    leave: Option<Named>,
}

/// What begins with a name: of a node, or of a group.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

impl OwnWords {
    /// Why a frame is not to be handed on.
    fn objection(&self, content: &[u8]) -> Option<&'static str> {
        // What is no packet here is none there, and ends its session by itself.
        let packet = Packet::decode(content).ok()?;
        let Auth { name, challenge } = packet.auth.unwrap_or_default();
        let own = format!("{}@{HOST}", session_name(&self.peer, self.incarnation));
        if name.into_iter().chain(challenge).any(|named| named.name != own) {
            return Some("its session has another node's name");
        }
        let Control { join, leave } = packet.control.unwrap_or_default();
        let prefix = group_prefix(&self.peer);
        let is_foreign = |named: Named| !named.name.starts_with(&prefix);
        join.into_iter().chain(leave).any(is_foreign).then_some("it speaks for a group that is not its own")
    }

    fn refuse(&self, reason: &str) -> Error {
        metrics::counter!("relevo_messages_refused_total", "reason" => "not_allowed").increment(1);
        tracing::warn!(peer = %self.peer, reason, "a session is refused, and its link ends");
        // A full channel holds an earlier reason.
        let _ = self.failed.try_send(reason.to_owned());
        Error::new(ErrorKind::PermissionDenied, reason.to_owned())
    }
}

impl<R: AsyncRead + Unpin> Heard<R> {
    /// Frames of at most `max_bytes`.
    pub(super) fn new(inner: R, own: OwnWords, max_bytes: u64) -> Self {
        Self { inner, own, max_bytes, frame: Vec::new(), num_passed: None }
    }

    /// How long the frame is as far as is known, with its length.
    fn wanted(&self) -> Result<usize, Error> {
        let Some(length) = self.frame.first_chunk::<LENGTH_BYTES>() else { return Ok(LENGTH_BYTES) };
        let length = u64::from_be_bytes(*length);
        let too_long = || Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes"));
        if length > self.max_bytes {
            return Err(too_long());
        }
        usize::try_from(length).ok().and_then(|length| length.checked_add(LENGTH_BYTES)).ok_or_else(too_long)
    }

    /// Reads until the frame is whole and found good; `false` at the stream's end.
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        loop {
            let num_missing = self.wanted()?.saturating_sub(self.frame.len());
            if num_missing == 0 {
                let content = self.frame.get(LENGTH_BYTES..).unwrap_or_default();
                return Poll::Ready(match self.own.objection(content) {
                    Some(reason) => Err(self.own.refuse(reason)),
                    None => Ok(true),
                });
            }
            let mut chunk = [0; CHUNK_BYTES];
            let mut chunk = ReadBuf::new(chunk.get_mut(..num_missing.min(CHUNK_BYTES)).unwrap_or_default());
            ready!(Pin::new(&mut self.inner).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(match self.frame.is_empty() {
                    true => Ok(false),
                    false => Err(ErrorKind::UnexpectedEof.into()),
                });
            }
            self.frame.extend_from_slice(chunk.filled());
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Heard<R> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        if this.num_passed.is_none() && !ready!(this.poll_frame(context))? {
            return Poll::Ready(Ok(()));
        }
        let num_passed = this.num_passed.unwrap_or(0);
        let rest = this.frame.get(num_passed..).unwrap_or_default();
        let piece = rest.get(..rest.len().min(out.remaining())).unwrap_or_default();
        out.put_slice(piece);
        this.num_passed = Some(num_passed + piece.len());
        if this.num_passed == Some(this.frame.len()) {
            // A large one is not kept for as long as the link lives.
            this.frame = Vec::new();
            this.num_passed = None;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[path = "own_words/tests.rs"]
mod tests;
