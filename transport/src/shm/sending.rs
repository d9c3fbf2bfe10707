//! The sending end: dials, shows its ticket, tells where the blocks of each frame lie, and hands each answer to the one who waits for it.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use relevo_wire::SharedRegion;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::geteuid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::listener::ShmAddress;
use super::ticket::Ticket;
use super::{frame_head, greeting};
use crate::answer::{self, ANSWER_BYTES};
use crate::link::{Delivery, FrameSender, PendingAnswer, PushError, link};
use crate::quic::Patience;

/// How often an idle link looks whether its memory is still there: as long as the peer has it mapped, the system keeps the pages of a pool that was
/// replaced.
const MEMORY_CHECK: Duration = Duration::from_secs(1);

/// Why a link ends before its senders do.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the ticket cannot be shown")]
    Greet(#[source] io::Error),
    #[error("frames cannot be written")]
    Write(#[source] io::Error),
    #[error("answers cannot be read")]
    Read(#[source] io::Error),
    #[error("the peer is gone")]
    Gone,
    #[error("the memory that it carries from is gone")]
    MemoryGone,
    #[error("the peer's answer is none")]
    NoAnswer,
    #[error("no answer for {0:?}")]
    Silent(Duration),
}

/// Why there is no link by shared memory.
#[derive(Debug, thiserror::Error)]
pub enum ShmDialError {
    /// The peer is on another host or in another network namespace, is gone, or has too many who dial it.
    #[error("its socket cannot be dialled from here")]
    Unreachable(#[source] io::Error),
    /// The listener is another user's.
    #[error("it is another user's process")]
    Stranger,
}

/// Dials the listener at `address`, which must expect `ticket`, without waiting: a link for blocks that lie in `region`; others it carries too, by their
/// bytes. It holds at most `capacity` frames. The future carries its frames and ends when every sender is gone, or the peer is, or the region's
/// memory: to be spawned by the link's owner. Must be called in a tokio runtime.
///
/// # Errors
/// See [`ShmDialError`].
pub fn shm_link(
    address: &ShmAddress,
    ticket: Ticket,
    region: SharedRegion,
    capacity: usize,
    patience: Patience,
) -> Result<(FrameSender, impl Future<Output = ()> + Send + 'static + use<>), ShmDialError> {
    let stream = dial(address).map_err(ShmDialError::Unreachable)?;
    // Names are anybody's to take: without a listener of ours, one of another user's could be there.
    if stream.peer_cred().map_err(ShmDialError::Unreachable)?.uid() != geteuid().as_raw() {
        return Err(ShmDialError::Stranger);
    }
    let (sender, frames) = link("shm", capacity);
    Ok((sender, carry(Dialled { stream, address: address.clone(), ticket, region }, frames, patience.answer)))
}

/// Whether somebody listens is known at once, without a round trip.
fn dial(address: &ShmAddress) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(address.name())?)?;
    UnixStream::from_std(socket.into())
}

/// Whom this is a link to, and with what.
struct Dialled {
    stream: UnixStream,
    address: ShmAddress,
    ticket: Ticket,
    region: SharedRegion,
}

/// A frame on its way: its bytes are read where they lie until it is answered.
struct Sent {
    blocks: Vec<Bytes>,
    pending: PendingAnswer,
}

/// Frames that it still holds at its end are answered [`PushError::Closed`] by it.
async fn carry(dialled: Dialled, frames: mpsc::Receiver<Delivery>, patience: Duration) {
    let peer = dialled.address.clone();
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
    let Dialled { stream, ticket, region, .. } = dialled;
    let greeted = timeout(patience, greeting::present(&stream, &ticket, region.file())).await;
    greeted.map_err(|_| LinkError::Silent(patience))?.map_err(LinkError::Greet)?;
    let (incoming, outgoing) = stream.into_split();
    // As many as the link holds, so that it never fills.
    let (sent, answers_due) = mpsc::channel(frames.max_capacity());
    let writing = write_frames(outgoing, frames, &region, sent);
    tokio::try_join!(writing, read_answers(incoming, answers_due, patience)).map(|_| ())
}

async fn write_frames(
    mut stream: OwnedWriteHalf,
    mut frames: mpsc::Receiver<Delivery>,
    region: &SharedRegion,
    sent: mpsc::Sender<Sent>,
) -> Result<(), LinkError> {
    let mut head = Vec::new();
    let mut checks = interval(MEMORY_CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let delivery = tokio::select! {
            biased;
            delivery = frames.recv() => delivery,
            _ = checks.tick() => {
                if !region.is_alive() {
                    return Err(LinkError::MemoryGone);
                }
                continue;
            }
        };
        let Some(delivery) = delivery else { return Ok(()) };
        let (frame, pending) = delivery.into_parts();
        if pending.is_unwanted() {
            continue;
        }
        if !region.is_alive() {
            return Err(LinkError::MemoryGone);
        }
        let inline = match frame_head::write(&frame, region, &mut head) {
            Ok(inline) => inline,
            Err(error) => {
                pending.send(Err(PushError::Malformed(error)));
                continue;
            }
        };
        let (_, blocks) = frame.into_parts();
        let following: Vec<Bytes> = inline.iter().filter_map(|index| blocks.get(*index).cloned()).collect();
        if sent.send(Sent { blocks, pending }).await.is_err() {
            return Ok(());
        }
        stream.write_all(&head).await.map_err(LinkError::Write)?;
        for block in following {
            stream.write_all(&block).await.map_err(LinkError::Write)?;
        }
    }
}

async fn read_answers(
    mut stream: OwnedReadHalf,
    mut due: mpsc::Receiver<Sent>,
    patience: Duration,
) -> Result<(), LinkError> {
    loop {
        let mut bytes = [0; ANSWER_BYTES];
        let sent = tokio::select! {
            biased;
            sent = due.recv() => sent,
            // Nothing is due: a frame is in `due` before its first byte is written.
            early = stream.read(&mut bytes) => return Err(match early {
                Ok(0) => LinkError::Gone,
                Ok(_) => LinkError::NoAnswer,
                Err(error) => LinkError::Read(error),
            }),
        };
        let Some(Sent { blocks, pending }) = sent else { return Ok(()) };
        let read = timeout(patience, stream.read_exact(&mut bytes)).await;
        read.map_err(|_| LinkError::Silent(patience))?.map_err(LinkError::Read)?;
        let answer = answer::from_bytes(&bytes).ok_or(LinkError::NoAnswer)?;
        drop(blocks);
        pending.send(answer);
    }
}
