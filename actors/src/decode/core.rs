//! The decode role's decisions, pure: the ledger of leases.
//!
//! A lease is asked for, reserved by the engine, granted, written to, and then either committed (all blocks are in and the prefill side
//! has handed over) or released. Each layer that arrives renews it, the request's deadline caps it.
//!
//! **Invariant:** what was reserved is committed or released exactly once, and only after its writers are gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use relevo_wire::{DeviceId, GenerateRequest, GrantedLease, HandOver, Instant64, LeaseId, NodeId, SequenceId};

/// The number of no node: it has more bits than they have.
const NO_GATEWAY: NodeId = NodeId(u32::MAX);

/// The decode role of one device.
#[derive(Clone, Debug)]
pub struct DecodeCore {
    term: Duration,
    next_lease: u64,
    leases: BTreeMap<LeaseId, Lease>,
    /// The lease in force of each sequence.
    by_sequence: BTreeMap<SequenceId, LeaseId>,
}

#[derive(Clone, Debug)]
struct Lease {
    request: Arc<GenerateRequest>,
    prefill: DeviceId,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// The engine was asked.
    Reserving,
    /// The engine was asked, and by now nobody wants it.
    Unwanted,
    /// Granted: blocks arrive.
    Open { expires: Instant64, hand_over: Option<HandOver>, complete: bool },
    /// No new writer is let in; when the last has left, it is committed (if handed over) or released.
    Closing { commit: Option<HandOver> },
}

/// What happened.
#[derive(Clone, Debug)]
pub enum DecodeEvent {
    /// A prefill worker wants blocks.
    LeaseAsked {
        /// For whom.
        request: Arc<GenerateRequest>,
        /// Who asks.
        prefill: DeviceId,
    },
    /// The engine has reserved them.
    Reserved(GrantedLease),
    /// The engine has no room.
    Refused(LeaseId),
    /// A layer has arrived.
    Arrived {
        /// Under which lease.
        lease: LeaseId,
        /// When.
        at: Instant64,
    },
    /// Every layer of every block is in.
    Complete(LeaseId),
    /// The prefill side is done.
    HandedOver(HandOver),
    /// The prefill side does not need it.
    Returned(LeaseId),
    /// No writer is left on a lease that was closed.
    WritersGone(LeaseId),
    /// Its term is over, whatever it was.
    Expire(LeaseId),
    /// Nobody wants the sequence any more.
    Abort(SequenceId),
    /// A node is gone, with its prefill roles and its gateway.
    NodeLost(NodeId),
    /// The prefill role of a device is gone, with the blocks that it had yet to push.
    WriterLost(DeviceId),
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum DecodeEffect {
    /// To the engine.
    Reserve {
        /// Fresh.
        lease: LeaseId,
        /// For whom.
        request: Arc<GenerateRequest>,
    },
    /// Let writers in, then tell the prefill side.
    Grant {
        /// Who asked.
        prefill: DeviceId,
        /// For whom.
        sequence: SequenceId,
        /// What was reserved.
        lease: GrantedLease,
    },
    /// Tell the prefill side.
    Refuse {
        /// Who asked.
        prefill: DeviceId,
        /// For whom.
        sequence: SequenceId,
    },
    /// Let no more writers in; [`DecodeEvent::WritersGone`] when the last has left.
    Close(LeaseId),
    /// To the engine: decode.
    Commit(HandOver),
    /// To the engine: free.
    Release(LeaseId),
    /// To the engine: stop the sequence, if it decodes here.
    Abort(SequenceId),
    /// To the gateway: its lease ran out.
    Lost(SequenceId),
}

impl DecodeCore {
    /// No leases yet. Ids begin after `last_lease`, so that none is used twice in an epoch; a lease not renewed for `term` expires.
    pub fn new(last_lease: LeaseId, term: Duration) -> Self {
        Self { term, next_lease: last_lease.0 + 1, leases: BTreeMap::new(), by_sequence: BTreeMap::new() }
    }

    /// Leases that are not over.
    pub fn num_leases(&self) -> usize {
        self.leases.len()
    }

