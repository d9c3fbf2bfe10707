//! The decode side of a hand-over: blocks reserved for a sequence that is prefilled elsewhere.

use std::sync::Arc;

use relevo_wire::{BLOCK_TOKENS, BlockIndex, GenerateRequest, LeaseId, TokenId};

use super::{DeviceCore, Effect};
use crate::device::interface::{Destination, DeviceEvent, DeviceRole, GrantedLease};
use crate::device::sequence::{Sequence, Stage};

/// A promise of blocks.
#[derive(Debug)]
pub(super) struct Lease {
    /// The sequence as it will run, with its blocks; the leading ones were here, the others are leased.
    pub(super) sequence: Sequence,
}

impl DeviceCore {
    /// Answers a [`crate::device::DeviceCommand::Reserve`].
    pub(super) fn reserve(&mut self, lease: LeaseId, request: Arc<GenerateRequest>, effects: &mut Vec<Effect>) {
        let id = request.sequence;
        let granted = self.try_reserve(lease, request);
        let answer = match granted {
            Some(lease) => {
                self.counters.leases_granted += 1;
                DeviceEvent::Reserved { lease, sequence: id }
            }
            None => {
                self.counters.leases_refused += 1;
                DeviceEvent::Refused { lease, sequence: id }
            }
        };
        effects.push(Effect::Tell(answer));
    }

    fn try_reserve(&mut self, lease: LeaseId, request: Arc<GenerateRequest>) -> Option<GrantedLease> {
        let is_new = self.last_lease.is_none_or(|last| last < lease);
        let num_context = request.num_context_tokens();
        let fits = (1..self.max_context).contains(&num_context);
        if !is_new || !fits || self.draining.is_some() || self.num_seats_taken() >= self.limits.max_running {
            return None;
        }
        self.last_lease = Some(lease);
        let mut sequence = self.new_sequence(request, Destination::SamePool);
        sequence.role = DeviceRole::Decode;
        sequence.name_blocks();
        let present = self.held_prefix(&sequence, num_context);
        if !self.leaves_headroom(&sequence, &present) {
            return None;
        }
        for &block in &present {
            self.pool.retain(block);
        }
        let num_present = u32::try_from(present.len()).unwrap_or(u32::MAX);
        sequence.table = present;
        while sequence.num_missing_blocks() > 0 {
            let Some(block) = self.pool.lease() else {
                sequence.release_blocks(&mut self.pool);
                return None;
            };
            sequence.table.push(block);
        }
        let blocks = sequence.table.clone();
        self.leases.insert(lease, Lease { sequence });
        Some(GrantedLease { lease, epoch: self.epoch, blocks, num_present })
    }

    /// Whether a sequence can have its blocks and still leave to everybody who runs, or will under a lease, what they will need.
    fn leaves_headroom(&self, sequence: &Sequence, present: &[BlockIndex]) -> bool {
        let num_idle = present.iter().filter(|&&block| self.pool.is_cached(block)).count();
        let wanted = self.future_blocks(sequence).saturating_sub(present.len());
        let running = self.running.iter().filter_map(|&slot| self.slots[slot].as_ref());
        let leased = self.leases.values().map(|lease| &lease.sequence);
        let promised: usize = running.chain(leased).map(|other| self.future_blocks(other)).sum();
        wanted + promised + num_idle <= self.pool.num_available()
    }

    fn future_blocks(&self, sequence: &Sequence) -> usize {
        sequence.num_future_blocks(self.limits.headroom_tokens, self.max_context)
    }

    /// Leading full blocks of the first `num_tokens` tokens that the pool holds under their names.
    pub(super) fn held_prefix(&self, sequence: &Sequence, num_tokens: usize) -> Vec<BlockIndex> {
        let (blocks, _) = sequence.tokens[..num_tokens].as_chunks::<BLOCK_TOKENS>();
        let named = sequence.prefixes.keys.iter().zip(blocks);
        named.map_while(|(&key, tokens)| self.pool.lookup(key, tokens)).collect()
    }

    /// Every block of the lease has arrived: its sequence runs from here on.
    pub(super) fn commit(
        &mut self,
        lease: LeaseId,
        first_token: TokenId,
        cached_tokens: u32,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.sequence_under(lease).and_then(|_| self.leases.remove(&lease));
        let Some(Lease { mut sequence }) = known else {
            self.counters.leases_gone += 1;
            return effects.push(Effect::Tell(DeviceEvent::LeaseGone { lease }));
        };
        for &block in &sequence.table {
            self.pool.activate(block);
        }
        sequence.num_computed = sequence.tokens.len();
        sequence.cached_tokens = Some(cached_tokens);
        sequence.register_blocks(&mut self.pool);
        sequence.stage = Stage::Running;
        let ends = sequence.accept(first_token, self.max_context);
        let slot = self.insert(sequence);
        self.seat(slot);
        if let Some(reason) = ends {
            self.complete(slot, reason, effects);
        }
    }

    pub(super) fn release(&mut self, lease: LeaseId) {
        match self.leases.remove(&lease) {
            Some(Lease { mut sequence }) => sequence.release_blocks(&mut self.pool),
            None => self.counters.leases_gone += 1,
        }
    }
}
