//! Keeps the root running: what stands above the supervision tree.

use std::sync::Arc;
use std::time::Duration;

use ractor::concurrency::JoinHandle;
use ractor::{Actor, ActorRef, SpawnErr};
use tokio::sync::watch;

use super::root::{self, RootActor, RootArguments, RootMessage};
use super::slot::Slot;
use crate::clock;
use crate::device::bury;
use crate::policy::restarts::RestartHistory;

/// How long the tree may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The owner of the root.
pub(super) struct Runner {
    arguments: RootArguments,
    slot: Arc<Slot<RootMessage>>,
    history: RestartHistory,
    failed: watch::Sender<bool>,
    root: ActorRef<RootMessage>,
    ended: JoinHandle<()>,
}

impl Runner {
    /// Starts the tree.
    pub(super) async fn start(
        arguments: RootArguments,
        slot: Arc<Slot<RootMessage>>,
        failed: watch::Sender<bool>,
    ) -> Result<Self, SpawnErr> {
        let (root, ended) = Actor::spawn(None, RootActor, arguments.clone()).await?;
        slot.set(root.clone());
        let history = RestartHistory::new(arguments.directory.limits.restarts);
        Ok(Self { arguments, slot, history, failed, root, ended })
    }

    /// Restarts the tree whenever it falls, until it is told to stop or it falls too often.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                _ = &mut self.ended => {}
            }
            if !self.restart().await {
                self.give_up().await;
                break;
            }
        }
        self.stop().await;
    }

    async fn restart(&mut self) -> bool {
        self.arguments.directory.tree.stopped(root::NAME);
        tracing::error!(actor = root::NAME, "died, is restarted with all below it");
        if !self.history.allows(clock::now()) {
            return false;
        }
        match Actor::spawn(None, RootActor, self.arguments.clone()).await {
            Ok((root, ended)) => {
                self.slot.set(root.clone());
                (self.root, self.ended) = (root, ended);
                true
            }
            Err(error) => {
                tracing::error!(%error, "the root cannot be started again");
                false
            }
        }
    }

    /// Nobody is left to serve.
    async fn give_up(&self) {
        let directory = &self.arguments.directory;
        directory.keeper.close();
        directory.keeper.drain(directory, Duration::ZERO).await;
        // Fails if nobody wants to know.
        let _ = self.failed.send(true);
    }

    async fn stop(self) {
        // An error says that it has ended, or takes too long: then it is left behind.
        let _ = self.root.stop_and_wait(None, Some(STOP_PATIENCE)).await;
        for port in self.arguments.directory.devices.values() {
            if let Some(remains) = port.disconnect() {
                drop(bury(remains).await);
            }
        }
        self.arguments.directory.links.close().await;
    }
}
