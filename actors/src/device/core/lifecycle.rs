//! Sequences come and go: taken in or refused, aborted, out of time, drained.

use std::sync::Arc;
use std::time::Duration;

use relevo_wire::{GenerateRequest, Instant64, NodeId, RequestError, SequenceId, StreamEvent, blocks_for_tokens};

use super::{DeviceCore, Effect};
use crate::device::interface::{Destination, DeviceEvent, DeviceRole, GrantedLease, SequenceOutcome};
use crate::device::sequence::{Push, Sequence, Stage};
use crate::policy::fairness::Age;

/// What a caller is told who found the device's own queue full, which the router's bound should have prevented.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl DeviceCore {
    /// Lines a sequence up for its prefill.
    pub(super) fn take_in(
        &mut self,
        request: Arc<GenerateRequest>,
        destination: Destination,
        effects: &mut Vec<Effect>,
    ) {
        let id = request.sequence;
        if self.by_id.contains_key(&id) {
            return;
        }
        if let Some(error) = self.objection(&request) {
            effects.push(Effect::Emit(id, StreamEvent::Failed(error.clone())));
            let outcome = SequenceOutcome::Failed(error);
            return effects.push(Effect::Tell(DeviceEvent::Ended { sequence: id, role: DeviceRole::Prefill, outcome }));
        }
        let sequence = self.new_sequence(request, destination);
        let slot = self.insert(sequence);
        self.line_up(slot);
    }

    fn objection(&self, request: &GenerateRequest) -> Option<RequestError> {
        let num_context = request.num_context_tokens();
        let wants_more = request.generated.len() < request.max_tokens as usize;
        let num_tokens = num_context + usize::from(wants_more);
        if self.draining.is_some() {
            Some(RequestError::ShuttingDown)
        } else if num_tokens > self.limits.max_context || num_context == 0 {
            Some(RequestError::ContextTooLong { num_tokens, max_context: self.max_context })
        } else if num_tokens > self.max_context {
            let (num_blocks, pool_blocks) = (blocks_for_tokens(num_tokens), self.pool.len());
            Some(RequestError::KvPoolTooSmall { num_blocks, pool_blocks })
        } else if self.num_waiting() >= self.limits.max_waiting {
            Some(RequestError::QueueFull {
                num_waiting: self.num_waiting(),
                limit: self.limits.max_waiting,
                retry_after: RETRY_AFTER,
            })
        } else {
            None
        }
    }

    pub(super) fn new_sequence(&mut self, request: Arc<GenerateRequest>, destination: Destination) -> Sequence {
        self.num_taken += 1;
        let most = request.prompt.len() + request.max_tokens as usize;
        let tenant = request.tenant;
        let mut sequence = Sequence::new(request, destination, Age(self.num_taken), most.min(self.max_context));
        if let Some(identity) = &self.limits.prefix_identity {
            sequence.prefixes.salt = Some(identity.salt(tenant));
            sequence.prefixes.hints = Some(self.limits.hint_keyer.chain(tenant));
        }
        sequence
    }

    /// Gives a sequence a slot.
    pub(super) fn insert(&mut self, sequence: Sequence) -> usize {
        let slot = self.free_slots.pop().unwrap_or(self.slots.len());
        self.by_id.insert(sequence.id(), slot);
        if let Some(deadline) = sequence.request.deadline {
            self.deadlines.insert((deadline, slot));
        }
        if slot == self.slots.len() {
            self.slots.push(Some(sequence));
        } else {
            self.slots[slot] = Some(sequence);
        }
        slot
    }

    /// Puts a sequence into the queue, at the place of its age.
    pub(super) fn line_up(&mut self, slot: usize) {
        if let Some(sequence) = self.slots[slot].as_mut() {
            sequence.stage = Stage::Waiting;
            self.queue.push(sequence.waiting(slot));
        }
    }

    /// Gives a running sequence its place among those who run.
    pub(super) fn seat(&mut self, slot: usize) {
        let rank = |slot: usize| self.slots[slot].as_ref().map(Sequence::rank);
        let place = self.running.partition_point(|&other| rank(other) < rank(slot));
        self.running.insert(place, slot);
    }

    /// Seats that are taken, or promised to leases.
    pub(super) fn num_seats_taken(&self) -> usize {
        self.running.len() + self.num_awaiting_lease + self.leases.len()
    }

    /// The lease that a sequence asked for: it goes back into the queue, where its age puts it in front.
    /// Whoever does not wait for one keeps what it has: blocks that went out under the old one would be missing under the new.
    pub(super) fn use_lease(&mut self, id: SequenceId, granted: &GrantedLease) {
        let Some(&slot) = self.by_id.get(&id) else { return };
        let Some(sequence) = self.slots[slot].as_mut().filter(|it| it.stage == Stage::AwaitingLease) else { return };
        let num_context = blocks_for_tokens(sequence.tokens.len());
        let num_sent = (granted.num_present as usize).min(num_context);
        sequence.push = Some(Push { lease: Some(granted.lease), num_sent });
        self.num_awaiting_lease -= 1;
        self.line_up(slot);
    }

    pub(super) fn abort(&mut self, id: SequenceId, effects: &mut Vec<Effect>) {
        if let Some(&slot) = self.by_id.get(&id) {
            self.end_or_doom(slot, SequenceOutcome::Aborted, effects);
        }
    }

    pub(super) fn abort_all(&mut self, role: DeviceRole, effects: &mut Vec<Effect>) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].as_ref().is_some_and(|sequence| sequence.role == role) {
                self.end_or_doom(slot, SequenceOutcome::Aborted, effects);
            }
        }
        if role == DeviceRole::Decode {
            self.release_all();
        }
    }

    pub(super) fn abort_gateway(&mut self, gateway: NodeId, effects: &mut Vec<Effect>) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].as_ref().is_some_and(|sequence| sequence.id().request.gateway() == gateway) {
                self.end_or_doom(slot, SequenceOutcome::Aborted, effects);
            }
        }
    }

    fn release_all(&mut self) {
        while let Some((&lease, _)) = self.leases.first_key_value() {
            self.release(lease);
        }
    }

    /// Ends what is out of time, and says so when a drain is done.
    pub(super) fn expire(&mut self, now: Instant64, effects: &mut Vec<Effect>) {
        while let Some(&(deadline, slot)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.end_or_doom(slot, SequenceOutcome::Failed(RequestError::DeadlineExceeded), effects);
        }
        let Some(deadline) = self.draining.filter(|_| !self.stopped) else { return };
        if deadline <= now {
            for slot in 0..self.slots.len() {
                self.end_or_doom(slot, SequenceOutcome::Failed(RequestError::ShuttingDown), effects);
            }
            self.release_all();
        }
        if self.by_id.is_empty() && self.leases.is_empty() && !self.step.in_flight {
            self.stopped = true;
            effects.push(Effect::Tell(DeviceEvent::Stopped));
        }
    }

    /// Ends a sequence, or has it ended when the step that writes to its blocks is done.
    fn end_or_doom(&mut self, slot: usize, outcome: SequenceOutcome, effects: &mut Vec<Effect>) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        if sequence.rows_in_step == 0 {
            self.end(slot, outcome, effects);
        } else if sequence.doom.is_none() {
            sequence.doom = Some(outcome);
        }
    }

    /// Ends a sequence that has no rows in flight: its blocks go back, and its last event out.
    pub(super) fn end(&mut self, slot: usize, outcome: SequenceOutcome, effects: &mut Vec<Effect>) {
        self.unclaim(slot, usize::MAX);
        let Some(mut sequence) = self.slots[slot].take() else { return };
        match sequence.stage {
            Stage::Waiting => _ = self.queue.remove(sequence.waiting(slot)),
            Stage::AwaitingLease => self.num_awaiting_lease -= 1,
            Stage::Running => self.running.retain(|&other| other != slot),
        }
        sequence.release_blocks(&mut self.pool);
        if let Some(deadline) = sequence.request.deadline {
            self.deadlines.remove(&(deadline, slot));
        }
        self.by_id.remove(&sequence.id());
        self.free_slots.push(slot);
        if let SequenceOutcome::Failed(error) = &outcome {
            effects.push(Effect::Emit(sequence.id(), StreamEvent::Failed(error.clone())));
        }
        effects.push(Effect::Tell(DeviceEvent::Ended { sequence: sequence.id(), role: sequence.role, outcome }));
    }
}
