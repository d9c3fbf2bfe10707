//! The world: it hands every happening to whom it concerns, and holds the promises to account after each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use relevo_actors::decode::DecodeEvent;
use relevo_actors::device::{DeviceCommand, DeviceRole, PinId};
use relevo_actors::policy::hand_over::HandOverStep;
use relevo_actors::prefill::PrefillEvent;
use relevo_actors::router::RouterEvent;
use relevo_wire::{Beat, DeviceId, Epoch, Instant64, RequestId, SequenceId, StreamEvent};

use crate::account;
use crate::agenda::{Agenda, Place};
use crate::checks::{Broken, Failure};
use crate::coordinating::{Coordinator, Wish, Word};
use crate::device::{Device, Engine, role_index};
use crate::engine::Frame;
use crate::gateway::{Gateway, Streams};
use crate::lease_book::LeaseBook;
use crate::links::{BEAT, Barrier, Envelope, NODE_TICK, Signal};
use crate::misfortunes;
use crate::node::Node;
use crate::post::Errand;
use crate::random::Random;
use crate::scenario::{Misfortune, SLOWNESS, Scenario, node_id};
use crate::witness::Witness;

/// How often time alone is looked at, as by the actors.
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// Quiet ticks before the end, in which the last news of the prefix caches reach the routers.
const AFTERMATH: u32 = 10;

