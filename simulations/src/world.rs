//! The world: it hands every happening to whom it concerns, and holds the promises to account after each.

use std::sync::Arc;
use std::time::Duration;

use relevo_actors::coordinator::CoordinatorEvent;
use relevo_actors::decode::DecodeEvent;
use relevo_actors::device::{DeviceCommand, DeviceRole, PinId};
use relevo_actors::prefill::PrefillEvent;
use relevo_actors::router::{RouterCore, RouterEvent};
use relevo_wire::{Epoch, GenerateRequest, Instant64, SequenceId, StreamEvent};

use crate::account;
use crate::agenda::Agenda;
use crate::checks::{Broken, Failure};
use crate::device::{Device, Engine, LEASE_TERM, role_index};
use crate::engine::Frame;
use crate::gateway::Streams;
use crate::lease_book::LeaseBook;
use crate::membership::Coordinator;
use crate::misfortunes;
use crate::random::Random;
use crate::scenario::{Misfortune, Scenario};
use crate::witness::Witness;

/// How often time alone is looked at, as by the actors.
const TICK: Duration = Duration::from_millis(20);

/// Quiet ticks before the end, in which the last news of the prefix caches reach the router.
const AFTERMATH: u32 = 10;

/// A run of one scenario.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) random: Random,
    pub(crate) agenda: Agenda<Happening>,
    pub(crate) coordinator: Coordinator,
    pub(crate) router: RouterCore,
    /// How often the router was started.
    pub(crate) router_life: u64,
    /// What it could not deliver, and will place again.
    pub(crate) undelivered: Vec<Arc<GenerateRequest>>,
    pub(crate) streams: Streams,
    pub(crate) devices: Vec<Device>,
    /// Engines that hung and were left to themselves, with the devices that they were of.
    pub(crate) replaced: Vec<(usize, Engine)>,
    pub(crate) num_arrived: usize,
    pub(crate) witness: Witness,
    pub(crate) lease_book: LeaseBook,
    pub(crate) tally: Report,
    /// Ticks since which everything has been at rest.
    num_quiet: u32,
    /// The lines of the account that are not told yet, if somebody listens.
    notes: Option<Vec<String>>,
}

/// What happens in the world.
pub(crate) enum Happening {
    Arrives(usize),
    Leaves(usize),
    Strikes(Misfortune),
    /// An engine has ended by a fault, as its supervisor hears.
    EngineEnded {
        device: usize,
        epoch: Epoch,
        stepping: Vec<SequenceId>,
    },
    /// A role's actor has ended, as its supervisor hears.
    RoleEnded {
        device: usize,
        role: DeviceRole,
        life: u64,
    },
    /// The epoch after this one begins.
    Begins {
        device: usize,
        epoch: Epoch,
    },
    /// A device that was given up joins again.
    Returns {
        device: usize,
    },
    /// An engine that hung goes on.
    Resumes {
        device: usize,
        epoch: Epoch,
    },
    Tick,
    CoordinatorTick,
    Beat(usize),
    Coordinator {
        life: u64,
        event: CoordinatorEvent,
    },
    Router {
        life: u64,
        event: RouterEvent,
    },
    Undelivered {
        life: u64,
        request: Arc<GenerateRequest>,
    },
    Prefill {
        device: usize,
        life: u64,
        event: PrefillEvent,
    },
    Decode {
        device: usize,
        life: u64,
        event: DecodeEvent,
    },
    Order {
        device: usize,
        epoch: Epoch,
        command: DeviceCommand,
    },
    Engine {
        device: usize,
        epoch: Epoch,
    },
    Tokens(Vec<(SequenceId, StreamEvent)>),
    Frame(Box<Frame>),
    Written(Box<Frame>),
    Unpin {
        device: usize,
        epoch: Epoch,
        pin: PinId,
    },
}

