//! A link's first bytes: four that say what it speaks, the ticket, and with them the file that the sender's blocks lie in.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::ticket::{TICKET_BYTES, Ticket};

/// How every link begins; the last byte is the version of what follows.
const MAGIC: [u8; 4] = *b"RKS\x01";

/// Length of a greeting.
const GREETING_BYTES: usize = MAGIC.len() + TICKET_BYTES;

/// Why a link is not let in. The peer's fault.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetingError {
    #[error("the peer does not speak our protocol")]
    NoGreeting,
    #[error("the peer hands over no file")]
    NoFile,
    #[error("the peer has gone before it was let in")]
    Cut,
    #[error("a greeting cannot be read")]
    Io(#[from] io::Error),
}

/// Shows `ticket` and hands over `file`.
pub(super) async fn present(stream: &UnixStream, ticket: &Ticket, file: BorrowedFd<'_>) -> io::Result<()> {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[MAGIC.len()..].copy_from_slice(ticket.as_bytes());
    let num_sent = stream.async_io(Interest::WRITABLE, || send_with_file(stream, &bytes, file)).await?;
    // A new socket has room for that much; what it takes, it takes as a whole.
    if num_sent == GREETING_BYTES { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn send_with_file(stream: &UnixStream, bytes: &[u8], file: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Waits for a greeting.
pub(super) async fn receive(stream: &UnixStream) -> Result<(Ticket, OwnedFd), GreetingError> {
    let mut bytes = [0; GREETING_BYTES];
    let (mut num_read, mut file) = (0, None);
    while num_read < GREETING_BYTES {
        let received = stream.async_io(Interest::READABLE, || receive_some(stream, &mut bytes[num_read..])).await?;
        if received.num_bytes == 0 {
            return Err(GreetingError::Cut);
        }
        num_read += received.num_bytes;
        file = file.or(received.file);
    }
    let [m0, m1, m2, m3, ticket @ ..] = bytes;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(GreetingError::NoGreeting);
    }
    Ok((Ticket::from_bytes(ticket), file.ok_or(GreetingError::NoFile)?))
}

struct Received {
    num_bytes: usize,
    file: Option<OwnedFd>,
}

/// There is space for one file; what a peer sends beyond that, the system closes.
fn receive_some(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok(Received { num_bytes: message.bytes, file: files.next() })
}
