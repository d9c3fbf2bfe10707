//! The router's actor: carries out what [`RouterCore`] decides.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::RactorMessage;
use relevo_wire::{DeviceId, Epoch, GenerateRequest, SequenceId};

use super::core::{RouterCore, RouterEffect, RouterEvent, RouterLimits};
use crate::clock;
use crate::cluster::{Directory, Ticker};
use crate::coordinator::ClusterMap;
use crate::gateway::{Loss, Placement};
use crate::policy::prefix_news::PrefixBatch;
use crate::prefill::PrefillEvent;

/// Name in the supervision tree.
pub(crate) const NAME: &str = "router";

/// How often time alone is looked at: refusals are retried, and what could not be delivered.
const TICK: Duration = Duration::from_millis(20);

/// The router's actor.
pub(crate) struct RouterActor;

/// Its messages.
#[derive(RactorMessage)]
pub(crate) enum RouterMessage {
    /// A stream wants workers; see [`RouterEvent::Submit`].
    Submit {
        /// It.
        request: Arc<GenerateRequest>,
        /// It was admitted before.
        admitted: bool,
        /// A worker died stepping it.
        suspect: bool,
    },
    /// A stream is over, or this attempt of it.
    Ended(SequenceId),
    /// A prefill worker has seen its first token.
    Started(SequenceId),
    /// A decode worker has refused it.
    Refused(SequenceId),
    /// Nobody was there to take it.
    Undelivered(SequenceId),
    /// Other nodes can be reached than before. It looks itself, so that of two such messages the later one need not be the newer.
    PeersChanged,
    /// A device's prefix cache has changed.
    PrefixChanged {
        /// Whose.
        device: DeviceId,
        /// Of its pool.
        epoch: Epoch,
        /// How.
        batch: PrefixBatch,
    },
    /// The coordinator has published.
    Map(ClusterMap),
    /// Time went by.
    Tick,
    /// To see whether the fault switches let it live.
    Poke,
}

pub(crate) struct RouterState {
    directory: Arc<Directory>,
    core: RouterCore,
    undelivered: Vec<Arc<GenerateRequest>>,
    _ticker: Ticker,
}

impl Actor for RouterActor {
    type Msg = RouterMessage;
    type State = RouterState;
    type Arguments = Arc<Directory>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        directory: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let limits = RouterLimits {
            max_waiting: directory.limits.max_waiting,
            max_running: directory.limits.max_running,
            max_prefilling: directory.limits.max_prefilling,
            disaggregate: directory.disaggregate,
            local_prefill_below_tokens: directory.limits.local_prefill_below_tokens,
            slow_factor: directory.limits.slow_factor,
        };
        let ticker = Ticker::start(myself.clone(), TICK, || RouterMessage::Tick);
        let core = RouterCore::new(limits, directory.hint_keyer);
        let mut state = RouterState { directory, core, undelivered: Vec::new(), _ticker: ticker };
        // From here on new streams reach this mailbox; those from before are in the snapshot, some are in both.
        state.directory.router.set(myself);
        state.look_who_is_there();
        state.handle(RouterEvent::Map(state.directory.map()));
        state.restore();
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if !matches!(message, RouterMessage::Tick | RouterMessage::Map(_) | RouterMessage::PrefixChanged { .. }) {
            state.directory.on_message(NAME);
        }
        match message {
            RouterMessage::Submit { request, admitted, suspect } => {
                state.handle(RouterEvent::Submit { request, admitted, suspect });
            }
            RouterMessage::Ended(sequence) => {
                state.undelivered.retain(|request| request.sequence != sequence);
                state.handle(RouterEvent::Ended(sequence));
            }
            RouterMessage::Started(sequence) => state.handle(RouterEvent::Started(sequence)),
            RouterMessage::Refused(sequence) => state.handle(RouterEvent::Refused(sequence)),
            RouterMessage::Undelivered(sequence) => state.undelivered(sequence),
            RouterMessage::PeersChanged => state.look_who_is_there(),
            RouterMessage::PrefixChanged { device, epoch, batch } => {
                state.handle(RouterEvent::PrefixChanged { device, epoch, batch });
            }
            RouterMessage::Map(map) => state.handle(RouterEvent::Map(map)),
            RouterMessage::Tick => state.tick(),
            RouterMessage::Poke => {}
        }
        Ok(())
    }
}

