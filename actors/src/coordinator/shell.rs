//! The coordinator's actor: carries out what [`CoordinatorCore`] decides.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use relevo_wire::{DeviceId, Epoch};

use super::core::{CoordinatorCore, CoordinatorEffect, CoordinatorEvent, CoordinatorLimits, Heartbeat};
use crate::clock;
use crate::cluster::{Directory, Ticker};
use crate::router::RouterMessage;

/// Name in the supervision tree.
pub(crate) const NAME: &str = "coordinator";

/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(100);

/// Silence after which a device is suspected: five heartbeats.
const SILENCE: Duration = Duration::from_millis(500);

/// The coordinator's actor.
pub(crate) struct CoordinatorActor;

/// Its messages.
#[derive(Debug)]
pub(crate) enum CoordinatorMessage {
    /// A device lives.
    Heartbeat(Heartbeat),
    /// A device is given up, after this epoch.
    Left { device: DeviceId, epoch: Epoch },
    /// Time went by.
    Tick,
    /// To see whether the fault switches let it live.
    Poke,
}

pub(crate) struct CoordinatorState {
    directory: Arc<Directory>,
    core: CoordinatorCore,
    _ticker: Ticker,
}

impl Actor for CoordinatorActor {
    type Msg = CoordinatorMessage;
    type State = CoordinatorState;
    type Arguments = Arc<Directory>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        directory: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let ticker = Ticker::start(myself.clone(), TICK, || CoordinatorMessage::Tick);
        let limits = CoordinatorLimits { silence: SILENCE, no_progress: directory.limits.hang_after, tick: TICK };
        let core = CoordinatorCore::new(limits, directory.map_seen(), clock::now());
        directory.coordinator.set(myself);
        Ok(CoordinatorState { directory, core, _ticker: ticker })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if matches!(message, CoordinatorMessage::Poke) {
            state.directory.on_message(NAME);
        }
        match message {
            CoordinatorMessage::Heartbeat(heartbeat) => state.handle(CoordinatorEvent::Heartbeat(heartbeat)),
            CoordinatorMessage::Left { device, epoch } => state.handle(CoordinatorEvent::Left { device, epoch }),
            CoordinatorMessage::Tick => {
                state.handle(CoordinatorEvent::Tick);
                // The router may have been restarted since: it drops a map that it has.
                let _ = state.directory.router.cast(RouterMessage::Map(state.core.map().clone()));
            }
            CoordinatorMessage::Poke => {}
        }
        Ok(())
    }
}

impl CoordinatorState {
    fn handle(&mut self, event: CoordinatorEvent) {
        let mut effects = Vec::new();
        self.core.handle(event, clock::now(), &mut effects);
        for effect in effects {
            match effect {
                CoordinatorEffect::Publish(map) => {
                    tracing::debug!(term = map.term, version = %map.version, "publishes the cluster map");
                    // The router first: whoever sees the map in the directory and then submits comes after it in the router's mailbox.
                    let _ = self.directory.router.cast(RouterMessage::Map(map.clone()));
                    self.directory.publish(map);
                }
                CoordinatorEffect::Suspect(device) => {
                    tracing::warn!(%device, "is suspected");
                    metrics::counter!("relevo_suspicions_total").increment(1);
                }
            }
        }
    }
}
