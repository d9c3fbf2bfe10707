//! What must hold after each event, and what it means that everything has come to rest.

use std::fmt;
use std::time::Duration;

use relevo_actors::gateway::Phase;
use relevo_wire::Instant64;

use crate::device::Engine;
use crate::witness::BOUND;
use crate::world::World;

/// How long after the last misfortune the last stream may end, and nothing be left of any.
const LIVENESS: Duration = Duration::from_secs(60);

/// A promise that a run has broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Of the scenario.
    pub seed: u64,
    /// In virtual time.
    pub at: Instant64,
    /// Which promise.
    pub promise: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, at, promise } = self;
        let at = at.0 as f64 / 1e6;
        write!(f, "seed {seed} at {at:.3} ms: {promise}\nreplay it with: cargo run -p relevo-simulations -- {seed}")
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
    /// After each event.
    pub(crate) fn check(&self) -> Result<(), Broken> {
        let engines = self.devices.iter().filter_map(|device| Some((device.id, device.engine.as_ref()?)));
        for (id, engine) in engines {
            engine.core.audit().map_err(|error| Broken(format!("{id}: {error}")))?;
        }
        Ok(())
    }

    /// At each tick.
    pub(crate) fn check_in_time(&mut self) -> Result<(), Broken> {
        let now = self.agenda.now();
        self.check_membership()?;
        for (index, device) in self.devices.iter().enumerate() {
            let engine = device.engine.as_ref().filter(|engine| engine.hangs_since.is_none());
            let Some(Engine { epoch, hung_until, .. }) = engine else { continue };
            if let Some(lease) = self.lease_book.overdue(index, *epoch, *hung_until, now) {
                return Err(Broken(format!("{} holds the blocks of {lease}, whose term is over", device.id)));
            }
        }
        ensure(now <= self.scenario.calm() + LIVENESS, || self.unrest())
    }

    /// Whether everything has come to rest, the members of the cluster known to each other.
    pub(crate) fn is_quiet(&self) -> bool {
        self.agenda.now() > self.scenario.calm() + BOUND
            && self.num_arrived == self.scenario.requests.len()
            && self.streams.values().all(|live| live.core.phase() == Phase::Over)
            && self.devices.iter().all(|device| device.is_quiet() && self.witness.knows(device))
            && self.router.num_waiting() + self.router.num_in_flight() + self.lease_book.num_held() == 0
    }

    /// What keeps it from rest.
    pub(crate) fn unrest(&self) -> String {
        let open = self.streams.values().filter(|live| live.core.phase() != Phase::Over);
        let open: Vec<_> = open.map(|live| (live.core.sequence(), live.core.phase(), live.placement)).collect();
        let devices = self.devices.iter().map(|device| {
            let engine = device.engine.as_ref().map(|engine| (engine.core.stats(), &engine.inbox, engine.hangs_since));
            let (prefills, leases, is_known) =
                (device.prefill.len(), device.decode.num_leases(), self.witness.knows(device));
            format!("{} {engine:?}, {prefills} prefills, {leases} leases, in the map: {is_known}", device.id)
        });
        let devices: Vec<_> = devices.collect();
        let router = (self.router.num_waiting(), self.router.num_in_flight());
        format!("it does not come to rest: router {router:?}, streams {open:?}, {devices:#?}")
    }
}
