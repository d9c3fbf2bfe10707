//! What is seen of the cluster's membership, and what must hold of it: kept apart from the cores that decide it.
//!
//! **Invariant** (held to account): a router sends new work only to what serves by the newest map that it has seen and can be reached, in a
//! role that it plays, or is able to play when nobody does; a coordinator's maps only grow, and so do the epochs in them; who is well, heard
//! from and not draining is in the routers' maps within [`BOUND`] and stays there, whoever else dies; who is not is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use relevo_actors::coordinator::{ClusterMap, CoordinatorEvent, MapEntry, Standing};
use relevo_actors::device::DeviceRole;
use relevo_actors::router::{RouterCore, RouterEffect, RouterEvent};
use relevo_wire::{DeviceId, Epoch, Instant64, NodeId};

use crate::checks::{Broken, ensure};
use crate::device::Device;
use crate::world::World;

/// How long a router's map may be behind what devices say: a successor of the coordinator listens for 500 ms, a heartbeat comes every
/// 100 ms, a tick as well, and messages take their time.
pub(crate) const BOUND: Duration = Duration::from_millis(1000);

/// The longest gap between two heartbeats after which a device still counts as heard from: less than the silence that makes it suspected.
const HEARD: Duration = Duration::from_millis(350);

/// How long a map may be under way that knows less than the witness.
const UNDER_WAY: Duration = Duration::from_millis(300);

/// What is seen of the membership.
pub(crate) struct Witness {
    /// The last map that this coordinator has published.
    published: Option<ClusterMap>,
    /// The highest epoch of each device that this coordinator has published.
    epochs: BTreeMap<DeviceId, Epoch>,
    /// The last epoch of each device that this coordinator knows to be given up.
    departed: BTreeMap<DeviceId, Epoch>,
    /// When the coordinator began anew, or will wake up.
    disturbed: Instant64,
    /// When each device was last heard to serve, and in which epoch.
    heard: BTreeMap<DeviceId, (Epoch, Instant64)>,
    /// Whether each device said last that it drains, be it by a heartbeat that came late, and since when it says so.
    draining: BTreeMap<DeviceId, (bool, Instant64)>,
    routers: Vec<RouterSeen>,
}

/// What is seen of a router.
#[derive(Default)]
struct RouterSeen {
    /// The newest map that it has seen.
    map: ClusterMap,
    /// The nodes that it was told it can reach.
    reachable: BTreeSet<NodeId>,
    /// When it began anew, or last had no way to the coordinator.
    disturbed: Instant64,
    devices: BTreeMap<DeviceId, Seen>,
}

/// What a router ought to know of a device.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// When it was last found unwell, unheard of or draining.
    unwell: Instant64,
    /// When it was last found well, heard of and not draining.
    well: Instant64,
    /// It was in the map, and nothing was wrong with it since.
    is_settled: bool,
}

impl Witness {
    pub(crate) fn new(num_routers: usize) -> Self {
        Self {
            published: None,
            epochs: BTreeMap::new(),
            departed: BTreeMap::new(),
            disturbed: Instant64(0),
            heard: BTreeMap::new(),
            draining: BTreeMap::new(),
            routers: (0..num_routers).map(|_| RouterSeen::default()).collect(),
        }
    }

    pub(crate) fn router_hears(&mut self, router: usize, event: &RouterEvent) {
        let router = &mut self.routers[router];
        match event {
            RouterEvent::Map(map) if (map.term, map.version) > (router.map.term, router.map.version) => {
                router.map = map.clone();
            }
            RouterEvent::Reachable(nodes) => router.reachable.clone_from(nodes),
            _ => {}
        }
    }

    /// The router acts by the newest map that it has seen.
    pub(crate) fn compare(&self, index: usize, router: &RouterCore) -> Result<(), Broken> {
        let seen = &self.routers[index].map;
        let newest = (seen.term, seen.version);
        ensure(router.map() == newest, || format!("router-{index} goes by {:?}, it has seen {newest:?}", router.map()))
    }

    pub(crate) fn router_died(&mut self, router: usize, now: Instant64) {
        let router = &mut self.routers[router];
        (router.map, router.disturbed) = (ClusterMap::default(), now);
    }

    /// Its process died with it.
    pub(crate) fn gateway_died(&mut self, router: usize, now: Instant64) {
        self.routers[router] = RouterSeen { disturbed: now, ..RouterSeen::default() };
    }

    pub(crate) fn coordinator_hears(&mut self, event: &CoordinatorEvent, now: Instant64) {
        match event {
            CoordinatorEvent::Heartbeat(heartbeat) if heartbeat.serving => {
                self.heard.insert(heartbeat.facts.device, (heartbeat.facts.epoch, now));
                let said = self.draining.entry(heartbeat.facts.device).or_insert((false, now));
                if said.0 != heartbeat.draining {
                    *said = (heartbeat.draining, now);
                }
            }
            CoordinatorEvent::Left { device, epoch } => {
                let last = self.departed.entry(*device).or_insert(*epoch);
                *last = (*epoch).max(*last);
            }
            CoordinatorEvent::Heartbeat(_)
            | CoordinatorEvent::MapSeen(_)
            | CoordinatorEvent::Node(_)
            | CoordinatorEvent::Order(_)
            | CoordinatorEvent::Tick => {}
        }
    }

    /// The coordinator begins anew.
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

