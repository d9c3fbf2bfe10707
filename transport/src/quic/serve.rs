//! The receiving end of a connection: frames are read, landed and answered one after the other.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ReadError, ReadExactError, RecvStream, SendStream, VarInt};
use relevo_wire::{FrameError, HEADER_ALIGN, KvBlocksHeader};
use rkyv::util::AlignedVec;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::prefix::{PREFIX_BYTES, Prefix};
use crate::answer;
use crate::link::PushError;
use crate::receive::{FrameArrival, FrameSink};

/// Tells a peer that it does not speak our protocol.
const NOT_OUR_PROTOCOL: VarInt = VarInt::from_u32(1);

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    /// Where the next frame begins cannot be told.
    #[error("the peer sends no frames")]
    Frame(#[from] FrameError),
    #[error("a frame did not come within {0:?}")]
    Slow(Duration),
    #[error("the stream ended in the middle of a frame")]
    Cut,
    #[error("frames cannot be read")]
    Read(#[from] ReadError),
    #[error("answers cannot be written")]
    Write(#[from] quinn::WriteError),
}

impl From<ReadExactError> for StreamError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Cut,
            ReadExactError::ReadError(error) => Self::Read(error),
        }
    }
}

/// Serves a peer until its connection ends, by its will or because it breaks the protocol.
pub(super) async fn serve(connection: Connection, sink: Arc<impl FrameSink>, patience: Duration) {
    let mut streams = JoinSet::new();
    loop {
        let ended = tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok((outgoing, incoming)) => {
                    let stream = Stream { outgoing, incoming, patience };
                    streams.spawn(stream.serve(Arc::clone(&sink)));
                    continue;
                }
                // The peer is gone; so are its streams.
                Err(_) => return,
            },
            Some(ended) = streams.join_next() => ended,
        };
        let broken = match ended {
            Ok(Ok(())) => continue,
            Ok(Err(StreamError::Read(_) | StreamError::Write(_))) => None,
            Ok(Err(error)) => Some(error.to_string()),
            // The panic was told by its hook; the peer need not know more.
            Err(_panicked) => Some("an error on this side".to_owned()),
        };
        if let Some(reason) = broken {
            tracing::warn!(peer = %connection.remote_address(), reason, "a connection is closed");
            connection.close(NOT_OUR_PROTOCOL, reason.as_bytes());
        }
    }
}

struct Stream {
    outgoing: SendStream,
    incoming: RecvStream,
    patience: Duration,
}

impl Stream {
    async fn serve(mut self, sink: Arc<impl FrameSink>) -> Result<(), StreamError> {
        let mut header = AlignedVec::<HEADER_ALIGN>::new();
        loop {
            let mut prefix = [0; PREFIX_BYTES];
            // Between frames a peer may take its time; the connection's idle timeout sees to it that it lives.
            let Some(num_read) = self.incoming.read(&mut prefix).await? else { return Ok(()) };
            let patience = self.patience;
            let frame = self.receive(&mut prefix, num_read, &mut header, sink.as_ref());
            let answer = timeout(patience, frame).await.map_err(|_| StreamError::Slow(patience))??;
            self.outgoing.write_all(&answer::to_bytes(&answer)).await?;
        }
    }

    /// Reads a frame, of whose prefix there are `num_read` bytes; what it returns is to be answered.
    async fn receive(
        &mut self,
        prefix: &mut [u8; PREFIX_BYTES],
        num_read: usize,
        header: &mut AlignedVec<HEADER_ALIGN>,
        sink: &impl FrameSink,
    ) -> Result<Result<(), PushError>, StreamError> {
        self.incoming.read_exact(&mut prefix[num_read..]).await?;
        let prefix = Prefix::from_bytes(prefix)?;
        header.resize(prefix.header_bytes, 0);
        self.incoming.read_exact(header).await?;
        let header = match KvBlocksHeader::access(header) {
            Ok(header) => header,
            Err(error) => {
                self.read_payload(prefix.payload_bytes, |_| ()).await?;
                return Ok(Err(PushError::Malformed(error)));
            }
        };
        let mut arrival = FrameArrival::begin(header, prefix.payload_bytes, sink);
        self.read_payload(prefix.payload_bytes, |piece| arrival.take(piece)).await?;
        Ok(arrival.finish())
    }

    /// Hands over the blocks' bytes as they lie in the packets that brought them.
    async fn read_payload(&mut self, byte_len: usize, mut take: impl FnMut(&[u8])) -> Result<(), StreamError> {
        let mut num_left = byte_len;
        while num_left > 0 {
            let chunk = self.incoming.read_chunk(num_left, true).await?.ok_or(StreamError::Cut)?;
            num_left = num_left.saturating_sub(chunk.bytes.len());
            take(&chunk.bytes);
        }
        Ok(())
    }
}
