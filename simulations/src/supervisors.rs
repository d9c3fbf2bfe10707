//! Each device's supervisor: heartbeats, engines that are replaced, role actors that are started again.

use std::time::Duration;

use relevo_actors::coordinator::{CoordinatorEvent, Heartbeat};
use relevo_actors::device::{DeviceCommand, DeviceRole};
use relevo_wire::{Epoch, SequenceId, Stepping};

use crate::agenda::Place;
use crate::checks::{Broken, ensure};
use crate::coordinating::Word;
use crate::device::role_index;
use crate::world::{Happening, World};

/// How often a device says that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

/// How long a busy engine may go without computing a layer: the longest layer here takes 10 ms.
pub(crate) const HANG_AFTER: Duration = Duration::from_millis(300);

/// How long what a device said of itself is repeated for it to other nodes.
const FRESH: Duration = Duration::from_millis(300);

/// How long an engine takes to begin anew.
const RESTART: Duration = Duration::from_millis(30);

impl World {
    /// Time for a device to look after its engine, and to say that it lives.
    pub(crate) fn beat(&mut self, device: usize) -> Result<(), Broken> {
        self.world_later(HEARTBEAT, Happening::Beat(device));
        if self.nodes[self.devices[device].node].is_awake(self.agenda.now()) {
            self.replace_if_stuck(device)?;
            self.say_heartbeat(device);
        }
        Ok(())
    }

    /// To the node's other peers with its next beat, to a coordinator of the same node at once.
    pub(crate) fn say_heartbeat(&mut self, device: usize) {
        let now = self.agenda.now();
        let state = &self.devices[device];
        if state.is_away || now < state.silent_until {
            return;
        }
        let node = state.node;
        let heartbeat = state.heartbeat(self.nodes[node].map_seen());
        self.devices[device].pulse = Some((now, heartbeat.clone()));
        if node == self.coordinator.node {
            self.tell_coordinator(Place::Supervisor(device), Word::Event(CoordinatorEvent::Heartbeat(heartbeat)));
        }
    }

    /// What the devices of a node have said lately.
    pub(crate) fn recent_heartbeats(&self, node: usize) -> Vec<Heartbeat> {
        let now = self.agenda.now();
        let devices = self.devices[self.nodes[node].devices.clone()].iter();
        let fresh = devices.filter_map(|device| device.pulse.as_ref().filter(|(at, _)| now.since(*at) < FRESH));
        fresh.map(|(_, heartbeat)| heartbeat.clone()).collect()
    }

    /// A busy engine that computes nothing for long is left to itself, and the device begins anew.
    fn replace_if_stuck(&mut self, device: usize) -> Result<(), Broken> {
        let now = self.agenda.now();
        let state = &mut self.devices[device];
        let engine = state.engine.as_ref().filter(|_| state.is_connected);
        let Some((progress, busy)) = engine.map(|engine| (engine.progress, engine.core.stats().busy)) else {
            return Ok(());
        };
        if !state.watch.hangs(progress, busy, now) {
            return Ok(());
        }
        let (id, node) = (state.id, state.node);
        self.tally.hangs += 1;
        self.note(|| format!("{id} finds its engine stuck, and replaces it"));
        if let Some(engine) = self.devices[device].engine.take() {
            let epoch = engine.epoch;
            if engine.hangs_since.is_none() {
                // It has just gone on, too late.
                let is_fresh = now.since(engine.hung_until) <= HEARTBEAT;
                ensure(is_fresh, || format!("{id} takes an engine for stuck that computes"))?;
                let delay = self.compute_time(device);
                self.later(node, delay, Happening::Resumes { device, epoch });
            }
            self.lease_book.epoch_ended(device, epoch);
            self.replaced.push((device, engine));
        }
        // Which sequence it hangs in is its secret: all of them are under suspicion.
        self.end_epoch(device, Stepping::AllThatRun)
    }

    /// The engine of this epoch has ended by a fault.
    pub(crate) fn engine_ended(
        &mut self,
        device: usize,
        epoch: Epoch,
        stepping: Vec<SequenceId>,
    ) -> Result<(), Broken> {
        let state = &self.devices[device];
        let is_old = state.epoch != epoch || state.is_away;
        if is_old { Ok(()) } else { self.end_epoch(device, Stepping::These(stepping)) }
    }

    /// Nobody takes sequences any more, so that it can be said which are lost; then a new epoch begins.
    fn end_epoch(&mut self, device: usize, stepping: Stepping) -> Result<(), Broken> {
        let (node, epoch) = (self.devices[device].node, self.devices[device].epoch);
        self.devices[device].stop();
        self.tally.deaths += 1;
        self.say_heartbeat(device);
        self.later(node, RESTART, Happening::Begins { device, epoch });
        self.say_device_lost(device, stepping)
    }

    /// A device is given up.
    pub(crate) fn give_up(&mut self, device: usize, comes_back: Duration) -> Result<(), Broken> {
        let node = self.devices[device].node;
        if self.devices[device].is_away || !self.nodes[node].is_up {
            return Ok(());
        }
        let state = &mut self.devices[device];
        let (id, epoch) = (state.id, state.epoch);
        if state.engine.take().is_some() {
            self.lease_book.epoch_ended(device, epoch);
        }
        state.stop();
        (state.is_away, state.pulse) = (true, None);
        self.tell_coordinator(Place::Supervisor(device), Word::Event(CoordinatorEvent::Left { device: id, epoch }));
        self.later(node, comes_back, Happening::Returns { device });
        self.say_device_lost(device, Stepping::Nothing)
    }

    /// A new epoch begins, if no other has meanwhile.
    pub(crate) fn begin_epoch(&mut self, device: usize, epoch: Epoch) {
        let now = self.agenda.now();
        let state = &mut self.devices[device];
        if state.epoch != epoch || state.is_connected || state.is_away {
            return;
        }
        state.begin_epoch(now);
        let (id, epoch) = (state.id, state.epoch);
        self.note(|| format!("{id} begins {epoch}"));
        self.say_heartbeat(device);
    }

    pub(crate) fn come_back(&mut self, device: usize) {
        self.devices[device].is_away = false;
        self.begin_epoch(device, self.devices[device].epoch);
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
        if role == DeviceRole::Prefill {
            self.lease_book.writer_died(id, self.agenda.now());
        }
        self.say_role_lost(device, role)
    }
}
