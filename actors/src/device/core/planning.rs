//! The next step: decode rows first, then the chunks of those who run, then who waits, under one budget.

use relevo_gpu::compute::{OutputRow, Piece, SampleRow, StepPlan};
use relevo_wire::{BLOCK_TOKENS, BlockIndex, Instant64, blocks_for_tokens};

use super::{DeviceCore, Effect};
use crate::device::interface::{DeviceEvent, DeviceRole};
use crate::device::sequence::{Sequence, Stage};
use crate::policy::planner::StepBudget;

/// The step that is planned or in flight.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) pieces: Vec<PlannedPiece>,
    pub(super) in_flight: bool,
}

/// Consecutive rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlannedPiece {
    pub(super) slot: usize,
    /// Position of the first row.
    pub(super) start: usize,
    pub(super) rows: usize,
    /// Rows whose next prompt token's log-probability is wanted.
    pub(super) num_targets: usize,
    /// The last row draws the next token.
    pub(super) samples: bool,
    /// Its one row is a drawn token's, not a prompt's.
    pub(super) decodes: bool,
}

/// What a step is made of, for the engine's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// Sequences.
    pub sequences: usize,
    /// Rows of prompts (and of what is recomputed).
    pub prefill_rows: usize,
    /// Rows that only generate.
    pub decode_rows: usize,
}

/// Vectors that every plan is built in, so that a step allocates nothing.
#[derive(Debug, Default)]
pub struct PlanBuffers {
    pieces: Vec<Piece<'static>>,
    outputs: Vec<Vec<OutputRow<'static>>>,
}

/// What became of one that waits.
enum Admission {
    /// It has rows in this step, or its lease was asked for.
    Taken,
    /// Somebody is computing its prefix: it waits for that.
    PassedOver,
    /// There is no room for it, and so for nobody behind it.
    NoRoom,
}

impl DeviceCore {
    /// Plans the next step if none is in flight; false if there is nothing to do. [`DeviceCore::step_plan`] is the plan, and
    /// [`super::CoreEvent::StepDone`] ends it.
    pub fn plan_step(&mut self, now: Instant64, effects: &mut Vec<Effect>) -> bool {
        self.expire(now, effects);
        if self.step.in_flight || self.stopped {
            return false;
        }
        self.step.pieces.clear();
        let mut budget = StepBudget { rows: self.limits.max_rows, outputs: self.limits.max_outputs };
        self.plan_decode_rows(&mut budget);
        let num_decode_rows = self.step.pieces.len();
        if num_decode_rows > 0 {
            let mixed = self.limits.max_mixed_rows.saturating_sub(num_decode_rows).max(BLOCK_TOKENS);
            budget.rows = budget.rows.min(mixed);
        }
        self.plan_chunks(&mut budget);
        self.admit(&mut budget, effects);
        self.tell_news(now, effects);
        self.step.in_flight = !self.step.pieces.is_empty();
        self.step.in_flight
    }

    /// What the step in flight is made of.
    pub fn step_shape(&self) -> StepShape {
        let mut shape = StepShape { sequences: self.step.pieces.len(), ..StepShape::default() };
        for piece in &self.step.pieces {
            *if piece.decodes { &mut shape.decode_rows } else { &mut shape.prefill_rows } += piece.rows;
        }
        shape
    }

