//! What a step may hold: rows under a budget, outputs under a limit, chunks that end where blocks end.

use relevo_wire::BLOCK_TOKENS;

/// What is left of a step while it is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepBudget {
    /// Rows that may still join.
    pub rows: usize,
    /// Output rows that may still join.
    pub outputs: usize,
}

/// What one sequence wants of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkWish {
    /// Tokens in the KV cache already.
    pub start: usize,
    /// Tokens that it has.
    pub end: usize,
    /// Every row gives an output (log-probabilities of a prompt), not the last alone.
    pub outputs_for_each_row: bool,
}

impl StepBudget {
    /// Tokens of the next chunk: as many as fit, ending at an absolute multiple of 16 or at the end of the tokens; 0 if none fit.
    ///
    /// So each (layer, block) but a sequence's last is final when its chunk is done, and is pushed to the decode worker once.
    pub fn chunk(&self, wish: ChunkWish) -> usize {
        let most = if wish.outputs_for_each_row { self.rows.min(self.outputs) } else { self.rows };
        if wish.end - wish.start <= most {
            return if self.outputs > 0 { wish.end - wish.start } else { 0 };
        }
        let end = (wish.start + most) / BLOCK_TOKENS * BLOCK_TOKENS;
        end.saturating_sub(wish.start)
    }

    /// Takes a chunk's rows and outputs off.
    pub fn take(&mut self, rows: usize, outputs: usize) {
        self.rows -= rows;
        self.outputs -= outputs;
    }
}
