//! The world: it hands every happening to whom it concerns, and holds the promises to account after each.

use std::time::Duration;

use relevo_actors::decode::DecodeEvent;
use relevo_actors::device::{CoreEvent, DeviceCommand, DeviceRole, PinId};
use relevo_actors::gateway::{Loss, Phase};
use relevo_actors::prefill::PrefillEvent;
use relevo_actors::router::{RouterCore, RouterEvent, RouterLimits};
use relevo_wire::{Epoch, Instant64, SequenceId, StreamEvent};

use crate::agenda::{Agenda, Place};
use crate::checks::{Broken, Failure};
use crate::device::Device;
use crate::engine::Frame;
use crate::gateway::Streams;
use crate::random::Random;
use crate::scenario::{Misfortune, Scenario};

/// How often time alone is looked at, as by the actors.
const TICK: Duration = Duration::from_millis(20);

/// How long an engine takes to begin anew.
const RESTART: Duration = Duration::from_millis(30);

/// When a world that has not come to rest never will: far beyond every deadline, lease and patience in it.
const END_OF_TIME: Instant64 = Instant64(300_000_000_000);

/// A run of one scenario.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) random: Random,
    pub(crate) agenda: Agenda<Happening>,
    pub(crate) router: RouterCore,
    pub(crate) streams: Streams,
    pub(crate) devices: Vec<Device>,
    pub(crate) num_arrived: usize,
    pub(crate) num_steps: u64,
    pub(crate) num_replays: u64,
    num_happenings: u64,
    is_watched: bool,
}

/// What happens in the world.
pub(crate) enum Happening {
    Arrives(usize),
    Leaves(usize),
    Strikes(Misfortune),
    Recovers(usize),
    Tick,
    Router(RouterEvent),
    Prefill { device: usize, life: u64, event: PrefillEvent },
    Decode { device: usize, life: u64, event: DecodeEvent },
    Order { device: usize, epoch: Epoch, command: DeviceCommand },
    Engine { device: usize, epoch: Epoch },
    Tokens(Vec<(SequenceId, StreamEvent)>),
    Frame(Box<Frame>),
    Written(Box<Frame>),
    Unpin { device: usize, epoch: Epoch, pin: PinId },
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
    /// Streams that finished well.
    pub finished: u64,
    /// Tokens that clients have read.
    pub tokens: u64,
    /// Leases granted.
    pub leases: u64,
    /// Sequences that made room.
    pub preemptions: u64,
    /// When everything had come to rest.
    pub end: Instant64,
}

impl World {
    /// A world at its beginning.
    pub fn new(scenario: Scenario) -> Self {
        let limits =
            RouterLimits { max_waiting: 64, max_running: 12, max_prefilling: 4, disaggregate: scenario.disaggregate };
        let devices = scenario.devices.iter().cloned().enumerate();
        let mut world = Self {
            // Another sequence than the scenario's, which is drawn from the seed itself.
            random: Random::new(!scenario.seed),
            agenda: Agenda::new(),
            router: RouterCore::new(limits),
            streams: Streams::new(),
            devices: devices.map(|(index, spec)| Device::new(index, spec)).collect(),
            scenario,
            num_arrived: 0,
            num_steps: 0,
            num_replays: 0,
            num_happenings: 0,
            is_watched: false,
        };
        world.begin();
        world
    }

    /// The same, telling everything that happens on stderr.
    #[must_use]
    pub fn watched(mut self) -> Self {
        self.is_watched = true;
        self
    }

    fn begin(&mut self) {
        self.publish_workers();
        for (index, spec) in self.scenario.requests.iter().enumerate() {
            self.agenda.at(spec.at, Happening::Arrives(index));
            if let Some(leaves) = spec.leaves {
                self.agenda.at(leaves, Happening::Leaves(index));
            }
        }
        for &(at, misfortune) in &self.scenario.misfortunes {
            self.agenda.at(at, Happening::Strikes(misfortune));
        }
        self.agenda.after(TICK, Happening::Tick);
    }

    /// Plays it until everything has come to rest.
    ///
    /// # Errors
    /// A promise that was broken.
    pub fn play(mut self) -> Result<Report, Failure> {
        let outcome = self.run();
        let (seed, at) = (self.scenario.seed, self.agenda.now());
        outcome.map_err(|Broken(promise)| Failure { seed, at, promise })
    }