    /// Whether the router has a device as it is in its present epoch: as one that serves, or as one that drains.
    pub(crate) fn knows(&self, router: usize, device: &Device) -> bool {
        let entry = self.routers[router].map.devices.iter().find(|entry| entry.facts.device == device.id);
        let standing = if device.is_draining { Standing::Draining } else { Standing::Serving };
        entry.is_some_and(|entry| {
            entry.facts.epoch == device.epoch && entry.standing == standing && entry.facts.roles == device.roles
        })
    }

    /// A device, at a tick.
    fn look_at(&mut self, index: usize, device: &Device, is_awake: bool, now: Instant64) -> Result<(), Broken> {
        let heard = self.heard.get(&device.id).copied();
        let router = &mut self.routers[index];
        let disturbed = self.disturbed.max(router.disturbed);
        let entry = router.serves(device.id).map(|entry| entry.facts.epoch);
        let seen = router.devices.entry(device.id).or_default();
        let is_heard = heard.is_some_and(|(epoch, at)| epoch == device.epoch && now.since(at) <= HEARD);
        // What it said before is repeated for a while, but shows no progress.
        let is_silent = now < device.silent_until;
        let (says_draining, says_since) = self.draining.get(&device.id).copied().unwrap_or_default();
        let is_overtaken = says_draining || now.since(says_since) <= UNDER_WAY;
        if !is_awake || is_silent || !is_heard || !device.is_well() || device.is_draining || is_overtaken {
            (seen.unwell, seen.is_settled) = (now, false);
        } else {
            seen.well = now;
        }
        let (id, epoch, unwell) = (device.id, device.epoch, seen.unwell);
        seen.is_settled |= entry == Some(epoch) && now.since(unwell) > UNDER_WAY;
        if seen.is_settled || now.since(unwell.max(disturbed)) > BOUND {
            ensure(entry == Some(epoch), || {
                format!(
                    "{id} has been well and heard from since {unwell:?}, router-{index} has {entry:?} of it, not {epoch}"
                )
            })?;
        }
        let last_word = heard.map_or(Instant64(0), |(_, at)| at);
        if now.since(last_word.max(disturbed)) > BOUND {
            ensure(entry.is_none(), || {
                format!("{id} has been silent since {last_word:?}, and router-{index} trusts it")
            })?;
        }
        let drains = device.is_draining && says_draining && is_heard;
        if drains && now.since(seen.well.max(says_since).max(disturbed)) > BOUND {
            ensure(entry.is_none(), || format!("{id} has been draining, and router-{index} sends work there"))?;
        }
        Ok(())
    }
}

impl RouterSeen {
    /// Whether new work may go there, as far as the map says.
    fn serves(&self, device: DeviceId) -> Option<&MapEntry> {
        self.serving().find(|entry| entry.facts.device == device)
    }

    fn serving(&self) -> impl Iterator<Item = &MapEntry> {
        self.map.devices.iter().filter(|entry| entry.standing == Standing::Serving)
    }

    fn may_play(&self, device: DeviceId, role: DeviceRole) -> Result<(), Broken> {
        let there = || self.serving().filter(|entry| self.reachable.contains(&entry.facts.device.node()));
        let is_played = there().any(|entry| entry.facts.roles.contains(&role));
        let may = there()
            .find(|entry| entry.facts.device == device)
            .is_some_and(|entry| entry.facts.roles.contains(&role) || !is_played && entry.facts.able.contains(&role));
        ensure(may, || {
            let (map, reachable) = (crate::account::map(&self.map), &self.reachable);
            format!("a router uses {device} for {role:?}, by {map}, and reaches {reachable:?}")
        })
    }
}

impl World {
    /// What a router does, by the map that it has seen.
    pub(crate) fn check_routes(&self, gateway: usize, effects: &[RouterEffect]) -> Result<(), Broken> {
        let seen = &self.witness.routers[gateway];
        for effect in effects {
            match effect {
                RouterEffect::Dispatch { route, .. } => {
                    seen.may_play(route.prefill, DeviceRole::Prefill)?;
                    seen.may_play(route.decode, DeviceRole::Decode)?;
                    self.is_there(gateway, route.prefill)?;
                    self.is_there(gateway, route.decode)?;
                }
                RouterEffect::Redirect { decode, .. } => {
                    seen.may_play(*decode, DeviceRole::Decode)?;
                    self.is_there(gateway, *decode)?;
                }
                RouterEffect::Misplaced { .. }
                | RouterEffect::Slow { .. }
                | RouterEffect::Reject { .. }
                | RouterEffect::NodeLost { .. }
                | RouterEffect::ResyncPrefixes { .. } => {}
            }
        }
        Ok(())
    }

    fn is_there(&self, gateway: usize, device: DeviceId) -> Result<(), Broken> {
        let (node, peer) = (self.gateways[gateway].node, self.devices[self.index_of(device)].node);
        ensure(!self.knows_it_is_lost(node, peer), || {
            format!("new work goes from node-{node} to {device}, which it has no link to")
        })
    }

    /// At each tick: who is in the maps, and who is not.
    pub(crate) fn check_membership(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        let coordinator = self.coordinator.node;
        if !self.nodes[coordinator].is_awake(now) {
            self.witness.disturbed = self.witness.disturbed.max(now);
        }
        for gateway in 0..self.gateways.len() {
            let node = self.gateways[gateway].node;
            if !self.talk(node, coordinator) {
                self.witness.routers[gateway].disturbed = now;
            }
            if !self.nodes[node].is_awake(now) {
                continue;
            }
            for device in &self.devices {
                let is_awake = self.nodes[device.node].is_awake(now);
                self.witness.look_at(gateway, device, is_awake, now)?;
            }
        }
        Ok(())
    }
}
