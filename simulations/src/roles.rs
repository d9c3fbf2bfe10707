//! The hands of the router and of the role actors in the world.

use relevo_actors::decode::{DecodeEffect, DecodeEvent};
use relevo_actors::device::{DeviceCommand, DeviceRole};
use relevo_actors::gateway::{Loss, Placement};
use relevo_actors::prefill::{PrefillEffect, PrefillEvent};
use relevo_actors::router::{RouterEffect, RouterEvent};
use relevo_wire::{DeviceId, SequenceId};

use crate::agenda::{Link, Place};
use crate::checks::{Broken, ensure};
use crate::device::role_index;
use crate::lease_book::Use;
use crate::world::{Happening, World};

impl World {
    pub(crate) fn tell_router(&mut self, event: RouterEvent) {
        self.send_to_router(Place::Gateway, event);
    }

    pub(crate) fn send_to_router(&mut self, from: Place, event: RouterEvent) {
        let (delay, life) = (self.delay(), self.router_life);
        self.agenda.send(Link(from, Place::Router), delay, Happening::Router { life, event });
    }

    /// False if nobody is there.
    #[must_use]
    pub(crate) fn tell_prefill(&mut self, device: usize, from: Place, event: PrefillEvent) -> bool {
        let (delay, index) = (self.delay(), role_index(DeviceRole::Prefill));
        let state = &self.devices[device];
        if !state.has_actor[index] {
            return false;
        }
        let happening = Happening::Prefill { device, life: state.lives[index], event };
        self.agenda.send(Link(from, Place::Prefill(device)), delay, happening);
        true
    }

    /// False if nobody is there.
    #[must_use]
    pub(crate) fn tell_decode(&mut self, device: usize, from: Place, event: DecodeEvent) -> bool {
        let (delay, index) = (self.delay(), role_index(DeviceRole::Decode));
        let state = &self.devices[device];
        if !state.has_actor[index] {
            return false;
        }
        let happening = Happening::Decode { device, life: state.lives[index], event };
        self.agenda.send(Link(from, Place::Decode(device)), delay, happening);
        true
    }

    /// Through the role actors, and past them in case they die with it in their mailbox.
    pub(crate) fn abort_on(&mut self, device: DeviceId, sequence: SequenceId) {
        let device = device.0 as usize;
        let _ = self.order(device, DeviceCommand::Abort { sequence });
        let _ = self.tell_prefill(device, Place::Gateway, PrefillEvent::Abort(sequence));
        let _ = self.tell_decode(device, Place::Gateway, DecodeEvent::Abort(sequence));
    }

    pub(crate) fn route(&mut self, event: RouterEvent) -> Result<(), Broken> {
        let mut effects = Vec::new();
        self.witness.router_hears(&event);
        self.router.handle(event, self.agenda.now(), &mut effects);
        self.witness.compare(&self.router)?;
        self.check_routes(&effects)?;
        for effect in effects {
            match effect {
                RouterEffect::Dispatch { request, route } => {
                    let (sequence, decode) = (request.sequence, route.decode);
                    let prefill = route.prefill;
                    ensure(!self.is_placed(sequence), || format!("{sequence} is placed twice"))?;
                    if !self.placed(sequence, Placement { prefill, decode }) {
                        self.tell_router(RouterEvent::Ended(sequence));
                        continue;
                    }
                    self.note(|| format!("{sequence} goes to {prefill}, then to {decode}"));
                    let event = PrefillEvent::Admit { request: request.clone(), decode };
                    if !self.tell_prefill(prefill.0 as usize, Place::Router, event) {
                        self.undelivered(request)?;
                    }
                }
                RouterEffect::Redirect { sequence, prefill, decode } => {
                    if self.placed(sequence, Placement { prefill, decode }) {
                        let event = PrefillEvent::Redirect { sequence, decode };
                        let _ = self.tell_prefill(prefill.0 as usize, Place::Router, event);
                    }
                }
                RouterEffect::Reject { sequence, error } => self.reject(sequence, error)?,
                RouterEffect::ResyncPrefixes { device } => self.ask_for_prefixes(device),
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
                    let command = DeviceCommand::Prefill { request: request.clone(), destination };
                    if !self.order(device, command) {
                        self.prefill(device, PrefillEvent::Ended(request.sequence))?;
                        let (delay, life) = (self.delay(), self.router_life);
                        let happening = Happening::Undelivered { life, request };
                        self.agenda.send(Link(from, Place::Router), delay, happening);
                    }
                }
                PrefillEffect::UseLease { sequence, decode, lease } => {
                    self.devices[device].routes.insert(sequence, (decode, lease.clone()));
                    let _ = self.order(device, DeviceCommand::UseLease { sequence, lease });
                }
                PrefillEffect::Abort(sequence) => {
                    self.devices[device].routes.remove(&sequence);
                    let _ = self.order(device, DeviceCommand::Abort { sequence });
                }
                PrefillEffect::AskLease { decode, request } => {
                    let sequence = request.sequence;
                    let event = DecodeEvent::LeaseAsked { request, prefill: self.devices[device].id };
                    if !self.tell_decode(decode.0 as usize, from, event) {
                        self.prefill(device, PrefillEvent::LeaseRefused { sequence, decode })?;
                    }
                }
                PrefillEffect::ReturnLease { decode, lease } => {
                    let _ = self.tell_decode(decode.0 as usize, from, DecodeEvent::Returned(lease));
                }
                PrefillEffect::HandOver { decode, hand_over } => {
                    self.devices[device].routes.remove(&hand_over.sequence);
                    let _ = self.tell_decode(decode.0 as usize, from, DecodeEvent::HandedOver(hand_over));
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
        let is_tick = matches!(event, DecodeEvent::Tick);
        let mut effects = Vec::new();
        let now = self.agenda.now();
        self.devices[device].decode.handle(event, now, &mut effects);
        for effect in effects {
            match effect {
                DecodeEffect::Reserve { lease, request } => {
                    self.devices[device].last_lease = lease;
                    if !self.order(device, DeviceCommand::Reserve { lease, request }) {
                        self.decode(device, DecodeEvent::Refused(lease))?;
                    }
                }
                DecodeEffect::Grant { prefill, sequence, lease } => self.grant(device, prefill, sequence, lease)?,
                DecodeEffect::Refuse { prefill, sequence } => {
                    let event = PrefillEvent::LeaseRefused { sequence, decode: self.devices[device].id };
                    let _ = self.tell_prefill(prefill.0 as usize, from, event);
                }
                DecodeEffect::Close(lease) => {
                    let name = (device, self.devices[device].epoch, lease);
                    if is_tick {
                        self.lease_book.expired(name, now)?;
                    }
                    self.lease_book.closed(name);
                    self.close(device, lease)?;
                }
                DecodeEffect::Commit(hand_over) => {
                    let (lease, first_token) = (hand_over.lease, hand_over.first_token);
                    self.lease_book.used((device, self.devices[device].epoch, lease), Use::Commit, now)?;
                    let cached_tokens = hand_over.cached_tokens;
                    if !self.order(device, DeviceCommand::Commit { lease, first_token, cached_tokens }) {
                        self.lost(hand_over.sequence, Loss::Elsewhere)?;
                    }
                }
                DecodeEffect::Release(lease) => _ = self.order(device, DeviceCommand::Release { lease }),
                DecodeEffect::Abort(sequence) => _ = self.order(device, DeviceCommand::Abort { sequence }),
                DecodeEffect::Lost(sequence) => self.lost(sequence, Loss::Elsewhere)?,
            }
        }
        Ok(())
    }
}
