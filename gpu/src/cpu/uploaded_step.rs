//! A step's plan as the CPU's operations read it: flat arrays, one entry a row, a piece, an output.

use std::ops::Range;

use relevo_wire::{BLOCK_TOKENS, BlockIndex, TokenId, blocks_for_tokens};

use crate::compute::{ComputeError, StepPlan};
use crate::sampling::RowRequest;

/// A step in the memory of the CPU. Its vectors serve step after step.
#[derive(Debug, Default)]
pub struct UploadedStep {
    /// The token of each row.
    pub(super) tokens: Vec<TokenId>,
    pub(super) pieces: Vec<StepPiece>,
    /// The block tables of all pieces, one after the other.
    pub(super) block_tables: Vec<BlockIndex>,
    /// The blocks that the step writes to, piece by piece.
    pub(super) writes: Vec<BlockWrite>,
    /// The row of each output.
    pub(super) output_rows: Vec<usize>,
    /// What is wanted of each output.
    pub(super) requests: Vec<RowRequest>,
    written: Vec<BlockIndex>,
}

/// Consecutive rows of one sequence.
#[derive(Clone, Debug)]
pub(super) struct StepPiece {
    /// Its rows in the step.
    pub(super) rows: Range<usize>,
    /// Position of the first.
    pub(super) start: usize,
    /// Its blocks, as a range of `block_tables`.
    pub(super) blocks: Range<usize>,
}

/// The rows of a piece whose keys and values fall into one block.
#[derive(Clone, Debug)]
pub(super) struct BlockWrite {
    pub(super) block: BlockIndex,
    /// Rows of the step.
    pub(super) rows: Range<usize>,
    /// Position of the first of them.
    pub(super) position: usize,
}

impl UploadedStep {
    /// Takes over `plan`.
    ///
    /// # Errors
    /// Our bug: a plan that contradicts itself: too few blocks, a block that two pieces write to, an output row that is none.
    pub(super) fn fill(&mut self, plan: &StepPlan<'_>) -> Result<(), ComputeError> {
        self.clear();
        for (index, piece) in plan.pieces.iter().enumerate() {
            let plan_error = |reason| ComputeError::Plan(format!("piece {index}: {reason}"));
            let rows = self.tokens.len()..self.tokens.len() + piece.tokens.len();
            let num_blocks = blocks_for_tokens(piece.start.saturating_add(piece.tokens.len()));
            let Some(block_table) = piece.block_table.get(..num_blocks) else {
                return Err(plan_error(format!("{} blocks, {num_blocks} are needed", piece.block_table.len())));
            };
            let blocks = self.block_tables.len()..self.block_tables.len() + num_blocks;
            self.tokens.extend_from_slice(piece.tokens);
            self.block_tables.extend_from_slice(block_table);
            for output in &piece.outputs {
                if output.row >= piece.tokens.len() {
                    return Err(plan_error(format!("output row {} of {} rows", output.row, piece.tokens.len())));
                }
                self.output_rows.push(rows.start + output.row);
                self.requests.push(RowRequest::new(output));
            }
            self.add_writes(rows.clone(), piece.start, block_table);
            self.pieces.push(StepPiece { rows, start: piece.start, blocks });
        }
        self.check_writes()
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.pieces.clear();
        self.block_tables.clear();
        self.writes.clear();
        self.output_rows.clear();
        self.requests.clear();
        self.written.clear();
    }

    fn add_writes(&mut self, rows: Range<usize>, start: usize, block_table: &[BlockIndex]) {
        let mut row = rows.start;
        while row < rows.end {
            let position = start + (row - rows.start);
            let end = (row + BLOCK_TOKENS - position % BLOCK_TOKENS).min(rows.end);
            self.writes.push(BlockWrite { block: block_table[position / BLOCK_TOKENS], rows: row..end, position });
            row = end;
        }
    }

    /// Threads write blocks side by side: each must have one writer.
    fn check_writes(&mut self) -> Result<(), ComputeError> {
        self.written.extend(self.writes.iter().map(|write| write.block));
        self.written.sort_unstable();
        match self.written.array_windows().find(|[a, b]| a == b) {
            Some([block, _]) => Err(ComputeError::Plan(format!("two pieces write to block {}", block.0))),
            None => Ok(()),
        }
    }

    /// Rows of the step.
    pub(super) fn num_rows(&self) -> usize {
        self.tokens.len()
    }

    /// The block of a piece's `index`-th sixteen tokens.
    pub(super) fn block(&self, piece: &StepPiece, index: usize) -> BlockIndex {
        self.block_tables[piece.blocks.clone()][index]
    }
}