/// What a run was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Things that happened.
    pub happenings: u64,
    /// Steps computed.
    pub steps: u64,
    /// Attempts that were replayed.
    pub replays: u64,
    /// Sequences that found nobody where they were sent.
    pub undelivered: u64,
    /// Streams that finished well.
    pub finished: u64,
    /// Tokens that clients have read.
    pub tokens: u64,
    /// Epochs that ended by a fault, or because an engine hung.
    pub deaths: u64,
    /// Engines that hung and were replaced.
    pub hangs: u64,
    /// Steps that such an engine brought out after all.
    pub late_steps: u64,
    /// Leases that ended in a hand-over.
    pub leases_committed: u64,
    /// Leases that were given back.
    pub leases_released: u64,
    /// Leases whose term ran out.
    pub leases_expired: u64,
    /// Maps that were published.
    pub maps: u64,
    /// Devices that were suspected.
    pub suspicions: u64,
    /// Blocks of prefixes that the router knows of at the end.
    pub hints: u64,
    /// News of prefixes that were lost.
    pub lost_news: u64,
    /// How often the router asked a device for all its prefixes.
    pub resyncs: u64,
    /// Sequences that made room, on the engines that are there at the end.
    pub preemptions: u64,
    /// How long after the last misfortune the last stream ended.
    pub last_end_after_calm: Duration,
    /// When everything had come to rest.
    pub end: Instant64,
}

impl World {
    /// A world at its beginning.
    pub fn new(scenario: Scenario) -> Self {
        let devices = scenario.devices.iter().cloned().enumerate();
        let mut world = Self {
            // Another sequence than the scenario's, which is drawn from the seed itself.
            random: Random::new(!scenario.seed),
            agenda: Agenda::new(),
            coordinator: Coordinator::new(),
            router: misfortunes::router(&scenario),
            router_life: 0,
            undelivered: Vec::new(),
            streams: Streams::new(),
            devices: devices.map(|(index, spec)| Device::new(index, spec)).collect(),
            replaced: Vec::new(),
            scenario,
            num_arrived: 0,
            witness: Witness::new(),
            lease_book: LeaseBook::new(LEASE_TERM),
            tally: Report::default(),
            num_quiet: 0,
            notes: None,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for (index, spec) in self.scenario.requests.iter().enumerate() {
            self.agenda.at(spec.at, Happening::Arrives(index));
            if let Some(leaves) = spec.leaves {
                self.agenda.at(leaves, Happening::Leaves(index));
            }
        }
        for &(at, misfortune) in &self.scenario.misfortunes {
            self.agenda.at(at, Happening::Strikes(misfortune));
        }
        for device in 0..self.devices.len() {
            let phase = self.delay();
            self.agenda.after(phase, Happening::Beat(device));
        }
        self.agenda.after(TICK, Happening::Tick);
        self.agenda.after(TICK, Happening::CoordinatorTick);
    }

    /// Plays it until everything has come to rest.
    ///
    /// # Errors
    /// A promise that was broken.
    pub fn play(mut self) -> Result<Report, Failure> {
        self.run(&mut |_| ())
    }

    /// The same, telling everything that happens, line by line.
    ///
    /// # Errors
    /// A promise that was broken.
    pub fn play_aloud(mut self, tell: &mut dyn FnMut(&str)) -> Result<Report, Failure> {
        self.notes = Some(Vec::new());
        self.run(tell)
    }

    fn run(&mut self, tell: &mut dyn FnMut(&str)) -> Result<Report, Failure> {
        let mut outcome = Ok(true);
        while let (Ok(true), Some(happening)) = (&outcome, self.agenda.next()) {
            outcome = self.proceed(happening);
            self.notes.iter_mut().flat_map(|notes| notes.drain(..)).for_each(|line| tell(&line));
        }
        let (seed, at) = (self.scenario.seed, self.agenda.now());
        outcome.and_then(|_| self.look_back()).map_err(|Broken(promise)| Failure { seed, at, promise })?;
        Ok(self.report())
    }

    /// One happening and its consequences; false when everything has come to rest.
    fn proceed(&mut self, happening: Happening) -> Result<bool, Broken> {
        self.tally.happenings += 1;
        if self.notes.is_some()
            && let Some(text) = account::happening(&happening, &self.scenario)
        {
            self.note(|| text);
        }
        let is_tick = matches!(happening, Happening::Tick);
        self.happen(happening)?;
        self.check()?;
        if is_tick {
            self.check_in_time()?;
            self.num_quiet = if self.is_quiet() { self.num_quiet + 1 } else { 0 };
        }
        Ok(self.num_quiet <= AFTERMATH)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Arrives(index) => {
                self.num_arrived += 1;
                self.admit(self.scenario.requests[index].request.clone());
            }
            Happening::Leaves(index) => self.abandon(self.scenario.requests[index].request.sequence.request),
            Happening::Strikes(misfortune) => return self.strike(misfortune),
            Happening::EngineEnded { device, epoch, stepping } => return self.engine_ended(device, epoch, &stepping),
            Happening::RoleEnded { device, role, life } => return self.role_ended(device, role, life),
            Happening::Begins { device, epoch } => self.begin_epoch(device, epoch),
            Happening::Returns { device } => self.come_back(device),
            Happening::Resumes { device, epoch } => return self.resume(device, epoch),
            Happening::Tick => return self.tick(),
            Happening::CoordinatorTick => self.tick_coordinator(),
            Happening::Beat(device) => return self.beat(device),
            Happening::Coordinator { life, event } => return self.coordinate(life, event),
            Happening::Tokens(events) => return self.deliver(events),
            Happening::Frame(frame) => return self.land(frame),
            Happening::Written(frame) => return self.written(&frame),
            Happening::Unpin { device, epoch, pin } => return self.unpin(device, epoch, pin),
            to_somebody => return self.hand_to(to_somebody),
        }
        Ok(())
    }

