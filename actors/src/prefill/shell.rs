//! The prefill role's actor: carries out what [`PrefillCore`] decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::RactorMessage;
use relevo_wire::{DeviceId, SequenceId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::core::{PrefillCore, PrefillEffect, PrefillEvent};
use super::push::{PUSH_CAPACITY, PushJob, Pusher};
use crate::clock;
use crate::cluster::{Directory, Ticker};
use crate::decode::DecodeEvent;
use crate::device::{DeviceCommand, DevicePort, GrantedLease};
use crate::policy::hand_over::HandOverStep;

/// How often time alone is looked at.
const TICK: Duration = Duration::from_millis(100);

/// The prefill role's actor.
pub(crate) struct PrefillActor;

/// Its messages.
#[derive(Debug, RactorMessage)]
pub(crate) enum PrefillMessage {
    /// Something happened.
    Event(PrefillEvent),
    /// To see whether the fault switches let it live.
    Poke,
}

/// What it is started with.
pub(crate) struct PrefillArguments {
    pub(crate) directory: Arc<Directory>,
    pub(crate) port: Arc<DevicePort>,
}

pub(crate) struct PrefillState {
    directory: Arc<Directory>,
    port: Arc<DevicePort>,
    name: String,
    core: PrefillCore,
    pushers: BTreeMap<DeviceId, mpsc::Sender<PushJob>>,
    /// The pushers: dropped with the state, which ends them.
    tasks: JoinSet<()>,
    _ticker: Ticker,
}

impl Actor for PrefillActor {
    type Msg = PrefillMessage;
    type State = PrefillState;
    type Arguments = PrefillArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        PrefillArguments { directory, port }: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        port.routes.close_all();
        let ticker = Ticker::start(myself.clone(), TICK, || PrefillMessage::Event(PrefillEvent::Tick));
        let (name, core) = (port.prefill_name(), PrefillCore::new(port.id));
        port.prefill.set(myself);
        let (pushers, tasks) = (BTreeMap::new(), JoinSet::new());
        Ok(PrefillState { directory, port, name, core, pushers, tasks, _ticker: ticker })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if !matches!(message, PrefillMessage::Event(PrefillEvent::Tick)) {
            state.directory.on_message(&state.name);
        }
        if let PrefillMessage::Event(event) = message {
            if let Some((_, step)) = HandOverStep::of_prefill(&event) {
                state.directory.on_hand_over(step);
            }
            state.handle(event);
        }
        Ok(())
    }
}

impl PrefillState {
    fn handle(&mut self, event: PrefillEvent) {
        let mut effects = Vec::new();
        self.core.handle(event, clock::now(), &mut effects);
        effects.into_iter().for_each(|effect| self.carry_out(effect));
    }

    fn carry_out(&mut self, effect: PrefillEffect) {
        match effect {
            PrefillEffect::Prefill { request, destination } => {
                let command = DeviceCommand::Prefill { request: Arc::clone(&request), destination };
                if !self.port.command(command) {
                    self.handle(PrefillEvent::Ended(request.sequence));
                    self.directory.undelivered(request.sequence);
                }
            }
            PrefillEffect::UseLease { sequence, decode, lease } => self.use_lease(sequence, decode, lease),
            PrefillEffect::Abort(sequence) => {
                self.port.routes.close(sequence);
                let _ = self.port.command(DeviceCommand::Abort { sequence });
            }
            PrefillEffect::AskLease { decode, request } => {
                let sequence = request.sequence;
                let asked = DecodeEvent::LeaseAsked { request, prefill: self.port.id };
                if !self.directory.links.reach(decode) || !self.to_decode(decode, asked) {
                    self.handle(PrefillEvent::LeaseRefused { sequence, decode });
                }
            }
            // A decode worker that has died has closed its leases.
            PrefillEffect::ReturnLease { decode, lease } => {
                let _ = self.to_decode(decode, DecodeEvent::Returned(lease));
            }
            PrefillEffect::HandOver { decode, hand_over } => {
                // Its layers are with the pusher: the route has done its part.
                self.port.routes.close(hand_over.sequence);
                let _ = self.to_decode(decode, DecodeEvent::HandedOver(hand_over));
            }
            PrefillEffect::Refused(sequence) => {
                self.directory.refused(sequence);
            }
            PrefillEffect::Started(sequence) => {
                self.directory.started(sequence);
            }
            PrefillEffect::Lost(sequence) => {
                self.directory.lost(sequence);
            }
        }
    }

    fn use_lease(&mut self, sequence: SequenceId, decode: DeviceId, lease: GrantedLease) {
        let Some(jobs) = self.pusher(decode) else {
            self.handle(PrefillEvent::PushFailed { sequence, lease: lease.lease });
            return;
        };
        let (id, from) = (lease.lease, self.port.id);
        let hop = self.directory.traces.hop(
            sequence,
            |parent| tracing::debug_span!(parent: parent, "push", %sequence, lease = %id, %from, to = %decode),
        );
        self.port.routes.open(sequence, lease.clone(), jobs, hop);
        let _ = self.port.command(DeviceCommand::UseLease { sequence, lease });
    }

    /// The task that pushes to this device; a new one if its link was closed meanwhile.
    fn pusher(&mut self, decode: DeviceId) -> Option<mpsc::Sender<PushJob>> {
        if let Some(jobs) = self.pushers.get(&decode).filter(|jobs| !jobs.is_closed()) {
            return Some(jobs.clone());
        }
        let layout = self.port.kv_memory()?.layout();
        let (jobs, receiver) = mpsc::channel(PUSH_CAPACITY);
        let pusher = Pusher { directory: Arc::clone(&self.directory), from: self.port.id, to: decode, layout };
        self.tasks.spawn(pusher.run(receiver));
        self.port.routes.set_pusher(decode, &jobs);
        self.pushers.insert(decode, jobs.clone());
        Some(jobs)
    }

    fn to_decode(&self, device: DeviceId, event: DecodeEvent) -> bool {
        self.directory.to_decode(device, event)
    }
}
