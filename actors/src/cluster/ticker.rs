//! Tells an actor that time went by, for as long as the actor lives.

use std::time::Duration;

use ractor::{ActorRef, Message};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// A task that sends its owner a message at regular intervals, first at once. Dropped, it ends.
pub(crate) struct Ticker {
    _task: JoinSet<()>,
}

impl Ticker {
    /// Sends `tick` to `actor` every `period`. Ticks that come late are not made up for.
    pub(crate) fn start<M: Message>(actor: ActorRef<M>, period: Duration, tick: fn() -> M) -> Self {
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if actor.cast(tick()).is_err() {
                    return;
                }
            }
        });
        Self { _task: task }
    }
}
