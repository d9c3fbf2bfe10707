//! What a step costs, counted by a device that computes nothing.
//!
//! [`CostDevice`] is an implementor of [`Compute`] like any other: the very forward pass that serves is run on it, and each operation notes the
//! bytes it has to move and the arithmetic it has to do. Planning (memory before loading, the roofline beside each benchmark, simulations)
//! therefore cannot drift from what is served.
//!
//! Counted is what no implementation can avoid with the weights as the file stores them: each weight once a step, each sequence's cache once a
//! layer, each operation's activations in and out.

use std::sync::Arc;

use bytes::Bytes;
use relevo_wire::{BlockIndex, KvLayout, LayerIndex, Numerics};

use crate::compute::{Attention, Compute, ComputeError, Epilogue, Matmul, RopeAndStore, RowOutput, Rows, StepPlan};
use crate::model::{KvMemory, Model, StepModel};
use crate::weights::TensorView;

/// Bytes of an activation or a parameter of a vector.
const F32: u64 = 4;

/// Bytes moved and arithmetic done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Matrices and vectors of the model.
    pub weight_bytes: u64,
    /// Keys and values read.
    pub kv_bytes_read: u64,
    /// Keys and values written.
    pub kv_bytes_written: u64,
    /// Activations read and written, embedding rows and rope frequencies among them.
    pub activation_bytes: u64,
    /// Multiplications and additions in products with weights; twice as many where activations are rounded twice.
    pub matmul_operations: u64,
    /// Multiplications and additions in attention.
    pub attention_operations: u64,
}

impl Cost {
    /// All bytes that are read or written.
    pub const fn bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes_read + self.kv_bytes_written + self.activation_bytes
    }

    /// All arithmetic.
    pub const fn operations(&self) -> u64 {
        self.matmul_operations + self.attention_operations
    }

    /// The least time that a machine can take for it (Williams et al., "Roofline", CACM 52(4), 2009): the longer of moving the bytes and doing the
    /// arithmetic, in seconds.
    pub fn roofline_seconds(&self, machine: Roofline) -> f64 {
        let moving = self.bytes() as f64 / machine.bytes_per_second;
        let computing = self.matmul_operations as f64 / machine.matmul_operations_per_second
            + self.attention_operations as f64 / machine.attention_operations_per_second;
        moving.max(computing)
    }

    fn add(&mut self, other: &Self) {
        self.weight_bytes += other.weight_bytes;
        self.kv_bytes_read += other.kv_bytes_read;
        self.kv_bytes_written += other.kv_bytes_written;
        self.activation_bytes += other.activation_bytes;
        self.matmul_operations += other.matmul_operations;
        self.attention_operations += other.attention_operations;
    }
}

/// The limits of a machine.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Roofline {
    /// From memory.
    pub bytes_per_second: f64,
    /// In the arithmetic of products with weights: int8 for quantised ones.
    pub matmul_operations_per_second: f64,
    /// In the arithmetic of attention: f32.
    pub attention_operations_per_second: f64,
}

/// An operation of [`Compute`], as costs are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// [`Compute::embed`].
    Embed,
    /// [`Compute::matmul`] over all rows.
    Matmul,
    /// [`Compute::matmul`] over the output rows: the last layer's end and the output head.
    MatmulOutputs,
    /// [`Compute::rope_and_store_kv`].
    RopeAndStoreKv,
    /// [`Compute::paged_attention`].
    PagedAttention,
    /// [`Compute::gather_outputs`].
    GatherOutputs,
    /// [`Compute::sample`].
    Sample,
}

impl Operation {
    /// All of them, in the order in which a step first comes to them.
    pub const ALL: [Self; 7] = [
        Self::Embed,
        Self::Matmul,
        Self::RopeAndStoreKv,
        Self::PagedAttention,
        Self::GatherOutputs,
        Self::MatmulOutputs,
        Self::Sample,
    ];
}

/// What one step costs, by operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepCost {
    costs: [Cost; Operation::ALL.len()],
}

impl StepCost {
    /// The cost of a step of `model`.
    ///
    /// # Errors
    /// Our bug: a plan that contradicts itself or exceeds the model's limits.
    pub fn of(model: &mut Model<CostDevice>, plan: &StepPlan<'_>) -> Result<Self, ComputeError> {
        model.device_mut().counted = Self::default();
        model.begin_step(plan)?;
        while model.advance()? != crate::model::Progress::Done {}
        model.finish_step()?;
        Ok(std::mem::take(&mut model.device_mut().counted))
    }

    /// All calls of one operation.
    pub fn operation(&self, operation: Operation) -> &Cost {
        &self.costs[operation as usize]
    }

