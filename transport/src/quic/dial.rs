//! The sending end: dials, writes frames, and hands each answer to the one who waits for it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::control::PathFacts;
use super::prefix::Prefix;
use crate::answer::{self, ANSWER_BYTES};
use crate::frame::Frame;
use crate::link::{Delivery, PathSlot, PendingAnswer, PushError};

/// Whom to dial.
pub(super) struct Dialled {
    pub(super) endpoint: Endpoint,
    pub(super) config: quinn::ClientConfig,
    pub(super) address: SocketAddr,
    pub(super) name: String,
    pub(super) path: PathSlot,
}

/// Why a link ends before its senders do.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("cannot dial")]
    Dial(#[from] quinn::ConnectError),
    #[error("the connection is lost")]
    Lost(#[from] quinn::ConnectionError),
    #[error("frames cannot be written")]
    Write(#[from] quinn::WriteError),
    #[error("answers cannot be read")]
    Read(#[from] quinn::ReadExactError),
    #[error("the peer's answer is none")]
    NoAnswer,
    #[error("no answer for {0:?}")]
    Silent(Duration),
}

/// Carries frames until every sender is gone, or the connection is. Frames that it still holds then are answered [`PushError::Closed`] by their
/// end.
pub(super) async fn carry(dialled: Dialled, frames: mpsc::Receiver<Delivery>, patience: Duration) {
    let peer = dialled.address;
    if let Err(error) = carry_until_lost(dialled, frames, patience).await {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%peer, %error, source, "a link is closed");
    }
}

async fn carry_until_lost(
    dialled: Dialled,
    frames: mpsc::Receiver<Delivery>,
    patience: Duration,
) -> Result<(), LinkError> {
    let Dialled { endpoint, config, address, name, path } = dialled;
    let connection = endpoint.connect_with(config, address, &name)?.await?;
    let measured = connection.clone();
    path.open(move || PathFacts::of(&measured));
    let closes = CloseOnDrop(connection.clone(), path);
    let (outgoing, incoming) = connection.open_bi().await?;
    // As many as the link holds, so that it never fills.
    let (waiting, answers_due) = mpsc::channel(frames.max_capacity());
    let exchange = async {
        tokio::try_join!(write_frames(outgoing, frames, waiting), read_answers(incoming, answers_due, patience))
    };
    let ended = tokio::select! {
        ended = exchange => ended.map(|_| ()),
        lost = connection.closed() => Err(lost.into()),
    };
    drop(closes);
    ended
}

/// However a link ends, also by its owner, the peer is told, and nobody keeps its connection.
struct CloseOnDrop(Connection, PathSlot);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(VarInt::from_u32(0), b"the link ends");
        self.1.close();
    }
}

async fn write_frames(
    mut stream: SendStream,
    mut frames: mpsc::Receiver<Delivery>,
    waiting: mpsc::Sender<PendingAnswer>,
) -> Result<(), LinkError> {
    while let Some(delivery) = frames.recv().await {
        let (frame, pending) = delivery.into_parts();
        if pending.is_unwanted() {
            continue;
        }
        let prefix = Prefix { header_bytes: frame.header().len(), payload_bytes: frame.payload_bytes() };
        let prefix = match prefix.to_bytes() {
            Ok(prefix) => prefix,
            Err(error) => {
                pending.send(Err(PushError::Malformed(error)));
                continue;
            }
        };
        if waiting.send(pending).await.is_err() {
            return Ok(());
        }
        stream.write_all_chunks(&mut chunks(&prefix, frame)).await?;
    }
    Ok(())
}

/// A frame as quinn takes it. Only the prefix is copied: quinn keeps the header and the pool's blocks until the peer has them.
fn chunks(prefix: &[u8], frame: Frame) -> Vec<Bytes> {
    let (header, blocks) = frame.into_parts();
    let mut chunks = vec![Bytes::copy_from_slice(prefix), Bytes::from_owner(header)];
    chunks.extend(blocks);
    chunks
}

async fn read_answers(
    mut stream: RecvStream,
    mut due: mpsc::Receiver<PendingAnswer>,
    patience: Duration,
) -> Result<(), LinkError> {
    while let Some(pending) = due.recv().await {
        let mut bytes = [0; ANSWER_BYTES];
        timeout(patience, stream.read_exact(&mut bytes)).await.map_err(|_| LinkError::Silent(patience))??;
        pending.send(answer::from_bytes(&bytes).ok_or(LinkError::NoAnswer)?);
    }
    Ok(())
}
