//! The far end of a measurement: memory that blocks of no sequence go to, under leases as any.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use relevo_gpu::cpu::KvPool;
use relevo_gpu::model::KvMemory;
use relevo_transport::BareRoom;
use relevo_wire::{BlockIndex, ControlReply, Epoch, GrantedLease, Instant64, KvLayout, LeaseId, NodeId, ToProbe};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::{probe_device, probe_sequence, processor_ns};
use crate::clock;
use crate::decode::LandingStrip;

/// How long the one who measures may be silent: longer than a round, and the memory is wanted back.
const PATIENCE: Duration = Duration::from_secs(15);

/// One at a time.
#[derive(Default)]
pub(crate) struct LinkProbe {
    landing: Arc<LandingStrip>,
    guest: Mutex<Option<Guest>>,
    /// Held while this node measures a link of its own.
    pub(super) measuring: tokio::sync::Mutex<()>,
}

/// The one who measures.
struct Guest {
    node: NodeId,
    lease: LeaseId,
    pool: Arc<dyn KvMemory>,
    copies: Copies,
    heard: Instant64,
}

/// A guest's bare copies.
enum Copies {
    /// To go there.
    Awaited(Vec<u8>),
    /// A connection has the memory, until this is dropped.
    Under(oneshot::Sender<()>),
}

impl LinkProbe {
    /// Where its blocks land.
    pub(crate) fn landing(&self) -> &Arc<LandingStrip> {
        &self.landing
    }

    /// A step of a measurement by this node.
    pub(crate) async fn take(&self, from: NodeId, step: ToProbe) -> ControlReply {
        self.expire(clock::now());
        let answer = match step {
            ToProbe::Open(layout, num_blocks) => self.open(from, layout, num_blocks).await,
            ToProbe::Again => self.again(from),
            ToProbe::Read => self.with(from, |guest| guest.lease),
            ToProbe::Close => {
                self.part_from(from);
                Ok(LeaseId(0))
            }
        };
        match answer {
            Ok(lease) => ControlReply::Probed { lease, processor_ns: processor_ns() },
            Err(reason) => ControlReply::Refused(reason),
        }
    }

    async fn open(&self, from: NodeId, layout: KvLayout, num_blocks: u32) -> Result<LeaseId, String> {
        let copies = self.part_for(from)?;
        // Pages that are there are part of what is measured, and making them takes a while.
        let made = spawn_blocking(move || {
            let pool = KvPool::new(layout, num_blocks as usize).map_err(|error| error.to_string())?;
            let num_bytes = layout.block_bytes() * num_blocks as usize;
            Ok::<_, String>((Arc::new(pool), copies.unwrap_or_else(|| Copies::Awaited(vec![1; num_bytes]))))
        });
        let (pool, copies) = made.await.map_err(|error| error.to_string())??;
        // Another may have been faster.
        self.part_for(from)?;
        *self.guest() = Some(Guest { node: from, lease: LeaseId(0), pool, copies, heard: clock::now() });
        self.again(from)
    }

    /// Ends what this node measured before, but for its bare copies if they go on.
    fn part_for(&self, from: NodeId) -> Result<Option<Copies>, String> {
        let mut guest = self.guest();
        if guest.as_ref().is_some_and(|guest| guest.node != from) {
            return Err("another node measures its link to it: try again when that is done".to_owned());
        }
        let Some(ended) = guest.take() else { return Ok(None) };
        self.landing.close(ended.lease);
        Ok(match ended.copies {
            Copies::Under(over) if over.is_closed() => None,
            copies => Some(copies),
        })
    }

    /// A lease of all blocks, under which each can be written once.
    fn again(&self, from: NodeId) -> Result<LeaseId, String> {
        self.with(from, |guest| {
            self.landing.close(guest.lease);
            let lease = LeaseId(self.landing.last_lease().0 + 1);
            self.landing.minted(lease);
            guest.lease = lease;
            let blocks = (0..).map(BlockIndex).take(guest.pool.num_blocks()).collect();
            let granted = GrantedLease { lease, epoch: Epoch(1), blocks, num_present: 0 };
            let writer = (probe_sequence(from), probe_device(from));
            self.landing.open(writer, granted, Arc::clone(&guest.pool), |_| ());
            lease
        })
    }

    fn with(&self, from: NodeId, act: impl FnOnce(&mut Guest) -> LeaseId) -> Result<LeaseId, String> {
        let mut guest = self.guest();
        let guest = guest.as_mut().filter(|guest| guest.node == from).ok_or("nothing is being measured there")?;
        guest.heard = clock::now();
        Ok(act(guest))
    }

    /// Where the bare copies of a node go: one connection of its, until it has measured.
    pub(crate) fn room_of(&self, from: NodeId) -> Option<BareRoom> {
        let mut guest = self.guest();
        let copies = &mut guest.as_mut().filter(|guest| guest.node == from)?.copies;
        let (sender, over) = oneshot::channel();
        match std::mem::replace(copies, Copies::Under(sender)) {
            Copies::Awaited(memory) => Some(BareRoom { memory, over }),
            under @ Copies::Under(_) => {
                *copies = under;
                None
            }
        }
    }

    /// Gives the memory back that a node has had.
    pub(crate) fn part_from(&self, from: NodeId) {
        self.end_if(|guest| guest.node == from);
    }

    /// The same, if nothing was heard of it for too long.
    pub(crate) fn expire(&self, now: Instant64) {
        self.end_if(|guest| now.since(guest.heard) >= PATIENCE);
    }

    fn end_if(&self, is_over: impl FnOnce(&Guest) -> bool) {
        let mut guest = self.guest();
        if let Some(ended) = guest.take_if(|guest| is_over(guest)) {
            self.landing.close(ended.lease);
        }
    }

    fn guest(&self) -> MutexGuard<'_, Option<Guest>> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "probe/tests.rs"]
mod tests;