    /// What was sent to an actor or an engine; it is lost if that is gone.
    fn hand_to(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Router { life, event } if life == self.router_life => {
                if let RouterEvent::Ended(sequence) = event {
                    self.undelivered.retain(|request| request.sequence != sequence);
                }
                self.route(event)
            }
            Happening::Undelivered { life, request } if life == self.router_life => self.undelivered(request),
            Happening::Prefill { device, life, event } if self.lives(device, DeviceRole::Prefill, life) => {
                self.prefill(device, event)
            }
            Happening::Decode { device, life, event } if self.lives(device, DeviceRole::Decode, life) => {
                self.decode(device, event)
            }
            Happening::Order { device, epoch, command } => {
                if let Some(engine) = self.engine(device, epoch) {
                    engine.inbox.push_back(command);
                    self.wake(device);
                }
                Ok(())
            }
            Happening::Engine { device, epoch } if self.engine(device, epoch).is_some() => self.run_engine(device),
            _ => Ok(()),
        }
    }

    fn lives(&self, device: usize, role: DeviceRole, life: u64) -> bool {
        let (state, index) = (&self.devices[device], role_index(role));
        state.has_actor[index] && state.lives[index] == life
    }

    fn tick(&mut self) -> Result<(), Broken> {
        self.agenda.after(TICK, Happening::Tick);
        self.sweep()?;
        self.tick_router()?;
        for device in 0..self.devices.len() {
            let [has_prefill, has_decode] = self.devices[device].has_actor;
            if has_prefill {
                self.prefill(device, PrefillEvent::Tick)?;
            }
            if has_decode {
                self.tick_decode(device)?;
            }
            self.wake(device);
        }
        Ok(())
    }

    /// How long a message takes.
    pub(crate) fn delay(&mut self) -> Duration {
        let most = u64::try_from(self.scenario.max_delay.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random.between(5, most))
    }

    /// How long an engine takes for its next move.
    pub(crate) fn compute_time(&mut self) -> Duration {
        Duration::from_micros(self.random.between(100, 2000))
    }

    /// Whether a mishap of this likeliness befalls what is under way now; none does once it is calm.
    pub(crate) fn is_unlucky(&mut self, percent: u64) -> bool {
        percent > 0 && self.agenda.now() < self.scenario.calm() && self.random.chance(percent)
    }

    /// A line of the account, if somebody listens.
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.agenda.now();
        if let Some(notes) = &mut self.notes {
            notes.push(format!("{:>10.3} ms  {}", now.0 as f64 / 1e6, text()));
        }
    }

    fn report(&self) -> Report {
        let finished = |live: &&crate::gateway::Live| matches!(live.read.last, Some(StreamEvent::Finished { .. }));
        let engines = self.devices.iter().filter_map(|device| device.engine.as_ref());
        let ended = self.streams.values().filter_map(|live| live.ended).max().unwrap_or_default();
        Report {
            finished: self.streams.values().filter(finished).count() as u64,
            tokens: self.streams.values().map(|live| live.read.tokens.len() as u64).sum(),
            leases_committed: self.lease_book.num_committed,
            leases_released: self.lease_book.num_released,
            leases_expired: self.lease_book.num_expired,
            hints: self.num_hints(),
            preemptions: engines.map(|engine| engine.core.counters().preemptions).sum(),
            last_end_after_calm: ended.since(self.scenario.calm()),
            end: self.agenda.now(),
            ..self.tally
        }
    }
}
