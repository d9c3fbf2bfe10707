//! The coordinator's decisions, pure: membership, roles, epochs, suspicion; the slow things, decided once for the cluster.
//!
//! Its state is rebuilt from what workers report, so losing it stops nothing but change.
//!
//! **Invariant:** map versions only grow within a term, and a device's epoch only grows.

use std::collections::BTreeMap;
use std::time::Duration;

use relevo_wire::{DeviceId, Epoch, Instant64, MapVersion};
use serde::{Deserialize, Serialize};

use crate::device::DeviceRole;

/// Bounds of silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoordinatorLimits {
    /// Silence after which a device is suspected.
    ///
    /// Five heartbeats of 100 ms: a false alarm costs a re-prefill, a late one a second of a stream.
    pub silence: Duration,
    /// Time without progress of a busy engine after which it is suspected.
    pub no_progress: Duration,
    /// How often it is ticked: a tick that comes later says that we slept, not they.
    pub tick: Duration,
}

/// What a device is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// Its id.
    pub device: DeviceId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub roles: Vec<DeviceRole>,
    /// Its own counter.
    pub epoch: Epoch,
    /// Blocks of its pool.
    pub num_blocks: usize,
    /// Positions that it can hold.
    pub max_context: usize,
}

/// What a device says every 100 ms: enough for a coordinator that has just begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// What it is.
    pub facts: DeviceFacts,
    /// It takes work: its engine runs.
    pub serving: bool,
    /// Grows with every layer computed.
    pub progress: u64,
    /// Progress must be seen.
    pub busy: bool,
    /// The highest (term, version) of a map that it has seen.
    pub map: (u64, MapVersion),
}

/// The cluster as everyone acts on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Of the coordinator that published it; lower ones are refused.
    pub term: u64,
    /// Grows with each change.
    pub version: MapVersion,
    /// The devices, by id.
    pub devices: Vec<MapEntry>,
}

/// A device in the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEntry {
    /// What it is.
    pub facts: DeviceFacts,
    /// How it stands.
    pub standing: Standing,
}

