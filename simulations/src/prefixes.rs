//! News of the devices' prefix caches on their way to the routers, some of which are lost, doubled or overtaken by later ones.
//!
//! **Invariant** (held to account at the end): whatever was lost on the way, every router knows the blocks that a device holds, and no others.

use std::collections::BTreeSet;
use std::time::Duration;

use relevo_actors::device::DeviceCommand;
use relevo_actors::policy::prefix_news::PrefixBatch;
use relevo_actors::router::RouterEvent;
use relevo_wire::{DeviceId, Epoch, ToGateway};

use crate::agenda::Place;
use crate::checks::{Broken, ensure};
use crate::post::Errand;
use crate::world::{Happening, World};

/// By how much late news are late at most, in milliseconds: longer than it takes to say the next.
const LATENESS: u64 = 300;

impl World {
    /// An engine says something of its prefix cache, to every router.
    pub(crate) fn tell_prefixes(&mut self, device: usize, epoch: Epoch, batch: &PrefixBatch) {
        for gateway in 0..self.gateways.len() {
            self.tell_prefixes_to(gateway, device, epoch, batch.clone());
        }
    }

    fn tell_prefixes_to(&mut self, gateway: usize, device: usize, epoch: Epoch, batch: PrefixBatch) {
        let (id, from, to) = (self.devices[device].id, Place::Engine(device), Place::Gateway(gateway));
        if self.is_unlucky(self.scenario.losses.lost_news) {
            self.tally.lost_news += 1;
            return self.note(|| format!("news of the prefixes of {id} are lost"));
        }
        if self.node_of(from) != self.node_of(to) {
            let word = ToGateway::PrefixChanged(id, epoch, batch);
            if self.is_unlucky(self.scenario.losses.doubled_news) {
                let _ = self.run_errand(from, to, Errand::Gateway(word.clone()));
            }
            let _ = self.run_errand(from, to, Errand::Gateway(word));
            return;
        }
        let event = RouterEvent::PrefixChanged { device: id, epoch, batch };
        if self.is_unlucky(self.scenario.losses.doubled_news) {
            self.send_to_router(gateway, from, event.clone());
        }
        if self.is_unlucky(self.scenario.losses.late_news) {
            // Later ones may overtake it.
            let lateness = self.delay() + Duration::from_millis(self.random.between(0, LATENESS));
            let life = self.gateways[gateway].router_life;
            return self.later(self.node_of(to), lateness, Happening::Router { gateway, life, event });
        }
        self.send_to_router(gateway, from, event);
    }

    /// A router wants to know everything that a device holds.
    pub(crate) fn ask_for_prefixes(&mut self, gateway: usize, device: DeviceId) {
        self.tally.resyncs += 1;
        self.note(|| format!("router-{gateway} asks {device} for all its prefixes"));
        if self.is_unlucky(self.scenario.losses.lost_news) {
            return;
        }
        let (index, from) = (self.index_of(device), Place::Router(gateway));
        // If nobody is there, it will ask again.
        let _ = if self.node_of(from) == self.devices[index].node {
            self.order(index, DeviceCommand::TellPrefixes)
        } else {
            self.run_errand(from, Place::Supervisor(index), Errand::TellPrefixes(index))
        };
    }

    /// All news have arrived: every router knows the blocks that each device holds, and no others.
    pub(crate) fn check_prefixes(&self) -> Result<(), Broken> {
        let routers = self.gateways.iter().map(|gateway| &gateway.router);
        for (router, device) in routers.flat_map(|router| self.devices.iter().map(move |device| (router, device))) {
            let Some((hints, engine)) = router.hints(device.id).zip(device.engine.as_ref()) else { continue };
            ensure(hints.is_current(), || format!("a router does not know what {} holds", device.id))?;
            let held: BTreeSet<_> = engine.core.prefixes().collect();
            let num_right = held.iter().filter(|key| hints.holds(**key)).count();
            let believed = hints.num_held();
            ensure(num_right == believed && believed == held.len(), || {
                let (id, num_held) = (device.id, held.len());
                format!(
                    "a router believes that {id} holds {believed} blocks, and is right in {num_right} of {num_held}"
                )
            })?;
        }
        Ok(())
    }

    /// Blocks of prefixes that routers know of.
    pub(crate) fn num_hints(&self) -> u64 {
        let pairs = self.gateways.iter().flat_map(|gateway| self.devices.iter().map(move |device| (gateway, device)));
        let hints = pairs.filter_map(|(gateway, device)| gateway.router.hints(device.id));
        hints.map(|hints| hints.num_held() as u64).sum()
    }
}