    fn run(&mut self) -> Result<Report, Broken> {
        while let Some(happening) = self.agenda.next() {
            self.num_happenings += 1;
            if self.is_watched {
                self.tell(&happening);
            }
            let is_tick = matches!(happening, Happening::Tick);
            self.happen(happening)?;
            self.check()?;
            if is_tick {
                if self.is_quiet() {
                    break;
                }
                if self.agenda.now() > END_OF_TIME {
                    return Err(Broken(self.unrest()));
                }
                self.agenda.after(TICK, Happening::Tick);
            }
        }
        self.look_back()?;
        Ok(self.report())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Arrives(index) => {
                self.num_arrived += 1;
                self.admit(self.scenario.requests[index].request.clone());
            }
            Happening::Leaves(index) => self.abandon(self.scenario.requests[index].request.sequence.request),
            Happening::Strikes(misfortune) => return self.strike(misfortune),
            Happening::Recovers(device) => {
                self.devices[device].is_down = false;
                self.publish_workers();
            }
            Happening::Tick => return self.tick(),
            Happening::Router(event) => return self.route(event),
            Happening::Prefill { device, life, event } if self.devices[device].lives[0] == life => {
                return self.prefill(device, event);
            }
            Happening::Decode { device, life, event } if self.devices[device].lives[1] == life => {
                return self.decode(device, event);
            }
            Happening::Order { device, epoch, command } if self.devices[device].epoch == epoch => {
                self.devices[device].inbox.push_back(command);
                self.wake(device);
            }
            Happening::Engine { device, epoch } if self.devices[device].epoch == epoch => {
                return self.run_engine(device);
            }
            Happening::Unpin { device, epoch, pin } if self.devices[device].epoch == epoch => {
                self.tell_core(device, CoreEvent::Unpinned(pin))?;
                self.wake(device);
            }
            Happening::Tokens(events) => return self.deliver(events),
            Happening::Frame(frame) => self.land(frame),
            Happening::Written(frame) => return self.written(&frame),
            // To an actor or an engine that is gone.
            Happening::Prefill { .. }
            | Happening::Decode { .. }
            | Happening::Order { .. }
            | Happening::Engine { .. }
            | Happening::Unpin { .. } => {}
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<(), Broken> {
        self.sweep()?;
        self.route(RouterEvent::Tick)?;
        for device in 0..self.devices.len() {
            self.prefill(device, PrefillEvent::Tick)?;
            self.decode(device, DecodeEvent::Tick)?;
            self.wake(device);
        }
        Ok(())
    }

    fn strike(&mut self, misfortune: Misfortune) -> Result<(), Broken> {
        match misfortune {
            Misfortune::Engine(device) => {
                let stepping: Vec<_> = self.devices[device].core.stepping().collect();
                let id = self.devices[device].id;
                self.devices[device].begin_epoch();
                self.devices[device].is_awake = false;
                self.devices[device].is_down = true;
                self.publish_workers();
                self.agenda.after(RESTART, Happening::Recovers(device));
                self.device_lost(id, &stepping)
            }
            Misfortune::Role(device, role) => {
                let id = self.devices[device].id;
                match role {
                    DeviceRole::Prefill => self.devices[device].restart_prefill(),
                    DeviceRole::Decode => self.devices[device].restart_decode(),
                }
                self.order(device, Place::Gateway, DeviceCommand::AbortAll { role });
                let lost = self.select(|phase, (prefill, decode)| match (role, phase) {
                    (DeviceRole::Prefill, Phase::Prefilling) => prefill == id,
                    (DeviceRole::Decode, Phase::Decoding) => decode == id,
                    (DeviceRole::Decode, Phase::Prefilling) => decode == id && prefill != id,
                    _ => false,
                });
                lost.into_iter().try_for_each(|sequence| self.lost(sequence, Loss::Elsewhere))
            }
        }
    }

    /// Tells the router who serves.
    fn publish_workers(&mut self) {
        let workers = self.devices.iter().filter(|device| !device.is_down).map(Device::facts).collect();
        self.tell_router(RouterEvent::Workers(workers));
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

    fn report(&self) -> Report {
        let finished = |live: &&crate::gateway::Live| matches!(live.read.last, Some(StreamEvent::Finished { .. }));
        let counters = self.devices.iter().map(|device| device.core.counters());
        Report {
            happenings: self.num_happenings,
            steps: self.num_steps,
            replays: self.num_replays,
            finished: self.streams.values().filter(finished).count() as u64,
            tokens: self.streams.values().map(|live| live.read.tokens.len() as u64).sum(),
            leases: counters.clone().map(|counters| counters.leases_granted).sum(),
            preemptions: counters.map(|counters| counters.preemptions).sum(),
            end: self.agenda.now(),
        }
    }

    #[expect(clippy::print_stderr, reason = "a replay is watched on the terminal")]
    fn tell(&self, happening: &Happening) {
        let text = match happening {
            Happening::Tick | Happening::Engine { .. } | Happening::Unpin { .. } => return,
            Happening::Arrives(index) => {
                format!("request {:?} arrives", self.scenario.requests[*index].request.sequence)
            }
            Happening::Leaves(index) => format!("its client leaves request {}", index + 1),
            Happening::Strikes(misfortune) => format!("{misfortune:?} fails"),
            Happening::Recovers(device) => format!("device {device} serves again"),
            Happening::Router(event) => format!("router: {event:?}"),
            Happening::Prefill { device, event, .. } => format!("prefill {device}: {event:?}"),
            Happening::Decode { device, event, .. } => format!("decode {device}: {event:?}"),
            Happening::Order { device, command, .. } => format!("engine {device}: {command:?}"),
            Happening::Tokens(events) => format!("gateway: {events:?}"),
            Happening::Frame(frame) => format!("{} lands, layer {} of {}", frame.lease, frame.layer.0, frame.sequence),
            Happening::Written(frame) => format!("{} is written, layer {}", frame.lease, frame.layer.0),
        };
        eprintln!("{:>10.3} ms  {text}", self.agenda.now().0 as f64 / 1e6);
    }
}