    /// The whole step.
    pub fn total(&self) -> Cost {
        let mut total = Cost::default();
        self.costs.iter().for_each(|cost| total.add(cost));
        total
    }
}

/// Memory that a model takes on its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryUse {
    /// Matrices and vectors, as the file stores them.
    pub weights: u64,
    /// The KV pool.
    pub kv: u64,
    /// Activations of the largest step.
    pub activations: u64,
}

/// A device that counts.
#[derive(Debug, Default)]
pub struct CostDevice {
    counted: StepCost,
    memory: MemoryUse,
}

/// A matrix that is not there.
#[derive(Clone, Copy, Debug)]
pub struct CountedMatrix {
    num_outputs: u64,
    num_inputs: u64,
    byte_len: u64,
    /// Whether [`Rounding`](crate::compute::Rounding) concerns it.
    is_rounded: bool,
}

/// Activations that are not there, by their width.
#[derive(Clone, Copy, Debug)]
pub struct CountedBuffer {
    width: u64,
}

/// A vector that is not there, by its length.
#[derive(Clone, Copy, Debug)]
pub struct CountedVector {
    len: u64,
}

/// A KV pool without memory: zeros are read and what is written is dropped.
#[derive(Clone, Copy, Debug)]
pub struct CountedPool {
    layout: KvLayout,
    num_blocks: usize,
}

/// What of a plan costs depend on.
#[derive(Clone, Debug)]
pub struct CountedStep {
    num_rows: u64,
    /// First position and number of rows of each piece.
    pieces: Vec<(u64, u64)>,
    /// One for each output row.
    outputs: Vec<RowOutput>,
}

impl CostDevice {
    /// A device on which nothing lies.
    pub fn new() -> Self {
        Self::default()
    }

    /// What lies on it.
    pub const fn memory(&self) -> MemoryUse {
        self.memory
    }

    fn count(&mut self, operation: Operation, cost: &Cost) {
        self.counted.costs[operation as usize].add(cost);
    }

    fn reserve(&mut self, parts: &[TensorView<'_>], numerics: Numerics) -> Result<CountedMatrix, ComputeError> {
        let is_rounded = numerics == Numerics::Default && parts.iter().all(|part| !part.ty.is_float());
        let mut matrix = CountedMatrix { num_outputs: 0, num_inputs: 0, byte_len: 0, is_rounded };
        for part in parts {
            let &[num_outputs, num_inputs] = part.shape else {
                let reason = format!("shape {:?} is no matrix", part.shape);
                return Err(ComputeError::Tensor { name: part.name.to_owned(), reason });
            };
            matrix.num_outputs += num_outputs as u64;
            matrix.num_inputs = num_inputs as u64;
            matrix.byte_len += part.data.len() as u64;
        }
        self.memory.weights += matrix.byte_len;
        Ok(matrix)
    }
}

impl CountedStep {
    fn rows(&self, rows: Rows) -> u64 {
        match rows {
            Rows::All => self.num_rows,
            Rows::Outputs => self.outputs.len() as u64,
        }
    }
}

impl Compute for CostDevice {
    type Buffer = CountedBuffer;
    type Matrix = CountedMatrix;
    type Vector = CountedVector;
    type KvPool = CountedPool;
    type Step = CountedStep;

