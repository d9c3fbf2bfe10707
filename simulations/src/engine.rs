//! The engine threads of the world: orders in between two steps, a layer at a time, effects on their way.

use bytes::Bytes;
use relevo_actors::decode::DecodeEvent;
use relevo_actors::device::{CoreEvent, DeviceCommand, DeviceEvent, DeviceRole, Effect, PinId, SequenceOutcome};
use relevo_actors::prefill::PrefillEvent;
use relevo_gpu::model::{Progress, StepModel};
use relevo_wire::{Epoch, LayerIndex, LeaseId, SequenceId, StreamEvent};

use crate::agenda::Place;
use crate::checks::Broken;
use crate::device::Engine;
use crate::lease_book::Cause;
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
    /// An order is on its way to the engine; false if none is there to take it. Whoever gives it, there is one channel.
    #[must_use]
    pub(crate) fn order(&mut self, device: usize, command: DeviceCommand) -> bool {
        let (is_connected, epoch) = (self.devices[device].is_connected, self.devices[device].epoch);
        if is_connected {
            let engine = Place::Engine(device);
            self.say(engine, engine, Happening::Order { device, epoch, command });
        }
        is_connected
    }

    /// The engine of this epoch, if orders and time still reach it.
    pub(crate) fn engine(&mut self, device: usize, epoch: Epoch) -> Option<&mut Engine> {
        let state = &mut self.devices[device];
        state.engine.as_mut().filter(|engine| engine.epoch == epoch)
    }

    pub(crate) fn wake(&mut self, device: usize) {
        let (delay, node) = (self.compute_time(device), self.devices[device].node);
        let Some(engine) = self.devices[device].engine.as_mut() else { return };
        if engine.hangs_since.is_none() && !std::mem::replace(&mut engine.is_awake, true) {
            let epoch = engine.epoch;
            self.later(node, delay, Happening::Engine { device, epoch });
        }
    }

    /// The engine goes on.
    pub(crate) fn run_engine(&mut self, device: usize) -> Result<(), Broken> {
        let Some(mut engine) = self.devices[device].engine.take() else { return Ok(()) };
        engine.is_awake = false;
        let outcome = self.move_on(device, &mut engine);
        self.devices[device].engine = Some(engine);
        if outcome? {
            self.wake(device);
        }
        Ok(())
    }

    /// A layer, the end of a step, or the next step; whether there is more to do.
    fn move_on(&mut self, device: usize, engine: &mut Engine) -> Result<bool, Broken> {
        if engine.core.is_stepping() {
            if let Some(lasts) = engine.will_hang.take() {
                engine.hangs_since = Some(self.agenda.now());
                let (id, node, epoch) = (self.devices[device].id, self.devices[device].node, engine.epoch);
                self.note(|| format!("the engine of {id} hangs"));
                self.later(node, lasts, Happening::Resumes { device, epoch });
                return Ok(false);
            }
            self.compute(device, engine)?;
            return Ok(true);
        }
        while let Some(command) = engine.inbox.pop_front() {
            self.sees_order(device, engine.epoch, &command);
            self.tell_core(device, engine, CoreEvent::Command(command))?;
        }
        let mut effects = Vec::new();
        let planned = engine.core.plan_step(self.agenda.now(), &mut effects);
        self.audit(device, engine)?;
        if planned {
            let plan = engine.core.step_plan(&mut engine.buffers);
            let begun = engine.model.begin_step(&plan);
            engine.buffers.reclaim(plan);
            begun.map_err(broken)?;
            self.tally.steps += 1;
        } else {
            // An idle wake-up shows that the thread lives.
            engine.progress += 1;
        }
        self.carry_out(device, engine, effects)?;
        Ok(planned)
    }

    /// A layer, or the end of the step.
    fn compute(&mut self, device: usize, engine: &mut Engine) -> Result<(), Broken> {
        let event = match engine.model.advance().map_err(broken)? {
            Progress::LayerDone(layer) => {
                engine.progress += 1;
                CoreEvent::LayerDone(layer)
            }
            Progress::Done => CoreEvent::StepDone(engine.model.finish_step().map_err(broken)?),
        };
        self.tell_core(device, engine, event)
    }

    /// An engine that has hung goes on: with its step if it was given time, else it brings out what it has and ends.
    pub(crate) fn resume(&mut self, device: usize, epoch: Epoch) -> Result<(), Broken> {
        let now = self.agenda.now();
        if let Some(engine) = self.engine(device, epoch) {
            (engine.hangs_since, engine.hung_until) = (None, now);
            self.wake(device);
            return Ok(());
        }
        let index = self.replaced.iter().position(|(of, engine)| (*of, engine.epoch) == (device, epoch));
        let Some(index) = index else { return Ok(()) };
        let (_, mut engine) = self.replaced.swap_remove(index);
        let id = self.devices[device].id;
        self.note(|| format!("the replaced engine of {id}, {epoch}, brings out its step"));
        self.tally.late_steps += 1;
        while engine.core.is_stepping() {
            self.compute(device, &mut engine)?;
        }
        // Its orders are cut off, which it takes for the end.
        self.tell_core(device, &mut engine, CoreEvent::Command(DeviceCommand::Drain { deadline: now }))
    }

    pub(crate) fn unpin(&mut self, device: usize, epoch: Epoch, pin: PinId) -> Result<(), Broken> {
        if self.engine(device, epoch).is_none() {
            return Ok(());
        }
        let Some(mut engine) = self.devices[device].engine.take() else { return Ok(()) };
        let told = self.tell_core(device, &mut engine, CoreEvent::Unpinned(pin));
        self.devices[device].engine = Some(engine);
        self.wake(device);
        told
    }

    fn tell_core(&mut self, device: usize, engine: &mut Engine, event: CoreEvent) -> Result<(), Broken> {
        let (mut effects, cause, now) = (Vec::new(), Cause::of(&event), self.agenda.now());
        engine.core.handle(event, now, &mut effects);
        self.audit(device, engine)?;
        self.lease_book.compare(device, &engine.core, cause, &effects, now)?;
        self.carry_out(device, engine, effects)
    }

    /// After each event that could change anything of it.
    fn audit(&self, device: usize, engine: &Engine) -> Result<(), Broken> {
        engine.core.audit().map_err(|error| Broken(format!("{}: {error}", self.devices[device].id)))
    }

    fn carry_out(&mut self, device: usize, engine: &Engine, effects: Vec<Effect>) -> Result<(), Broken> {
        let mut tokens = Vec::new();
        for effect in effects {
            match effect {
                Effect::Emit(sequence, event) => tokens.push((sequence, event)),
                Effect::Tell(DeviceEvent::PrefixChanged { batch }) => self.tell_prefixes(device, engine.epoch, &batch),
                Effect::Tell(event) => self.pump(device, event)?,
                Effect::Push { pin, sequence, lease, layer, first_block, blocks } => {
                    let kv = engine.model.kv_memory();
                    let blocks = blocks.iter().map(|&block| kv.read(layer, block)).collect();
                    self.push((device, engine.epoch), (pin, sequence, lease), (layer, first_block), blocks)?;
                }
                Effect::Fault(reason) => return Err(Broken(reason)),
            }
        }
        if !tokens.is_empty() {
            self.hand_out(device, tokens);
        }
        Ok(())
    }

    /// Blocks of a sequence whose route is open go to its decode device; others go nowhere.
    fn push(
        &mut self,
        (from, epoch): (usize, Epoch),
        (pin, sequence, lease): (PinId, SequenceId, LeaseId),
        (layer, first_block): (LayerIndex, u32),
        blocks: Vec<Bytes>,
    ) -> Result<(), Broken> {
        let (delay, node) = (self.delay(), self.devices[from].node);
        let route = self.devices[from].routes.get(&sequence).filter(|(_, granted)| granted.lease == lease);
        let Some((decode, granted)) = route else {
            drop(blocks);
            self.later(node, delay, Happening::Unpin { device: from, epoch, pin });
            return Ok(());
        };
        let (to, lease_epoch) = (self.index_of(*decode), granted.epoch);
        let frame = Frame { from, epoch, to, sequence, lease, lease_epoch, layer, first_block, blocks, pin };
        let (source, target) = (Place::Engine(from), Place::Landing(to));
        if self.devices[to].node == node {
            self.say(source, target, Happening::Frame(Box::new(frame)));
        } else if !self.post(source, target, Happening::Frame(Box::new(frame))) {
            self.later(node, delay, Happening::Unpin { device: from, epoch, pin });
            self.say_lost(source, sequence)?;
        }
        Ok(())
    }

    /// What came out of a step goes to those who want it: one batch for each gateway.
    fn hand_out(&mut self, device: usize, tokens: Vec<(SequenceId, StreamEvent)>) {
        let node = self.devices[device].node;
        for gateway in 0..self.gateways.len() {
            let is_its =
                |(sequence, _): &&(SequenceId, StreamEvent)| self.gateway_of(sequence.request) == Some(gateway);
            let events: Vec<_> = tokens.iter().filter(is_its).cloned().collect();
            if events.is_empty() {
                continue;
            }
            // One channel for all devices of a node, so that the tokens of a sequence that stays there arrive in the order of their cause.
            let (from, to) = (Place::Node(node), Place::Gateway(gateway));
            let happening = Happening::Tokens { gateway, from: node, events };
            if self.gateways[gateway].node == node {
                self.say(from, to, happening);
            } else {
                // A gateway that is gone has no use for them.
                let _ = self.post(from, to, happening);
            }
        }
    }

    /// An engine's news on their way to those whose they are: to the actors that are there now, whichever engine speaks.
    fn pump(&mut self, device: usize, event: DeviceEvent) -> Result<(), Broken> {
        let from = Place::Engine(device);
        // An actor that is not there has lost its sequences: its supervisor sees to them.
        let _ = match event {
            DeviceEvent::LeaseWanted { sequence } => {
                self.tell_prefill(device, from, PrefillEvent::LeaseWanted(sequence))
            }
            DeviceEvent::PrefillFinished { sequence, first_token, continues, cached_tokens } => {
                let event = PrefillEvent::Finished { sequence, first_token, continues, cached_tokens };
                self.tell_prefill(device, from, event)
            }
            DeviceEvent::Reserved { lease, .. } => self.tell_decode(device, from, DecodeEvent::Reserved(lease)),
            DeviceEvent::Refused { lease, .. } => self.tell_decode(device, from, DecodeEvent::Refused(lease)),
            DeviceEvent::Ended { sequence, role, outcome } => {
                if outcome == SequenceOutcome::Aborted {
                    self.say_lost(from, sequence)?;
                }
                role != DeviceRole::Prefill || self.tell_prefill(device, from, PrefillEvent::Ended(sequence))
            }
            DeviceEvent::LeaseGone { .. }
            | DeviceEvent::HandedOver { .. }
            | DeviceEvent::LayerReady { .. }
            | DeviceEvent::PrefixChanged { .. }
            | DeviceEvent::Stopped
            | DeviceEvent::Faulted { .. } => true,
        };
        Ok(())
    }
}

pub(crate) fn broken(error: impl std::fmt::Display) -> Broken {
    Broken(error.to_string())
}
