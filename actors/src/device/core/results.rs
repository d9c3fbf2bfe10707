//! What a step has brought: blocks to name, tokens to emit, sequences that end or change hands.

use std::vec::IntoIter;

use relevo_gpu::compute::RowOutput;
use relevo_wire::{BLOCK_TOKENS, FinishReason, StreamEvent, TokenId, TokenLogprobs, blocks_for_tokens};

use super::planning::PlannedPiece;
use super::{DeviceCore, Effect};
use crate::device::interface::{DeviceEvent, DeviceRole, SequenceOutcome};
use crate::policy::fairness::{GENERATED_TOKEN_COST, PROMPT_TOKEN_COST};

/// The model has left out what the plan asked for.
#[derive(Debug)]
struct MissingOutput(&'static str);

impl DeviceCore {
    pub(super) fn finish_step(&mut self, outputs: Vec<RowOutput>, effects: &mut Vec<Effect>) {
        if !std::mem::take(&mut self.step.in_flight) {
            return effects.push(Effect::Fault("a step was done that was not begun".into()));
        }
        let expected: usize = self.step.pieces.iter().map(PlannedPiece::num_outputs).sum();
        if outputs.len() != expected {
            self.step.in_flight = true;
            return effects.push(Effect::Fault(format!("{} outputs of {expected} came", outputs.len())));
        }
        self.counters.steps += 1;
        let mut outputs = outputs.into_iter();
        let pieces = std::mem::take(&mut self.step.pieces);
        for piece in &pieces {
            if let Err(MissingOutput(what)) = self.finish_piece(*piece, &mut outputs, effects) {
                effects.push(Effect::Fault(format!("an output row came without {what}")));
                self.step.in_flight = true;
                break;
            }
        }
        self.step.pieces = pieces;
    }

    fn finish_piece(
        &mut self,
        piece: PlannedPiece,
        outputs: &mut IntoIter<RowOutput>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), MissingOutput> {
        let Some(sequence) = self.slots[piece.slot].as_mut() else { return Ok(()) };
        sequence.rows_in_step = 0;
        if let Some(doom) = sequence.doom.take() {
            outputs.by_ref().take(piece.num_outputs()).for_each(drop);
            self.end(piece.slot, doom, effects);
            return Ok(());
        }
        sequence.num_computed += piece.rows;
        sequence.register_blocks(&mut self.pool);
        let (num_full, num_held) = (sequence.num_computed / BLOCK_TOKENS, blocks_for_tokens(sequence.num_computed));
        if piece.num_targets > 0 {
            let event = sequence.take_prompt_logprobs(outputs.by_ref().take(piece.num_targets));
            effects.push(Effect::Emit(sequence.id(), event.ok_or(MissingOutput("log-probabilities"))?));
        }
        let is_complete = sequence.num_computed == sequence.tokens.len();
        let tenant = sequence.request.tenant;
        self.queue.charge(tenant, charge_for(piece));
        self.counters.prompt_tokens += if piece.decodes { 0 } else { piece.rows as u64 };
        self.unclaim(piece.slot, num_full);
        self.mark_sent(piece.slot, num_held);
        if piece.samples {
            let output = outputs.next().ok_or(MissingOutput("anything"))?;
            let token = output.token.ok_or(MissingOutput("a token"))?;
            self.take_token(piece.slot, token, output.logprobs, effects);
        } else if is_complete {
            self.finish_prefill(piece.slot, None, true, effects);
            self.complete(piece.slot, FinishReason::Length, effects);
        }
        Ok(())
    }

    fn take_token(&mut self, slot: usize, token: TokenId, logprobs: Option<TokenLogprobs>, effects: &mut Vec<Effect>) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        let index = u32::try_from(sequence.num_generated()).unwrap_or(u32::MAX);
        if sequence.role == DeviceRole::Prefill {
            let cached_tokens = sequence.cached_tokens.unwrap_or(0);
            effects.push(Effect::Emit(sequence.id(), StreamEvent::Prefilled { cached_tokens }));
        }
        effects.push(Effect::Emit(sequence.id(), StreamEvent::Token { index, token, logprobs }));
        let ends = sequence.accept(token, self.max_context);
        self.counters.generated_tokens += 1;
        if sequence.role == DeviceRole::Prefill {
            self.finish_prefill(slot, Some(token), ends.is_some(), effects);
        }
        if let Some(reason) = ends {
            self.complete(slot, reason, effects);
        }
    }

    /// The context is computed: the sequence stays and belongs to decode, or goes where its blocks went, or is at its end.
    fn finish_prefill(&mut self, slot: usize, first_token: Option<TokenId>, ends: bool, effects: &mut Vec<Effect>) {
        let Some(sequence) = self.slots[slot].as_mut() else { return };
        let id = sequence.id();
        let cached_tokens = sequence.cached_tokens.unwrap_or(0);
        let event = DeviceEvent::PrefillFinished { sequence: id, first_token, continues: !ends, cached_tokens };
        effects.push(Effect::Tell(event));
        if ends {
            return;
        }
        if sequence.push.is_some() {
            self.end(slot, SequenceOutcome::Pushed, effects);
        } else {
            sequence.role = DeviceRole::Decode;
            let num_blocks = u32::try_from(blocks_for_tokens(sequence.num_computed)).unwrap_or(u32::MAX);
            effects.push(Effect::Tell(DeviceEvent::HandedOver { sequence: id, num_blocks }));
        }
    }

    /// Tells the gateway that a sequence went well, and ends it.
    pub(super) fn complete(&mut self, slot: usize, reason: FinishReason, effects: &mut Vec<Effect>) {
        let Some(sequence) = &self.slots[slot] else { return };
        effects.push(Effect::Emit(sequence.id(), StreamEvent::Finished { reason, usage: sequence.usage() }));
        self.end(slot, SequenceOutcome::Finished, effects);
    }
}

fn charge_for(piece: PlannedPiece) -> u64 {
    let computed = if piece.decodes { 0 } else { piece.rows as u64 * PROMPT_TOKEN_COST };
    computed + if piece.samples { GENERATED_TOKEN_COST } else { 0 }
}
