//! What must hold after each event, and what it means that everything has come to rest.

use std::fmt;
use std::time::Duration;

use relevo_actors::gateway::Phase;
use relevo_wire::Instant64;

use crate::device::{Device, Engine};
use crate::gateway::Gateway;
use crate::partings::LET_GO_WITHIN;
use crate::witness::BOUND;
use crate::world::{TICK, World};

/// How long after the last misfortune the last stream may end, and nothing be left of any.
const LIVENESS: Duration = Duration::from_secs(60);

/// A promise that a run has broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What the program is given to play it again.
    pub replay: String,
    /// In virtual time.
    pub at: Instant64,
    /// Which promise.
    pub promise: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replay, at, promise } = self;
        let at = at.0 as f64 / 1e6;
        write!(f, "{replay} at {at:.3} ms: {promise}\nreplay it with: cargo run -p relevo-simulations -- {replay}")
    }
}

impl std::error::Error for Failure {}

/// A promise, before it is known where it broke.
#[derive(Clone, Debug)]
pub(crate) struct Broken(pub(crate) String);

pub(crate) fn ensure(holds: bool, promise: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken(promise())) }
}

impl World {
    /// At each tick.
    pub(crate) fn check_in_time(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        self.check_membership()?;
        self.check_partings()?;
        for (index, device) in self.devices.iter().enumerate() {
            let engine = device.engine.as_ref().filter(|engine| engine.hangs_since.is_none());
            let engine = engine.filter(|_| self.nodes[device.node].is_awake(now));
            let Some(Engine { epoch, hung_until, .. }) = engine else { continue };
            if let Some(lease) = self.lease_book.overdue(index, *epoch, *hung_until, now) {
                return Err(Broken(format!("{} holds the blocks of {lease}, whose term is over", device.id)));
            }
            if now.since(*hung_until) > LET_GO_WITHIN
                && let Some(lease) = self.lease_book.orphan(index, *epoch, now, LET_GO_WITHIN + TICK)
            {
                return Err(Broken(format!("{} holds the blocks of {lease}, which nobody writes to", device.id)));
            }
        }
        ensure(now <= self.scenario.calm() + LIVENESS, || self.unrest())
    }

    /// Whether everything has come to rest, the members of the cluster known to each other.
    pub(crate) fn is_quiet(&self) -> bool {
        self.agenda.now() > self.scenario.calm() + BOUND
            && self.num_arrived == self.scenario.requests.len()
            && self.is_whole()
            && self.devices.iter().all(Device::is_quiet)
            && self.gateways.iter().enumerate().all(|(index, gateway)| self.is_idle(index, gateway))
            && self.lease_book.num_held() == 0
    }

    fn is_idle(&self, index: usize, gateway: &Gateway) -> bool {
        gateway.streams.values().all(|live| live.core.phase() == Phase::Over)
            && gateway.router.num_waiting() + gateway.router.num_in_flight() == 0
            && self.devices.iter().all(|device| self.witness.knows(index, device))
    }

    /// Every node is there and has a link to every other.
    fn is_whole(&self) -> bool {
        let all = 0..self.nodes.len();
        all.clone().all(|one| all.clone().all(|other| self.talk(one, other)))
    }

    /// What keeps it from rest.
    pub(crate) fn unrest(&self) -> String {
        let streams = self.gateways.iter().flat_map(|gateway| gateway.streams.values());
        let open = streams.filter(|live| live.core.phase() != Phase::Over);
        let open: Vec<_> = open.map(|live| (live.core.sequence(), live.core.phase(), live.placement)).collect();
        let devices = self.devices.iter().map(|device| {
            let engine = device.engine.as_ref().map(|engine| (engine.core.stats(), &engine.inbox, engine.hangs_since));
            let (prefills, leases) = (device.prefill.len(), device.decode.num_leases());
            let is_known = (0..self.gateways.len()).all(|gateway| self.witness.knows(gateway, device));
            format!("{} {engine:?}, {prefills} prefills, {leases} leases, in the maps: {is_known}", device.id)
        });
        let devices: Vec<_> = devices.collect();
        let routers = self.gateways.iter().map(|it| (it.router.num_waiting(), it.router.num_in_flight()));
        let (routers, is_whole) = (routers.collect::<Vec<_>>(), self.is_whole());
        format!("it does not come to rest: routers {routers:?}, all linked: {is_whole}, streams {open:?}, {devices:#?}")
    }
}
