//! The hands of the router and of the role actors in the world.

use std::time::Duration;

use relevo_actors::decode::{DecodeEffect, DecodeEvent};
use relevo_actors::device::{DeviceCommand, GrantedLease};
use relevo_actors::gateway::Loss;
use relevo_actors::policy::leases::{Arrivals, Left};
use relevo_actors::prefill::{PrefillEffect, PrefillEvent};
use relevo_actors::router::{RouterEffect, RouterEvent};
use relevo_gpu::model::StepModel;
use relevo_wire::{DeviceId, LeaseId, SequenceId};

use crate::agenda::{Link, Place};
use crate::checks::Broken;
use crate::device::{Landing, NUM_LAYERS};
use crate::engine::{Frame, broken};
use crate::world::{Happening, World};

/// Longest time that a frame's blocks take to be written once it has arrived.
const WRITING_MICROS: u64 = 300;

impl World {
    pub(crate) fn tell_router(&mut self, event: RouterEvent) {
        let delay = self.delay();
        self.agenda.send(Link(Place::Gateway, Place::Router), delay, Happening::Router(event));
    }

    pub(crate) fn tell_prefill(&mut self, device: usize, from: Place, event: PrefillEvent) {
        let (delay, life) = (self.delay(), self.devices[device].lives[0]);
        let happening = Happening::Prefill { device, life, event };
        self.agenda.send(Link(from, Place::Prefill(device)), delay, happening);
    }

    pub(crate) fn tell_decode(&mut self, device: usize, from: Place, event: DecodeEvent) {
        let (delay, life) = (self.delay(), self.devices[device].lives[1]);
        let happening = Happening::Decode { device, life, event };
        self.agenda.send(Link(from, Place::Decode(device)), delay, happening);
    }

    /// Through the role actors, and past them in case they die with it in their mailbox.
    pub(crate) fn abort_on(&mut self, device: DeviceId, sequence: SequenceId) {
        let device = device.0 as usize;
        self.order(device, Place::Gateway, DeviceCommand::Abort { sequence });
        self.tell_prefill(device, Place::Gateway, PrefillEvent::Abort(sequence));
        self.tell_decode(device, Place::Gateway, DecodeEvent::Abort(sequence));
    }

    pub(crate) fn route(&mut self, event: RouterEvent) -> Result<(), Broken> {
        let mut effects = Vec::new();
        self.router.handle(event, self.agenda.now(), &mut effects);
        for effect in effects {
            match effect {
                RouterEffect::Dispatch { request, route } => {
                    let (sequence, decode) = (request.sequence, route.decode);
                    if self.placed(sequence, (route.prefill, decode)) {
                        let event = PrefillEvent::Admit { request, decode };
                        self.tell_prefill(route.prefill.0 as usize, Place::Router, event);
                    } else {
                        self.tell_router(RouterEvent::Ended(sequence));
                    }
                }
                RouterEffect::Redirect { sequence, prefill, decode } => {
                    if self.placed(sequence, (prefill, decode)) {
                        let event = PrefillEvent::Redirect { sequence, decode };
                        self.tell_prefill(prefill.0 as usize, Place::Router, event);
                    }
                }
                RouterEffect::Reject { sequence, error } => self.reject(sequence, error)?,
            }
        }
        Ok(())
    }

    pub(crate) fn prefill(&mut self, device: usize, event: PrefillEvent) -> Result<(), Broken> {
        let from = Place::Prefill(device);
        let mut effects = Vec::new();
        self.devices[device].prefill.handle(event, self.agenda.now(), &mut effects);
        for effect in effects {
            match effect {
                PrefillEffect::Prefill { request, destination } => {
                    self.order(device, from, DeviceCommand::Prefill { request, destination });
                }
                PrefillEffect::UseLease { sequence, decode, lease } => {
                    self.devices[device].routes.insert(sequence, (decode, lease.clone()));
                    self.order(device, from, DeviceCommand::UseLease { sequence, lease });
                }
                PrefillEffect::Abort(sequence) => {
                    self.devices[device].routes.remove(&sequence);
                    self.order(device, from, DeviceCommand::Abort { sequence });
                }
                PrefillEffect::AskLease { decode, request } => {
                    let event = DecodeEvent::LeaseAsked { request, prefill: self.devices[device].id };
                    self.tell_decode(decode.0 as usize, from, event);
                }
                PrefillEffect::ReturnLease { decode, lease } => {
                    self.tell_decode(decode.0 as usize, from, DecodeEvent::Returned(lease));
                }
                PrefillEffect::HandOver { decode, hand_over } => {
                    self.devices[device].routes.remove(&hand_over.sequence);
                    self.tell_decode(decode.0 as usize, from, DecodeEvent::HandedOver(hand_over));
                }
                PrefillEffect::Refused(sequence) => self.tell_router(RouterEvent::Refused(sequence)),
                PrefillEffect::Started(sequence) => self.tell_router(RouterEvent::Started(sequence)),
                PrefillEffect::Lost(sequence) => self.lost(sequence, Loss::Elsewhere)?,
            }
        }
        Ok(())
    }