/// How a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It serves.
    Serving,
    /// It is there and starts.
    Starting,
    /// It is silent, or its engine hangs: nothing new goes there.
    Suspected,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum CoordinatorEvent {
    /// A device speaks.
    Heartbeat(Heartbeat),
    /// A device is given up, as it was in this epoch; only a later one brings it back.
    Left {
        /// It.
        device: DeviceId,
        /// Its last.
        epoch: Epoch,
    },
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoordinatorEffect {
    /// Tell everyone.
    Publish(ClusterMap),
    /// It is silent or stuck; the map that follows sends nothing new there.
    Suspect(DeviceId),
}

/// The coordinator.
#[derive(Clone, Debug)]
pub struct CoordinatorCore {
    limits: CoordinatorLimits,
    term: u64,
    /// The devices as it knows them now, by id.
    devices: Vec<MapEntry>,
    pulses: BTreeMap<DeviceId, Pulse>,
    /// The last epoch of each device that was given up: what it said then may still be on its way.
    departed: BTreeMap<DeviceId, Epoch>,
    last_tick: Option<Instant64>,
    /// Until then it only listens: it has succeeded another, and does not know everyone yet.
    listens_until: Option<Instant64>,
    published: ClusterMap,
}

#[derive(Clone, Copy, Debug)]
struct Pulse {
    heard: Instant64,
    progress: u64,
    progressed: Instant64,
}

impl Pulse {
    /// By what it has said: of what it does in silence nothing is known.
    fn is_stuck(&self, limits: CoordinatorLimits) -> bool {
        self.heard.since(self.progressed) >= limits.no_progress
    }
}

impl CoordinatorCore {
    /// A coordinator that knows nobody. `seen`: the highest (term, version) that its own node has seen, (0, 0) for none.
    pub fn new(limits: CoordinatorLimits, seen: (u64, MapVersion), now: Instant64) -> Self {
        let published = ClusterMap { term: 1, ..ClusterMap::default() };
        let mut core = Self {
            limits,
            term: published.term,
            devices: Vec::new(),
            pulses: BTreeMap::new(),
            departed: BTreeMap::new(),
            last_tick: None,
            listens_until: None,
            published,
        };
        core.outbid(seen, now);
        core
    }

    /// The map in force: the last one that was published.
    pub fn map(&self) -> &ClusterMap {
        &self.published
    }

    /// Handles one event.
    pub fn handle(&mut self, event: CoordinatorEvent, now: Instant64, effects: &mut Vec<CoordinatorEffect>) {
        match event {
            CoordinatorEvent::Heartbeat(heartbeat) => self.heard(heartbeat, now),
            CoordinatorEvent::Left { device, epoch } => self.left(device, epoch),
            CoordinatorEvent::Tick => self.tick(now, effects),
        }
        let listens = self.listens_until.is_some_and(|until| now < until);
        // A higher term is news by itself: maps of this coordinator's earlier one were refused.
        let is_news = self.term != self.published.term || self.devices != self.published.devices;
        if is_news && !listens {
            let version = MapVersion(self.published.version.0 + 1);
            self.published = ClusterMap { term: self.term, version, devices: self.devices.clone() };
            effects.push(CoordinatorEffect::Publish(self.published.clone()));
        }
    }

    fn left(&mut self, device: DeviceId, epoch: Epoch) {
        if self.known(device).is_some_and(|entry| entry.facts.epoch > epoch) {
            return;
        }
        let last = self.departed.entry(device).or_insert(epoch);
        *last = epoch.max(*last);
        self.pulses.remove(&device);
        self.devices.retain(|entry| entry.facts.device != device);
    }

    fn known(&self, device: DeviceId) -> Option<&MapEntry> {
        self.devices.iter().find(|entry| entry.facts.device == device)
    }

    /// Whether a device that speaks of this epoch is one that was given up, or has begun another since.
    fn is_over(&self, device: DeviceId, epoch: Epoch) -> bool {
        self.departed.get(&device).is_some_and(|last| epoch <= *last)
            || self.known(device).is_some_and(|entry| entry.facts.epoch > epoch)
    }

    /// Somebody has seen a map of an earlier coordinator: this one goes on above it.
    fn outbid(&mut self, (term, version): (u64, MapVersion), now: Instant64) {
        if (term, version) > (self.term, self.published.version) {
            self.term = term + 1;
            self.listens_until.get_or_insert(now + self.limits.silence);
        }
    }

    fn heard(&mut self, heartbeat: Heartbeat, now: Instant64) {
        let Heartbeat { facts, serving, progress, busy, map } = heartbeat;
        self.outbid(map, now);
        if self.is_over(facts.device, facts.epoch) {
            return;
        }
        let pulse = self.pulses.entry(facts.device).or_insert(Pulse { heard: now, progress, progressed: now });
        pulse.heard = now;
        if pulse.progress != progress || !busy {
            pulse.progress = progress;
            pulse.progressed = now;
        }
        let is_stuck = pulse.is_stuck(self.limits);
        let standing = match self.known(facts.device).map(|entry| entry.standing) {
            _ if !serving => Standing::Starting,
            // A tick suspects; only progress clears.
            Some(Standing::Suspected) if is_stuck => Standing::Suspected,
            _ => Standing::Serving,
        };
        self.put(MapEntry { facts, standing });
    }

    fn put(&mut self, entry: MapEntry) {
        match self.devices.binary_search_by_key(&entry.facts.device, |known| known.facts.device) {
            Ok(index) => self.devices[index] = entry,
            Err(index) => self.devices.insert(index, entry),
        }
    }

    fn tick(&mut self, now: Instant64, effects: &mut Vec<CoordinatorEffect>) {
        let lateness = self.last_tick.map_or(Duration::ZERO, |last| now.since(last).saturating_sub(self.limits.tick));
        self.last_tick = Some(now);
        for entry in &mut self.devices {
            let Some(pulse) = self.pulses.get_mut(&entry.facts.device) else { continue };
            // We were away, and what they said meanwhile may still be on its way to us.
            pulse.heard = now.min(pulse.heard + lateness);
            pulse.progressed = now.min(pulse.progressed + lateness);
            let is_silent = now.since(pulse.heard) >= self.limits.silence;
            let is_stuck = pulse.is_stuck(self.limits);
            if (is_silent || is_stuck) && entry.standing == Standing::Serving {
                entry.standing = Standing::Suspected;
                effects.push(CoordinatorEffect::Suspect(entry.facts.device));
            }
        }
    }
}

#[cfg(test)]
#[path = "core/tests.rs"]
mod tests;