    /// The step in flight as the model wants it.
    pub fn step_plan(&self, buffers: &mut PlanBuffers) -> StepPlan<'_> {
        let mut pieces: Vec<Piece<'_>> = relabel(std::mem::take(&mut buffers.pieces));
        for planned in &self.step.pieces {
            if let Some(sequence) = &self.slots[planned.slot] {
                let outputs = relabel(buffers.outputs.pop().unwrap_or_default());
                pieces.push(planned.as_piece(sequence, outputs));
            }
        }
        StepPlan { pieces }
    }

    /// A row for each sequence that lacks one token only. Whoever ranks lowest makes room when blocks run out.
    fn plan_decode_rows(&mut self, budget: &mut StepBudget) {
        let mut place = 0;
        while place < self.running.len() && budget.rows > 0 && budget.outputs > 0 {
            let slot = self.running[place];
            let Some(sequence) = self.slots[slot].as_ref().filter(|sequence| sequence.is_one_short()) else {
                place += 1;
                continue;
            };
            let end = sequence.tokens.len();
            if self.grow(place, end) >= end {
                self.plan_piece(slot, 1, budget);
                place += 1;
            } else {
                self.preempt(slot);
            }
        }
    }

    /// A chunk for each sequence that has a seat and more than one token to go.
    fn plan_chunks(&mut self, budget: &mut StepBudget) {
        let mut place = 0;
        while place < self.running.len() && budget.rows > 0 {
            let slot = self.running[place];
            place += 1;
            let Some(sequence) = self.slots[slot].as_ref().filter(|sequence| sequence.rows_in_step == 0) else {
                continue;
            };
            let wish = sequence.wish();
            let rows = budget.chunk(wish);
            let room = self.grow(place - 1, wish.start + rows).saturating_sub(wish.start);
            // What has room is a whole number of blocks, so a chunk that is cut ends where a block does.
            let rows = rows.min(room);
            if rows > 0 {
                self.plan_piece(slot, rows, budget);
            }
        }
    }

    /// Allocates blocks until the sequence at `place` can hold `num_tokens`, taking them from those behind it that have no rows in this
    /// step. Returns how many tokens (at most `num_tokens`) it can hold.
    fn grow(&mut self, place: usize, num_tokens: usize) -> usize {
        let slot = self.running[place];
        loop {
            let Some(sequence) = self.slots[slot].as_mut() else { return 0 };
            if sequence.table.len() >= blocks_for_tokens(num_tokens) {
                return num_tokens;
            }
            if let Some(block) = self.pool.allocate() {
                sequence.table.push(block);
                continue;
            }
            let held = sequence.table.len() * BLOCK_TOKENS;
            let idle = |&&other: &&usize| self.slots[other].as_ref().is_some_and(|other| other.rows_in_step == 0);
            let Some(&victim) = self.running[place + 1..].iter().rev().find(idle) else { return held };
            self.preempt(victim);
        }
    }

    /// Takes a sequence's blocks and puts it back into the queue; its prompt and what it has generated will be prefilled again.
    fn preempt(&mut self, slot: usize) {
        self.unclaim(slot, usize::MAX);
        self.running.retain(|&other| other != slot);
        if let Some(sequence) = self.slots[slot].as_mut() {
            sequence.release_blocks(&mut self.pool);
            self.counters.preemptions += 1;
        }
        self.line_up(slot);
    }

    /// Fills the rest of the step with those who wait, in fair order. Nobody overtakes one for whom there is no room.
    fn admit(&mut self, budget: &mut StepBudget, effects: &mut Vec<Effect>) {
        let mut passed_over = std::mem::take(&mut self.passed_over);
        while budget.rows > 0 && budget.outputs > 0 && self.num_seats_taken() < self.limits.max_running {
            let Some(entry) = self.queue.pop() else { break };
            match self.try_admit(entry.slot, budget, effects) {
                Admission::Taken => {}
                Admission::PassedOver => passed_over.push(entry),
                Admission::NoRoom => {
                    passed_over.push(entry);
                    break;
                }
            }
        }
        for entry in passed_over.drain(..) {
            self.queue.push(entry);
        }
        self.passed_over = passed_over;
    }

    fn try_admit(&mut self, slot: usize, budget: &mut StepBudget, effects: &mut Vec<Effect>) -> Admission {
        let Some(sequence) = self.slots[slot].as_mut() else { return Admission::Taken };
        sequence.name_blocks();
        let Some(sequence) = self.slots[slot].as_ref() else { return Admission::Taken };
        let hits = if sequence.wants_prompt_logprobs() {
            Vec::new()
        } else {
            // The last token is computed in any case: its logits are what all this is for.
            self.held_prefix(sequence, sequence.tokens.len() - 1)
        };
        if self.is_claimed_by_another(slot, hits.len()) {
            return Admission::PassedOver;
        }
        let mut wish = sequence.wish();
        wish.start = hits.len() * BLOCK_TOKENS;
        let rows = budget.chunk(wish);
        if rows == 0 || !self.has_room(sequence, &hits) {
            return Admission::NoRoom;
        }
        if sequence.push.is_some_and(|push| push.lease.is_none()) {
            return self.ask_for_lease(slot, budget, rows, effects);
        }
        self.start(slot, hits);
        let place = self.running.iter().position(|&other| other == slot).unwrap_or(0);
        let room = self.grow(place, wish.start + rows).saturating_sub(wish.start);
        self.push_cached(slot, effects);
        if rows.min(room) > 0 {
            self.plan_piece(slot, rows.min(room), budget);
        }
        Admission::Taken
    }

    /// Its whole context must find room beside what those who run still lack for theirs and one block each to go on with: who is let in too early
    /// is preempted again.
    fn has_room(&self, sequence: &Sequence, hits: &[BlockIndex]) -> bool {
        let num_idle = hits.iter().filter(|&&block| self.pool.is_cached(block)).count();
        let running = self.running.iter().filter_map(|&slot| self.slots[slot].as_ref());
        let promised: usize = running.map(|other| other.num_missing_blocks() + usize::from(other.push.is_none())).sum();
        let missing = blocks_for_tokens(sequence.tokens.len()) - hits.len();
        missing + promised + num_idle <= self.pool.num_available()
    }

    /// Asks for the lease of a sequence whose first chunk could be in this step. It takes that chunk's rows off the budget, so that no more
    /// leases are asked for at once than one step can use.
    fn ask_for_lease(
        &mut self,
        slot: usize,
        budget: &mut StepBudget,
        rows: usize,
        effects: &mut Vec<Effect>,
    ) -> Admission {
        if let Some(sequence) = self.slots[slot].as_mut() {
            sequence.stage = Stage::AwaitingLease;
            self.num_awaiting_lease += 1;
            budget.take(rows, 0);
            effects.push(Effect::Tell(DeviceEvent::LeaseWanted { sequence: sequence.id() }));
        }
        Admission::Taken
    }

    /// Gives a sequence its seat and the blocks that hold its prefix already.
    fn start(&mut self, slot: usize, hits: Vec<BlockIndex>) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        for &block in &hits {
            self.pool.retain(block);
        }
        sequence.num_computed = hits.len() * BLOCK_TOKENS;
        sequence.prefixes.num_registered = hits.len();
        sequence.table.extend(hits);
        sequence.stage = Stage::Running;
        if sequence.cached_tokens.is_none() {
            let num_hits = sequence.num_computed.min(sequence.num_prompt());
            sequence.cached_tokens = Some(u32::try_from(num_hits).unwrap_or(u32::MAX));
            if sequence.prefixes.salt.is_some() && !sequence.wants_prompt_logprobs() {
                self.counters.prefix_query_tokens += sequence.num_prompt() as u64;
                self.counters.prefix_hit_tokens += num_hits as u64;
            }
        }
        self.claim(slot);
        self.seat(slot);
    }

    fn plan_piece(&mut self, slot: usize, rows: usize, budget: &mut StepBudget) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        let start = sequence.num_computed;
        let samples = start + rows == sequence.tokens.len() && sequence.wants_token();
        let num_targets = sequence.targets(start, rows).len();
        sequence.rows_in_step = rows;
        let decodes = rows == 1 && sequence.role == DeviceRole::Decode;
        budget.take(rows, num_targets + usize::from(samples));
        self.step.pieces.push(PlannedPiece { slot, start, rows, num_targets, samples, decodes });
    }

    /// Marks the full blocks that a sequence is about to compute.
    fn claim(&mut self, slot: usize) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        sequence.prefixes.num_claimed = sequence.prefixes.keys.len();
        for &key in &sequence.prefixes.keys[sequence.prefixes.num_registered..] {
            self.claims.entry(key).or_insert(slot);
        }
    }

    /// Takes the marks off the leading `num_blocks` blocks.
    pub(super) fn unclaim(&mut self, slot: usize, num_blocks: usize) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        let prefixes = &mut sequence.prefixes;
        let end = prefixes.num_claimed.min(num_blocks);
        for key in &prefixes.keys[prefixes.num_unclaimed.min(end)..end] {
            if self.claims.get(key) == Some(&slot) {
                self.claims.remove(key);
            }
        }
        prefixes.num_unclaimed = end;
        if end == prefixes.num_claimed {
            (prefixes.num_claimed, prefixes.num_unclaimed) = (0, 0);
        }
    }

    /// Whether somebody else computes the first block that a sequence lacks: to wait for it costs no more than to compute it beside.
    fn is_claimed_by_another(&self, slot: usize, num_hits: usize) -> bool {
        let Some(sequence) = &self.slots[slot] else { return false };
        let useful = (num_hits + 1) * BLOCK_TOKENS < sequence.tokens.len() && !sequence.wants_prompt_logprobs();
        let key = sequence.prefixes.keys.get(num_hits).filter(|_| useful);
        key.and_then(|key| self.claims.get(key)).is_some_and(|&claimant| claimant != slot)
    }
}

