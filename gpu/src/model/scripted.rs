//! A model without weights: a transformer of hashes over real KV blocks, for tests and for serving without a model file.
//!
//! Each layer stores a word for each token in its KV block and mixes *every word of the context, as read back from the blocks*, into the row,
//! as attention would. So the next token depends on every token before it, on its position, and on every byte that each layer keeps of it: a
//! wrong block table, a lost hand-over, a stale prefix or a bad resume after preemption changes what comes out.
//!
//! A [`Script`] may put other tokens in their place, and [`ScriptedTimings`] say how long a step takes.
//!
//! **Invariant:** what a row yields depends on its context alone, never on the step it was computed in.

use std::sync::Arc;

use relevo_wire::{BLOCK_TOKENS, BlockIndex, ElementType, KvLayout, LayerIndex, TokenId};

use super::limits::StepLimits;
use super::memory::MemoryPlan;
use super::script::{Cue, Recall, Script};
use super::scripted_kv::ScriptedKv;
use super::scripted_timings::{Clock, Pace, ScriptedTimings};
use super::step::{KvMemory, Progress, StepModel};
use crate::compute::{ComputeError, Piece, RowOutput, StepPlan};
use crate::cost::MemoryUse;
use crate::sampling::{RowRequest, Scratch, sample_row};

/// Shape and bounds of a [`ScriptedModel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScriptedOptions {
    /// Layers; each step pauses after each of them.
    pub num_layers: u32,
    /// Key/value heads of a layer.
    pub num_kv_heads: u32,
    /// Elements of one key head.
    pub key_dim: u32,
    /// Elements of one value head.
    pub value_dim: u32,
    /// Type of every element.
    pub element: ElementType,
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
        Self {
            num_layers: 2,
            num_kv_heads: 1,
            key_dim: 1,
            value_dim: 1,
            element: ElementType::F32,
            vocab_size: 512,
            max_rows: 64,
            max_outputs: 64,
            max_context: 1024,
            num_blocks: 256,
        }
    }
}

impl ScriptedOptions {
    /// Shape of its KV blocks.
    pub const fn layout(&self) -> KvLayout {
        KvLayout {
            num_layers: self.num_layers,
            num_kv_heads: self.num_kv_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            element: self.element,
        }
    }

    /// Memory that a block takes, with what it takes to keep it.
    pub const fn block_memory_bytes(&self) -> u64 {
        self.layout().block_bytes() as u64 + self.num_layers as u64 * ScriptedKv::SLOT_OVERHEAD_BYTES
    }

    /// How much memory the model will take.
    pub const fn memory_plan(&self) -> MemoryPlan {
        // The logits and what the sampler keeps of them.
        let activations = 16 * self.vocab_size as u64;
        let kv = self.block_memory_bytes().saturating_mul(self.num_blocks as u64);
        MemoryPlan::of(MemoryUse { weights: 0, kv, activations }, (self.num_blocks * BLOCK_TOKENS) as u64)
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
    shares_kv: bool,
    script: Arc<Script>,
    pace: Option<Pace>,
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
    outputs: Vec<(usize, RowRequest, Cue)>,
    /// A token of the prompt to be read back from every layer, where the rows themselves do not read their context.
    recall: Option<Recall>,
    /// What was read back in the place of that token, as a difference: 0 if it was all right.
    damage: u64,
}

impl ScriptedModel {
    /// A model with an empty pool.
    pub fn new(options: ScriptedOptions) -> Self {
        let limits = StepLimits {
            max_rows: options.max_rows,
            max_outputs: options.max_outputs,
            max_context: options.max_context,
            num_blocks: options.num_blocks,
            vocab_size: options.vocab_size as usize,
        };
        let kv = Arc::new(ScriptedKv::new(options.layout(), options.num_blocks));
        Self {
            limits,
            kv,
            shares_kv: false,
            script: Arc::default(),
            pace: None,
            hook: None,
            logits: Vec::new(),
            scratch: Scratch::default(),
            num_steps: 0,
            step: None,
        }
    }

