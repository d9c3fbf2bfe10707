//! Who is a member: heartbeats on their way to the coordinator, its maps on theirs to the router, and each device's supervisor.

use std::time::Duration;

use relevo_actors::coordinator::{ClusterMap, CoordinatorCore, CoordinatorEffect, CoordinatorEvent, CoordinatorLimits};
use relevo_actors::router::RouterEvent;
use relevo_wire::{Epoch, Instant64, SequenceId};

use crate::agenda::{Link, Place};
use crate::checks::{Broken, ensure};
use crate::world::{Happening, World};

/// How often a device says that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

/// Silence after which a device is suspected.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);

/// How long a busy engine may go without computing a layer: the longest layer here takes 2 ms.
pub(crate) const HANG_AFTER: Duration = Duration::from_millis(300);

/// How often the coordinator looks for silence.
pub(crate) const COORDINATOR_TICK: Duration = Duration::from_millis(100);

/// How long an engine takes to begin anew.
const RESTART: Duration = Duration::from_millis(30);

/// By how much a late heartbeat is late at most, in milliseconds.
const LATENESS: u64 = 300;

/// The coordinator's actor, and what outlives it.
pub(crate) struct Coordinator {
    pub(crate) core: CoordinatorCore,
    /// How often it was started.
    pub(crate) life: u64,
    pub(crate) sleeps_until: Instant64,
    /// The last map that was published: what everyone acts on while it is away.
    pub(crate) directory: ClusterMap,
}

impl Coordinator {
    pub(crate) fn new() -> Self {
        let directory = ClusterMap::default();
        Self { core: core(&directory, Instant64(0)), life: 0, sleeps_until: Instant64(0), directory }
    }
}

fn core(directory: &ClusterMap, now: Instant64) -> CoordinatorCore {
    let limits = CoordinatorLimits { silence: SILENCE, no_progress: HANG_AFTER, tick: COORDINATOR_TICK };
    CoordinatorCore::new(limits, (directory.term, directory.version), now)
}

impl World {
    /// Time for a device to look after its engine, and to say that it lives.
    pub(crate) fn beat(&mut self, device: usize) -> Result<(), Broken> {
        self.agenda.after(HEARTBEAT, Happening::Beat(device));
        self.replace_if_stuck(device)?;
        self.say_heartbeat(device);
        Ok(())
    }

    fn say_heartbeat(&mut self, device: usize) {
        let now = self.agenda.now();
        let state = &self.devices[device];
        let is_unheard = state.is_away || now < state.silent_until;
        if is_unheard || self.is_unlucky(self.scenario.lost_heartbeats) {
            return;
        }
        let directory = &self.coordinator.directory;
        let heartbeat = self.devices[device].heartbeat((directory.term, directory.version));
        let (life, event, delay) = (self.coordinator.life, CoordinatorEvent::Heartbeat(heartbeat), self.delay());
        if self.is_unlucky(self.scenario.late_heartbeats) {
            // Later ones may overtake it.
            let lateness = Duration::from_millis(self.random.between(0, LATENESS));
            return self.agenda.after(delay + lateness, Happening::Coordinator { life, event });
        }
        self.send_to_coordinator(Place::Supervisor(device), delay, event);
    }

    pub(crate) fn send_to_coordinator(&mut self, from: Place, delay: Duration, event: CoordinatorEvent) {
        let life = self.coordinator.life;
        self.agenda.send(Link(from, Place::Coordinator), delay, Happening::Coordinator { life, event });
    }

    /// The coordinator handles an event, or will when it wakes up.
    pub(crate) fn coordinate(&mut self, life: u64, event: CoordinatorEvent) -> Result<(), Broken> {
        let now = self.agenda.now();
        if now < self.coordinator.sleeps_until {
            self.agenda.at(self.coordinator.sleeps_until, Happening::Coordinator { life, event });
            return Ok(());
        }
        if life != self.coordinator.life {
            return Ok(());
        }
        self.witness.coordinator_hears(&event, now);
        let is_tick = matches!(event, CoordinatorEvent::Tick);
        let mut effects = Vec::new();
        self.coordinator.core.handle(event, now, &mut effects);
        for effect in effects {
            match effect {
                CoordinatorEffect::Publish(map) => self.publish(map)?,
                CoordinatorEffect::Suspect(device) => {
                    self.tally.suspicions += 1;
                    self.note(|| format!("{device} is suspected"));
                }
                // Of an operator, whom there is none of here.
                CoordinatorEffect::Tell(..) | CoordinatorEffect::Refuse(_) => {}
            }
        }
        if is_tick {
            // The router may have been restarted since: it drops a map that it has.
            let map = self.coordinator.core.map().clone();
            self.send_to_router(Place::Coordinator, RouterEvent::Map(map));
        }
        Ok(())
    }