impl RouterState {
    fn look_who_is_there(&mut self) {
        let mut reachable = self.directory.peers.nodes();
        reachable.insert(self.directory.node);
        self.handle(RouterEvent::Reachable(reachable));
    }

    fn handle(&mut self, event: RouterEvent) {
        let mut effects = Vec::new();
        self.core.handle(event, clock::now(), &mut effects);
        effects.into_iter().for_each(|effect| self.carry_out(effect));
    }

    fn carry_out(&mut self, effect: RouterEffect) {
        match effect {
            RouterEffect::Dispatch { request, route } => {
                let (sequence, placement) =
                    (request.sequence, Placement { prefill: route.prefill, decode: route.decode });
                if let Some(skip) = route.skipped {
                    metrics::counter!("relevo_disaggregation_skipped_total", "reason" => skip.label()).increment(1);
                }
                if !self.directory.keeper.placed(sequence, placement) {
                    self.handle(RouterEvent::Ended(sequence));
                    return;
                }
                let event = PrefillEvent::Admit { request, decode: route.decode };
                if !self.directory.to_prefill(route.prefill, event) {
                    self.undelivered(sequence);
                }
            }
            RouterEffect::Redirect { sequence, prefill, decode } => {
                if self.directory.keeper.placed(sequence, Placement { prefill, decode }) {
                    // If it is not there, its sequences are lost, and replayed.
                    let _ = self.directory.to_prefill(prefill, PrefillEvent::Redirect { sequence, decode });
                }
            }
            RouterEffect::Misplaced { sequence } => {
                self.directory.keeper.lost(&self.directory, sequence, Loss::Elsewhere);
            }
            RouterEffect::Slow { device, gap, peers } => {
                tracing::warn!(%device, ?gap, ?peers, "decodes far more slowly than its peers: its streams go elsewhere");
                metrics::counter!("relevo_slow_devices_total").increment(1);
            }
            RouterEffect::Reject { sequence, error } => {
                self.directory.keeper.reject(&self.directory, sequence, error);
            }
            RouterEffect::NodeLost { node } => self.directory.keeper.node_lost(&self.directory, node),
            RouterEffect::ResyncPrefixes { device } => {
                // If it is not there, the core will ask again.
                self.directory.tell_prefixes(device);
            }
        }
    }

    /// It is placed again at the next tick; at once, it would go the same way.
    fn undelivered(&mut self, sequence: SequenceId) {
        // One that is not in flight has been given up meanwhile.
        let Some(request) = self.core.in_flight(sequence) else { return };
        self.directory.keeper.undelivered(sequence);
        self.handle(RouterEvent::Ended(sequence));
        self.undelivered.push(request);
    }

    fn tick(&mut self) {
        for request in std::mem::take(&mut self.undelivered) {
            let suspect = self.directory.keeper.is_on_trial(request.sequence);
            self.handle(RouterEvent::Submit { request, admitted: true, suspect });
        }
        let paces = self.directory.keeper.take_paces();
        if !paces.is_empty() {
            self.handle(RouterEvent::Paced(paces));
        }
        self.handle(RouterEvent::Tick);
        self.directory.router_waiting.store(self.core.num_waiting(), std::sync::atomic::Ordering::Relaxed);
    }

    /// After a restart: who is where is in the gateway's keeping.
    fn restore(&mut self) {
        for kept in self.directory.keeper.snapshot() {
            let event = match kept.placement {
                Some(Placement { prefill, decode }) => {
                    RouterEvent::Placed { request: kept.request, prefill, decode, started: kept.started }
                }
                None => RouterEvent::Submit { request: kept.request, admitted: true, suspect: kept.suspect },
            };
            self.handle(event);
        }
    }
}
