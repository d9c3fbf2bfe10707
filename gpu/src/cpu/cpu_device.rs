//! The CPU behind the operations of [`Compute`]: each runs to its end, on all threads of the device, before it returns.

use std::sync::Arc;

use relevo_wire::{KvLayout, Numerics};

use super::aligned::AlignedVec;
use super::attention::{AttentionScratch, AttentionTask, paged_attention};
use super::isa::Isa;
use super::kv_pool::KvPool;
use super::matmul::{self, Input, PackedMatrix, Product, matmul};
use super::pool::{DisjointMut, ThreadPool, share};
use super::rotation::{RopeAndStoreTask, RopeTables, rope_and_store};
use super::uploaded_step::UploadedStep;
use crate::compute::{Attention, Compute, ComputeError, Matmul, RopeAndStore, RowOutput, Rows, StepPlan};
use crate::sampling::{self, sample_row};
use crate::weights::TensorView;

/// How a CPU device runs; none of it changes a bit of its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads, the caller's included.
    pub num_threads: usize,
    /// Each thread on a core of its own, where there are as many.
    pub pin: bool,
    /// Instruction set of the kernels.
    pub isa: Isa,
}

/// Some cores of this machine as a device.
pub struct CpuDevice {
    pool: ThreadPool,
    isa: Isa,
    matmul_scratch: matmul::Scratch,
    attention_scratch: AttentionScratch,
    rope_tables: RopeTables,
    sampling_scratch: Vec<sampling::Scratch>,
    /// A finished step, whose vectors the next one takes.
    spare_step: UploadedStep,
    /// What came out of the step, once it was sampled.
    results: Vec<RowOutput>,
    /// What went wrong since the step began; [`Compute::finish`] reports it.
    failure: Option<ComputeError>,
    shares_kv: bool,
}

/// Activations: `[max_rows, width]`.
#[derive(Debug)]
pub struct CpuBuffer {
    values: AlignedVec,
    width: usize,
}

impl CpuBuffer {
    fn rows(&self, num_rows: usize) -> &[f32] {
        &self.values.as_slice()[..num_rows * self.width]
    }

    fn rows_mut(&mut self, num_rows: usize) -> &mut [f32] {
        &mut self.values.as_mut_slice()[..num_rows * self.width]
    }
}

impl CpuDevice {
    /// Starts the device's threads.
    ///
    /// # Errors
    /// Transient: the system refuses a thread, or memory is short.
    pub fn new(options: CpuOptions) -> Result<Self, ComputeError> {
        let pool = ThreadPool::new(options.num_threads, options.pin)?;
        let sampling_scratch = vec![sampling::Scratch::default(); pool.num_threads()];
        Ok(Self {
            pool,
            isa: options.isa,
            matmul_scratch: matmul::Scratch::default(),
            attention_scratch: AttentionScratch::default(),
            rope_tables: RopeTables::default(),
            sampling_scratch,
            spare_step: UploadedStep::default(),
            results: Vec::new(),
            failure: None,
            shares_kv: false,
        })
    }

    /// From here on its KV pools lie in memory that other processes of the host can be let into ([`KvPool::shareable`]). Not so by default: the
    /// system gives such memory no huge pages unless it is told to.
    pub fn share_kv(&mut self) {
        self.shares_kv = true;
    }

    /// Its threads; the engine's thread may want to be pinned as the first of them.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// The instruction set of its kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    fn note(&mut self, result: Result<(), ComputeError>) {
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }
}

impl Compute for CpuDevice {
    type Buffer = CpuBuffer;
    type Matrix = PackedMatrix;
    type Vector = AlignedVec;
    type KvPool = KvPool;
    type Step = UploadedStep;

    fn adopt_thread(&mut self) {
        self.pool.pin_caller();
    }

