//! The coordinator's hands: what devices and nodes say reaches it, its maps reach the nodes, an operator's orders are carried out.

use std::time::Duration;

use relevo_actors::coordinator::{
    ClusterMap, CoordinatorCore, CoordinatorEffect, CoordinatorEvent, CoordinatorLimits, NodeOrder,
};
use relevo_wire::{Beat, DeviceRole, Instant64, MapVersion, Order};

use crate::agenda::Place;
use crate::checks::Broken;
use crate::post::Errand;
use crate::scenario::node_name;
use crate::supervisors::HANG_AFTER;
use crate::world::{Happening, World};

/// Silence after which a device is suspected.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);

/// How often the coordinator looks for silence.
pub(crate) const COORDINATOR_TICK: Duration = Duration::from_millis(100);

/// How long an operator waits before looking whether it is done as ordered.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// The coordinator's actor.
pub(crate) struct Coordinator {
    pub(crate) node: usize,
    pub(crate) core: CoordinatorCore,
    /// How often it was started.
    pub(crate) life: u64,
    pub(crate) sleeps_until: Instant64,
}

/// What is said to it.
#[derive(Debug)]
pub(crate) enum Word {
    Event(CoordinatorEvent),
    /// A node and its devices live.
    Beat {
        node: usize,
        beat: Box<Beat>,
    },
}

/// What an operator wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Draining(bool),
    Role(DeviceRole),
}

impl Coordinator {
    pub(crate) fn new(node: usize) -> Self {
        Self { node, core: core((0, MapVersion(0)), Instant64(0)), life: 0, sleeps_until: Instant64(0) }
    }
}

fn core(seen: (u64, MapVersion), now: Instant64) -> CoordinatorCore {
    let limits = CoordinatorLimits { silence: SILENCE, no_progress: HANG_AFTER, tick: COORDINATOR_TICK };
    CoordinatorCore::new(limits, seen, now)
}

impl World {
    /// Says something to it, from its own node or from another.
    pub(crate) fn tell_coordinator(&mut self, from: Place, word: Word) {
        let (node, life) = (self.coordinator.node, self.coordinator.life);
        if self.node_of(from) == node {
            self.say(from, Place::Coordinator, Happening::Coordinator { life, word });
        } else {
            // One that cannot be reached will learn of it by the next heartbeat.
            let _ = self.run_errand(from, Place::Coordinator, Errand::Coordinator(word));
        }
    }

    /// The coordinator handles something, or will when it wakes up.
    pub(crate) fn coordinate(&mut self, life: u64, word: Word) -> Result<(), Broken> {
        if self.agenda.now() < self.coordinator.sleeps_until {
            let (node, delay) = (self.coordinator.node, self.coordinator.sleeps_until.since(self.agenda.now()));
            self.later(node, delay, Happening::Coordinator { life, word });
            return Ok(());
        }
        if life != self.coordinator.life {
            return Ok(());
        }
        match word {
            Word::Event(event) => {
                let is_tick = matches!(event, CoordinatorEvent::Tick);
                self.coordinator_handles(event)?;
                if is_tick {
                    // The router may have been restarted since: it drops a map that it has.
                    let map = self.coordinator.core.map().clone();
                    self.tell_router_of_map(self.coordinator.node, map);
                }
            }
            Word::Beat { node, beat } => {
                let Beat { map: seen, devices } = *beat;
                self.coordinator_handles(CoordinatorEvent::MapSeen(seen))?;
                for heartbeat in devices {
                    self.coordinator_handles(CoordinatorEvent::Heartbeat(heartbeat))?;
                }
                let map = self.coordinator.core.map();
                if seen < (map.term, map.version) {
                    let errand = Errand::Map(map.clone());
                    let _ = self.run_errand(Place::Coordinator, Place::Node(node), errand);
                }
            }
        }
        Ok(())
    }

