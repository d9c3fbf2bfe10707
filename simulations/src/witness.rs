//! What is seen of the cluster's membership, and what must hold of it: kept apart from the cores that decide it.
//!
//! **Invariant** (held to account): the router sends new work only to what serves by the newest map that it has seen; a coordinator's maps
//! only grow, and so do the epochs in them; who is well and heard from is in the router's map within [`BOUND`] and stays there, whoever else dies;
//! who is not heard is not.

use std::collections::BTreeMap;
use std::time::Duration;

use relevo_actors::coordinator::{ClusterMap, CoordinatorEvent, MapEntry, Standing};
use relevo_actors::device::DeviceRole;
use relevo_actors::router::{RouterCore, RouterEffect, RouterEvent};
use relevo_wire::{DeviceId, Epoch, Instant64};

use crate::checks::{Broken, ensure};
use crate::device::Device;
use crate::world::World;

/// How long the router's map may be behind what devices say: a successor of the coordinator listens for 500 ms, a heartbeat comes every
/// 100 ms, a tick as well, and messages take their time.
pub(crate) const BOUND: Duration = Duration::from_millis(1000);

/// The longest gap between two heartbeats after which a device still counts as heard from: less than the silence that makes it suspected.
const HEARD: Duration = Duration::from_millis(350);

/// How long a map may be under way that knows less than the witness.
const UNDER_WAY: Duration = Duration::from_millis(200);

/// What is seen of the membership.
pub(crate) struct Witness {
    /// The newest map that this router has seen.
    router_map: ClusterMap,
    /// The last one that this coordinator has published.
    published: Option<ClusterMap>,
    /// The highest epoch of each device that this coordinator has published.
    epochs: BTreeMap<DeviceId, Epoch>,
    /// The last epoch of each device that this coordinator knows to be given up.
    departed: BTreeMap<DeviceId, Epoch>,
    /// When the router or the coordinator began anew, or will wake up.
    disturbed: Instant64,
    devices: BTreeMap<DeviceId, Seen>,
}

/// What is seen of a device.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// When it was last heard to serve, and in which epoch.
    heard: Option<(Epoch, Instant64)>,
    /// When it was last found unwell, or unheard of.
    unwell: Instant64,
    /// It was in the map, and nothing was wrong with it since.
    is_settled: bool,
}

impl Witness {
    pub(crate) fn new() -> Self {
        Self {
            router_map: ClusterMap::default(),
            published: None,
            epochs: BTreeMap::new(),
            departed: BTreeMap::new(),
            disturbed: Instant64(0),
            devices: BTreeMap::new(),
        }
    }

    pub(crate) fn router_hears(&mut self, event: &RouterEvent) {
        if let RouterEvent::Map(map) = event
            && (map.term, map.version) > (self.router_map.term, self.router_map.version)
        {
            self.router_map = map.clone();
        }
    }

    /// The router acts by the newest map that it has seen.
    pub(crate) fn compare(&self, router: &RouterCore) -> Result<(), Broken> {
        let newest = (self.router_map.term, self.router_map.version);
        ensure(router.map() == newest, || format!("the router goes by {:?}, it has seen {newest:?}", router.map()))
    }

    pub(crate) fn router_died(&mut self, now: Instant64) {
        self.router_map = ClusterMap::default();
        self.disturbed = self.disturbed.max(now);
    }

    pub(crate) fn coordinator_hears(&mut self, event: &CoordinatorEvent, now: Instant64) {
        match event {
            CoordinatorEvent::Heartbeat(heartbeat) if heartbeat.serving => {
                let seen = self.devices.entry(heartbeat.facts.device).or_default();
                seen.heard = Some((heartbeat.facts.epoch, now));
            }
            CoordinatorEvent::Left { device, epoch } => {
                let last = self.departed.entry(*device).or_insert(*epoch);
                *last = (*epoch).max(*last);
            }
            CoordinatorEvent::Heartbeat(_)
            | CoordinatorEvent::Node(_)
            | CoordinatorEvent::Order(_)
            | CoordinatorEvent::Tick => {}
        }
    }

    /// The coordinator begins anew, or sleeps until then.
    pub(crate) fn coordinator_died(&mut self, at: Instant64) {
        (self.published, self.disturbed) = (None, self.disturbed.max(at));
        self.epochs.clear();
        self.departed.clear();
    }