    /// Leases that blocks may arrive under.
    pub fn open_leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.iter().filter(|(_, lease)| matches!(lease.stage, Stage::Open { .. })).map(|(&id, _)| id)
    }

    /// Handles one event.
    pub fn handle(&mut self, event: DecodeEvent, now: Instant64, effects: &mut Vec<DecodeEffect>) {
        match event {
            DecodeEvent::LeaseAsked { request, prefill } => self.asked(request, prefill, effects),
            DecodeEvent::Reserved(lease) => self.reserved(lease, now, effects),
            DecodeEvent::Refused(lease) => self.refused(lease, effects),
            DecodeEvent::Arrived { lease, at } => self.arrived(lease, at),
            DecodeEvent::Complete(lease) => {
                if let Some(Stage::Open { complete, .. }) = self.stage(lease) {
                    *complete = true;
                    self.commit_if_due(lease, effects);
                }
            }
            DecodeEvent::HandedOver(token) => {
                if let Some(Stage::Open { hand_over, .. }) = self.stage(token.lease) {
                    *hand_over = Some(token);
                    self.commit_if_due(token.lease, effects);
                } else {
                    // Its lease went down with an earlier ledger, or is over: prefill has let go of it, so nobody else would say so.
                    effects.push(DecodeEffect::Lost(token.sequence));
                }
            }
            DecodeEvent::Returned(lease) => self.revoke(lease, effects),
            DecodeEvent::Expire(lease) => self.expire(lease, effects),
            DecodeEvent::WritersGone(lease) => self.settle(lease, effects),
            DecodeEvent::Abort(sequence) => {
                if let Some(&lease) = self.by_sequence.get(&sequence) {
                    self.revoke(lease, effects);
                }
                effects.push(DecodeEffect::Abort(sequence));
            }
            DecodeEvent::NodeLost(node) => self.lose(node, |prefill| prefill.node() == node, effects),
            DecodeEvent::WriterLost(device) => self.lose(NO_GATEWAY, |prefill| prefill == device, effects),
            DecodeEvent::Tick => self.expire_due(now, effects),
        }
    }

    fn asked(&mut self, request: Arc<GenerateRequest>, prefill: DeviceId, effects: &mut Vec<DecodeEffect>) {
        let sequence = request.sequence;
        // Asked again: the answer to the first went astray.
        if let Some(&earlier) = self.by_sequence.get(&sequence) {
            self.revoke(earlier, effects);
        }
        let lease = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.by_sequence.insert(sequence, lease);
        self.leases.insert(lease, Lease { request: Arc::clone(&request), prefill, stage: Stage::Reserving });
        effects.push(DecodeEffect::Reserve { lease, request });
    }

    fn reserved(&mut self, granted: GrantedLease, now: Instant64, effects: &mut Vec<DecodeEffect>) {
        let Some(lease) = self.leases.get_mut(&granted.lease) else {
            effects.push(DecodeEffect::Release(granted.lease));
            return;
        };
        match lease.stage {
            Stage::Reserving => {
                let expires = cap(now + self.term, &lease.request);
                lease.stage = Stage::Open { expires, hand_over: None, complete: false };
                let (prefill, sequence) = (lease.prefill, lease.request.sequence);
                effects.push(DecodeEffect::Grant { prefill, sequence, lease: granted });
            }
            Stage::Unwanted => {
                self.leases.remove(&granted.lease);
                effects.push(DecodeEffect::Release(granted.lease));
            }
            Stage::Open { .. } | Stage::Closing { .. } => {}
        }
    }

    fn refused(&mut self, id: LeaseId, effects: &mut Vec<DecodeEffect>) {
        let is_pending =
            self.leases.get(&id).is_some_and(|lease| matches!(lease.stage, Stage::Reserving | Stage::Unwanted));
        let Some(lease) = is_pending.then(|| self.leases.remove(&id)).flatten() else { return };
        if lease.stage == Stage::Reserving {
            let sequence = lease.request.sequence;
            self.forget_sequence(sequence, id);
            effects.push(DecodeEffect::Refuse { prefill: lease.prefill, sequence });
        }
    }

