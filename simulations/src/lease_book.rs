//! A second account of every lease, kept from what is seen to happen: who holds what, until when, and how it ended.
//!
//! It knows nothing of the ledger of the decode role or of the device's own, which are what it holds to account.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use relevo_actors::device::{CoreEvent, DeviceCommand, DeviceCore, DeviceEvent, DeviceRole, Effect};
use relevo_wire::{DeviceId, Epoch, Instant64, LeaseId, NodeId, SequenceId};

use crate::checks::{Broken, ensure};

/// A lease's name in the world.
type Name = (usize, Epoch, LeaseId);

/// How long after its term a lease may still be used: until the next tick, which ends it, and by the writers that are in by then.
const NOTICE: Duration = Duration::from_millis(30);

/// How long after its term its blocks may still be held: the news must reach the engine, which may be in a step.
const PATIENCE: Duration = Duration::from_millis(250);

/// Every lease that an engine has granted.
pub(crate) struct LeaseBook {
    term: Duration,
    held: BTreeMap<Name, Held>,
    ended: BTreeSet<Name>,
    /// Engines that are gone, or cut off.
    over: BTreeSet<(usize, Epoch)>,
    /// Until when each device stood still with its process: it could end no lease before.
    slept: BTreeMap<usize, Instant64>,
    pub(crate) num_committed: u64,
    pub(crate) num_released: u64,
    pub(crate) num_expired: u64,
}

/// A lease whose blocks are reserved.
struct Held {
    num_blocks: u64,
    sequence: SequenceId,
    /// Who writes, once it was told that it may.
    writer: Option<DeviceId>,
    /// Since when its writer is gone.
    orphaned: Option<Instant64>,
    /// When it was granted: the deadline may have gone by before.
    since: Instant64,
    /// When it was granted, or something arrived.
    renewed: Instant64,
    deadline: Option<Instant64>,
    /// No writer may enter any more.
    is_closed: bool,
}

/// What may end a lease on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Commit(LeaseId),
    Release(LeaseId),
    /// The ledger is gone, or the engine ends.
    All,
    Nothing,
}

impl Cause {
    pub(crate) fn of(event: &CoreEvent) -> Self {
        match event {
            CoreEvent::Command(DeviceCommand::Commit { lease, .. }) => Self::Commit(*lease),
            CoreEvent::Command(DeviceCommand::Release { lease }) => Self::Release(*lease),
            CoreEvent::Command(DeviceCommand::AbortAll { role: DeviceRole::Decode } | DeviceCommand::Drain { .. }) => {
                Self::All
            }
            _ => Self::Nothing,
        }
    }

    fn ends(self, lease: LeaseId) -> bool {
        match self {
            Self::Commit(ended) | Self::Release(ended) => ended == lease,
            Self::All => true,
            Self::Nothing => false,
        }
    }
}

impl LeaseBook {
    pub(crate) fn new(term: Duration) -> Self {
        let (held, ended, over, slept) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        Self { term, held, ended, over, slept, num_committed: 0, num_released: 0, num_expired: 0 }
    }

    /// An engine's leases after an event: each was granted once, ended once, by what may end it; and what is leased is what the leases hold.
    pub(crate) fn compare(
        &mut self,
        device: usize,
        core: &DeviceCore,
        cause: Cause,
        effects: &[Effect],
        now: Instant64,
    ) -> Result<(), Broken> {
        let epoch = core.epoch();
        if self.over.contains(&(device, epoch)) {
            return Ok(());
        }
        for effect in effects {
            let Effect::Tell(DeviceEvent::Reserved { lease, sequence }) = effect else { continue };
            let name = (device, epoch, lease.lease);
            let num_blocks = lease.blocks.len() as u64 - u64::from(lease.num_present);
            let held = Held {
                num_blocks,
                sequence: *sequence,
                writer: None,
                orphaned: None,
                since: now,
                renewed: now,
                deadline: None,
                is_closed: false,
            };
            let before = self.held.insert(name, held);
            ensure(before.is_none() && !self.ended.contains(&name), || format!("{} was granted twice", lease.lease))?;
        }
        let present: BTreeSet<LeaseId> = core.leases().collect();
        let of_epoch = (device, epoch, LeaseId(0))..=(device, epoch, LeaseId(u64::MAX));
        let gone: Vec<Name> = self
            .held
            .range(of_epoch.clone())
            .map(|(&name, _)| name)
            .filter(|name| !present.contains(&name.2))
            .collect();
        for name in gone {
            ensure(cause.ends(name.2), || format!("{} ended by {cause:?}", name.2))?;
            match cause {
                Cause::Commit(_) => self.num_committed += 1,
                _ => self.num_released += 1,
            }
            self.end(name);
        }
        for &lease in &present {
            let name = (device, epoch, lease);
            ensure(self.held.contains_key(&name), || format!("{lease} is in force and was never granted, or ended"))?;
        }
        let kept: u64 = self.held.range(of_epoch).map(|(_, held)| held.num_blocks).sum();
        let leased = core.kv_blocks().leased;
        ensure(leased == kept, || format!("{leased} blocks are leased, the leases hold {kept}"))
    }

