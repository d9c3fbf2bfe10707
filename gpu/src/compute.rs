//! The operations of a transformer, as every kind of device offers them.
//!
//! A [`Compute`] is one device with one stream: calls enqueue work in order and may return before it is done; a result is
//! visible to the host only through [`Compute::finish`]. Everything that model code touches is a handle into device memory:
//! the host hands over a [`StepPlan`] once a step and gets [`RowOutput`]s back at its end, nothing in between. A CPU device runs each
//! call to its end before it returns, which this contract allows.
//!
//! **Invariant:** for a CPU device a row's numbers depend on that row alone (its tokens before it, its weights): not on the other rows of the
//! step, the number of threads, or the instruction set.

use std::sync::Arc;

use relevo_wire::{BlockIndex, KvLayout, LayerIndex, Numerics, SamplingParams, TokenId, TokenLogprobs};

use crate::model::KvMemory;
use crate::weights::TensorView;

/// One device with one stream of work.
pub trait Compute: Send {
    /// Activations in device memory, `[num_rows, width]` of f32, row-major.
    type Buffer: Send;
    /// A weight matrix `[num_outputs, num_inputs]`, packed for the kernel that reads it.
    type Matrix: Send + Sync;
    /// A vector of f32 parameters (norm weights, biases, rope frequencies).
    type Vector: Send + Sync;
    /// The paged KV memory of this device, shared with those who move its blocks.
    type KvPool: KvMemory + 'static;
    /// A [`StepPlan`] in device memory.
    type Step: Send;

    /// The calling thread enqueues the work from here on, and does its share of it where the device is the host's processor.
    fn adopt_thread(&mut self) {}

    /// Packs `parts`, stacked along the outputs (such as q, k, v), for this device.
    ///
    /// # Errors
    /// The file's fault if shapes do not fit; transient if memory is short.
    fn load_matrix(&mut self, parts: &[TensorView<'_>], numerics: Numerics) -> Result<Self::Matrix, ComputeError>;

    /// Packs a gate and an up projection (both `[n, k]`) so that [`Epilogue::SiluMul`] can join them.
    ///
    /// # Errors
    /// As [`Compute::load_matrix`].
    fn load_gate_up(
        &mut self,
        gate: &TensorView<'_>,
        up: &TensorView<'_>,
        numerics: Numerics,
    ) -> Result<Self::Matrix, ComputeError>;

    /// Uploads a vector.
    ///
    /// # Errors
    /// Transient if memory is short.
    fn load_vector(&mut self, values: &[f32]) -> Result<Self::Vector, ComputeError>;

    /// Reserves activations for `max_rows` rows of `width`.
    ///
    /// # Errors
    /// Transient if memory is short.
    fn alloc(&mut self, max_rows: usize, width: usize) -> Result<Self::Buffer, ComputeError>;

    /// Reserves the KV memory of `num_blocks` blocks.
    ///
    /// # Errors
    /// Transient if memory is short.
    fn alloc_kv_pool(&mut self, layout: KvLayout, num_blocks: usize) -> Result<Arc<Self::KvPool>, ComputeError>;

    /// Uploads what a step works on; the only host-to-device copy of a step.
    ///
    /// # Errors
    /// Our bug: a plan that contradicts itself.
    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<Self::Step, ComputeError>;

    /// `out[row] = table[token[row]]` for every row of the step. `table`: `[vocab, hidden]`.
    fn embed(&mut self, step: &Self::Step, table: &Self::Matrix, out: &mut Self::Buffer);

    /// `out = x · wᵀ`, with what [`Matmul`] asks for before and after. The number of rows is the step's,
    /// or the number of its output rows if `op.rows` says so.
    fn matmul(&mut self, step: &Self::Step, op: Matmul<'_, Self>, x: &Self::Buffer, out: &mut Self::Buffer);

    /// Splits `qkv` (`[rows, (num_heads + num_kv_heads) * key_dim + num_kv_heads * value_dim]`), normalises heads if the model does,
    /// rotates q and k by position, writes k and v into the pool as the cache stores them; q stays in `qkv`.
    fn rope_and_store_kv(
        &mut self,
        step: &Self::Step,
        op: RopeAndStore<'_, Self>,
        qkv: &mut Self::Buffer,
        kv: &Self::KvPool,
    );

    /// Causal attention of each row's q over its sequence's blocks, in block order, read as the cache stores them,
    /// also for the chunk at hand. `out`: `[rows, num_heads * value_dim]`.
    fn paged_attention(
        &mut self,
        step: &Self::Step,
        op: &Attention,
        qkv: &Self::Buffer,
        kv: &Self::KvPool,
        out: &mut Self::Buffer,
    );

    /// Copies the step's output rows out of `x` into the first rows of `out`.
    fn gather_outputs(&mut self, step: &Self::Step, x: &Self::Buffer, out: &mut Self::Buffer);

    /// Starts the drawing of a token, and the log-probabilities asked for, from each output row's logits `[outputs, vocab]`.
    fn sample(&mut self, step: &Self::Step, logits: &mut Self::Buffer);

    /// Waits for the step and returns one [`RowOutput`] for each output row, in order.
    ///
    /// # Errors
    /// The device failed.
    fn finish(&mut self, step: Self::Step) -> Result<Vec<RowOutput>, ComputeError>;
}

/// What a matrix product does around the product.
pub struct Matmul<'a, C: Compute + ?Sized> {
    /// The weight, `[n, k]`.
    pub weight: &'a C::Matrix,
    /// Normalise each row of `x` first: RMSNorm with this weight and epsilon (Zhang and Sennrich, arXiv:1910.07467).
    pub norm: Option<(&'a C::Vector, f32)>,
    /// Added to each output row, `[n]`.
    pub bias: Option<&'a C::Vector>,
    /// What happens to the product.
    pub epilogue: Epilogue,
    /// Which rows.
    pub rows: Rows,
    /// How finely those of `x` are rounded.
    pub rounding: Rounding,
}

/// What happens to a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = y`.
    Store,
    /// `out += y` (the residual).
    Add,
    /// `out[j] = silu(gate[j]) * up[j]`; the weight came from [`Compute::load_gate_up`].
    SiluMul,
}

/// How rows are rounded before they meet a matrix that was loaded with [`Numerics::Default`] and is quantised in all its parts.
///
/// Other products take them in f32, whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To 8 bits.
    #[default]
    Once,
    /// To 8 bits, and what that leaves to 8 bits again, with a scale of its own: about 15 bits, for twice the arithmetic.
    Twice,
}

impl Rounding {
    /// Numbers of 8 bits that an activation becomes.
    pub const fn num_terms(self) -> usize {
        match self {
            Self::Once => 1,
            Self::Twice => 2,
        }
    }
}

/// Which rows of a step an operation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// Those whose logits are wanted, gathered.
    Outputs,
}

