//! A link's two ends, and the carrier within a process: the receiver gets the sender's own buffers.

use std::time::Duration;

use relevo_wire::FrameError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::frame::Frame;

/// The sending end of a link; cheap to clone.
#[derive(Clone, Debug)]
pub struct FrameSender {
    carrier: &'static str,
    frames: mpsc::Sender<Delivery>,
}

/// The receiving end of a link.
#[derive(Debug)]
pub struct FrameReceiver {
    carrier: &'static str,
    frames: mpsc::Receiver<Delivery>,
}

/// A frame that has arrived, to be answered.
#[derive(Debug)]
pub struct Delivery {
    frame: Frame,
    answer: oneshot::Sender<Result<(), PushError>>,
}

/// Why a frame was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The lease is over: no error, the sequence is gone or has gone elsewhere.
    #[error("the lease is gone")]
    LeaseGone,
    /// The bytes were damaged on their way: send them again.
    #[error("block {index} of the frame was damaged on its way")]
    Corrupt {
        /// Index within the frame.
        index: usize,
    },
    /// The receiver cannot make sense of the frame: our bug, or a hostile peer.
    #[error("the receiver refused the frame: {0}")]
    Malformed(#[source] FrameError),
    /// The frame does not fit what was leased: our bug, or a hostile peer.
    #[error("the frame does not fit its lease")]
    Mismatch,
    /// The other end is gone.
    #[error("the link is closed")]
    Closed,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
}

/// A link within a process that holds at most `capacity` frames.
pub fn in_process(capacity: usize) -> (FrameSender, FrameReceiver) {
    const CARRIER: &str = "in-process";
    let (sender, receiver) = mpsc::channel(capacity);
    (FrameSender { carrier: CARRIER, frames: sender }, FrameReceiver { carrier: CARRIER, frames: receiver })
}

impl FrameSender {
    /// The carrier's name, a label in the metrics.
    pub fn carrier(&self) -> &'static str {
        self.carrier
    }

    /// Sends a frame and waits for the answer, both within `deadline`.
    ///
    /// # Errors
    /// The receiver's answer, or that there was none.
    pub async fn push(&self, frame: Frame, deadline: Duration) -> Result<(), PushError> {
        let exchange = async {
            let (answer, answered) = oneshot::channel();
            self.frames.send(Delivery { frame, answer }).await.map_err(|_closed| PushError::Closed)?;
            answered.await.unwrap_or(Err(PushError::Closed))
        };
        timeout(deadline, exchange).await.unwrap_or(Err(PushError::Deadline(deadline)))
    }

    /// Frames that it holds now, and at most.
    pub fn depth(&self) -> (usize, usize) {
        (self.frames.max_capacity() - self.frames.capacity(), self.frames.max_capacity())
    }
}

impl FrameReceiver {
    /// The carrier's name, a label in the metrics.
    pub fn carrier(&self) -> &'static str {
        self.carrier
    }

    /// The next frame; `None` when every sender is gone.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.frames.recv().await
    }
}

impl Delivery {
    /// What has arrived.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Lets go of the sender's bytes, then answers.
    pub fn answer(self, answer: Result<(), PushError>) {
        let Self { frame, answer: sender } = self;
        drop(frame);
        // A sender that has given up waiting does not want to know.
        let _ = sender.send(answer);
    }
}
