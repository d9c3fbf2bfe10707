//! The decode role's actor: carries out what [`DecodeCore`] decides.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::RactorMessage;
use relevo_wire::{DeviceId, LeaseId, SequenceId};

use super::core::{DecodeCore, DecodeEffect, DecodeEvent};
use super::landing::LandingEvent;
use crate::clock;
use crate::cluster::{Directory, Ticker};
use crate::device::{DeviceCommand, DevicePort, GrantedLease};
use crate::policy::hand_over::HandOverStep;
use crate::prefill::PrefillEvent;

/// How often expiry is looked at.
const TICK: Duration = Duration::from_millis(20);

/// The decode role's actor.
pub(crate) struct DecodeActor;

/// Its messages.
#[derive(Debug, RactorMessage)]
pub(crate) enum DecodeMessage {
    /// Something happened.
    Event(DecodeEvent),
    /// Time went by.
    Tick,
    /// To see whether the fault switches let it live.
    Poke,
}

/// What it is started with.
pub(crate) struct DecodeArguments {
    pub(crate) directory: Arc<Directory>,
    pub(crate) port: Arc<DevicePort>,
}

pub(crate) struct DecodeState {
    directory: Arc<Directory>,
    port: Arc<DevicePort>,
    myself: ActorRef<DecodeMessage>,
    name: String,
    core: DecodeCore,
    /// Leases that a fault switch lets expire.
    doomed: Vec<LeaseId>,
    _ticker: Ticker,
}

impl Actor for DecodeActor {
    type Msg = DecodeMessage;
    type State = DecodeState;
    type Arguments = DecodeArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        DecodeArguments { directory, port }: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let ticker = Ticker::start(myself.clone(), TICK, || DecodeMessage::Tick);
        let (name, core) =
            (port.decode_name(), DecodeCore::new(port.landing.last_lease(), directory.limits.lease_term));
        port.decode.set(myself.clone());
        Ok(DecodeState { directory, port, myself, name, core, doomed: Vec::new(), _ticker: ticker })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if !matches!(message, DecodeMessage::Tick) {
            state.directory.on_message(&state.name);
        }
        match message {
            DecodeMessage::Event(event) => {
                if let Some((_, step)) = HandOverStep::of_decode(&event) {
                    state.directory.on_hand_over(step);
                }
                state.handle(event);
            }
            DecodeMessage::Tick => state.tick(),
            DecodeMessage::Poke => {}
        }
        Ok(())
    }
}

impl DecodeState {
    fn handle(&mut self, event: DecodeEvent) {
        let mut effects = Vec::new();
        self.core.handle(event, clock::now(), &mut effects);
        effects.into_iter().for_each(|effect| self.carry_out(effect));
    }

    fn carry_out(&mut self, effect: DecodeEffect) {
        match effect {
            DecodeEffect::Reserve { lease, request } => {
                self.port.landing.minted(lease);
                // Without a way to its gateway its tokens would be lost; another decode worker may have one.
                let is_heard = self.directory.reaches_gateway(request.sequence);
                if !is_heard || !self.port.command(DeviceCommand::Reserve { lease, request }) {
                    self.handle(DecodeEvent::Refused(lease));
                }
            }
            DecodeEffect::Grant { prefill, sequence, lease } => self.grant(prefill, sequence, lease),
            DecodeEffect::Refuse { prefill, sequence } => {
                let _ = self.to_prefill(prefill, PrefillEvent::LeaseRefused { sequence, decode: self.port.id });
            }
            DecodeEffect::Close(lease) => {
                if self.port.landing.close(lease) {
                    self.handle(DecodeEvent::WritersGone(lease));
                }
            }
            DecodeEffect::Commit(hand_over) => {
                metrics::counter!("relevo_leases_ended_total", "outcome" => "committed").increment(1);
                let committed = self.port.command(DeviceCommand::Commit {
                    lease: hand_over.lease,
                    first_token: hand_over.first_token,
                    cached_tokens: hand_over.cached_tokens,
                });
                if !committed {
                    self.directory.lost(hand_over.sequence);
                }
            }
            // An engine that is gone has freed everything.
            DecodeEffect::Release(lease) => {
                metrics::counter!("relevo_leases_ended_total", "outcome" => "released").increment(1);
                let _ = self.port.command(DeviceCommand::Release { lease });
            }
            DecodeEffect::Abort(sequence) => {
                let _ = self.port.command(DeviceCommand::Abort { sequence });
            }
            DecodeEffect::Lost(sequence) => {
                metrics::counter!("relevo_leases_expired_total").increment(1);
                self.directory.traces.say(sequence, || tracing::warn!(%sequence, "its lease has expired"));
                self.directory.lost(sequence);
            }
        }
    }

    fn grant(&mut self, prefill: DeviceId, sequence: SequenceId, lease: GrantedLease) {
        let id = lease.lease;
        let Some(kv) = self.port.kv_memory_of(lease.epoch) else {
            self.handle(DecodeEvent::Returned(id));
            return;
        };
        let is_doomed = self.directory.faults.on_lease();
        if is_doomed {
            self.doomed.push(id);
        }
        let (myself, device) = (self.myself.clone(), self.port.id);
        let hop = self
            .directory
            .traces
            .hop(sequence, |parent| tracing::debug_span!(parent: parent, "land", %sequence, lease = %id, %device));
        self.port.landing.open((sequence, prefill), lease.clone(), kv, move |event| {
            // It stays open as long as the landing, which keeps this.
            let _open = &hop;
            let event = match event {
                // It would not live to expire.
                LandingEvent::Complete(_) if is_doomed => return,
                LandingEvent::Complete(lease) => DecodeEvent::Complete(lease),
                LandingEvent::WritersGone(lease) => DecodeEvent::WritersGone(lease),
            };
            let _ = myself.cast(DecodeMessage::Event(event));
        });
        if !self.to_prefill(prefill, PrefillEvent::Granted { sequence, decode: self.port.id, lease }) {
            self.handle(DecodeEvent::Returned(id));
        }
    }

    fn tick(&mut self) {
        let open: Vec<_> = self.core.open_leases().collect();
        for lease in open {
            if let Some(at) = self.port.landing.last_arrival(lease) {
                self.handle(DecodeEvent::Arrived { lease, at });
            }
            if let Some(index) = self.doomed.iter().position(|doomed| *doomed == lease) {
                self.doomed.swap_remove(index);
                self.handle(DecodeEvent::Expire(lease));
            }
        }
        self.handle(DecodeEvent::Tick);
        metrics::gauge!("relevo_leases_under_watch", "device" => self.port.id.0.to_string())
            .set(self.core.num_leases() as f64);
    }

    fn to_prefill(&self, device: DeviceId, event: PrefillEvent) -> bool {
        self.directory.to_prefill(device, event)
    }
}
