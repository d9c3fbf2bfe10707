//! A peer's facade as others use it: bounded, in order, acknowledged.
//!
//! `ractor_cluster` has no bound for what waits to be sent, checks no size before it sends, and loses what was under way when a peer dies. So each
//! message is measured, waits for one of a limited number of credits, and is a call whose answer gives the credit back; one that does not come
//! ends the link.

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorRef, RpcReplyPort};
use relevo_wire::{ControlMessage, ControlReply, MAX_CONTROL_BYTES, ToPrefill, TokenId};
use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::facade::FacadeMessage;

/// Messages to a peer that may await their answer at a time.
const CREDITS: usize = 1024;

/// Messages to a peer that may wait for a credit: a burst of aborts when a worker dies.
const QUEUE_CAPACITY: usize = 4096;

/// How long an answer may take. The facade answers from memory; a peer that is silent for a quarter of it counts as lost anyway.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Length of a link's secret.
pub(super) const SECRET_BYTES: usize = 32;

/// The way to a peer's facade.
#[derive(Debug)]
pub(crate) struct RemoteRef {
    queue: mpsc::Sender<Outgoing>,
    secret: [u8; SECRET_BYTES],
    failed: mpsc::Sender<String>,
}

/// A message that was accepted, with the link's secret before it.
#[derive(Debug)]
struct Outgoing {
    sealed: Vec<u8>,
    patience: Duration,
    reply: Option<oneshot::Sender<ControlReply>>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    /// The peer cannot be reached.
    #[error("there is no link to it")]
    NoLink,
    /// It took too long; whether it has done as asked is not known.
    #[error("it did not answer in time")]
    Silent,
}

impl RemoteRef {
    /// A way to `facade`, and the task that carries messages there until the reference is gone. What ends the link is told to `failed`.
    pub(super) fn new(
        facade: ActorRef<FacadeMessage>,
        secret: [u8; SECRET_BYTES],
        failed: mpsc::Sender<String>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, outgoing) = mpsc::channel(QUEUE_CAPACITY);
        (Self { queue, secret, failed: failed.clone() }, deliver(outgoing, facade, failed))
    }

    /// Sends; `false` if it cannot be, in which case the link ends.
    #[must_use]
    pub(crate) fn send(&self, message: &ControlMessage) -> bool {
        self.enqueue(message, ANSWER_PATIENCE, None)
    }

    /// Sends, and waits for the answer.
    pub(crate) async fn ask(&self, message: &ControlMessage, patience: Duration) -> Result<ControlReply, AskError> {
        let (reply, answered) = oneshot::channel();
        if !self.enqueue(message, patience, Some(reply)) {
            return Err(AskError::NoLink);
        }
        answered.await.map_err(|_| AskError::Silent)
    }

    /// Messages that wait for a credit, and may.
    pub(crate) fn depth(&self) -> (usize, usize) {
        let capacity = self.queue.max_capacity();
        (capacity - self.queue.capacity(), capacity)
    }

    fn enqueue(
        &self,
        message: &ControlMessage,
        patience: Duration,
        reply: Option<oneshot::Sender<ControlReply>>,
    ) -> bool {
        let Some(sealed) = self.seal(message) else { return false };
        match self.queue.try_send(Outgoing { sealed, patience, reply }) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.fail("it takes messages more slowly than there are");
                false
            }
            // The link is ending.
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    fn seal(&self, message: &ControlMessage) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(SECRET_BYTES + about_bytes(message));
        bytes.extend_from_slice(&self.secret);
        let sealed = rkyv::api::high::to_bytes_in::<_, RkyvError>(message, bytes);
        match sealed {
            Ok(sealed) if sealed.len() <= MAX_CONTROL_BYTES => Some(sealed),
            Ok(sealed) => {
                tracing::error!(bytes = sealed.len(), limit = MAX_CONTROL_BYTES, "a message is too long to be sent");
                None
            }
            Err(error) => {
                tracing::error!(%error, "a message cannot be archived");
                None
            }
        }
    }

    fn fail(&self, reason: &str) {
        // A full channel holds an earlier reason.
        let _ = self.failed.try_send(reason.to_owned());
    }
}

/// A long prompt is most of a message, and a buffer that grows to its length copies it again and again.
fn about_bytes(message: &ControlMessage) -> usize {
    const REST: usize = 1 << 10;
    match message {
        ControlMessage::Prefill(_, ToPrefill::Admit(request, _)) => REST + size_of::<TokenId>() * request.num_tokens(),
        _ => REST,
    }
}

/// Sends in order; answers may come in any.
async fn deliver(
    mut outgoing: mpsc::Receiver<Outgoing>,
    facade: ActorRef<FacadeMessage>,
    failed: mpsc::Sender<String>,
) {
    let credits = Arc::new(Semaphore::new(CREDITS));
    let mut waiting = JoinSet::new();
    while let Some(Outgoing { sealed, patience, reply }) = outgoing.recv().await {
        while waiting.try_join_next().is_some() {}
        let Ok(credit) = Arc::clone(&credits).acquire_owned().await else { return };
        let (sender, answer) = oneshot::channel();
        let port = RpcReplyPort::from((sender, patience));
        if facade.send_message(FacadeMessage::Deliver(sealed, port)).is_err() {
            let _ = failed.try_send("its session has ended".to_owned());
            return;
        }
        let failed = failed.clone();
        waiting.spawn(async move {
            let _credit = credit;
            match timeout(patience, answer).await {
                Ok(Ok(answer)) => answered(&answer, reply, &failed),
                _ if reply.is_some() => {}
                _ => drop(failed.try_send(format!("it did not answer within {patience:?}"))),
            }
        });
    }
}

fn answered(answer: &[u8], reply: Option<oneshot::Sender<ControlReply>>, failed: &mpsc::Sender<String>) {
    let mut aligned = AlignedVec::<16>::with_capacity(answer.len());
    aligned.extend_from_slice(answer);
    match (rkyv::from_bytes::<ControlReply, RkyvError>(&aligned), reply) {
        (Ok(ControlReply::Forbidden), _) => drop(failed.try_send("it forbids what this node says".to_owned())),
        // Whoever asked may have given up waiting.
        (Ok(answer), Some(reply)) => drop(reply.send(answer)),
        (Ok(_), None) => {}
        (Err(error), _) => drop(failed.try_send(format!("its answer is none: {error}"))),
    }
}