    /// A coordinator goes to sleep, and knows what it knew when it wakes up.
    pub(crate) fn coordinator_sleeps(&mut self, until: Instant64) {
        self.disturbed = self.disturbed.max(until);
    }

    /// A coordinator publishes a map.
    pub(crate) fn published(&mut self, map: &ClusterMap) -> Result<(), Broken> {
        if let Some(before) = &self.published {
            let grows = (map.term, map.version) > (before.term, before.version);
            let name = |map: &ClusterMap| format!("{} of term {}", map.version, map.term);
            ensure(grows, || format!("{} was published after {}", name(map), name(before)))?;
        }
        for MapEntry { facts, .. } in &map.devices {
            let (device, epoch) = (facts.device, facts.epoch);
            let highest = self.epochs.entry(device).or_insert(epoch);
            ensure(epoch >= *highest, || format!("{device} is in the map with {epoch} after {highest}"))?;
            *highest = epoch;
            let departed = self.departed.get(&device).is_some_and(|last| epoch <= *last);
            ensure(!departed, || format!("{device} is in the map with {epoch}, which it left with"))?;
        }
        self.published = Some(map.clone());
        Ok(())
    }

    /// Whether new work may go there.
    fn serves(&self, device: DeviceId) -> Option<&MapEntry> {
        let entry = self.router_map.devices.iter().find(|entry| entry.facts.device == device)?;
        (entry.standing == Standing::Serving).then_some(entry)
    }

    /// Whether new work may go to a device in its present epoch.
    pub(crate) fn knows(&self, device: &Device) -> bool {
        self.serves(device.id).is_some_and(|entry| entry.facts.epoch == device.epoch)
    }

    fn may_play(&self, device: DeviceId, role: DeviceRole) -> Result<(), Broken> {
        let may = self.serves(device).is_some_and(|entry| entry.facts.roles.contains(&role));
        ensure(may, || format!("the router uses {device} for {role:?}, by {}", crate::account::map(&self.router_map)))
    }

    /// A device, at a tick.
    fn look_at(&mut self, device: &Device, now: Instant64) -> Result<(), Broken> {
        let (disturbed, entry) = (self.disturbed, self.serves(device.id).map(|entry| entry.facts.epoch));
        let seen = self.devices.entry(device.id).or_default();
        let is_heard = seen.heard.is_some_and(|(epoch, at)| epoch == device.epoch && now.since(at) <= HEARD);
        if !is_heard || !device.is_well() {
            (seen.unwell, seen.is_settled) = (now, false);
        }
        let (id, epoch, unwell) = (device.id, device.epoch, seen.unwell);
        seen.is_settled |= entry == Some(epoch) && now.since(unwell) > UNDER_WAY;
        if seen.is_settled || now.since(unwell.max(disturbed)) > BOUND {
            ensure(entry == Some(epoch), || {
                format!(
                    "{id} has been well and heard from since {unwell:?}, the router has {entry:?} of it, not {epoch}"
                )
            })?;
        }
        let last_word = seen.heard.map_or(Instant64(0), |(_, at)| at);
        if now.since(last_word.max(disturbed)) > BOUND {
            ensure(entry.is_none(), || format!("{id} has been silent since {last_word:?}, and the router trusts it"))?;
        }
        Ok(())
    }
}

impl World {
    /// What the router does, by the map that it has seen.
    pub(crate) fn check_routes(&self, effects: &[RouterEffect]) -> Result<(), Broken> {
        for effect in effects {
            match effect {
                RouterEffect::Dispatch { route, .. } => {
                    self.witness.may_play(route.prefill, DeviceRole::Prefill)?;
                    self.witness.may_play(route.decode, DeviceRole::Decode)?;
                }
                RouterEffect::Redirect { decode, .. } => self.witness.may_play(*decode, DeviceRole::Decode)?,
                RouterEffect::Reject { .. } | RouterEffect::ResyncPrefixes { .. } => {}
            }
        }
        Ok(())
    }

    /// At each tick: who is in the map, and who is not.
    pub(crate) fn check_membership(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        self.devices.iter().try_for_each(|device| self.witness.look_at(device, now))
    }
}
