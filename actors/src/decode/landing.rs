//! The table of open leases that receivers of blocks look into: it checks a frame against its lease and writes the blocks to their place.
//!
//! It is shared between the receivers' tasks and the DecodeActor and outlives the latter, so that a restarted one can see to it that nobody
//! writes any more before the blocks of its predecessor are freed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use dashmap::DashMap;
use relevo_gpu::model::KvMemory;
use relevo_transport::{FrameSink, Refusal};
use relevo_wire::{ArchivedKvBlocksHeader, Instant64, LayerIndex, LeaseId, SequenceId};

use crate::clock;
use crate::device::GrantedLease;
use crate::policy::leases::{Arrivals, Left, NotAllowed};

/// The open leases of one device.
#[derive(Default)]
pub struct LandingStrip {
    leases: DashMap<LeaseId, Arc<Landing>>,
    last_lease: AtomicU64,
}

/// One open lease.
struct Landing {
    sequence: SequenceId,
    granted: GrantedLease,
    kv: Arc<dyn KvMemory>,
    arrivals: Mutex<Arrivals>,
    notify: Box<dyn Fn(LandingEvent) + Send + Sync>,
}

/// What happens to a lease here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LandingEvent {
    /// Every layer of every block is in.
    Complete(LeaseId),
    /// It was closed, and its last writer has left.
    WritersGone(LeaseId),
}

impl LandingStrip {
    /// The highest lease id ever opened.
    pub fn last_lease(&self) -> LeaseId {
        LeaseId(self.last_lease.load(Ordering::Relaxed))
    }

    /// Remembers that `lease` is taken, opened or not.
    pub fn minted(&self, lease: LeaseId) {
        self.last_lease.fetch_max(lease.0, Ordering::Relaxed);
    }

    /// Lets writers in. `notify` is told when everything is in, and when a closed lease is drained.
    pub fn open(
        &self,
        sequence: SequenceId,
        granted: GrantedLease,
        kv: Arc<dyn KvMemory>,
        notify: impl Fn(LandingEvent) + Send + Sync + 'static,
    ) {
        let num_blocks = u32::try_from(granted.blocks.len()).unwrap_or(u32::MAX);
        let arrivals = Arrivals::new(kv.layout().num_layers, granted.num_present.min(num_blocks)..num_blocks);
        let (lease, is_complete) = (granted.lease, arrivals.is_complete());
        let notify = Box::new(notify);
        let landing = Arc::new(Landing { sequence, granted, kv, arrivals: Mutex::new(arrivals), notify });
        self.leases.insert(lease, Arc::clone(&landing));
        if is_complete {
            (landing.notify)(LandingEvent::Complete(lease));
        }
    }

    /// Lets nobody in any more; `true` if nobody is in (or the lease is unknown), else `notify` will be told.
    pub fn close(&self, lease: LeaseId) -> bool {
        self.leases.remove(&lease).is_none_or(|(_, landing)| landing.arrivals().close())
    }

    /// Closes all leases; those that still have a writer are told one by one to their `notify`.
    pub fn close_all(&self) {
        let leases: Vec<_> = self.leases.iter().map(|entry| *entry.key()).collect();
        for lease in leases {
            self.close(lease);
        }
    }

    /// As [`LandingStrip::close_all`], and returns when nobody writes any more: at most a copy of one frame later.
    pub async fn close_all_and_wait(&self) {
        let landings: Vec<_> = self.leases.iter().map(|entry| Arc::clone(&entry)).collect();
        self.close_all();
        for landing in landings {
            while landing.arrivals().num_writers() > 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// When something arrived last under this lease.
    pub fn last_arrival(&self, lease: LeaseId) -> Option<Instant64> {
        self.find(lease)?.arrivals().last_arrival()
    }

    fn find(&self, lease: LeaseId) -> Option<Arc<Landing>> {
        self.leases.get(&lease).map(|found| Arc::clone(&found))
    }
}

impl FrameSink for LandingStrip {
    fn receive(&self, header: &ArchivedKvBlocksHeader, blocks: &[Bytes]) -> Result<(), Refusal> {
        let lease = LeaseId(header.lease.0.to_native());
        let landing = self.find(lease).ok_or(Refusal::LeaseGone)?;
        landing.receive(header, blocks)
    }
}

impl Landing {
    fn receive(&self, header: &ArchivedKvBlocksHeader, blocks: &[Bytes]) -> Result<(), Refusal> {
        if header.epoch.0.to_native() != self.granted.epoch.0 {
            return Err(Refusal::LeaseGone);
        }
        let first = header.first_block.to_native();
        let num_blocks = u32::try_from(blocks.len()).map_err(|_overlong| Refusal::Mismatch)?;
        let range = first..first.checked_add(num_blocks).ok_or(Refusal::Mismatch)?;
        let targets = self.granted.blocks.get(range.start as usize..range.end as usize).ok_or(Refusal::Mismatch)?;
        let is_ours = header.sequence() == self.sequence
            && header.layout() == self.kv.layout()
            && header.targets().eq(targets.iter().copied());
        if !is_ours {
            return Err(Refusal::Mismatch);
        }
        let layer = header.layer.0.to_native();
        let wanted = self.arrivals().enter(layer, range.clone()).map_err(|error| match error {
            NotAllowed::Closed => Refusal::LeaseGone,
            NotAllowed::OutOfRange => Refusal::Mismatch,
        })?;
        let mut arriving = targets.iter().zip(blocks).zip(wanted).filter(|(_, wanted)| *wanted);
        let written =
            arriving.try_for_each(|((&target, block), _)| self.kv.write(LayerIndex(layer), target, block)).is_ok();
        let left = self.arrivals().leave(layer, range, written, clock::now());
        match left {
            Left::Quietly => {}
            Left::Complete => (self.notify)(LandingEvent::Complete(self.granted.lease)),
            Left::Drained => (self.notify)(LandingEvent::WritersGone(self.granted.lease)),
        }
        if written { Ok(()) } else { Err(Refusal::Mismatch) }
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        // What a panicking writer leaves behind is still consistent: flags are set after the write.
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