/// Parameters of [`Compute::rope_and_store_kv`].
pub struct RopeAndStore<'a, C: Compute + ?Sized> {
    /// The layer whose blocks are written.
    pub layer: LayerIndex,
    /// Query heads; those of keys and values are in the pool's layout.
    pub num_heads: usize,
    /// RMSNorm of each q head and each k head before the rotation (Qwen3).
    pub qk_norm: Option<(&'a C::Vector, &'a C::Vector, f32)>,
    /// Rotation.
    pub rope: &'a Rope<C::Vector>,
}

/// Rotary position embedding (Su et al., arXiv:2104.09864).
pub struct Rope<V> {
    /// Angle per position of each rotated pair, scaling applied: `[rotary_dim / 2]`.
    pub inverse_frequencies: V,
    /// Elements of a head that rotate; the rest pass.
    pub rotary_dim: usize,
    /// Pairs are (2i, 2i+1) if set, (i, i + rotary_dim/2) otherwise.
    pub interleaved: bool,
    /// Multiplies sine and cosine (YaRN's attention factor).
    pub attention_factor: f32,
}

/// Parameters of [`Compute::paged_attention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// The layer whose blocks are read.
    pub layer: LayerIndex,
    /// Query heads.
    pub num_heads: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// A token sees itself and the `window - 1` before it.
    pub sliding_window: Option<usize>,
}

/// What one step works on: pieces of sequences, in row order.
#[derive(Clone, Debug, Default)]
pub struct StepPlan<'a> {
    /// One piece for each sequence in the step.
    pub pieces: Vec<Piece<'a>>,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// The tokens whose keys and values this step computes; one row each.
    pub tokens: &'a [TokenId],
    /// Position of the first of them; everything before is in the cache.
    pub start: usize,
    /// The sequence's blocks, enough for `start + tokens.len()` tokens.
    pub block_table: &'a [BlockIndex],
    /// Rows whose logits are wanted, in order, as indices into `tokens`.
    pub outputs: Vec<OutputRow<'a>>,
}

/// A row whose logits are wanted.
#[derive(Clone, Debug, Default)]
pub struct OutputRow<'a> {
    /// Index into the piece's `tokens`.
    pub row: usize,
    /// Draw the next token.
    pub sample: Option<SampleRow<'a>>,
    /// Log-probability of this token (a prompt's next one) at this row.
    pub target: Option<TokenId>,
    /// Log-probabilities of this many of the most likely tokens.
    pub top_logprobs: Option<u8>,
    /// The raw logits themselves: a vocabulary of numbers for each row, so for tests and measurements only.
    pub logits: bool,
}

/// How a row's next token is drawn.
#[derive(Clone, Debug)]
pub struct SampleRow<'a> {
    /// The parameters.
    pub params: &'a SamplingParams,
    /// The choice of the request: part of the generator's counter.
    pub choice: u32,
    /// Tokens of the prompt, for the repetition penalty.
    pub prompt: &'a [TokenId],
    /// Tokens generated so far: their number is the generator's position, their counts feed the penalties.
    pub generated: &'a [TokenId],
    /// Ids that must not be drawn (`ignore_eos` leaves this empty; minimum lengths fill it).
    pub banned: &'a [TokenId],
}

/// What came out of one output row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowOutput {
    /// The token drawn, if one was asked for.
    pub token: Option<TokenId>,
    /// Log-probabilities (of the target, or else of the drawn token), if a target or [`OutputRow::top_logprobs`] was given.
    pub logprobs: Option<TokenLogprobs>,
    /// The raw logits, `[vocab]`, if asked for.
    pub logits: Option<Vec<f32>>,
}

/// Why a device could not do as told.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// Memory is short.
    #[error("{wanted_bytes} bytes for {what} do not fit into the device's memory")]
    OutOfMemory {
        /// Asked for.
        wanted_bytes: usize,
        /// What they were for.
        what: &'static str,
    },
    /// A tensor that this operation cannot use.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Its name in the file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A plan that contradicts itself.
    #[error("the step's plan is inconsistent: {0}")]
    Plan(String),
    /// The device does not answer as it should.
    #[error("the device failed: {0}")]
    Device(String),
}
