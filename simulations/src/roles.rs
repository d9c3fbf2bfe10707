//! The hands of the router and of the role actors in the world.

use relevo_actors::decode::{DecodeEffect, DecodeEvent};
use relevo_actors::device::DeviceCommand;
use relevo_actors::gateway::{Loss, Placement};
use relevo_actors::prefill::{PrefillEffect, PrefillEvent};
use relevo_actors::router::{RouterEffect, RouterEvent};
use relevo_wire::ToGateway;

use crate::agenda::Place;
use crate::checks::{Broken, ensure};
use crate::lease_book::Use;
use crate::world::World;

impl World {
    pub(crate) fn route(&mut self, gateway: usize, event: RouterEvent) -> Result<(), Broken> {
        let from = Place::Router(gateway);
        let mut effects = Vec::new();
        let now = self.agenda.now();
        self.witness.router_hears(gateway, &event);
        self.gateways[gateway].router.handle(event, now, &mut effects);
        self.witness.compare(gateway, &self.gateways[gateway].router)?;
        self.check_routes(gateway, &effects)?;
        for effect in effects {
            match effect {
                RouterEffect::Dispatch { request, route } => {
                    let (sequence, decode) = (request.sequence, route.decode);
                    let prefill = route.prefill;
                    ensure(!self.is_placed(gateway, sequence), || format!("{sequence} is placed twice"))?;
                    if !self.placed(gateway, sequence, Placement { prefill, decode }) {
                        self.tell_router(gateway, RouterEvent::Ended(sequence));
                        continue;
                    }
                    self.note(|| format!("{sequence} goes to {prefill}, then to {decode}"));
                    let prefill = self.index_of(prefill);
                    if !self.tell_prefill(prefill, from, PrefillEvent::Admit { request, decode }) {
                        self.undelivered(gateway, sequence)?;
                    }
                }
                RouterEffect::Redirect { sequence, prefill, decode } => {
                    if self.placed(gateway, sequence, Placement { prefill, decode }) {
                        let prefill = self.index_of(prefill);
                        let _ = self.tell_prefill(prefill, from, PrefillEvent::Redirect { sequence, decode });
                    }
                }
                RouterEffect::Misplaced { sequence } => self.lost(gateway, sequence, Loss::Elsewhere)?,
                RouterEffect::Slow { device, gap, peers } => {
                    self.tally.found_slow += 1;
                    self.note(|| format!("{device} is slow: {gap:?} where its peers take {peers:?}"));
                }
                RouterEffect::Reject { sequence, error } => self.reject(gateway, sequence, error)?,
                RouterEffect::NodeLost { node } => self.node_lost(gateway, node)?,
                RouterEffect::ResyncPrefixes { device } => self.ask_for_prefixes(gateway, device),
            }
        }
        Ok(())
    }

    pub(crate) fn prefill(&mut self, device: usize, event: PrefillEvent) -> Result<(), Broken> {
        let from = Place::Prefill(device);
        self.sees_prefill(&event);
        let mut effects = Vec::new();
        self.devices[device].prefill.handle(event, self.agenda.now(), &mut effects);
        for effect in effects {
            match effect {
                PrefillEffect::Prefill { request, destination } => {
                    let sequence = request.sequence;
                    if !self.order(device, DeviceCommand::Prefill { request, destination }) {
                        self.prefill(device, PrefillEvent::Ended(sequence))?;
                        self.tell_gateway(from, sequence, ToGateway::Undelivered(sequence))?;
                    }
                }
                PrefillEffect::UseLease { sequence, decode, lease } => {
                    let id = lease.lease;
                    self.devices[device].routes.insert(sequence, (decode, lease.clone()));
                    if !self.order(device, DeviceCommand::UseLease { sequence, lease }) {
                        self.prefill(device, PrefillEvent::PushFailed { sequence, lease: id })?;
                    }
                }
                PrefillEffect::Abort(sequence) => {
                    self.devices[device].routes.remove(&sequence);
                    let _ = self.order(device, DeviceCommand::Abort { sequence });
                }
                PrefillEffect::AskLease { decode, request } => {
                    let sequence = request.sequence;
                    let event = DecodeEvent::LeaseAsked { request, prefill: self.devices[device].id };
                    if !self.tell_decode(self.index_of(decode), from, event) {
                        self.prefill(device, PrefillEvent::LeaseRefused { sequence, decode })?;
                    }
                }
                PrefillEffect::ReturnLease { decode, lease } => {
                    let _ = self.tell_decode(self.index_of(decode), from, DecodeEvent::Returned(lease));
                }
                PrefillEffect::HandOver { decode, hand_over } => {
                    self.devices[device].routes.remove(&hand_over.sequence);
                    let _ = self.tell_decode(self.index_of(decode), from, DecodeEvent::HandedOver(hand_over));
                }
                PrefillEffect::Refused(sequence) => {
                    self.tell_gateway(from, sequence, ToGateway::Refused(sequence))?;
                }
                PrefillEffect::Started(sequence) => {
                    self.tell_gateway(from, sequence, ToGateway::Started(sequence))?;
                }
                PrefillEffect::Lost(sequence) => self.say_lost(from, sequence)?,
            }
        }
        Ok(())
    }

    pub(crate) fn decode(&mut self, device: usize, event: DecodeEvent) -> Result<(), Broken> {
        let from = Place::Decode(device);
        let is_tick = matches!(event, DecodeEvent::Tick);
        self.sees_decode(&event);
        let mut effects = Vec::new();
        let now = self.agenda.now();
        self.devices[device].decode.handle(event, now, &mut effects);
        for effect in effects {
            match effect {
                DecodeEffect::Reserve { lease, request } => {
                    self.devices[device].last_lease = lease;
                    // Without a way to its gateway its tokens would be lost.
                    let is_heard = self.reaches_gateway(device, request.sequence);
                    if !is_heard || !self.order(device, DeviceCommand::Reserve { lease, request }) {
                        self.decode(device, DecodeEvent::Refused(lease))?;
                    }
                }
                DecodeEffect::Grant { prefill, sequence, lease } => self.grant(device, prefill, sequence, lease)?,
                DecodeEffect::Refuse { prefill, sequence } => {
                    let event = PrefillEvent::LeaseRefused { sequence, decode: self.devices[device].id };
                    let _ = self.tell_prefill(self.index_of(prefill), from, event);
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
                        self.say_lost(from, hand_over.sequence)?;
                    }
                }
                DecodeEffect::Release(lease) => _ = self.order(device, DeviceCommand::Release { lease }),
                DecodeEffect::Abort(sequence) => _ = self.order(device, DeviceCommand::Abort { sequence }),
                DecodeEffect::Lost(sequence) => self.say_lost(from, sequence)?,
            }
        }
        Ok(())
    }
}
