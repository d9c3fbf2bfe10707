//! A link's sending end, whatever carries the frames; and the carrier within a process: the receiver gets the sender's own buffers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use relevo_wire::FrameError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::frame::Frame;
use crate::quic::PathFacts;

/// The sending end of a link; cheap to clone.
#[derive(Clone, Debug)]
pub struct FrameSender {
    carrier: &'static str,
    frames: mpsc::Sender<Delivery>,
    /// A frame takes its place from when it is accepted until it is answered.
    room: Arc<Semaphore>,
    /// Bytes of blocks that have arrived.
    delivered: Arc<AtomicU64>,
    path: PathSlot,
}

/// Where a carrier with a connection leaves the way to what that one measures.
#[derive(Clone, Default)]
pub(crate) struct PathSlot(Arc<Mutex<Path>>);

#[derive(Default)]
enum Path {
    /// No carrier has a connection, or none yet.
    #[default]
    None,
    /// It has.
    Open(Box<dyn Fn() -> PathFacts + Send>),
    /// It had. A connection that is kept would pin what it had not sent.
    Was(PathFacts),
}

impl PathSlot {
    /// There is a connection.
    pub(crate) fn open(&self, path: impl Fn() -> PathFacts + Send + 'static) {
        *self.path() = Path::Open(Box::new(path));
    }

    /// It ends, and is let go of.
    pub(crate) fn close(&self) {
        let mut path = self.path();
        if let Path::Open(open) = &*path {
            let last = open();
            *path = Path::Was(last);
        }
    }

    fn facts(&self) -> Option<PathFacts> {
        match &*self.path() {
            Path::None => None,
            Path::Open(path) => Some(path()),
            Path::Was(facts) => Some(*facts),
        }
    }

    fn path(&self) -> MutexGuard<'_, Path> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for PathSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PathSlot")
    }
}

/// The receiving end of a link within a process.
#[derive(Debug)]
pub struct FrameReceiver {
    frames: mpsc::Receiver<Delivery>,
}

/// A frame that a link has accepted, to be answered.
#[derive(Debug)]
pub struct Delivery {
    frame: Frame,
    answer: PendingAnswer,
}

/// Who waits for a frame's answer, and its place on the link.
#[derive(Debug)]
pub(crate) struct PendingAnswer {
    sender: oneshot::Sender<Result<(), PushError>>,
    _place: OwnedSemaphorePermit,
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
    let (sender, frames) = link("in-process", capacity);
    (sender, FrameReceiver { frames })
}

/// The sending end of a link that holds at most `capacity` frames, and where a carrier finds what it is to carry.
pub(crate) fn link(carrier: &'static str, capacity: usize) -> (FrameSender, mpsc::Receiver<Delivery>) {
    let (frames, accepted) = mpsc::channel(capacity);
    let room = Arc::new(Semaphore::new(capacity));
    (FrameSender { carrier, frames, room, delivered: Arc::default(), path: PathSlot::default() }, accepted)
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
        let num_bytes = frame.payload_bytes() as u64;
        let exchange = async {
            let place = Arc::clone(&self.room).acquire_owned().await.map_err(|_never| PushError::Closed)?;
            let (sender, answered) = oneshot::channel();
            let delivery = Delivery { frame, answer: PendingAnswer { sender, _place: place } };
            self.frames.send(delivery).await.map_err(|_closed| PushError::Closed)?;
            answered.await.unwrap_or(Err(PushError::Closed))
        };
        let answer = timeout(deadline, exchange).await.unwrap_or(Err(PushError::Deadline(deadline)));
        if answer.is_ok() {
            self.delivered.fetch_add(num_bytes, Ordering::Relaxed);
        }
        answer
    }

    /// Where its carrier leaves what it measures.
    pub(crate) fn path_slot(&self) -> PathSlot {
        self.path.clone()
    }

    /// Bytes of blocks that have arrived over this link.
    pub fn delivered_bytes(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// What its connection has measured, if it has or had one.
    pub fn path(&self) -> Option<PathFacts> {
        self.path.facts()
    }

    /// Frames that it holds now, from when they were accepted until they are answered, and at most.
    pub fn depth(&self) -> (usize, usize) {
        let capacity = self.frames.max_capacity();
        (capacity - self.room.available_permits(), capacity)
    }

    /// Whether the other end is gone, for good: another link is needed.
    pub fn is_closed(&self) -> bool {
        self.frames.is_closed()
    }
}

impl FrameReceiver {
    /// The next frame; `None` when every sender is gone.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.frames.recv().await
    }
}

impl Delivery {
    /// What was accepted.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Lets go of the sender's bytes, then answers.
    pub fn answer(self, answer: Result<(), PushError>) {
        let Self { frame, answer: pending } = self;
        drop(frame);
        pending.send(answer);
    }

    /// Takes it apart, for a carrier that sends the frame on its way and gets the answer later.
    pub(crate) fn into_parts(self) -> (Frame, PendingAnswer) {
        (self.frame, self.answer)
    }
}

impl PendingAnswer {
    /// Whether the sender has given up waiting.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.sender.is_closed()
    }

    /// Answers.
    pub(crate) fn send(self, answer: Result<(), PushError>) {
        // A sender that has given up waiting does not want to know.
        let _ = self.sender.send(answer);
    }
}
