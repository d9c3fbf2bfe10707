//! Which devices decode far more slowly than their peers, by the pauses between the tokens that come of them: one that is throttled, shares its cores
//! with something else, or hangs by a bad link, and yet beats as any.
//!
//! Suspicion costs a re-prefill and never correctness. A pause that has a reason here is not held against a device: more sequences than its peers
//! have, or prompts that are prefilled beside its decode rows.

use std::collections::BTreeMap;
use std::time::Duration;

use relevo_wire::{DeviceId, Epoch, Instant64};

/// How many times as long as its peers' a device's pauses are, unless told otherwise, when its streams go elsewhere.
pub const SLOW_FACTOR: u32 = 3;

/// Pauses, and time, that a mean is taken over.
const STRETCH_GAPS: u32 = 8;
const STRETCH: Duration = Duration::from_millis(300);

/// Stretches in a row that were too slow, before a device is.
const SLOW_STRETCHES: u32 = 3;

/// What a reader does not notice: pauses that are longer by less are no reason for anything.
const UNNOTICED: Duration = Duration::from_millis(5);

/// How long a device that was found slow is avoided. It doubles each time it is found so again.
const PROBATION: Duration = Duration::from_secs(10);
const MOST_DOUBLINGS: u32 = 5;

/// Pauses between tokens, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// How many.
    pub count: u32,
    /// Their sum.
    pub total: Duration,
}

impl Gaps {
    /// With these, too.
    pub fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.total = self.total.saturating_add(other.total);
    }

    fn mean(self) -> Duration {
        self.total.checked_div(self.count).unwrap_or_default()
    }
}

/// What a device had to do while its pauses were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// Sequences there.
    pub(crate) num_running: usize,
    /// It prefills more than rides along with decode rows.
    pub(crate) is_prefilling: bool,
}

/// A device that was found slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoundSlow {
    /// A pause between two of its tokens.
    pub(crate) gap: Duration,
    /// What it would be, were the device like its peers.
    pub(crate) peers: Duration,
}

/// The pace of each device.
#[derive(Clone, Debug)]
pub(crate) struct Paces {
    factor: u32,
    devices: BTreeMap<DeviceId, Pace>,
}

#[derive(Clone, Debug)]
struct Pace {
    epoch: Epoch,
    /// Since when, and what has come since.
    stretch: (Instant64, Gaps),
    /// The mean of the last stretch, and how many sequences it was of.
    latest: Option<(Duration, usize)>,
    /// What comes next may have waited for a prompt.
    waited: bool,
    num_slow_stretches: u32,
    slow_until: Option<Instant64>,
    times_slow: u32,
}

impl Pace {
    const fn new(epoch: Epoch, now: Instant64) -> Self {
        Self {
            epoch,
            stretch: (now, Gaps { count: 0, total: Duration::ZERO }),
            latest: None,
            waited: false,
            num_slow_stretches: 0,
            slow_until: None,
            times_slow: 0,
        }
    }

    fn begin_stretch(&mut self, now: Instant64) {
        self.stretch = (now, Gaps::default());
    }

    /// The mean of a stretch that is over.
    fn end_stretch(&mut self, work: Work, now: Instant64) -> Option<Duration> {
        let (since, gaps) = self.stretch;
        if gaps.count < STRETCH_GAPS || now.since(since) < STRETCH {
            return None;
        }
        self.begin_stretch(now);
        self.latest = Some((gaps.mean(), work.num_running.max(1)));
        Some(gaps.mean())
    }
}

impl Paces {
    /// No device counts as slow where `factor` is 0.
    pub(crate) const fn new(factor: u32) -> Self {
        Self { factor, devices: BTreeMap::new() }
    }

    /// The devices are these, with these epochs: an engine that was begun anew begins anew here, too.
    pub(crate) fn retain(&mut self, is_current: impl Fn(DeviceId, Epoch) -> bool) {
        self.devices.retain(|&device, pace| is_current(device, pace.epoch));
    }

    /// Whether it is avoided.
    pub(crate) fn is_slow(&self, device: DeviceId) -> bool {
        self.devices.get(&device).is_some_and(|pace| pace.slow_until.is_some())
    }

    /// Pauses between tokens of a device. It answers when the device is found slow by them, once.
    pub(crate) fn seen(
        &mut self,
        (device, epoch): (DeviceId, Epoch),
        gaps: Gaps,
        work: Work,
        now: Instant64,
    ) -> Option<FoundSlow> {
        if self.factor == 0 {
            return None;
        }
        let pace = self.devices.entry(device).or_insert_with(|| Pace::new(epoch, now));
        if std::mem::replace(&mut pace.waited, work.is_prefilling) || work.is_prefilling {
            pace.begin_stretch(now);
            return None;
        }
        pace.stretch.1.add(gaps);
        let gap = pace.end_stretch(work, now)?;
        let peers = self.expected_of(device, work)?;
        let is_slow = gap >= peers.saturating_mul(self.factor) && gap >= peers + UNNOTICED;
        let pace = self.devices.get_mut(&device)?;
        pace.num_slow_stretches = if is_slow { pace.num_slow_stretches + 1 } else { 0 };
        if !is_slow && pace.slow_until.is_none() {
            pace.times_slow = 0;
        }
        if pace.num_slow_stretches < SLOW_STRETCHES || pace.slow_until.is_some() {
            return None;
        }
        pace.slow_until = Some(now + PROBATION * (1 << pace.times_slow.min(MOST_DOUBLINGS)));
        pace.times_slow += 1;
        Some(FoundSlow { gap, peers })
    }

    /// Time went by: who was avoided for long enough is tried again.
    pub(crate) fn tick(&mut self, now: Instant64) {
        for pace in self.devices.values_mut().filter(|pace| pace.slow_until.is_some_and(|until| now >= until)) {
            pace.slow_until = None;
            pace.num_slow_stretches = 0;
            pace.begin_stretch(now);
        }
    }

    /// A pause of its peers, the lower median of those who are not slow themselves, were they as busy as it is.
    fn expected_of(&self, device: DeviceId, work: Work) -> Option<Duration> {
        let peers = self.devices.iter().filter(|(other, pace)| **other != device && pace.slow_until.is_none());
        let mut expected: Vec<Duration> = peers
            .filter_map(|(_, pace)| pace.latest)
            .map(|(gap, num_running)| {
                let share = u32::try_from(work.num_running.div_ceil(num_running)).unwrap_or(u32::MAX);
                gap.saturating_mul(share.max(1))
            })
            .collect();
        expected.sort_unstable();
        expected.get(expected.len().checked_sub(1)? / 2).copied()
    }
}

#[cfg(test)]
#[path = "pace/tests.rs"]
mod tests;
