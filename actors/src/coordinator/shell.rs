//! The coordinator's actor: carries out what [`CoordinatorCore`] decides.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::RactorMessage;
use relevo_wire::{Beat, ControlMessage, DeviceId, Epoch, NodeEntry, NodeId, Order};
use tokio::sync::oneshot;

use super::core::{CoordinatorCore, CoordinatorEffect, CoordinatorEvent, CoordinatorLimits, NodeOrder};
use crate::clock;
use crate::cluster::{Directory, Ticker};
use crate::peers::MeshMessage;
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
#[derive(Debug, RactorMessage)]
pub(crate) enum CoordinatorMessage {
    /// A device of this process lives.
    Heartbeat(relevo_wire::Heartbeat),
    /// Another node and its devices live.
    Beat { node: NodeId, beat: Beat },
    /// A node has joined.
    Node(NodeEntry),
    /// An operator wants something, and to know whether it is done.
    Order { order: Order, reply: oneshot::Sender<Result<(), String>> },
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
        let mut state = CoordinatorState { directory, core, _ticker: ticker };
        let nodes = state.directory.known_nodes();
        nodes.into_iter().for_each(|entry| state.handle(CoordinatorEvent::Node(entry)));
        Ok(state)
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
            CoordinatorMessage::Beat { node, beat } => state.beat(node, beat),
            CoordinatorMessage::Node(entry) => state.handle(CoordinatorEvent::Node(entry)),
            CoordinatorMessage::Order { order, reply } => state.order(order, reply),
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
    /// A node whose map is an old one gets the present one, again if it was lost.
    fn beat(&mut self, node: NodeId, beat: Beat) {
        self.handle(CoordinatorEvent::MapSeen(beat.map));
        for heartbeat in beat.devices {
            self.handle(CoordinatorEvent::Heartbeat(heartbeat));
        }
        let map = self.core.map();
        if beat.map < (map.term, map.version) {
            // If its link is gone, the next one brings a beat.
            let _ = self.directory.peers.send(node, &ControlMessage::Map(map.clone()));
        }
    }

    fn order(&mut self, order: Order, reply: oneshot::Sender<Result<(), String>>) {
        let mut effects = Vec::new();
        self.core.handle(CoordinatorEvent::Order(order), clock::now(), &mut effects);
        let mut answer = Ok(());
        for effect in effects {
            match effect {
                CoordinatorEffect::Refuse(error) => answer = Err(error.to_string()),
                CoordinatorEffect::Tell(node, order) if !self.tell(node, &order) => {
                    answer = Err("the node cannot be reached now: try again".to_owned());
                }
                effect => self.carry_out(effect),
            }
        }
        // Whoever asked may have given up waiting.
        let _ = reply.send(answer);
    }

    /// Hands a node its part of an order; `false` if it cannot be reached.
    fn tell(&self, node: NodeId, order: &NodeOrder) -> bool {
        let is_here = node == self.directory.node;
        match order {
            NodeOrder::SetDraining(draining) if is_here => self.directory.set_draining(*draining),
            NodeOrder::SetRoles(roles) if is_here => self.directory.set_roles(roles),
            NodeOrder::SetDraining(draining) => {
                return self.directory.peers.send(node, &ControlMessage::SetDraining(*draining));
            }
            NodeOrder::SetRoles(roles) => {
                return self.directory.peers.send(node, &ControlMessage::SetRoles(roles.clone()));
            }
        }
        true
    }

    fn handle(&mut self, event: CoordinatorEvent) {
        let mut effects = Vec::new();
        self.core.handle(event, clock::now(), &mut effects);
        effects.into_iter().for_each(|effect| self.carry_out(effect));
    }

    fn carry_out(&self, effect: CoordinatorEffect) {
        match effect {
            CoordinatorEffect::Publish(map) => {
                tracing::debug!(term = map.term, version = %map.version, "publishes the cluster map");
                // The router first: whoever sees the map in the directory and then submits comes after it in the router's mailbox.
                let _ = self.directory.router.cast(RouterMessage::Map(map.clone()));
                let _ = self.directory.mesh.cast(MeshMessage::Learn(map.nodes.clone()));
                for peer in self.directory.peers.all() {
                    // One that does not get it says so with its next beat.
                    let _ = peer.remote.send(&ControlMessage::Map(map.clone()));
                }
                self.directory.publish(map);
            }
            CoordinatorEffect::Suspect(device) => {
                tracing::warn!(%device, "is suspected");
                metrics::counter!("relevo_suspicions_total").increment(1);
            }
            // Of orders, see there.
            CoordinatorEffect::Tell(..) | CoordinatorEffect::Refuse(_) => {}
        }
    }
}
