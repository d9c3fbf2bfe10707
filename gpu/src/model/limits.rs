//! What a model accepts in a step, and the check of a plan against it.

use std::collections::HashSet;

use relevo_wire::{TokenId, blocks_for_tokens};

use crate::compute::{ComputeError, Piece, StepPlan};

/// Bounds of a step. A plan within them can be computed; one beyond them is the planner's bug and is refused before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows of a step.
    pub max_rows: usize,
    /// Rows of a step whose logits are wanted.
    pub max_outputs: usize,
    /// Positions of a sequence.
    pub max_context: usize,
    /// Blocks of the pool.
    pub num_blocks: usize,
    /// Ids of the vocabulary.
    pub vocab_size: usize,
}

impl StepLimits {
    /// Checks a plan.
    ///
    /// # Errors
    /// [`ComputeError::Plan`], naming the piece and what is wrong with it.
    pub fn check(&self, plan: &StepPlan<'_>) -> Result<(), ComputeError> {
        let num_rows: usize = plan.pieces.iter().map(|piece| piece.tokens.len()).sum();
        let num_outputs: usize = plan.pieces.iter().map(|piece| piece.outputs.len()).sum();
        if num_rows == 0 {
            return Err(ComputeError::Plan("no rows".into()));
        }
        within("rows", num_rows, self.max_rows)?;
        within("output rows", num_outputs, self.max_outputs)?;
        // A block written by two pieces of one step would hold whichever came last.
        let mut written = HashSet::new();
        for (index, piece) in plan.pieces.iter().enumerate() {
            self.check_piece(piece)
                .and_then(|()| check_writes(piece, &mut written))
                .map_err(|reason| ComputeError::Plan(format!("piece {index}: {reason}")))?;
        }
        Ok(())
    }

    fn check_piece(&self, piece: &Piece<'_>) -> Result<(), String> {
        if piece.tokens.is_empty() {
            return Err("no tokens".into());
        }
        let end = piece.start.saturating_add(piece.tokens.len());
        if end > self.max_context {
            return Err(format!("ends at position {end}, the context holds {}", self.max_context));
        }
        let num_needed = blocks_for_tokens(end);
        if piece.block_table.len() < num_needed {
            return Err(format!("{} blocks for {end} tokens, which need {num_needed}", piece.block_table.len()));
        }
        if let Some(block) = piece.block_table.iter().find(|block| block.0 as usize >= self.num_blocks) {
            return Err(format!("block {} of a pool of {}", block.0, self.num_blocks));
        }
        if let Some(token) = piece.tokens.iter().find(|token| !self.is_token(**token)) {
            return Err(format!("token {token} of a vocabulary of {}", self.vocab_size));
        }
        self.check_outputs(piece)
    }

    fn check_outputs(&self, piece: &Piece<'_>) -> Result<(), String> {
        let mut least_row = 0;
        for output in &piece.outputs {
            if output.row < least_row || output.row >= piece.tokens.len() {
                let num_rows = piece.tokens.len();
                return Err(format!("output row {} after {least_row} of {num_rows} rows", output.row));
            }
            least_row = output.row + 1;
            if let Some(target) = output.target.filter(|target| !self.is_token(*target)) {
                return Err(format!("target {target} of a vocabulary of {}", self.vocab_size));
            }
        }
        Ok(())
    }

    fn is_token(&self, token: TokenId) -> bool {
        (token as usize) < self.vocab_size
    }
}

fn within(what: &str, count: usize, limit: usize) -> Result<(), ComputeError> {
    if count > limit {
        return Err(ComputeError::Plan(format!("{count} {what}, at most {limit}")));
    }
    Ok(())
}

fn check_writes(piece: &Piece<'_>, written: &mut HashSet<u32>) -> Result<(), String> {
    let blocks = piece.start / relevo_wire::BLOCK_TOKENS..blocks_for_tokens(piece.start + piece.tokens.len());
    for block in &piece.block_table[blocks] {
        if !written.insert(block.0) {
            return Err(format!("block {} is written twice in this step", block.0));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use relevo_wire::BlockIndex;

    use super::*;
    use crate::compute::OutputRow;

    const LIMITS: StepLimits =
        StepLimits { max_rows: 8, max_outputs: 2, max_context: 40, num_blocks: 4, vocab_size: 10 };

    fn piece<'a>(tokens: &'a [TokenId], start: usize, block_table: &'a [BlockIndex]) -> Piece<'a> {
        Piece { tokens, start, block_table, outputs: Vec::new() }
    }

    fn reason(pieces: Vec<Piece<'_>>) -> String {
        LIMITS.check(&StepPlan { pieces }).unwrap_err().to_string()
    }

    #[test]
    fn a_plan_within_the_limits_passes() {
        let table = [BlockIndex(3), BlockIndex(1)];
        let mut good = piece(&[1, 9], 15, &table);
        good.outputs.push(OutputRow { row: 1, target: Some(9), ..OutputRow::default() });
        LIMITS.check(&StepPlan { pieces: vec![good] }).unwrap();
    }

    #[test]
    fn every_contradiction_is_named() {
        let table = [BlockIndex(0)];
        assert!(reason(vec![]).contains("no rows"));
        assert!(reason(vec![piece(&[1; 9], 0, &table)]).contains("9 rows, at most 8"));
        assert!(reason(vec![piece(&[1], 0, &table), piece(&[], 0, &table)]).contains("piece 1: no tokens"));
        assert!(reason(vec![piece(&[1], 40, &table)]).contains("ends at position 41"));
        assert!(reason(vec![piece(&[1], 16, &table)]).contains("1 blocks for 17 tokens"));
        assert!(reason(vec![piece(&[1], 0, &[BlockIndex(4)])]).contains("block 4 of a pool of 4"));
        assert!(reason(vec![piece(&[10], 0, &table)]).contains("token 10 of a vocabulary of 10"));
        assert!(reason(vec![piece(&[1], 0, &table), piece(&[1], 1, &table)]).contains("written twice"));
    }

    #[test]
    fn output_rows_are_in_range_and_ascending() {
        let table = [BlockIndex(0)];
        let output = |row, target| OutputRow { row, target, ..OutputRow::default() };
        for (outputs, expected) in [
            (vec![output(2, None)], "output row 2"),
            (vec![output(1, None), output(1, None)], "output row 1 after 2"),
            (vec![output(0, Some(10))], "target 10"),
            (vec![output(0, None), output(1, None), output(1, None)], "3 output rows, at most 2"),
        ] {
            let mut bad = piece(&[1, 2], 0, &table);
            bad.outputs = outputs;
            assert!(reason(vec![bad]).contains(expected), "{expected}");
        }
    }
}
