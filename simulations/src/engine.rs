//! The engine threads of the world: orders in between two steps, a layer at a time, effects on their way.

use bytes::Bytes;
use relevo_actors::decode::DecodeEvent;
use relevo_actors::device::{CoreEvent, DeviceCommand, DeviceEvent, DeviceRole, Effect, PinId, SequenceOutcome};
use relevo_actors::gateway::Loss;
use relevo_actors::prefill::PrefillEvent;
use relevo_gpu::model::{Progress, StepModel};
use relevo_wire::{Epoch, LayerIndex, LeaseId, SequenceId};

use crate::agenda::{Link, Place};
use crate::checks::Broken;
use crate::world::{Happening, World};

/// Blocks of one layer on their way.
pub(crate) struct Frame {
    pub(crate) from: usize,
    pub(crate) epoch: Epoch,
    pub(crate) to: usize,
    pub(crate) sequence: SequenceId,
    pub(crate) lease: LeaseId,
    /// Of the receiver, as granted.
    pub(crate) lease_epoch: Epoch,
    pub(crate) layer: LayerIndex,
    pub(crate) first_block: u32,
    pub(crate) blocks: Vec<Bytes>,
    pub(crate) pin: PinId,
}

impl World {
    /// An order is on its way to the engine of this epoch.
    pub(crate) fn order(&mut self, device: usize, from: Place, command: DeviceCommand) {
        let (delay, epoch) = (self.delay(), self.devices[device].epoch);
        let happening = Happening::Order { device, epoch, command };
        self.agenda.send(Link(from, Place::Engine(device)), delay, happening);
    }

    pub(crate) fn wake(&mut self, device: usize) {
        let state = &mut self.devices[device];
        if !std::mem::replace(&mut state.is_awake, true) {
            let epoch = state.epoch;
            let delay = self.compute_time();
            self.agenda.after(delay, Happening::Engine { device, epoch });
        }
    }

    /// The engine goes on: a layer, the end of a step, or the next step.
    pub(crate) fn run_engine(&mut self, device: usize) -> Result<(), Broken> {
        self.devices[device].is_awake = false;
        if self.devices[device].core.is_stepping() {
            let event = match self.devices[device].model.advance().map_err(broken)? {
                Progress::LayerDone(layer) => CoreEvent::LayerDone(layer),
                Progress::Done => CoreEvent::StepDone(self.devices[device].model.finish_step().map_err(broken)?),
            };
            self.tell_core(device, event)?;
            self.wake(device);
            return Ok(());
        }
        while let Some(command) = self.devices[device].inbox.pop_front() {
            self.tell_core(device, CoreEvent::Command(command))?;
        }
        let mut effects = Vec::new();
        let now = self.agenda.now();
        let state = &mut self.devices[device];
        let planned = state.core.plan_step(now, &mut effects);
        if planned {
            let plan = state.core.step_plan(&mut state.buffers);
            let begun = state.model.begin_step(&plan);
            state.buffers.reclaim(plan);
            begun.map_err(broken)?;
            self.num_steps += 1;
        }
        self.carry_out(device, effects)?;
        if planned {
            self.wake(device);
        }
        Ok(())
    }

    pub(crate) fn tell_core(&mut self, device: usize, event: CoreEvent) -> Result<(), Broken> {
        let mut effects = Vec::new();
        self.devices[device].core.handle(event, self.agenda.now(), &mut effects);
        self.carry_out(device, effects)
    }

    fn carry_out(&mut self, device: usize, effects: Vec<Effect>) -> Result<(), Broken> {
        let mut tokens = Vec::new();
        for effect in effects {
            match effect {
                Effect::Emit(sequence, event) => tokens.push((sequence, event)),
                Effect::Tell(event) => self.pump(device, event)?,
                Effect::Push { pin, sequence, lease, layer, first_block, blocks } => {
                    let kv = self.devices[device].model.kv_memory();
                    let blocks = blocks.iter().map(|&block| kv.read(layer, block)).collect();
                    self.push(device, (pin, sequence, lease), (layer, first_block), blocks);
                }
                Effect::Fault(reason) => return Err(Broken(reason)),
            }
        }
        if !tokens.is_empty() {
            let delay = self.delay();
            // One channel for all devices, so that a sequence's tokens arrive in the order of their cause.
            self.agenda.send(Link(Place::Gateway, Place::Gateway), delay, Happening::Tokens(tokens));
        }
        Ok(())
    }

    /// Blocks of a sequence whose route is open go to its decode device; others go nowhere.
    fn push(
        &mut self,
        from: usize,
        (pin, sequence, lease): (PinId, SequenceId, LeaseId),
        (layer, first_block): (LayerIndex, u32),
        blocks: Vec<Bytes>,
    ) {
        let (delay, epoch) = (self.delay(), self.devices[from].epoch);
        let route = self.devices[from].routes.get(&sequence).filter(|(_, granted)| granted.lease == lease);
        let Some((decode, granted)) = route else {
            drop(blocks);
            return self.agenda.after(delay, Happening::Unpin { device: from, epoch, pin });
        };
        let (to, lease_epoch) = (decode.0 as usize, granted.epoch);
        let frame = Frame { from, epoch, to, sequence, lease, lease_epoch, layer, first_block, blocks, pin };
        self.agenda.send(Link(Place::Engine(from), Place::Landing(to)), delay, Happening::Frame(Box::new(frame)));
    }

    /// An engine's news on their way to those whose they are.
    fn pump(&mut self, device: usize, event: DeviceEvent) -> Result<(), Broken> {
        let from = Place::Engine(device);
        match event {
            DeviceEvent::LeaseWanted { sequence } => {
                self.tell_prefill(device, from, PrefillEvent::LeaseWanted(sequence))
            }
            DeviceEvent::PrefillFinished { sequence, first_token, continues, cached_tokens } => {
                let event = PrefillEvent::Finished { sequence, first_token, continues, cached_tokens };
                self.tell_prefill(device, from, event);
            }
            DeviceEvent::Reserved { lease, .. } => self.tell_decode(device, from, DecodeEvent::Reserved(lease)),
            DeviceEvent::Refused { lease, .. } => self.tell_decode(device, from, DecodeEvent::Refused(lease)),
            DeviceEvent::Ended { sequence, role, outcome } => {
                if role == DeviceRole::Prefill {
                    self.tell_prefill(device, from, PrefillEvent::Ended(sequence));
                }
                if outcome == SequenceOutcome::Aborted {
                    self.lost(sequence, Loss::Elsewhere)?;
                }
            }
            DeviceEvent::LeaseGone { .. }
            | DeviceEvent::HandedOver { .. }
            | DeviceEvent::LayerReady { .. }
            | DeviceEvent::Stopped
            | DeviceEvent::Faulted { .. } => {}
        }
        Ok(())
    }
}

pub(crate) fn broken(error: impl std::fmt::Display) -> Broken {
    Broken(error.to_string())
}
