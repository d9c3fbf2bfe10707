//! The end of a worker that is told to stop: it takes nothing new, finishes what it has, and says that it leaves.

use std::time::Duration;

use relevo_wire::{ControlMessage, DeviceId, Epoch, Role};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::directory::Directory;
use crate::clock;
use crate::coordinator::CoordinatorMessage;
use crate::device::EngineStats;

/// How often it is seen whether the devices have something left.
const POLL: Duration = Duration::from_millis(20);

/// How long they must have had nothing: a heartbeat says that they drain, a map says so to the gateways, and what was on its way then has come.
const QUIET: Duration = Duration::from_millis(300);

/// How long the coordinator may take to hear that the devices leave.
const LAST_WORDS: Duration = Duration::from_millis(500);

impl Directory {
    /// Lets the devices finish, at most for `patience`, and leave the cluster.
    pub(super) async fn retire(&self, patience: Duration) {
        if self.devices.is_empty() {
            return;
        }
        self.set_draining(true);
        if timeout(patience, self.quiet()).await.is_err() {
            tracing::warn!(?patience, "not all sequences have ended in time: they go on elsewhere");
        }
        let leave = async {
            for port in self.devices.values() {
                self.leave(port.id, port.epoch()).await;
            }
        };
        // Who does not hear it finds out by the end of the link.
        let _ = timeout(LAST_WORDS, leave).await;
    }

    /// A device leaves; the coordinator has heard so when this returns, unless it is slow to.
    async fn leave(&self, device: DeviceId, epoch: Epoch) {
        let _ = self.coordinator.cast(CoordinatorMessage::Left { device, epoch });
        for coordinator in self.peers.playing(Role::Coordinator) {
            // An answer that does not come is no reason to stay.
            let _ = coordinator.remote.ask(&ControlMessage::Left(device, epoch), LAST_WORDS).await;
        }
    }

    async fn quiet(&self) {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut quiet_since = clock::now();
        while clock::now().since(quiet_since) < QUIET {
            ticks.tick().await;
            if !self.devices.values().all(|port| has_nothing(&port.stats())) {
                quiet_since = clock::now();
            }
        }
    }
}

fn has_nothing(stats: &EngineStats) -> bool {
    let EngineStats { running, waiting, leases, kv_blocks, .. } = stats;
    let blocks = kv_blocks.active + kv_blocks.leased;
    *running == 0 && *waiting == 0 && *leases == 0 && blocks == 0
}