    /// The same, with its pool in memory that other processes of the host can be let into, to read.
    ///
    /// # Errors
    /// Transient: memory is short.
    pub fn with_shared_kv(mut self) -> Result<Self, ComputeError> {
        self.shares_kv = true;
        self.reset()?;
        Ok(self)
    }

    /// The same, saying what a script says.
    #[must_use]
    pub fn with_script(mut self, script: Arc<Script>) -> Self {
        self.script = script;
        self
    }

    /// The same, taking its time by a clock. A step that takes none never reads it.
    #[must_use]
    pub fn with_timings(mut self, timings: ScriptedTimings, clock: Clock) -> Self {
        self.pace = Some(Pace::new(timings, clock));
        self
    }

    /// The same, with a hook that sees each step.
    #[must_use]
    pub fn with_hook(mut self, hook: StepHook) -> Self {
        self.hook = Some(hook);
        self
    }

    fn running_piece(&self, piece: &Piece<'_>) -> RunningPiece {
        let outputs = piece.outputs.iter().map(|output| {
            let cue = self.script.cue(output.sample.as_ref());
            (output.row, RowRequest::new(output), cue)
        });
        RunningPiece {
            start: piece.start,
            block_table: piece.block_table.to_vec(),
            rows: piece.tokens.iter().map(|token| first_word(*token)).collect(),
            outputs: outputs.collect(),
            recall: piece.outputs.iter().find_map(|output| self.script.recall(output.sample.as_ref()?)),
            damage: 0,
        }
    }

    fn compute_layer(&self, piece: &mut RunningPiece, layer: LayerIndex) -> Result<(), ComputeError> {
        for (row, word) in piece.rows.iter().enumerate() {
            let position = piece.start + row;
            let block = piece.block_table[position / BLOCK_TOKENS];
            self.kv.store(layer, block, position % BLOCK_TOKENS, stored_word(*word, layer, position))?;
        }
        if self.script.reads_context() {
            self.mix_context(piece, layer);
        } else if let Some(Recall { position, token }) = piece.recall {
            let expected = self.kv.kept(stored_word(first_word(token), layer, position));
            let block = piece.block_table[position / BLOCK_TOKENS];
            piece.damage |= self.kv.load_slot(layer, block, position % BLOCK_TOKENS) ^ expected;
        }
        Ok(())
    }

    /// Mixes every word of the context, as read back from the blocks, into each row that sees it.
    fn mix_context(&self, piece: &mut RunningPiece, layer: LayerIndex) {
        let end = piece.start + piece.rows.len();
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
    }

    /// Logits that each row's word makes up, and what the sampler that real models use does with them.
    fn draw_outputs(&mut self, pieces: &[RunningPiece]) -> Vec<RowOutput> {
        let mut outputs = Vec::new();
        for piece in pieces {
            for (row, request, cue) in &piece.outputs {
                let word = piece.rows[*row];
                self.script.fill_logits(cue, word, piece.damage, self.limits.vocab_size, &mut self.logits);
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
        if let Some(pace) = &mut self.pace {
            pace.begin(step_index, plan);
        }
        let pieces = plan.pieces.iter().map(|piece| self.running_piece(piece)).collect();
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
            if let Some(pace) = &self.pace {
                pace.wait_for_layer(step.next_layer, self.kv.layout().num_layers);
            }
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
        let (layout, num_blocks) = (self.kv.layout(), self.limits.num_blocks);
        self.kv = Arc::new(match self.shares_kv {
            true => ScriptedKv::shareable(layout, num_blocks)?,
            false => ScriptedKv::new(layout, num_blocks),
        });
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

/// The residual stream of a token before the first layer.
fn first_word(token: TokenId) -> u64 {
    mix(0, u64::from(token))
}

/// What a layer keeps of a row.
fn stored_word(row: u64, layer: LayerIndex, position: usize) -> u64 {
    mix(mix(row, u64::from(layer.0)), position as u64)
}

/// Two words into one; the finaliser is SplitMix64's (Steele et al., OOPSLA 2014), a bijection whose every output bit depends on every input bit.
pub(super) const fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.rotate_left(23) ^ b.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
