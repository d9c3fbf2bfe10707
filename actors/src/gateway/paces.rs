//! The pauses between tokens, by the devices that they come from: gathered as tokens come, taken by the router at its ticks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use relevo_wire::DeviceId;

use crate::policy::pace::Gaps;

/// What has been seen since it was last taken.
#[derive(Default)]
pub(super) struct PaceBook(Mutex<BTreeMap<DeviceId, Gaps>>);

impl PaceBook {
    /// Enters what a batch of tokens shows. Once a batch, so that the lock is taken once a step of a device.
    pub(super) fn enter(&self, batch: BatchPaces) {
        if let BatchPaces(Some((device, gaps))) = batch {
            self.book().entry(device).or_default().add(gaps);
        }
    }

    pub(super) fn take(&self) -> Vec<(DeviceId, Gaps)> {
        std::mem::take(&mut *self.book()).into_iter().collect()
    }

    fn book(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Gaps>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same of one batch, whose tokens are nearly always of one device.
#[derive(Default)]
pub(super) struct BatchPaces(Option<(DeviceId, Gaps)>);

impl BatchPaces {
    /// Adds to it; what was of another device is entered into the book.
    pub(super) fn add(&mut self, device: DeviceId, gaps: Gaps, book: &PaceBook) {
        match &mut self.0 {
            Some((of, sum)) if *of == device => sum.add(gaps),
            other => book.enter(Self(other.replace((device, gaps)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gaps(count: u32) -> Gaps {
        Gaps { count, total: Duration::from_millis(10) * count }
    }

    #[test]
    fn what_was_entered_is_taken_once_whichever_devices_share_a_batch() {
        let (book, one, other) = (PaceBook::default(), DeviceId(1), DeviceId(2));
        for devices in [[one, one, other], [other, one, other]] {
            let mut batch = BatchPaces::default();
            devices.into_iter().for_each(|device| batch.add(device, gaps(1), &book));
            book.enter(batch);
        }
        assert_eq!(book.take(), [(one, gaps(3)), (other, gaps(3))]);
        assert_eq!(book.take(), []);
    }
}
