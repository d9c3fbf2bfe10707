//! A model without weights: a transformer of hashes over real KV blocks, for tests and for serving without a model file.
//!
//! Each layer stores a word for each token in its KV block and mixes *every word of the context, as read back from the blocks*, into the row,
//! as attention would. So the next token depends on every token before it, on its position, and on every byte that each layer keeps of it: a
//! wrong block table, a lost hand-over, a stale prefix or a bad resume after preemption changes what comes out.
//!
//! **Invariant:** what a row yields depends on its context alone, never on the step it was computed in.

use std::sync::Arc;

use relevo_wire::{BLOCK_TOKENS, BlockIndex, ElementType, KvLayout, LayerIndex};

use super::limits::StepLimits;
use super::scripted_kv::ScriptedKv;
use super::step::{KvMemory, Progress, StepModel};
use crate::compute::{ComputeError, RowOutput, StepPlan};
use crate::sampling::{RowRequest, Scratch, sample_row};

/// Shape and bounds of a [`ScriptedModel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScriptedOptions {
    /// Layers; each step pauses after each of them.
    pub num_layers: u32,
    /// Ids it reads and writes.
    pub vocab_size: u32,
    /// Rows of a step.
    pub max_rows: usize,
    /// Output rows of a step.
    pub max_outputs: usize,
    /// Positions of a sequence.
    pub max_context: usize,
    /// Blocks of its pool.
    pub num_blocks: usize,
}

impl Default for ScriptedOptions {
    fn default() -> Self {
        Self { num_layers: 2, vocab_size: 512, max_rows: 64, max_outputs: 64, max_context: 1024, num_blocks: 256 }
    }
}

/// What happens in a step, by its [`StepHook`]'s will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The device fails instead of computing this layer.
    Fail(LayerIndex),
    /// The engine's thread panics instead of computing this layer.
    Panic(LayerIndex),
}

