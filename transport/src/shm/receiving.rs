//! The receiving end of a connection: frames are read, landed and answered one after the other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use relevo_wire::{FrameError, HEADER_ALIGN, KvBlocksHeader};
use rkyv::util::AlignedVec;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::task::coop::consume_budget;
use tokio::time::timeout;

use super::frame_head::{self, LENGTHS_BYTES, Lengths, PLACE_BYTES, Place};
use super::peer_memory::PeerMemory;
use crate::answer;
use crate::link::PushError;
use crate::receive::{FrameArrival, FrameSink, FrameWriter};

/// Copied at a time: as a block of a large model's layer, and an eighth of a core's second cache, where it stays from its copy to its
/// checksum and from there to its write.
const PIECE_BYTES: usize = 64 << 10;

/// Read from the socket at a time: a frame's head, of a layer of a chunk of 512 rows.
const HEAD_BYTES: usize = 4 << 10;

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    /// Where the next frame begins cannot be told.
    #[error("the peer sends no frames")]
    Frame(#[from] FrameError),
    #[error("a block of {byte_len} bytes at {offset} of the peer's memory, which has {memory_bytes}")]
    Outside { offset: usize, byte_len: usize, memory_bytes: usize },
    #[error("a frame did not come within {0:?}")]
    Slow(Duration),
    #[error("an answer was not taken within {0:?}")]
    Deaf(Duration),
    #[error("the stream ended in the middle of a frame")]
    Cut,
    #[error("the connection is lost")]
    Io(#[source] io::Error),
}

impl From<io::Error> for ReceiveError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Cut,
            _ => Self::Io(error),
        }
    }
}

/// Serves a peer until its connection ends, by its will or because it breaks the protocol.
pub(super) async fn serve(
    stream: UnixStream,
    memory: PeerMemory,
    peer: &str,
    sink: Arc<impl FrameSink>,
    patience: Duration,
) {
    match serve_frames(stream, memory, sink, patience).await {
        Ok(()) => {}
        Err(ReceiveError::Io(error)) => tracing::debug!(peer, %error, "a connection is lost"),
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(peer, %error, source, "a connection is closed");
        }
    }
}

async fn serve_frames(
    stream: UnixStream,
    memory: PeerMemory,
    sink: Arc<impl FrameSink>,
    patience: Duration,
) -> Result<(), ReceiveError> {
    let (incoming, mut outgoing) = stream.into_split();
    let incoming = BufReader::with_capacity(HEAD_BYTES, incoming);
    let mut frames =
        Frames { incoming, memory, piece: vec![0; PIECE_BYTES], head: AlignedVec::new(), places: Vec::new() };
    // Between frames a peer may take its time; the system tells when it is gone.
    while !frames.incoming.fill_buf().await?.is_empty() {
        let frame = frames.receive(sink.as_ref());
        let answer = timeout(patience, frame).await.map_err(|_| ReceiveError::Slow(patience))??;
        let answered = timeout(patience, outgoing.write_all(&answer::to_bytes(&answer))).await;
        answered.map_err(|_| ReceiveError::Deaf(patience))??;
    }
    Ok(())
}

/// What a connection's frames are read with.
struct Frames {
    incoming: BufReader<OwnedReadHalf>,
    memory: PeerMemory,
    piece: Vec<u8>,
    head: AlignedVec<HEADER_ALIGN>,
    places: Vec<Place>,
}

impl Frames {
    /// Reads a frame; what it returns is to be answered.
    async fn receive(&mut self, sink: &impl FrameSink) -> Result<Result<(), PushError>, ReceiveError> {
        let payload_bytes = self.read_head().await?;
        let Self { incoming, memory, piece, head, places } = self;
        let mut source = Source { incoming, memory, piece };
        let header = match KvBlocksHeader::access(head) {
            Ok(header) => header,
            Err(error) => {
                for place in places.iter().filter(|place| place.offset.is_none()) {
                    source.read_inline(place.byte_len, |_| ()).await?;
                }
                return Ok(Err(PushError::Malformed(error)));
            }
        };
        let mut arrival = FrameArrival::begin(header, payload_bytes, sink);
        for place in places.iter() {
            match place.offset {
                Some(offset) => source.copy_shared(offset, place.byte_len, &mut arrival).await?,
                None => source.read_inline(place.byte_len, |piece| arrival.take(piece)).await?,
            }
        }
        Ok(arrival.finish())
    }

    /// Reads what comes before the blocks that follow by their bytes, and returns the bytes of all blocks.
    async fn read_head(&mut self) -> Result<usize, ReceiveError> {
        let mut lengths = [0; LENGTHS_BYTES];
        self.incoming.read_exact(&mut lengths).await?;
        let Lengths { header_bytes, num_blocks } = Lengths::from_bytes(lengths)?;
        self.head.resize(header_bytes, 0);
        self.incoming.read_exact(&mut self.head).await?;
        self.places.clear();
        for _ in 0..num_blocks {
            let mut place = [0; PLACE_BYTES];
            self.incoming.read_exact(&mut place).await?;
            let place = Place::from_bytes(&place);
            self.check(place)?;
            self.places.push(place);
        }
        Ok(frame_head::payload_bytes(&self.places)?)
    }

    fn check(&self, place: Place) -> Result<(), ReceiveError> {
        let (Some(offset), byte_len, memory_bytes) = (place.offset, place.byte_len, self.memory.byte_len()) else {
            return Ok(());
        };
        match offset.checked_add(byte_len) {
            Some(end) if end <= memory_bytes => Ok(()),
            _ => Err(ReceiveError::Outside { offset, byte_len, memory_bytes }),
        }
    }
}

/// Where blocks come from.
struct Source<'a> {
    incoming: &'a mut BufReader<OwnedReadHalf>,
    memory: &'a PeerMemory,
    piece: &'a mut [u8],
}

impl Source<'_> {
    /// Takes a block from the peer's memory. Once there is an answer, what is still there is not looked at.
    async fn copy_shared(
        &mut self,
        offset: usize,
        byte_len: usize,
        arrival: &mut FrameArrival<'_, impl FrameWriter>,
    ) -> Result<(), ReceiveError> {
        let mut num_copied = 0;
        while num_copied < byte_len && !arrival.is_decided() {
            // This never waits for anything, and others want to run.
            consume_budget().await;
            let num_bytes = PIECE_BYTES.min(byte_len - num_copied);
            let (piece, from) = (&mut self.piece[..num_bytes], offset + num_copied);
            if !self.memory.copy_to(from, piece) {
                let memory_bytes = self.memory.byte_len();
                return Err(ReceiveError::Outside { offset, byte_len, memory_bytes });
            }
            arrival.take(piece);
            num_copied += num_bytes;
        }
        Ok(())
    }

    /// Takes a block from the socket.
    async fn read_inline(&mut self, byte_len: usize, mut take: impl FnMut(&[u8])) -> Result<(), ReceiveError> {
        let mut num_left = byte_len;
        while num_left > 0 {
            let room = PIECE_BYTES.min(num_left);
            let num_read = self.incoming.read(&mut self.piece[..room]).await?;
            if num_read == 0 {
                return Err(ReceiveError::Cut);
            }
            take(&self.piece[..num_read]);
            num_left -= num_read;
        }
        Ok(())
    }
}
