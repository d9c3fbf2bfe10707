//! What the devices of this process said last of themselves, for the heartbeats to other nodes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use relevo_wire::{DeviceId, Heartbeat, Instant64};

/// What a supervisor said longer ago than this is not repeated for it: it may have died.
const FRESH: Duration = Duration::from_millis(300);

/// The latest heartbeat of each device, and when it came.
#[derive(Debug, Default)]
pub(crate) struct Pulse(Mutex<BTreeMap<DeviceId, (Instant64, Heartbeat)>>);

impl Pulse {
    /// A device speaks.
    pub(crate) fn note(&self, heartbeat: Heartbeat, now: Instant64) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        latest.insert(heartbeat.facts.device, (now, heartbeat));
    }

    /// Those that have spoken lately.
    pub(crate) fn recent(&self, now: Instant64) -> Vec<Heartbeat> {
        let latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |(at, _): &&(Instant64, Heartbeat)| now.since(*at) < FRESH;
        latest.values().filter(is_fresh).map(|(_, heartbeat)| heartbeat.clone()).collect()
    }
}