    /// An engine is gone, and with it its pool.
    pub(crate) fn epoch_ended(&mut self, device: usize, epoch: Epoch) {
        let of_epoch = (device, epoch, LeaseId(0))..=(device, epoch, LeaseId(u64::MAX));
        let gone: Vec<Name> = self.held.range(of_epoch).map(|(&name, _)| name).collect();
        gone.into_iter().for_each(|name| self.end(name));
        self.over.insert((device, epoch));
    }

    fn end(&mut self, name: Name) {
        self.held.remove(&name);
        self.ended.insert(name);
    }

    /// The decode side lets writers in from here on.
    pub(crate) fn granted(&mut self, name: Name, writer: DeviceId, deadline: Option<Instant64>, now: Instant64) {
        if let Some(held) = self.held.get_mut(&name) {
            (held.writer, held.since, held.renewed, held.deadline) = (Some(writer), now, now, deadline);
        }
    }

    /// It is used. In a pool that is gone nobody is harmed by what is written there.
    pub(crate) fn used(&mut self, name: Name, use_of_it: Use, now: Instant64) -> Result<(), Broken> {
        if self.over.contains(&(name.0, name.1)) {
            return Ok(());
        }
        let slept = self.slept.get(&name.0).copied().unwrap_or_default();
        let Some(held) = self.held.get_mut(&name) else {
            return Err(Broken(format!("{use_of_it:?} under {}, which does not hold its blocks", name.2)));
        };
        let may_enter = use_of_it != Use::Writing || !held.is_closed;
        ensure(may_enter, || format!("a writer enters {}, which is closed", name.2))?;
        let end = held.end(self.term).max(slept);
        ensure(now <= end + NOTICE, || {
            format!("{use_of_it:?} under {}, which ended {:?} ago", name.2, now.since(end))
        })?;
        if use_of_it == Use::Written {
            held.renewed = now;
        }
        Ok(())
    }

    /// The decode side lets nobody in any more.
    pub(crate) fn closed(&mut self, name: Name) {
        if let Some(held) = self.held.get_mut(&name) {
            held.is_closed = true;
        }
    }

    /// The decode side gives a lease up that nobody has returned: its term must be over.
    pub(crate) fn expired(&mut self, name: Name, now: Instant64) -> Result<(), Broken> {
        let Some(held) = self.held.get(&name) else { return Ok(()) };
        self.num_expired += 1;
        let end = held.end(self.term);
        ensure(now >= end, || format!("{} expires {:?} before its time", name.2, end.since(now)))
    }

    /// Whether blocks are held for a lease whose term is over; `excused` until then, if the engine could not let go of them.
    pub(crate) fn overdue(&self, device: usize, epoch: Epoch, excused: Instant64, now: Instant64) -> Option<LeaseId> {
        let of_epoch = (device, epoch, LeaseId(0))..=(device, epoch, LeaseId(u64::MAX));
        let mut held = self.held.range(of_epoch);
        let excused = excused.max(self.slept.get(&device).copied().unwrap_or_default());
        let is_overdue = |held: &Held| now > held.end(self.term).max(excused) + PATIENCE;
        held.find(|(_, held)| is_overdue(held)).map(|(name, _)| name.2)
    }

    /// The actor is gone that pushes from a device.
    pub(crate) fn writer_died(&mut self, writer: DeviceId, now: Instant64) {
        let held = self.held.values_mut().filter(|held| held.writer == Some(writer));
        held.for_each(|held| _ = held.orphaned.get_or_insert(now));
    }

    /// A lease whose writer has been gone for so long.
    pub(crate) fn orphan(&self, device: usize, epoch: Epoch, now: Instant64, bound: Duration) -> Option<LeaseId> {
        let of_epoch = (device, epoch, LeaseId(0))..=(device, epoch, LeaseId(u64::MAX));
        let slept = self.slept.get(&device).copied().unwrap_or_default();
        let is_orphan = |held: &Held| held.orphaned.is_some_and(|since| now.since(since.max(slept)) > bound);
        self.held.range(of_epoch).find(|(_, held)| is_orphan(held)).map(|(name, _)| name.2)
    }

    /// The process of a device stands still until then.
    pub(crate) fn sleeps(&mut self, device: usize, until: Instant64) {
        self.slept.insert(device, until);
    }

    /// Whose it is.
    pub(crate) fn sequence_of(&self, name: Name) -> Option<SequenceId> {
        self.held.get(&name).map(|held| held.sequence)
    }

    /// A lease that is held for a node: it writes, or its gateway wants the sequence.
    pub(crate) fn held_for(&self, device: usize, epoch: Epoch, node: NodeId) -> Option<LeaseId> {
        let of_epoch = (device, epoch, LeaseId(0))..=(device, epoch, LeaseId(u64::MAX));
        let is_for = |held: &Held| {
            held.sequence.request.gateway() == node || held.writer.is_some_and(|writer| writer.node() == node)
        };
        self.held.range(of_epoch).find(|(_, held)| is_for(held)).map(|(name, _)| name.2)
    }

    /// Leases that are in force.
    pub(crate) fn num_held(&self) -> usize {
        self.held.len()
    }
}

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Writing,
    Written,
    Commit,
}

impl Held {
    fn end(&self, term: Duration) -> Instant64 {
        let end = self.deadline.map_or(self.renewed + term, |deadline| deadline.min(self.renewed + term));
        end.max(self.since)
    }
}
