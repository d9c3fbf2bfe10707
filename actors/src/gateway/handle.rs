//! How the HTTP side hands a sequence to the actors and reads its stream.

use std::task::{Context, Poll};
use std::time::Duration;

use relevo_wire::{GenerateRequest, RequestError, StreamEvent};
use tokio::sync::mpsc;
use tracing::Span;

/// Events that a stream may lag behind before its reader counts as too slow and is cut.
pub(super) const STREAM_CAPACITY: usize = 1024;

/// What to tell a caller whose submission found the queue full.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The way in: cheap to clone, one for each HTTP connection or bench task.
#[derive(Clone, Debug)]
pub struct Gateway {
    submissions: mpsc::Sender<Submission>,
}

/// A sequence on its way to the router.
#[derive(Debug)]
pub struct Submission {
    /// What to generate; `attempt` is 0 and `generated` empty.
    pub request: GenerateRequest,
    /// Where its events go; closed when the reader has gone (abort). A full channel means a reader too slow: it is cut.
    pub events: mpsc::Sender<StreamEvent>,
    /// The span that it was submitted in.
    pub span: Span,
}

/// The events of one sequence. Dropping it aborts the sequence.
#[derive(Debug)]
pub struct SequenceStream {
    events: mpsc::Receiver<StreamEvent>,
}

/// A gateway and the end that serves it.
pub fn gateway_channel(capacity: usize) -> (Gateway, mpsc::Receiver<Submission>) {
    let (submissions, receiver) = mpsc::channel(capacity);
    (Gateway { submissions }, receiver)
}

impl Gateway {
    /// Hands over a sequence. Whether it is admitted shows in its first event: `Failed`, or any other.
    ///
    /// # Errors
    /// Transient: [`RequestError::QueueFull`] or [`RequestError::ShuttingDown`].
    pub fn submit(&self, request: GenerateRequest) -> Result<SequenceStream, RequestError> {
        let (events, receiver) = mpsc::channel(STREAM_CAPACITY);
        let submission = Submission { request, events, span: Span::current() };
        self.submissions.try_send(submission).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => RequestError::QueueFull {
                num_waiting: self.submissions.max_capacity(),
                limit: self.submissions.max_capacity(),
                retry_after: RETRY_AFTER,
            },
            mpsc::error::TrySendError::Closed(_) => RequestError::ShuttingDown,
        })?;
        Ok(SequenceStream { events: receiver })
    }
}

impl Gateway {
    /// The same way in, but it does not keep it open.
    pub(crate) fn downgrade(&self) -> mpsc::WeakSender<Submission> {
        self.submissions.downgrade()
    }
}

impl SequenceStream {
    /// The next event; `None` after the last one, or if the stream was cut.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        self.events.recv().await
    }

    /// As [`SequenceStream::next`], for one who waits for many streams at once.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        self.events.poll_recv(context)
    }
}