    fn publish(&mut self, map: ClusterMap) -> Result<(), Broken> {
        self.witness.published(&map)?;
        self.tally.maps += 1;
        self.note(|| format!("the coordinator publishes {}", crate::account::map(&map)));
        self.send_to_router(Place::Coordinator, RouterEvent::Map(map.clone()));
        let kept = &mut self.coordinator.directory;
        if (map.term, map.version) > (kept.term, kept.version) {
            *kept = map;
        }
        Ok(())
    }

    pub(crate) fn tick_coordinator(&mut self) {
        self.agenda.after(COORDINATOR_TICK, Happening::CoordinatorTick);
        self.send_to_coordinator(Place::Coordinator, Duration::ZERO, CoordinatorEvent::Tick);
    }

    /// It dies, and its successor knows nobody.
    pub(crate) fn restart_coordinator(&mut self) {
        let now = self.agenda.now();
        self.coordinator.core = core(&self.coordinator.directory, now);
        self.coordinator.life += 1;
        self.witness.coordinator_died(now);
    }

    /// A busy engine that computes nothing for long is left to itself, and the device begins anew.
    fn replace_if_stuck(&mut self, device: usize) -> Result<(), Broken> {
        let now = self.agenda.now();
        let state = &mut self.devices[device];
        let engine = state.engine.as_ref().filter(|_| state.is_connected);
        let Some((progress, busy)) = engine.map(|engine| (engine.progress, engine.core.stats().busy)) else {
            return Ok(());
        };
        if !state.watch.hangs(progress, busy, now) {
            return Ok(());
        }
        let id = state.id;
        self.tally.hangs += 1;
        self.note(|| format!("{id} finds its engine stuck, and replaces it"));
        if let Some(engine) = self.devices[device].engine.take() {
            let epoch = engine.epoch;
            if engine.hangs_since.is_none() {
                // It has just gone on, too late.
                let is_fresh = now.since(engine.hung_until) <= HEARTBEAT;
                ensure(is_fresh, || format!("{id} takes an engine for stuck that computes"))?;
                let delay = self.compute_time();
                self.agenda.after(delay, Happening::Resumes { device, epoch });
            }
            self.lease_book.epoch_ended(device, epoch);
            self.replaced.push((device, engine));
        }
        // Which sequence it hangs in is its secret: all of them are under suspicion.
        let stepping = self.select(|phase, placement| placement.steps_on(phase, id));
        self.end_epoch(device, &stepping)
    }

    /// The engine of this epoch has ended by a fault.
    pub(crate) fn engine_ended(&mut self, device: usize, epoch: Epoch, stepping: &[SequenceId]) -> Result<(), Broken> {
        let state = &self.devices[device];
        if state.epoch != epoch || state.is_away { Ok(()) } else { self.end_epoch(device, stepping) }
    }

    /// Nobody takes sequences any more, so that it can be said which are lost; then a new epoch begins.
    fn end_epoch(&mut self, device: usize, stepping: &[SequenceId]) -> Result<(), Broken> {
        let (id, epoch) = (self.devices[device].id, self.devices[device].epoch);
        self.devices[device].stop();
        self.tally.deaths += 1;
        self.say_heartbeat(device);
        self.agenda.after(RESTART, Happening::Begins { device, epoch });
        self.device_lost(id, stepping)
    }

    /// A device is given up.
    pub(crate) fn give_up(&mut self, device: usize, comes_back: Duration) -> Result<(), Broken> {
        if self.devices[device].is_away {
            return Ok(());
        }
        let state = &mut self.devices[device];
        let (id, epoch) = (state.id, state.epoch);
        if state.engine.take().is_some() {
            self.lease_book.epoch_ended(device, epoch);
        }
        state.stop();
        state.is_away = true;
        let delay = self.delay();
        self.send_to_coordinator(Place::Gateway, delay, CoordinatorEvent::Left { device: id, epoch });
        self.agenda.after(comes_back, Happening::Returns { device });
        self.device_lost(id, &[])
    }

    /// A new epoch begins, if no other has meanwhile.
    pub(crate) fn begin_epoch(&mut self, device: usize, epoch: Epoch) {
        let now = self.agenda.now();
        let state = &mut self.devices[device];
        if state.epoch != epoch || state.is_connected || state.is_away {
            return;
        }
        state.begin_epoch(now);
        let (id, epoch) = (state.id, state.epoch);
        self.note(|| format!("{id} begins {epoch}"));
        self.say_heartbeat(device);
    }

    pub(crate) fn come_back(&mut self, device: usize) {
        self.devices[device].is_away = false;
        self.begin_epoch(device, self.devices[device].epoch);
    }
}