/// A run of one scenario.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) random: Random,
    pub(crate) agenda: Agenda<Envelope>,
    pub(crate) nodes: Vec<Node>,
    /// Until when nothing gets from the first node to the second.
    pub(crate) cuts: BTreeMap<(usize, usize), Instant64>,
    pub(crate) num_links: u64,
    /// What is held up on its way, in order.
    pub(crate) held: BTreeMap<Barrier, Vec<Envelope>>,
    pub(crate) coordinator: Coordinator,
    /// What an operator wants last of each node.
    pub(crate) wishes: BTreeMap<usize, Wish>,
    pub(crate) gateways: Vec<Gateway>,
    /// Streams whose gateway has died.
    pub(crate) cut_off: Streams,
    /// Requests whose gateway was not there.
    pub(crate) turned_away: BTreeSet<RequestId>,
    pub(crate) devices: Vec<Device>,
    /// Engines that hung and were left to themselves, with the devices that they were of.
    pub(crate) replaced: Vec<(usize, Engine)>,
    pub(crate) num_arrived: usize,
    pub(crate) witness: Witness,
    pub(crate) lease_book: LeaseBook,
    /// Steps that the sequence in ambush has come to.
    pub(crate) steps_reached: BTreeSet<HandOverStep>,
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
    /// What was held up may go on.
    Released(Barrier),
    /// A node's process is started again.
    Boots(usize),
    /// An operator wants something else of a node.
    Wants {
        node: usize,
        wish: Wish,
    },
    /// An operator looks whether it is done.
    LooksAgain {
        node: usize,
        wish: Wish,
    },
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
    NodeTick(usize),
    NodeBeat(usize),
    Beat(usize),
    /// Of a link itself.
    Signal {
        node: usize,
        signal: Signal,
    },
    /// A heartbeat over a link.
    PeerBeat {
        node: usize,
        from: usize,
        beat: Box<Beat>,
    },
    /// A message over a link.
    Errand {
        node: usize,
        from: usize,
        errand: Box<Errand>,
    },
    Coordinator {
        life: u64,
        word: Word,
    },
    Router {
        gateway: usize,
        life: u64,
        event: RouterEvent,
    },
    Undelivered {
        gateway: usize,
        life: u64,
        sequence: SequenceId,
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
    /// From a node's devices.
    Tokens {
        gateway: usize,
        from: usize,
        events: Vec<(SequenceId, StreamEvent)>,
    },
    Frame(Box<Frame>),
    Written(Box<Frame>),
    /// Blocks were not let in, as the device that pushed them hears.
    NotTaken {
        device: usize,
        sequence: SequenceId,
    },
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
    /// How often a device was found to be far slower than its peers.
    pub found_slow: u64,
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
    /// Blocks of prefixes that routers know of at the end.
    pub hints: u64,
    /// News of prefixes that were lost.
    pub lost_news: u64,
    /// How often a router asked a device for all its prefixes.
    pub resyncs: u64,
    /// Ends of links that nodes have let go of.
    pub links_lost: u64,
    /// Processes that were killed.
    pub kills: u64,
    /// Orders of operators.
    pub orders: u64,
    /// Blows out of an ambush.
    pub ambushes: u64,
    /// Streams that broke off with their gateway.
    pub cut_off: u64,
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
        let num_nodes = scenario.nodes.len();
        let (mut nodes, mut devices) = (Vec::new(), Vec::new());
        for (index, spec) in scenario.nodes.iter().enumerate() {
            let first = devices.len();
            let ids = (0u8..).map(|place| DeviceId::of(node_id(index), place));
            devices.extend(
                ids.zip(&spec.devices).map(|(id, spec)| Device::new(id, index, spec.clone(), scenario.lease_term)),
            );
            nodes.push(Node::new(index, spec, first..devices.len(), num_nodes));
        }
        let coordinator = nodes.iter().position(|node| node.plays_coordinator).unwrap_or(0);
        let gateways = (0..num_nodes).filter(|&node| nodes[node].plays_gateway);
        let gateways: Vec<_> = gateways.map(|node| Gateway::new(node, misfortunes::router(&scenario))).collect();
        let mut world = Self {
            // Another sequence than the scenario's, which is drawn from the seed itself.
            random: Random::new(!scenario.seed),
            agenda: Agenda::new(),
            nodes,
            cuts: BTreeMap::new(),
            num_links: 0,
            held: BTreeMap::new(),
            coordinator: Coordinator::new(coordinator),
            wishes: BTreeMap::new(),
            witness: Witness::new(gateways.len()),
            gateways,
            cut_off: Streams::new(),
            turned_away: BTreeSet::new(),
            devices,
            replaced: Vec::new(),
            lease_book: LeaseBook::new(scenario.lease_term),
            scenario,
            num_arrived: 0,
            steps_reached: BTreeSet::new(),
            tally: Report::default(),
            num_quiet: 0,
            notes: None,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for index in 0..self.scenario.requests.len() {
            let (at, leaves) = (self.scenario.requests[index].at, self.scenario.requests[index].leaves);
            self.world_later(at.since(Instant64(0)), Happening::Arrives(index));
            if let Some(leaves) = leaves {
                self.world_later(leaves.since(Instant64(0)), Happening::Leaves(index));
            }
        }
        for (at, misfortune) in self.scenario.misfortunes.clone() {
            self.world_later(at.since(Instant64(0)), Happening::Strikes(misfortune));
        }
        for device in 0..self.devices.len() {
            let phase = self.delay();
            self.world_later(phase, Happening::Beat(device));
        }
        for node in 0..self.nodes.len() {
            let phase = self.delay().min(NODE_TICK);
            self.world_later(phase, Happening::NodeTick(node));
            let phase = self.delay().min(BEAT);
            self.world_later(phase, Happening::NodeBeat(node));
        }
        for gateway in 0..self.gateways.len() {
            self.tell_router_who_is_there(self.gateways[gateway].node);
        }
        self.world_later(TICK, Happening::Tick);
        self.world_later(TICK, Happening::CoordinatorTick);
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
        while let (Ok(true), Some(envelope)) = (&outcome, self.agenda.next()) {
            let Some(happening) = self.open(envelope) else { continue };
            outcome = self.proceed(happening);
            self.notes.iter_mut().flat_map(|notes| notes.drain(..)).for_each(|line| tell(&line));
        }
        let (replay, at) = (self.scenario.replay(), self.agenda.now());
        outcome.and_then(|_| self.look_back()).map_err(|Broken(promise)| Failure { replay, at, promise })?;
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
            Happening::Released(barrier) => self.release(barrier),
            Happening::Boots(node) => return self.boot(node),
            Happening::Wants { node, wish } => self.wish(node, wish),
            Happening::LooksAgain { node, wish } => self.look_again(node, wish),
            Happening::EngineEnded { device, epoch, stepping } => return self.engine_ended(device, epoch, stepping),
            Happening::RoleEnded { device, role, life } => return self.role_ended(device, role, life),
            Happening::Begins { device, epoch } => self.begin_epoch(device, epoch),
            Happening::Returns { device } => self.come_back(device),
            Happening::Resumes { device, epoch } => return self.resume(device, epoch),
            Happening::Tick => return self.tick(),
            Happening::CoordinatorTick => self.tick_coordinator(),
            Happening::NodeTick(node) => return self.tick_node(node),
            Happening::NodeBeat(node) => self.beat_peers(node),
            Happening::Beat(device) => return self.beat(device),
            Happening::Signal { node, signal } => return self.hear_signal(node, signal),
            Happening::PeerBeat { node, from, beat } => self.hear_beat(node, from, beat),
            Happening::Errand { node, from, errand } => return self.take_errand(node, from, *errand),
            Happening::Coordinator { life, word } => return self.coordinate(life, word),
            Happening::Tokens { gateway, from, events } => return self.deliver(gateway, from, events),
            Happening::Frame(frame) => return self.land(frame),
            Happening::Written(frame) => return self.written(&frame),
            Happening::NotTaken { device, sequence } => return self.say_lost(Place::Engine(device), sequence),
            Happening::Unpin { device, epoch, pin } => return self.unpin(device, epoch, pin),
            to_somebody => return self.hand_to(to_somebody),
        }
        Ok(())
    }

    /// What was sent to an actor or an engine; it is lost if that is gone.
    fn hand_to(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Router { gateway, life, event } if life == self.gateways[gateway].router_life => {
                if let RouterEvent::Ended(sequence) = event {
                    self.gateways[gateway].undelivered.retain(|request| request.sequence != sequence);
                }
                self.route(gateway, event)
            }
            Happening::Undelivered { gateway, life, sequence } if life == self.gateways[gateway].router_life => {
                self.undelivered(gateway, sequence)
            }
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

    /// The place of a device among those of the world.
    pub(crate) fn index_of(&self, device: DeviceId) -> usize {
        let node = device.node().0 as usize - 1;
        self.nodes[node].devices.start + device.index() as usize
    }

    fn tick(&mut self) -> Result<(), Broken> {
        self.world_later(TICK, Happening::Tick);
        let now = self.agenda.now();
        for gateway in 0..self.gateways.len() {
            if self.nodes[self.gateways[gateway].node].is_awake(now) {
                self.sweep(gateway)?;
                self.tick_router(gateway)?;
            }
        }
        for device in 0..self.devices.len() {
            if !self.nodes[self.devices[device].node].is_awake(now) {
                continue;
            }
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
    pub(crate) fn compute_time(&mut self, device: usize) -> Duration {
        let is_slow = self.agenda.now() < self.devices[device].slow_until;
        let most = u64::try_from(self.scenario.max_layer.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.random.between(100, most)) * if is_slow { SLOWNESS } else { 1 }
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
        let streams = || self.gateways.iter().flat_map(|gateway| gateway.streams.values()).chain(self.cut_off.values());
        let ended = streams().filter_map(|live| live.ended).max().unwrap_or_default();
        Report {
            finished: streams().filter(finished).count() as u64,
            tokens: streams().map(|live| live.read.tokens.len() as u64).sum(),
            cut_off: self.cut_off.values().filter(|live| live.ended.is_none()).count() as u64,
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