/// Sees each step (counted from 0) before it begins: to count rows and tokens, to advance a virtual clock, to hold the step up, to break it.
pub type StepHook = Box<dyn FnMut(u64, &StepPlan<'_>) -> Fault + Send>;

/// A deterministic model without weights.
pub struct ScriptedModel {
    limits: StepLimits,
    kv: Arc<ScriptedKv>,
    hook: Option<StepHook>,
    logits: Vec<f32>,
    scratch: Scratch,
    num_steps: u64,
    step: Option<RunningStep>,
}

struct RunningStep {
    pieces: Vec<RunningPiece>,
    next_layer: u32,
    fault: Fault,
    outputs: Vec<RowOutput>,
    is_done: bool,
}

struct RunningPiece {
    start: usize,
    block_table: Vec<BlockIndex>,
    /// The residual stream: one word a row.
    rows: Vec<u64>,
    /// Rows whose logits are wanted.
    outputs: Vec<(usize, RowRequest)>,
}

impl ScriptedModel {
    /// A model with an empty pool.
    pub fn new(options: ScriptedOptions) -> Self {
        let layout = KvLayout {
            num_layers: options.num_layers,
            num_kv_heads: 1,
            key_dim: 1,
            value_dim: 1,
            element: ElementType::F32,
        };
        let limits = StepLimits {
            max_rows: options.max_rows,
            max_outputs: options.max_outputs,
            max_context: options.max_context,
            num_blocks: options.num_blocks,
            vocab_size: options.vocab_size as usize,
        };
        let kv = Arc::new(ScriptedKv::new(layout, options.num_blocks));
        Self { limits, kv, hook: None, logits: Vec::new(), scratch: Scratch::default(), num_steps: 0, step: None }
    }

    /// The same, with a hook that sees each step.
    #[must_use]
    pub fn with_hook(mut self, hook: StepHook) -> Self {
        self.hook = Some(hook);
        self
    }

    fn compute_layer(&self, piece: &mut RunningPiece, layer: LayerIndex) -> Result<(), ComputeError> {
        let end = piece.start + piece.rows.len();
        for (row, word) in piece.rows.iter().enumerate() {
            let position = piece.start + row;
            let stored = mix(mix(*word, u64::from(layer.0)), position as u64);
            let block = piece.block_table[position / BLOCK_TOKENS];
            self.kv.store(layer, block, position % BLOCK_TOKENS, stored)?;
        }
        let mut context = 0;
        for (index, block) in piece.block_table.iter().take(end.div_ceil(BLOCK_TOKENS)).enumerate() {
            let words = self.kv.load(layer, *block);
            for (slot, stored) in words.into_iter().enumerate().take(end - index * BLOCK_TOKENS) {
                let position = index * BLOCK_TOKENS + slot;
                context = mix(context, stored);
                if let Some(word) = position.checked_sub(piece.start).and_then(|row| piece.rows.get_mut(row)) {
                    *word = mix(*word, context);
                }
            }
        }
        Ok(())
    }

    /// Logits that each row's word makes up, and what the sampler that real models use does with them.
    fn draw_outputs(&mut self, pieces: &[RunningPiece]) -> Vec<RowOutput> {
        let mut outputs = Vec::new();
        for piece in pieces {
            for (row, request) in &piece.outputs {
                let word = piece.rows[*row];
                self.logits.clear();
                self.logits.extend((0..self.limits.vocab_size as u64).map(|token| logit(mix(word, token))));
                outputs.push(sample_row(&mut self.logits, request, &mut self.scratch));
            }
        }
        outputs
    }
}

impl StepModel for ScriptedModel {
    fn kv_layout(&self) -> KvLayout {
        self.kv.layout()
    }

    fn max_rows(&self) -> usize {
        self.limits.max_rows
    }

    fn max_outputs(&self) -> usize {
        self.limits.max_outputs
    }

    fn max_context(&self) -> usize {
        self.limits.max_context
    }

    fn kv_memory(&self) -> Arc<dyn KvMemory> {
        self.kv.clone()
    }

    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<(), ComputeError> {
        if self.step.is_some() {
            return Err(ComputeError::Plan("a step is in flight".into()));
        }
        self.limits.check(plan)?;
        let step_index = self.num_steps;
        self.num_steps += 1;
        let fault = self.hook.as_mut().map_or(Fault::None, |hook| hook(step_index, plan));
        let pieces = plan
            .pieces
            .iter()
            .map(|piece| RunningPiece {
                start: piece.start,
                block_table: piece.block_table.to_vec(),
                rows: piece.tokens.iter().map(|token| mix(0, u64::from(*token))).collect(),
                outputs: piece.outputs.iter().map(|output| (output.row, RowRequest::new(output))).collect(),
            })
            .collect();
        self.step = Some(RunningStep { pieces, next_layer: 0, fault, outputs: Vec::new(), is_done: false });
        Ok(())
    }

    fn advance(&mut self) -> Result<Progress, ComputeError> {
        // Taken, so that a step that fails or panics is gone.
        let mut step = self.step.take().ok_or_else(|| ComputeError::Plan("no step is in flight".into()))?;
        let layer = LayerIndex(step.next_layer);
        let progress = if layer.0 < self.kv.layout().num_layers {
            step.fault.strike(layer)?;
            for piece in &mut step.pieces {
                self.compute_layer(piece, layer)?;
            }
            step.next_layer += 1;
            Progress::LayerDone(layer)
        } else {
            step.outputs = self.draw_outputs(&step.pieces);
            step.is_done = true;
            Progress::Done
        };
        self.step = Some(step);
        Ok(progress)
    }

    fn finish_step(&mut self) -> Result<Vec<RowOutput>, ComputeError> {
        match self.step.take_if(|step| step.is_done) {
            Some(step) => Ok(step.outputs),
            None => Err(ComputeError::Plan("no step is done".into())),
        }
    }

    fn abandon_step(&mut self) {
        self.step = None;
    }

    fn reset(&mut self) -> Result<(), ComputeError> {
        self.step = None;
        self.kv = Arc::new(ScriptedKv::new(self.kv.layout(), self.limits.num_blocks));
        Ok(())
    }
}

impl Fault {
    #[expect(clippy::panic, reason = "breaking the engine's thread is what this fault is for")]
    fn strike(self, layer: LayerIndex) -> Result<(), ComputeError> {
        match self {
            Self::Fail(at) if at == layer => Err(ComputeError::Device(format!("scripted fault in layer {}", at.0))),
            Self::Panic(at) if at == layer => panic!("scripted panic in layer {}", at.0),
            _ => Ok(()),
        }
    }
}

/// Two words into one; the finaliser is SplitMix64's (Steele et al., OOPSLA 2014), a bijection whose every output bit depends on every input bit.
const fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.rotate_left(23) ^ b.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in [0, 16) of a word: the best of a vocabulary leads by about as much as a real model's.
fn logit(word: u64) -> f32 {
    (word >> 40) as f32 * (16.0 / (1 << 24) as f32)
}

#[cfg(test)]
mod tests;