    fn load_matrix(&mut self, parts: &[TensorView<'_>], numerics: Numerics) -> Result<PackedMatrix, ComputeError> {
        PackedMatrix::pack(parts, numerics)
    }

    fn load_gate_up(
        &mut self,
        gate: &TensorView<'_>,
        up: &TensorView<'_>,
        numerics: Numerics,
    ) -> Result<PackedMatrix, ComputeError> {
        PackedMatrix::pack_gate_up(gate, up, numerics)
    }

    fn load_vector(&mut self, values: &[f32]) -> Result<AlignedVec, ComputeError> {
        AlignedVec::copy_of(values, "a vector of parameters")
    }

    fn alloc(&mut self, max_rows: usize, width: usize) -> Result<CpuBuffer, ComputeError> {
        Ok(CpuBuffer { values: AlignedVec::zeroed(max_rows.saturating_mul(width), "activations")?, width })
    }

    fn alloc_kv_pool(&mut self, layout: KvLayout, num_blocks: usize) -> Result<Arc<KvPool>, ComputeError> {
        let allocate = if self.shares_kv { KvPool::shareable } else { KvPool::new };
        allocate(layout, num_blocks).map(Arc::new)
    }

    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<UploadedStep, ComputeError> {
        self.failure = None;
        self.results.clear();
        self.rope_tables.invalidate();
        let mut step = std::mem::take(&mut self.spare_step);
        step.fill(plan)?;
        Ok(step)
    }

    fn embed(&mut self, step: &UploadedStep, table: &PackedMatrix, out: &mut CpuBuffer) {
        let width = out.width;
        let out = DisjointMut::new(out.rows_mut(step.num_rows()));
        let embed_rows = |rows: std::ops::Range<usize>| {
            for row in rows {
                // SAFETY: rows are shared out to the threads.
                #[allow(unsafe_code, reason = "threads write rows of their own")]
                let out = unsafe { out.range(row * width..(row + 1) * width) };
                table.embed_row(step.tokens[row] as usize, out);
            }
        };
        self.pool.run(|thread_index, num_threads| embed_rows(share(step.num_rows(), 1, (thread_index, num_threads))));
    }

    fn matmul(&mut self, step: &UploadedStep, op: Matmul<'_, Self>, x: &CpuBuffer, out: &mut CpuBuffer) {
        let num_rows = match op.rows {
            Rows::All => step.num_rows(),
            Rows::Outputs => step.output_rows.len(),
        };
        let input = Input { x: x.rows(num_rows), norm: op.norm.map(|(weight, epsilon)| (weight.as_slice(), epsilon)) };
        let bias = op.bias.map(AlignedVec::as_slice);
        let product = Product { weight: op.weight, bias, epilogue: op.epilogue, rounding: op.rounding };
        let result = matmul(&self.pool, self.isa, input, product, out.rows_mut(num_rows), &mut self.matmul_scratch);
        self.note(result);
    }

    fn rope_and_store_kv(&mut self, step: &UploadedStep, op: RopeAndStore<'_, Self>, qkv: &mut CpuBuffer, kv: &KvPool) {
        let factors = match self.rope_tables.factors(&self.pool, step, op.rope) {
            Ok(factors) => factors,
            Err(error) => return self.note(Err(error)),
        };
        let task = RopeAndStoreTask {
            layer: op.layer,
            num_heads: op.num_heads,
            qk_norm: op.qk_norm.map(|(q, k, epsilon)| (q.as_slice(), k.as_slice(), epsilon)),
            rotary_dim: op.rope.rotary_dim,
            interleaved: op.rope.interleaved,
            factors,
            kv,
        };
        rope_and_store((&self.pool, self.isa), step, &task, qkv.values.as_mut_slice());
    }

    fn paged_attention(
        &mut self,
        step: &UploadedStep,
        op: &Attention,
        qkv: &CpuBuffer,
        kv: &KvPool,
        out: &mut CpuBuffer,
    ) {
        let task = AttentionTask { op, kv, qkv: qkv.values.as_slice() };
        paged_attention((&self.pool, self.isa), step, &task, &mut self.attention_scratch, out.values.as_mut_slice());
    }

    fn gather_outputs(&mut self, step: &UploadedStep, x: &CpuBuffer, out: &mut CpuBuffer) {
        let (rows, width) = (x.rows(step.num_rows()), x.width);
        for (out, &row) in out.rows_mut(step.output_rows.len()).chunks_exact_mut(width).zip(&step.output_rows) {
            out.copy_from_slice(&rows[row * width..(row + 1) * width]);
        }
    }

    fn sample(&mut self, step: &UploadedStep, logits: &mut CpuBuffer) {
        let (num_outputs, vocab) = (step.output_rows.len(), logits.width);
        self.results.resize_with(num_outputs, RowOutput::default);
        let results = DisjointMut::new(&mut self.results);
        let rows = DisjointMut::new(logits.rows_mut(num_outputs));
        let scratch = DisjointMut::new(&mut self.sampling_scratch);
        let requests = &step.requests;
        #[allow(unsafe_code, reason = "threads read and write rows of their own")]
        self.pool.for_each(num_outputs, |thread_index, output| {
            // SAFETY: an output is one thread's, and each thread has a scratch of its own.
            unsafe {
                let scratch = &mut scratch.range(thread_index..thread_index + 1)[0];
                let logits = rows.range(output * vocab..(output + 1) * vocab);
                results.range(output..output + 1)[0] = sample_row(logits, &requests[output], scratch);
            }
        });
    }

    fn finish(&mut self, step: UploadedStep) -> Result<Vec<RowOutput>, ComputeError> {
        self.spare_step = step;
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(std::mem::take(&mut self.results)),
        }
    }
}