    fn coordinator_handles(&mut self, event: CoordinatorEvent) -> Result<(), Broken> {
        let now = self.agenda.now();
        self.witness.coordinator_hears(&event, now);
        let mut effects = Vec::new();
        self.coordinator.core.handle(event, now, &mut effects);
        for effect in effects {
            match effect {
                CoordinatorEffect::Publish(map) => self.publish(&map)?,
                CoordinatorEffect::Suspect(device) => {
                    self.tally.suspicions += 1;
                    self.note(|| format!("{device} is suspected"));
                }
                CoordinatorEffect::Tell(node, order) => {
                    let node = node.0 as usize - 1;
                    if node == self.coordinator.node {
                        self.obey(node, &order);
                    } else {
                        // The operator looks whether it was done.
                        let _ = self.run_errand(Place::Coordinator, Place::Node(node), Errand::Obey(order));
                    }
                }
                CoordinatorEffect::Refuse(error) => self.note(|| format!("an order is refused: {error}")),
            }
        }
        Ok(())
    }

    fn publish(&mut self, map: &ClusterMap) -> Result<(), Broken> {
        self.witness.published(map)?;
        self.tally.maps += 1;
        self.note(|| format!("the coordinator publishes {}", crate::account::map(map)));
        let own = self.coordinator.node;
        self.tell_router_of_map(own, map.clone());
        self.learn(own, map);
        for peer in self.nodes[own].linked() {
            // One that does not get it says so with its next beat.
            let _ = self.run_errand(Place::Coordinator, Place::Node(peer), Errand::Map(map.clone()));
        }
        if (map.term, map.version) > self.nodes[own].map_seen() {
            self.nodes[own].map = map.clone();
        }
        Ok(())
    }

    pub(crate) fn tick_coordinator(&mut self) {
        self.world_later(COORDINATOR_TICK, Happening::CoordinatorTick);
        let (node, life) = (self.coordinator.node, self.coordinator.life);
        if self.nodes[node].is_awake(self.agenda.now()) {
            let word = Word::Event(CoordinatorEvent::Tick);
            self.later(node, Duration::ZERO, Happening::Coordinator { life, word });
        }
    }

    /// It dies, and its successor knows the last map that its node has seen, and who has a link to that.
    pub(crate) fn restart_coordinator(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        let node = self.coordinator.node;
        self.coordinator.core = core(self.nodes[node].map_seen(), now);
        self.coordinator.life += 1;
        self.coordinator.sleeps_until = Instant64(0);
        self.witness.coordinator_died(now);
        let peers = self.nodes[node].linked();
        for known in peers.into_iter().chain([node]) {
            let entry = self.nodes[known].entry();
            self.coordinator_handles(CoordinatorEvent::Node(entry))?;
        }
        Ok(())
    }

    /// An operator wants something, and asks again until it is so; no longer than until it is wanted otherwise.
    pub(crate) fn wish(&mut self, node: usize, wish: Wish) {
        self.wishes.insert(node, wish);
        self.order_of_operator(node, wish);
    }

    /// An operator looks whether it is so, and asks again if not.
    pub(crate) fn look_again(&mut self, node: usize, wish: Wish) {
        let mut devices = self.devices[self.nodes[node].devices.clone()].iter();
        let is_so = devices.all(|device| match wish {
            Wish::Draining(draining) => device.is_draining == draining,
            Wish::Role(role) => device.roles == [role],
        });
        if is_so || self.wishes.get(&node) != Some(&wish) {
            return;
        }
        self.order_of_operator(node, wish);
    }

    fn order_of_operator(&mut self, node: usize, wish: Wish) {
        let name = node_name(node);
        let order = match wish {
            Wish::Draining(true) => Order::Drain(name),
            Wish::Draining(false) => Order::Undrain(name),
            Wish::Role(role) => Order::SetRole(name, role),
        };
        self.tally.orders += 1;
        let (coordinator, life) = (self.coordinator.node, self.coordinator.life);
        let word = Word::Event(CoordinatorEvent::Order(order));
        self.later(coordinator, Duration::ZERO, Happening::Coordinator { life, word });
        self.world_later(LOOK_AGAIN, Happening::LooksAgain { node, wish });
    }

    /// A node does its part of an order.
    pub(crate) fn obey(&mut self, node: usize, order: &NodeOrder) {
        self.note(|| format!("node-{node} is told: {order:?}"));
        for device in self.nodes[node].devices.clone() {
            let state = &mut self.devices[device];
            match order {
                NodeOrder::SetDraining(draining) => state.is_draining = *draining,
                NodeOrder::SetRoles(roles) => {
                    let able: Vec<_> = roles.iter().copied().filter(|role| state.spec.able.contains(role)).collect();
                    if !able.is_empty() {
                        state.roles = able;
                    }
                }
            }
            self.say_heartbeat(device);
        }
    }
}
