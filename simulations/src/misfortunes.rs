//! What strikes the world, and how those who are left pick up the pieces.

use std::time::Duration;

use relevo_actors::device::DeviceRole;
use relevo_actors::policy::hint_keys::HintKeyer;
use relevo_actors::policy::pace::SLOW_FACTOR;
use relevo_actors::policy::routing::LOCAL_PREFILL_BELOW_TOKENS;
use relevo_actors::router::{RouterCore, RouterEvent, RouterLimits};
use relevo_gpu::model::StepModel;

use crate::checks::Broken;
use crate::coordinating::Wish;
use crate::device::{SECRET, role_index};
use crate::engine::broken;
use crate::scenario::{Misfortune, Scenario};
use crate::world::{Happening, World};

impl World {
    pub(crate) fn strike(&mut self, misfortune: Misfortune) -> Result<(), Broken> {
        let now = self.agenda.now();
        match misfortune {
            Misfortune::Engine(device) => return self.fail_engine(device),
            Misfortune::Hang(device, lasts) => {
                if let Some(engine) = self.devices[device].engine.as_mut() {
                    engine.will_hang = Some(lasts);
                }
            }
            Misfortune::Role(device, role) => self.kill_role(device, role),
            Misfortune::Leave(device, comes_back) => return self.give_up(device, comes_back),
            Misfortune::Silence(device, lasts) => self.devices[device].silent_until = now + lasts,
            Misfortune::Slow(device, lasts) => self.devices[device].slow_until = now + lasts,
            Misfortune::Router(gateway) => return self.restart_router(gateway),
            Misfortune::Coordinator => {
                if self.nodes[self.coordinator.node].is_up {
                    return self.restart_coordinator();
                }
            }
            Misfortune::Sleep(lasts) => {
                self.coordinator.sleeps_until = now + lasts;
                self.witness.coordinator_sleeps(now + lasts);
            }
            Misfortune::Kill(node, lasts) => self.kill(node, lasts),
            Misfortune::Pause(node, lasts) => self.pause(node, lasts),
            Misfortune::Cut(from, to, lasts) => self.cut_for(from, to, lasts),
            Misfortune::Part(one, other, lasts) => self.part(one, other, lasts),
            Misfortune::Isolate(node, lasts) => {
                (0..self.nodes.len()).filter(|&other| other != node).for_each(|other| self.part(node, other, lasts));
            }
            Misfortune::Flap(one, other) => return self.take_down(one, other, "it is made to flap"),
            Misfortune::Drain(node, lasts) => {
                self.wish(node, Wish::Draining(true));
                self.world_later(lasts, Happening::Wants { node, wish: Wish::Draining(false) });
            }
            Misfortune::Flip(node, role) => self.wish(node, Wish::Role(role)),
        }
        Ok(())
    }

    fn part(&mut self, one: usize, other: usize, lasts: Duration) {
        self.cut_for(one, other, lasts);
        self.cut_for(other, one, lasts);
    }

    fn pause(&mut self, node: usize, lasts: Duration) {
        let until = self.agenda.now() + lasts;
        let state = &mut self.nodes[node];
        let until = state.paused_until.max(until);
        state.paused_until = until;
        for device in state.devices.clone() {
            self.lease_book.sleeps(device, until);
        }
    }

    /// A process is gone, and with it all that it held; others find out by its silence.
    fn kill(&mut self, node: usize, lasts: Duration) {
        let now = self.agenda.now();
        if !self.nodes[node].is_up {
            return;
        }
        self.tally.kills += 1;
        self.nodes[node].die();
        for device in self.nodes[node].devices.clone() {
            if let Some(epoch) = self.devices[device].die() {
                self.lease_book.epoch_ended(device, epoch);
            }
            self.replaced.retain(|(of, _)| *of != device);
        }
        if let Some(gateway) = self.gateway_on(node) {
            let router = router(&self.scenario);
            let state = &mut self.gateways[gateway];
            (state.router, state.router_life) = (router, state.router_life + 1);
            state.undelivered.clear();
            let streams = std::mem::take(&mut state.streams);
            self.cut_off.extend(streams);
            self.witness.gateway_died(gateway, now);
        }
        self.world_later(lasts, Happening::Boots(node));
    }

    /// A process is started again: it knows its seeds, and how often it was started.
    pub(crate) fn boot(&mut self, node: usize) -> Result<(), Broken> {
        self.nodes[node].is_up = true;
        if self.nodes[node].plays_coordinator {
            self.restart_coordinator()?;
        }
        if let Some(gateway) = self.gateway_on(node) {
            self.route(gateway, RouterEvent::Reachable(self.nodes[node].reachable()))?;
        }
        for device in self.nodes[node].devices.clone() {
            let epoch = self.devices[device].epoch;
            self.begin_epoch(device, epoch);
        }
        Ok(())
    }

    /// The engine's thread ends by a fault; its supervisor hears of it in a while.
    fn fail_engine(&mut self, device: usize) -> Result<(), Broken> {
        let delay = self.delay();
        let state = &mut self.devices[device];
        let Some(mut engine) = state.engine.take() else { return Ok(()) };
        state.is_connected = false;
        let (epoch, node, stepping) = (engine.epoch, state.node, engine.core.stepping().collect());
        self.lease_book.epoch_ended(device, epoch);
        engine.model.reset().map_err(broken)?;
        state.model = Some(engine.model);
        self.later(node, delay, Happening::EngineEnded { device, epoch, stepping });
        Ok(())
    }

    /// The actor of a role dies; the supervisor hears of it in a while.
    fn kill_role(&mut self, device: usize, role: DeviceRole) {
        let delay = self.delay();
        let state = &mut self.devices[device];
        if state.has_actor[role_index(role)] {
            state.stop_role(role);
            let (node, life) = (state.node, state.lives[role_index(role)]);
            self.later(node, delay, Happening::RoleEnded { device, role, life });
        }
    }

    /// The router dies; its successor has the last map and asks the gateway for the streams. What was sent to it meanwhile may or may not
    /// have reached the successor's mailbox.
    fn restart_router(&mut self, gateway: usize) -> Result<(), Broken> {
        let node = self.gateways[gateway].node;
        if !self.nodes[node].is_up {
            return Ok(());
        }
        if self.random.chance(50) {
            self.gateways[gateway].router_life += 1;
        }
        self.gateways[gateway].router = router(&self.scenario);
        self.gateways[gateway].undelivered.clear();
        self.witness.router_died(gateway, self.agenda.now());
        self.route(gateway, RouterEvent::Reachable(self.nodes[node].reachable()))?;
        self.route(gateway, RouterEvent::Map(self.nodes[node].map.clone()))?;
        self.restore_router(gateway)
    }
}

/// A router that knows nobody.
pub(crate) fn router(scenario: &Scenario) -> RouterCore {
    let Scenario { max_waiting, disaggregate, .. } = *scenario;
    let limits = RouterLimits {
        max_waiting,
        max_running: 12,
        max_prefilling: 4,
        disaggregate,
        local_prefill_below_tokens: LOCAL_PREFILL_BELOW_TOKENS,
        slow_factor: SLOW_FACTOR,
    };
    RouterCore::new(limits, HintKeyer::new(SECRET))
}
