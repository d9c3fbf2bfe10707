//! Where the present incarnation of an actor is found.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use ractor::{ActorRef, Message};

/// How long a killed actor may take to be gone: it ends at its next await.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// The address of an actor that may be restarted.
pub(crate) struct Slot<M>(RwLock<Option<ActorRef<M>>>);

impl<M> Default for Slot<M> {
    fn default() -> Self {
        Self(RwLock::new(None))
    }
}

impl<M: Message> Slot<M> {
    /// A new incarnation is there.
    pub(crate) fn set(&self, actor: ActorRef<M>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(actor);
    }

    /// The present incarnation.
    pub(crate) fn find(&self) -> Option<ActorRef<M>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the present incarnation, if there is one, and waits until it takes no message any more.
    pub(crate) async fn kill(&self) {
        if let Some(actor) = self.find() {
            // An error says that it has ended already.
            let _ = actor.kill_and_wait(Some(KILL_PATIENCE)).await;
        }
    }

    /// Sends; `false` if nobody is there. Whoever died with the message in its mailbox is reported lost by its supervisor.
    ///
    /// Mailboxes have no bound of their own. What enters one is bounded by what it stands for: each live stream (the gateway admits a
    /// bounded number) causes a handful of messages in each actor that it passes, and timers and heartbeats one at a time.
    #[must_use]
    pub(crate) fn cast(&self, message: M) -> bool {
        self.find().is_some_and(|actor| actor.cast(message).is_ok())
    }
}