    fn load_matrix(&mut self, parts: &[TensorView<'_>], numerics: Numerics) -> Result<CountedMatrix, ComputeError> {
        self.reserve(parts, numerics)
    }

    fn load_gate_up(
        &mut self,
        gate: &TensorView<'_>,
        up: &TensorView<'_>,
        numerics: Numerics,
    ) -> Result<CountedMatrix, ComputeError> {
        self.reserve(&[*gate, *up], numerics)
    }

    fn load_vector(&mut self, values: &[f32]) -> Result<CountedVector, ComputeError> {
        let len = values.len() as u64;
        self.memory.weights += len * F32;
        Ok(CountedVector { len })
    }

    fn alloc(&mut self, max_rows: usize, width: usize) -> Result<CountedBuffer, ComputeError> {
        let width = width as u64;
        self.memory.activations += max_rows as u64 * width * F32;
        Ok(CountedBuffer { width })
    }

    fn alloc_kv_pool(&mut self, layout: KvLayout, num_blocks: usize) -> Result<Arc<CountedPool>, ComputeError> {
        self.memory.kv = (num_blocks * layout.block_bytes()) as u64;
        Ok(Arc::new(CountedPool { layout, num_blocks }))
    }

    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<CountedStep, ComputeError> {
        let output = |sample: bool| RowOutput { token: sample.then_some(0), ..RowOutput::default() };
        let outputs = plan.pieces.iter().flat_map(|piece| &piece.outputs).map(|row| output(row.sample.is_some()));
        Ok(CountedStep {
            num_rows: plan.pieces.iter().map(|piece| piece.tokens.len() as u64).sum(),
            pieces: plan.pieces.iter().map(|piece| (piece.start as u64, piece.tokens.len() as u64)).collect(),
            outputs: outputs.collect(),
        })
    }

    fn embed(&mut self, step: &CountedStep, table: &CountedMatrix, out: &mut CountedBuffer) {
        let row_bytes = table.byte_len / table.num_outputs.max(1);
        let activation_bytes = step.num_rows * (row_bytes + out.width * F32);
        self.count(Operation::Embed, &Cost { activation_bytes, ..Cost::default() });
    }

    fn matmul(&mut self, step: &CountedStep, op: Matmul<'_, Self>, x: &CountedBuffer, out: &mut CountedBuffer) {
        let num_rows = step.rows(op.rows);
        let vectors = op.norm.map_or(0, |(norm, _)| norm.len) + op.bias.map_or(0, |bias| bias.len);
        // A residual is read before it is written.
        let out_width = if op.epilogue == Epilogue::Add { 2 * out.width } else { out.width };
        let num_terms = if op.weight.is_rounded { op.rounding.num_terms() as u64 } else { 1 };
        let cost = Cost {
            weight_bytes: op.weight.byte_len + vectors * F32,
            activation_bytes: num_rows * (x.width + out_width) * F32,
            matmul_operations: 2 * op.weight.num_outputs * op.weight.num_inputs * num_rows * num_terms,
            ..Cost::default()
        };
        self.count(if op.rows == Rows::All { Operation::Matmul } else { Operation::MatmulOutputs }, &cost);
    }

    fn rope_and_store_kv(
        &mut self,
        step: &CountedStep,
        op: RopeAndStore<'_, Self>,
        qkv: &mut CountedBuffer,
        kv: &CountedPool,
    ) {
        let norms = op.qk_norm.map_or(0, |(q, k, _)| q.len + k.len);
        let cost = Cost {
            weight_bytes: norms * F32,
            kv_bytes_written: step.num_rows * kv.token_bytes(),
            activation_bytes: (2 * step.num_rows * qkv.width + op.rope.inverse_frequencies.len) * F32,
            ..Cost::default()
        };
        self.count(Operation::RopeAndStoreKv, &cost);
    }

    fn paged_attention(
        &mut self,
        step: &CountedStep,
        op: &Attention,
        qkv: &CountedBuffer,
        kv: &CountedPool,
        out: &mut CountedBuffer,
    ) {
        let window = op.sliding_window.map_or(u64::MAX, |window| window as u64);
        let mut cost = Cost::default();
        for &(start, num_rows) in &step.pieces {
            // The rows of a piece share their context: it is read once, from what the first row sees of it on.
            let seen = (start + num_rows) - (start + 1).saturating_sub(window);
            let scores: u64 = (start + 1..=start + num_rows).map(|context| context.min(window)).sum();
            let per_score = 2 * u64::from(kv.layout.key_dim + kv.layout.value_dim);
            cost.kv_bytes_read += seen * kv.token_bytes();
            cost.attention_operations += scores * per_score * op.num_heads as u64;
            cost.activation_bytes += num_rows * (qkv.width + out.width) * F32;
        }
        self.count(Operation::PagedAttention, &cost);
    }

    fn gather_outputs(&mut self, step: &CountedStep, x: &CountedBuffer, _: &mut CountedBuffer) {
        let activation_bytes = 2 * step.rows(Rows::Outputs) * x.width * F32;
        self.count(Operation::GatherOutputs, &Cost { activation_bytes, ..Cost::default() });
    }

    fn sample(&mut self, step: &CountedStep, logits: &mut CountedBuffer) {
        let activation_bytes = step.rows(Rows::Outputs) * logits.width * F32;
        self.count(Operation::Sample, &Cost { activation_bytes, ..Cost::default() });
    }

    fn finish(&mut self, step: CountedStep) -> Result<Vec<RowOutput>, ComputeError> {
        Ok(step.outputs)
    }
}

impl CountedPool {
    /// Keys and values of one token in one layer.
    fn token_bytes(&self) -> u64 {
        (self.layout.layer_block_bytes() / relevo_wire::BLOCK_TOKENS) as u64
    }
}

impl KvMemory for CountedPool {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    fn read(&self, _: LayerIndex, _: BlockIndex) -> Bytes {
        vec![0; self.layout.layer_block_bytes()].into()
    }

    fn write_at(&self, _: LayerIndex, _: BlockIndex, _: usize, _: &[u8]) -> Result<(), ComputeError> {
        Ok(())
    }
}
