//! The table of open leases that receivers of blocks look into: it checks a frame against its lease and writes the blocks to their place.
//!
//! It is shared between the receivers' tasks and the DecodeActor and outlives the latter, so that a restarted one can see to it that nobody
//! writes any more before the blocks of its predecessor are freed.
//!
//! A frame comes in pieces, and between two of them its sender may fall silent. So a writer counts as being inside only while it copies a piece,
//! and a lease is closed without waiting for anybody's network. Blocks hold what was written to them, damaged or half, until their whole frame is
//! in: only then have they arrived, and from then on nobody writes to them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use relevo_gpu::model::KvMemory;
use relevo_transport::{FrameSink, FrameWriter, Refusal};
use relevo_wire::{ArchivedKvBlocksHeader, BlockIndex, DeviceId, Instant64, LayerIndex, LeaseId, SequenceId};

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
    /// Who may write.
    prefill: DeviceId,
    granted: GrantedLease,
    kv: Arc<dyn KvMemory>,
    /// Of each layer, which frame may be written: the last that was let in. Held while a piece is copied, so that no two frames are written to one
    /// block, where a connection was replaced and the sender has begun anew.
    turns: Vec<Mutex<u64>>,
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

    /// Lets writers in, for a sequence and the device that prefills it. `notify` is told when everything is in, and when a closed lease is drained.
    pub fn open(
        &self,
        (sequence, prefill): (SequenceId, DeviceId),
        granted: GrantedLease,
        kv: Arc<dyn KvMemory>,
        notify: impl Fn(LandingEvent) + Send + Sync + 'static,
    ) {
        let num_blocks = u32::try_from(granted.blocks.len()).unwrap_or(u32::MAX);
        let arrivals = Arrivals::new(kv.layout().num_layers, granted.num_present.min(num_blocks)..num_blocks);
        let (lease, is_complete) = (granted.lease, arrivals.is_complete());
        let notify = Box::new(notify);
        let turns = (0..kv.layout().num_layers).map(|_| Mutex::default()).collect();
        let landing =
            Arc::new(Landing { sequence, prefill, granted, kv, turns, arrivals: Mutex::new(arrivals), notify });
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

    /// As [`LandingStrip::close_all`], and returns when nobody writes any more: at most a copy of one piece of a frame later.
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

    /// Who may write under this lease, if it is open.
    pub fn prefill_of(&self, lease: LeaseId) -> Option<DeviceId> {
        self.find(lease).map(|landing| landing.prefill)
    }

    fn find(&self, lease: LeaseId) -> Option<Arc<Landing>> {
        self.leases.get(&lease).map(|found| Arc::clone(&found))
    }
}

impl FrameSink for LandingStrip {
    type Writer = LandingFrame;

    fn admit(&self, header: &ArchivedKvBlocksHeader) -> Result<LandingFrame, Refusal> {
        self.find(header.lease()).ok_or(Refusal::LeaseGone)?.admit(header)
    }
}

/// A frame that was let in, of one layer's blocks.
pub struct LandingFrame {
    landing: Arc<Landing>,
    layer: u32,
    first_block: u32,
    num_blocks: u32,
    turn: u64,
}

impl Landing {
    fn admit(self: Arc<Self>, header: &ArchivedKvBlocksHeader) -> Result<LandingFrame, Refusal> {
        if header.epoch.0.to_native() != self.granted.epoch.0 {
            return Err(Refusal::LeaseGone);
        }
        let (layer, first_block) = (header.layer.0.to_native(), header.first_block.to_native());
        let num_blocks = u32::try_from(header.blocks.len()).map_err(|_overlong| Refusal::Mismatch)?;
        let end = first_block.checked_add(num_blocks).ok_or(Refusal::Mismatch)?;
        let targets = self.granted.blocks.get(first_block as usize..end as usize).ok_or(Refusal::Mismatch)?;
        let is_ours = header.sequence() == self.sequence
            && header.layout() == self.kv.layout()
            && header.targets().eq(targets.iter().copied());
        let turn = self.turns.get(layer as usize).filter(|_| is_ours).ok_or(Refusal::Mismatch)?;
        self.arrivals().check(layer, first_block..end).map_err(refusal)?;
        let turn = {
            let mut turn = lock(turn);
            *turn += 1;
            *turn
        };
        Ok(LandingFrame { landing: self, layer, first_block, num_blocks, turn })
    }

    fn target(&self, block: u32) -> Option<BlockIndex> {
        self.granted.blocks.get(block as usize).copied()
    }

    fn leave(&self, layer: u32, blocks: Range<u32>, written: bool) {
        let left = self.arrivals().leave(layer, blocks, written, clock::now());
        match left {
            Left::Quietly => {}
            Left::Complete => (self.notify)(LandingEvent::Complete(self.granted.lease)),
            Left::Drained => (self.notify)(LandingEvent::WritersGone(self.granted.lease)),
        }
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        lock(&self.arrivals)
    }
}

impl LandingFrame {
    /// Lets the frame touch its layer, unless another has come after it.
    fn my_turn(&self) -> Result<MutexGuard<'_, u64>, Refusal> {
        let turn = self.landing.turns.get(self.layer as usize).map(lock).ok_or(Refusal::Mismatch)?;
        if *turn == self.turn { Ok(turn) } else { Err(Refusal::LeaseGone) }
    }
}

impl FrameWriter for LandingFrame {
    fn write(&mut self, index: usize, offset: usize, piece: &[u8]) -> Result<(), Refusal> {
        let index = u32::try_from(index).ok().filter(|index| *index < self.num_blocks).ok_or(Refusal::Mismatch)?;
        let block = self.first_block + index;
        let target = self.landing.target(block).ok_or(Refusal::Mismatch)?;
        let _turn = self.my_turn()?;
        let blocks = block..block + 1;
        let wanted = self.landing.arrivals().enter(self.layer, blocks.clone()).map_err(refusal)?;
        let written = match wanted[..] {
            [true] => self.landing.kv.write_at(LayerIndex(self.layer), target, offset, piece),
            // It has arrived before.
            _ => Ok(()),
        };
        self.landing.leave(self.layer, blocks, false);
        written.map_err(|_| Refusal::Mismatch)
    }

    fn finish(self) -> Result<(), Refusal> {
        let _turn = self.my_turn()?;
        let blocks = self.first_block..self.first_block + self.num_blocks;
        self.landing.arrivals().enter(self.layer, blocks.clone()).map_err(refusal)?;
        self.landing.leave(self.layer, blocks, true);
        Ok(())
    }
}

fn refusal(error: NotAllowed) -> Refusal {
    match error {
        NotAllowed::Closed => Refusal::LeaseGone,
        NotAllowed::OutOfRange => Refusal::Mismatch,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking writer leaves behind is still consistent: flags are set after the write.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