    fn arrived(&mut self, id: LeaseId, at: Instant64) {
        let renewed = at + self.term;
        if let Some(lease) = self.leases.get_mut(&id)
            && let Stage::Open { expires, .. } = &mut lease.stage
        {
            *expires = cap(renewed, &lease.request);
        }
    }

    fn commit_if_due(&mut self, id: LeaseId, effects: &mut Vec<DecodeEffect>) {
        let Some(stage) = self.stage(id) else { return };
        if let Stage::Open { hand_over: Some(hand_over), complete: true, .. } = *stage {
            *stage = Stage::Closing { commit: Some(hand_over) };
            effects.push(DecodeEffect::Close(id));
        }
    }

    fn revoke(&mut self, id: LeaseId, effects: &mut Vec<DecodeEffect>) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        let sequence = lease.request.sequence;
        match &mut lease.stage {
            stage @ Stage::Reserving => *stage = Stage::Unwanted,
            stage @ Stage::Open { .. } => {
                *stage = Stage::Closing { commit: None };
                effects.push(DecodeEffect::Close(id));
            }
            Stage::Closing { commit } => *commit = None,
            Stage::Unwanted => {}
        }
        self.forget_sequence(sequence, id);
    }

    /// Nobody writes the rest of what was leased to those writers, and the gateway of that node wants nothing any more. A lease that is closing has
    /// all of its blocks, and goes on, unless nobody wants them.
    fn lose(&mut self, gateway: NodeId, is_writer: impl Fn(DeviceId) -> bool, effects: &mut Vec<DecodeEffect>) {
        let is_concerned = |lease: &Lease| {
            let is_unwanted = lease.request.sequence.request.gateway() == gateway;
            is_unwanted || is_writer(lease.prefill) && !matches!(lease.stage, Stage::Closing { .. })
        };
        let concerned: Vec<_> =
            self.leases.iter().filter(|(_, lease)| is_concerned(lease)).map(|(&id, _)| id).collect();
        for id in concerned {
            let sequence = self.leases.get(&id).map(|lease| lease.request.sequence);
            self.revoke(id, effects);
            if let Some(sequence) = sequence.filter(|sequence| sequence.request.gateway() != gateway) {
                effects.push(DecodeEffect::Lost(sequence));
            }
        }
    }

    fn settle(&mut self, id: LeaseId, effects: &mut Vec<DecodeEffect>) {
        let is_closing = self.leases.get(&id).is_some_and(|lease| matches!(lease.stage, Stage::Closing { .. }));
        let Some(lease) = is_closing.then(|| self.leases.remove(&id)).flatten() else { return };
        self.forget_sequence(lease.request.sequence, id);
        effects.push(match lease.stage {
            Stage::Closing { commit: Some(hand_over) } => DecodeEffect::Commit(hand_over),
            _ => DecodeEffect::Release(id),
        });
    }

    fn expire_due(&mut self, now: Instant64, effects: &mut Vec<DecodeEffect>) {
        let is_due = |lease: &Lease| matches!(lease.stage, Stage::Open { expires, .. } if now >= expires);
        let due: Vec<_> = self.leases.iter().filter(|(_, lease)| is_due(lease)).map(|(&id, _)| id).collect();
        due.into_iter().for_each(|id| self.expire(id, effects));
    }

    fn expire(&mut self, id: LeaseId, effects: &mut Vec<DecodeEffect>) {
        let Some(lease) = self.leases.get(&id).filter(|lease| matches!(lease.stage, Stage::Open { .. })) else {
            return;
        };
        effects.push(DecodeEffect::Lost(lease.request.sequence));
        self.revoke(id, effects);
    }

    fn stage(&mut self, id: LeaseId) -> Option<&mut Stage> {
        self.leases.get_mut(&id).map(|lease| &mut lease.stage)
    }

    fn forget_sequence(&mut self, sequence: SequenceId, lease: LeaseId) {
        if self.by_sequence.get(&sequence) == Some(&lease) {
            self.by_sequence.remove(&sequence);
        }
    }
}

fn cap(expires: Instant64, request: &GenerateRequest) -> Instant64 {
    request.deadline.map_or(expires, |deadline| expires.min(deadline))
}

#[cfg(test)]
#[path = "core/tests.rs"]
mod tests;
