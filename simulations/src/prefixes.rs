//! News of the devices' prefix caches on their way to the router, some of which are lost, doubled or overtaken by later ones.
//!
//! **Invariant** (held to account at the end): whatever was lost on the way, the router knows the blocks that a device holds, and no others.

use std::collections::BTreeSet;
use std::time::Duration;

use relevo_actors::device::DeviceCommand;
use relevo_actors::policy::prefix_news::PrefixBatch;
use relevo_actors::router::RouterEvent;
use relevo_wire::{DeviceId, Epoch};

use crate::agenda::Place;
use crate::checks::{Broken, ensure};
use crate::world::{Happening, World};

/// By how much late news are late at most, in milliseconds: longer than it takes to say the next.
const LATENESS: u64 = 300;

impl World {
    /// An engine says something of its prefix cache.
    pub(crate) fn tell_prefixes(&mut self, device: usize, epoch: Epoch, batch: PrefixBatch) {
        let id = self.devices[device].id;
        let event = RouterEvent::PrefixChanged { device: id, epoch, batch };
        if self.is_unlucky(self.scenario.lost_news) {
            self.tally.lost_news += 1;
            return self.note(|| format!("news of the prefixes of {id} are lost"));
        }
        if self.is_unlucky(self.scenario.doubled_news) {
            self.send_to_router(Place::Engine(device), event.clone());
        }
        if self.is_unlucky(self.scenario.late_news) {
            // Later ones may overtake it.
            let lateness = self.delay() + Duration::from_millis(self.random.between(0, LATENESS));
            let life = self.router_life;
            return self.agenda.after(lateness, Happening::Router { life, event });
        }
        self.send_to_router(Place::Engine(device), event);
    }

    /// The router wants to know everything that a device holds.
    pub(crate) fn ask_for_prefixes(&mut self, device: DeviceId) {
        self.tally.resyncs += 1;
        self.note(|| format!("the router asks {device} for all its prefixes"));
        if !self.is_unlucky(self.scenario.lost_news) {
            // If nobody is there, it will ask again.
            let _ = self.order(device.0 as usize, DeviceCommand::TellPrefixes);
        }
    }

    /// All news have arrived: the router knows the blocks that each device holds, and no others.
    pub(crate) fn check_prefixes(&self) -> Result<(), Broken> {
        for device in &self.devices {
            let Some((hints, engine)) = self.router.hints(device.id).zip(device.engine.as_ref()) else { continue };
            ensure(hints.is_current(), || format!("the router does not know what {} holds", device.id))?;
            let held: BTreeSet<_> = engine.core.prefixes().collect();
            let num_right = held.iter().filter(|key| hints.holds(**key)).count();
            let believed = hints.num_held();
            ensure(num_right == believed && believed == held.len(), || {
                let (id, num_held) = (device.id, held.len());
                format!(
                    "the router believes that {id} holds {believed} blocks, and is right in {num_right} of {num_held}"
                )
            })?;
        }
        Ok(())
    }

    /// Blocks of prefixes that the router knows of.
    pub(crate) fn num_hints(&self) -> u64 {
        let hints = self.devices.iter().filter_map(|device| self.router.hints(device.id));
        hints.map(|hints| hints.num_held() as u64).sum()
    }
}