impl PlannedPiece {
    /// Output rows of this piece.
    pub(super) fn num_outputs(&self) -> usize {
        self.num_targets + usize::from(self.samples)
    }

    fn as_piece<'a>(&self, sequence: &'a Sequence, mut outputs: Vec<OutputRow<'a>>) -> Piece<'a> {
        let request = &*sequence.request;
        outputs.extend(sequence.targets(self.start, self.rows).map(|target| OutputRow {
            row: target - 1 - self.start,
            target: Some(sequence.tokens[target]),
            top_logprobs: request.prompt_logprobs,
            ..OutputRow::default()
        }));
        if self.samples {
            let (prompt, generated) = sequence.tokens.split_at(sequence.num_prompt());
            outputs.push(OutputRow {
                row: self.rows - 1,
                sample: Some(SampleRow {
                    params: &request.sampling,
                    choice: request.sequence.choice,
                    prompt,
                    generated,
                    banned: &[],
                }),
                top_logprobs: request.top_logprobs,
                ..OutputRow::default()
            });
        }
        Piece {
            tokens: &sequence.tokens[self.start..self.start + self.rows],
            start: self.start,
            block_table: &sequence.table,
            outputs,
        }
    }
}

impl PlanBuffers {
    /// Takes a plan's vectors back.
    pub fn reclaim(&mut self, mut plan: StepPlan<'_>) {
        for piece in plan.pieces.drain(..) {
            self.outputs.push(relabel(piece.outputs));
        }
        self.pieces = relabel(plan.pieces);
    }
}

/// Empties a vector and gives its memory to one of another lifetime: the standard library collects in place.
fn relabel<A, B>(mut vector: Vec<A>) -> Vec<B> {
    vector.clear();
    vector.into_iter().filter_map(|_| None).collect()
}