    pub(crate) fn decode(&mut self, device: usize, event: DecodeEvent) -> Result<(), Broken> {
        let from = Place::Decode(device);
        let mut effects = Vec::new();
        self.devices[device].decode.handle(event, self.agenda.now(), &mut effects);
        for effect in effects {
            match effect {
                DecodeEffect::Reserve { lease, request } => {
                    self.devices[device].last_lease = lease;
                    self.order(device, from, DeviceCommand::Reserve { lease, request });
                }
                DecodeEffect::Grant { prefill, sequence, lease } => self.grant(device, prefill, sequence, lease)?,
                DecodeEffect::Refuse { prefill, sequence } => {
                    let event = PrefillEvent::LeaseRefused { sequence, decode: self.devices[device].id };
                    self.tell_prefill(prefill.0 as usize, from, event);
                }
                DecodeEffect::Close(lease) => self.close(device, lease)?,
                DecodeEffect::Commit(hand_over) => {
                    let (lease, first_token) = (hand_over.lease, hand_over.first_token);
                    let cached_tokens = hand_over.cached_tokens;
                    self.order(device, from, DeviceCommand::Commit { lease, first_token, cached_tokens });
                }
                DecodeEffect::Release(lease) => self.order(device, from, DeviceCommand::Release { lease }),
                DecodeEffect::Abort(sequence) => self.order(device, from, DeviceCommand::Abort { sequence }),
                DecodeEffect::Lost(sequence) => self.lost(sequence, Loss::Elsewhere)?,
            }
        }
        Ok(())
    }

    /// Lets writers in, and tells the prefill side.
    fn grant(
        &mut self,
        device: usize,
        prefill: DeviceId,
        sequence: SequenceId,
        granted: GrantedLease,
    ) -> Result<(), Broken> {
        let state = &mut self.devices[device];
        let num_blocks = u32::try_from(granted.blocks.len()).map_err(broken)?;
        let arrivals = Arrivals::new(NUM_LAYERS, granted.num_present..num_blocks);
        let (lease, is_complete) = (granted.lease, arrivals.is_complete());
        let kv = state.model.kv_memory();
        let landing = Landing { sequence, granted: granted.clone(), arrivals, kv, is_closed: false };
        state.landings.insert(lease, landing);
        let decode = state.id;
        let from = Place::Decode(device);
        if is_complete {
            self.tell_decode(device, Place::Landing(device), DecodeEvent::Complete(lease));
        }
        self.tell_prefill(prefill.0 as usize, from, PrefillEvent::Granted { sequence, decode, lease: granted });
        Ok(())
    }

    fn close(&mut self, device: usize, lease: LeaseId) -> Result<(), Broken> {
        let landing = self.devices[device].landings.get_mut(&lease);
        let is_drained = landing.is_none_or(|landing| {
            landing.is_closed = true;
            landing.arrivals.close()
        });
        if is_drained {
            self.devices[device].landings.remove(&lease);
            self.decode(device, DecodeEvent::WritersGone(lease))?;
        }
        Ok(())
    }

    /// Blocks arrive: their writer is let in, or the sender is told that the lease is gone.
    pub(crate) fn land(&mut self, frame: Box<Frame>) {
        if self.random.chance(self.scenario.lost_frames) {
            return self.let_go(&frame);
        }
        let range = frame.first_block..frame.first_block + u32::try_from(frame.blocks.len()).unwrap_or(0);
        let landing = self.devices[frame.to].landings.get_mut(&frame.lease);
        let landing = landing.filter(|it| it.granted.epoch == frame.lease_epoch && it.sequence == frame.sequence);
        let entered = landing.map(|landing| landing.arrivals.enter(frame.layer.0, range));
        if matches!(entered, Some(Ok(_))) {
            let writing = Duration::from_micros(self.random.between(1, WRITING_MICROS));
            return self.agenda.after(writing, Happening::Written(frame));
        }
        let event = PrefillEvent::PushFailed { sequence: frame.sequence, lease: frame.lease };
        self.tell_prefill(frame.from, Place::Landing(frame.to), event);
        self.let_go(&frame);
    }

    /// A writer is done.
    pub(crate) fn written(&mut self, frame: &Frame) -> Result<(), Broken> {
        let now = self.agenda.now();
        self.let_go(frame);
        let device = frame.to;
        let landing = self.devices[device].landings.get_mut(&frame.lease);
        let Some(landing) = landing.filter(|landing| landing.granted.epoch == frame.lease_epoch) else { return Ok(()) };
        let first = frame.first_block as usize;
        for (&target, bytes) in landing.granted.blocks[first..].iter().zip(&frame.blocks) {
            landing.kv.write(frame.layer, target, bytes).map_err(broken)?;
        }
        let range = frame.first_block..frame.first_block + u32::try_from(frame.blocks.len()).unwrap_or(0);
        let event = match landing.arrivals.leave(frame.layer.0, range, true, now) {
            Left::Quietly => DecodeEvent::Arrived { lease: frame.lease, at: now },
            Left::Complete => DecodeEvent::Complete(frame.lease),
            Left::Drained => {
                self.devices[device].landings.remove(&frame.lease);
                DecodeEvent::WritersGone(frame.lease)
            }
        };
        self.tell_decode(device, Place::Landing(device), event);
        Ok(())
    }

    /// The sender's bytes are gone.
    fn let_go(&mut self, frame: &Frame) {
        let delay = self.delay();
        let happening = Happening::Unpin { device: frame.from, epoch: frame.epoch, pin: frame.pin };
        self.agenda.after(delay, happening);
    }
}
