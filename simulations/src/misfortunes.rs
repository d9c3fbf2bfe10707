//! What strikes the world, and how those who are left pick up the pieces.

use relevo_actors::device::{DeviceCommand, DeviceRole};
use relevo_actors::gateway::Loss;
use relevo_actors::policy::hint_keys::HintKeyer;
use relevo_actors::policy::routing::LOCAL_PREFILL_BELOW_TOKENS;
use relevo_actors::router::{RouterCore, RouterEvent, RouterLimits};
use relevo_gpu::model::StepModel;

use crate::checks::Broken;
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
            Misfortune::Router => return self.restart_router(),
            Misfortune::Coordinator => self.restart_coordinator(),
            Misfortune::Sleep(lasts) => {
                self.coordinator.sleeps_until = now + lasts;
                self.witness.coordinator_sleeps(now + lasts);
            }
        }
        Ok(())
    }

    /// The engine's thread ends by a fault; its supervisor hears of it in a while.
    fn fail_engine(&mut self, device: usize) -> Result<(), Broken> {
        let delay = self.delay();
        let state = &mut self.devices[device];
        let Some(mut engine) = state.engine.take() else { return Ok(()) };
        state.is_connected = false;
        let (epoch, stepping) = (engine.epoch, engine.core.stepping().collect());
        self.lease_book.epoch_ended(device, epoch);
        engine.model.reset().map_err(broken)?;
        state.model = Some(engine.model);
        self.agenda.after(delay, Happening::EngineEnded { device, epoch, stepping });
        Ok(())
    }

    /// The actor of a role dies; the supervisor hears of it in a while.
    fn kill_role(&mut self, device: usize, role: DeviceRole) {
        let delay = self.delay();
        let state = &mut self.devices[device];
        if state.has_actor[role_index(role)] {
            state.stop_role(role);
            let life = state.lives[role_index(role)];
            self.agenda.after(delay, Happening::RoleEnded { device, role, life });
        }
    }

    /// A role's actor died: the engine lets go of what it owned, and the gateway replays it.
    pub(crate) fn role_ended(&mut self, device: usize, role: DeviceRole, life: u64) -> Result<(), Broken> {
        let state = &mut self.devices[device];
        // The device may have begun anew meanwhile, and its roles with it.
        if state.lives[role_index(role)] != life || state.has_actor[role_index(role)] || state.is_away {
            return Ok(());
        }
        let id = state.id;
        match role {
            DeviceRole::Prefill => state.routes.clear(),
            DeviceRole::Decode => state.landings.clear(),
        }
        // An engine that does not take the order has died as well, which the gateway is told in its turn.
        let _ = self.order(device, DeviceCommand::AbortAll { role });
        self.devices[device].start_role(role);
        let lost = self.select(|phase, placement| placement.needs_actor(phase, id, role));
        lost.into_iter().try_for_each(|sequence| self.lost(sequence, Loss::Elsewhere))
    }

    /// The router dies; its successor has the last map and asks the gateway for the streams. What was sent to it meanwhile may or may not
    /// have reached the successor's mailbox.
    fn restart_router(&mut self) -> Result<(), Broken> {
        if self.random.chance(50) {
            self.router_life += 1;
        }
        self.router = router(&self.scenario);
        self.undelivered.clear();
        self.witness.router_died(self.agenda.now());
        self.route(RouterEvent::Map(self.coordinator.directory.clone()))?;
        self.restore_router()
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
    };
    RouterCore::new(limits, HintKeyer::new(SECRET))
}
