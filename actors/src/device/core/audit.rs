//! Recounts what the core keeps; tests and simulations call it after each event.

use super::DeviceCore;
use crate::device::sequence::Stage;
use crate::policy::blocks::AuditError;

impl DeviceCore {
    /// Checks the core's invariants.
    ///
    /// # Errors
    /// Our bug, in words.
    pub fn audit(&self) -> Result<(), AuditError> {
        self.pool.audit()?;
        self.audit_references()?;
        self.audit_stages()
    }

    /// Every reference that the pool counts is a table's or a pin's.
    fn audit_references(&self) -> Result<(), AuditError> {
        let mut num_refs = vec![0_u32; self.pool.len()];
        let tables = self.slots.iter().flatten().map(|sequence| &sequence.table);
        let leased = self.leases.values().map(|lease| &lease.sequence.table);
        for block in tables.chain(leased).chain(self.pins.values()).flatten() {
            num_refs[block.0 as usize] += 1;
        }
        for (block, &expected) in (0..).map(relevo_wire::BlockIndex).zip(&num_refs) {
            let found = self.pool.num_refs(block);
            if found != expected {
                return Err(AuditError(format!("{block:?} has {found} references, {expected} are held")));
            }
        }
        Ok(())
    }

    fn audit_stages(&self) -> Result<(), AuditError> {
        let (mut running, mut waiting, mut awaiting) = (0, 0, 0);
        for (slot, sequence) in self.slots.iter().enumerate() {
            let Some(sequence) = sequence else { continue };
            *match sequence.stage {
                Stage::Running => &mut running,
                Stage::Waiting => &mut waiting,
                Stage::AwaitingLease => &mut awaiting,
            } += 1;
            let is_seated = self.running.contains(&slot);
            let holds_its_tokens = sequence.num_computed <= sequence.table.len() * relevo_wire::BLOCK_TOKENS
                && sequence.num_computed + sequence.rows_in_step <= sequence.tokens.len();
            if is_seated != (sequence.stage == Stage::Running)
                || !holds_its_tokens
                || (!is_seated && (sequence.num_computed > 0 || !sequence.table.is_empty()))
                || self.by_id.get(&sequence.id()) != Some(&slot)
            {
                return Err(AuditError(format!("{} is {:?} but {sequence:?}", sequence.id(), sequence.stage)));
            }
        }
        let found = (running, waiting, awaiting, running + waiting + awaiting);
        let kept = (self.running.len(), self.queue.len(), self.num_awaiting_lease, self.by_id.len());
        let is_quiet = self.by_id.is_empty() && !self.claims.is_empty();
        if found != kept || is_quiet {
            return Err(AuditError(format!("stages: counted {found:?}, kept {kept:?}, {} claims", self.claims.len())));
        }
        Ok(())
    }
}
