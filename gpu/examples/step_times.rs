//! Where the time of a step goes: decode of 1, 8 and 32 streams and a prefill of 512 tokens, operation by operation.
//!
//! `cargo run --release -p relevo-gpu --example step_times -- MODEL.gguf [--threads N] [--isa NAME] [--context N] [--numerics exact] [--prefill-only]`

#![allow(clippy::print_stdout, reason = "a table is what it is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relevo_gpu::compute::{
    Attention, Compute, ComputeError, Matmul, OutputRow, Piece, RopeAndStore, RowOutput, SampleRow, StepPlan,
};
use relevo_gpu::cpu::{CpuBuffer, CpuDevice, CpuOptions, Isa, KvPool, PackedMatrix, UploadedStep, aligned::AlignedVec};
use relevo_gpu::model::{Model, ModelOptions, Progress, StepModel};
use relevo_gpu::weights::{ModelFiles, TensorView};
use relevo_wire::{BlockIndex, KvLayout, Numerics, SamplingParams, TokenId, blocks_for_tokens};

/// Steps that are measured, after as many to warm up.
const STEPS: usize = 32;
const PREFILL: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let files = ModelFiles::open(&arguments.model)?;
    let max_streams = 32;
    let blocks_per_stream = blocks_for_tokens(arguments.context.max(PREFILL) + 4 * STEPS);
    let options = ModelOptions {
        numerics: arguments.numerics,
        max_rows: PREFILL,
        max_outputs: max_streams,
        max_context: blocks_per_stream * relevo_wire::BLOCK_TOKENS,
        kv_blocks: max_streams * blocks_per_stream,
    };
    let device = CpuDevice::new(CpuOptions { num_threads: arguments.threads, pin: true, isa: arguments.isa })?;
    device.pool().pin_caller();
    let mut model = Model::load(TimedDevice { device, times: BTreeMap::new() }, &files, options)?;
    println!(
        "{} threads, {}, {:?} numerics, context {}",
        arguments.threads, arguments.isa, arguments.numerics, arguments.context
    );

    let mut bench = Bench { model: &mut model, blocks_per_stream };
    bench.prefill(PREFILL)?;
    let prefill = bench.measure(PREFILL, 5, |bench, _| bench.prefill(PREFILL))?;
    prefill.print(&format!("prefill of {PREFILL}"));
    if arguments.prefill_only {
        return Ok(());
    }
    for streams in [1, 8, 32] {
        let context = arguments.context;
        bench.fill(streams, context)?;
        for step in 0..STEPS / 4 {
            bench.decode(streams, context + step)?;
        }
        let decode = bench.measure(streams, STEPS, |bench, step| bench.decode(streams, context + step))?;
        decode.print(&format!("decode of {streams} streams"));
    }
    Ok(())
}

struct Arguments {
    model: PathBuf,
    threads: usize,
    isa: Isa,
    context: usize,
    numerics: Numerics,
    prefill_only: bool,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let model = PathBuf::from(arguments.next().ok_or("the first argument is the model's file")?);
        let threads = std::thread::available_parallelism()?.get();
        let (isa, numerics) = (Isa::detect(), Numerics::Default);
        let mut parsed = Self { model, threads, isa, context: 128, numerics, prefill_only: false };
        while let Some(flag) = arguments.next() {
            if flag == "--prefill-only" {
                parsed.prefill_only = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{flag} wants a value"))?;
            match flag.as_str() {
                "--threads" => parsed.threads = value.parse()?,
                "--isa" => parsed.isa = value.parse()?,
                "--context" => parsed.context = value.parse()?,
                "--numerics" => parsed.numerics = if value == "exact" { Numerics::Exact } else { Numerics::Default },
                _ => return Err(format!("{flag} is no flag of this program").into()),
            }
        }
        Ok(parsed)
    }
}

/// Runs steps of a model over streams that own consecutive blocks.
struct Bench<'a> {
    model: &'a mut Model<TimedDevice>,
    blocks_per_stream: usize,
}

impl Bench<'_> {
    fn prefill(&mut self, num_tokens: usize) -> Result<(), ComputeError> {
        self.step(&[(0, 0, num_tokens)])
    }

    /// Gives `streams` streams a context.
    fn fill(&mut self, streams: usize, context: usize) -> Result<(), ComputeError> {
        for stream in 0..streams {
            for start in (0..context).step_by(PREFILL) {
                self.step(&[(stream, start, PREFILL.min(context - start))])?;
            }
        }
        Ok(())
    }

    fn decode(&mut self, streams: usize, position: usize) -> Result<(), ComputeError> {
        let pieces: Vec<_> = (0..streams).map(|stream| (stream, position, 1)).collect();
        self.step(&pieces)
    }

    /// One step over pieces (stream, start, rows), a token drawn greedily after each.
    fn step(&mut self, pieces: &[(usize, usize, usize)]) -> Result<(), ComputeError> {
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let tokens: Vec<Vec<TokenId>> = pieces
            .iter()
            .map(|&(stream, start, rows)| {
                (start..start + rows).map(|i| ((i * 7919 + stream * 131) % 40_000) as u32 + 100).collect()
            })
            .collect();
        let tables: Vec<Vec<BlockIndex>> = pieces
            .iter()
            .map(|piece| {
                (piece.0 * self.blocks_per_stream..)
                    .take(self.blocks_per_stream)
                    .map(|block| BlockIndex(block as u32))
                    .collect()
            })
            .collect();
        let pieces = pieces.iter().zip(tokens.iter().zip(&tables)).map(|(&(_, start, rows), (tokens, block_table))| {
            let sample = SampleRow { params: &params, choice: 0, prompt: &[], generated: &[], banned: &[] };
            let outputs = vec![OutputRow { row: rows - 1, sample: Some(sample), ..OutputRow::default() }];
            Piece { tokens, start, block_table, outputs }
        });
        self.model.begin_step(&StepPlan { pieces: pieces.collect() })?;
        while self.model.advance()? != Progress::Done {}
        self.model.finish_step()?;
        Ok(())
    }

    fn measure(
        &mut self,
        tokens_per_step: usize,
        num_steps: usize,
        mut step: impl FnMut(&mut Self, usize) -> Result<(), ComputeError>,
    ) -> Result<Measured, ComputeError> {
        self.model.device_mut().times.clear();
        let mut walls = Vec::with_capacity(num_steps);
        for index in 0..num_steps {
            let start = now();
            step(self, index)?;
            walls.push(start.elapsed());
        }
        walls.sort();
        let times = std::mem::take(&mut self.model.device_mut().times);
        Ok(Measured { tokens_per_step, num_steps, walls, times })
    }
}

struct Measured {
    tokens_per_step: usize,
    num_steps: usize,
    /// Of each step, sorted.
    walls: Vec<Duration>,
    times: BTreeMap<String, (Duration, usize)>,
}

impl Measured {
    fn print(&self, what: &str) {
        let per_step = |time: Duration| time.as_secs_f64() * 1e3 / self.num_steps as f64;
        let rate = |wall: Duration| self.tokens_per_step as f64 / wall.as_secs_f64();
        let (best, median) = (self.walls[0], self.walls[self.walls.len() / 2]);
        println!(
            "\n{what}: {:.0} tok/s median ({:.3} ms a step), {:.0} best",
            rate(median),
            median.as_secs_f64() * 1e3,
            rate(best)
        );
        let total: Duration = self.walls.iter().sum();
        let mut rows: Vec<_> = self.times.iter().collect();
        rows.sort_by_key(|(_, (time, _))| std::cmp::Reverse(*time));
        for (name, (time, calls)) in rows {
            let share = 100.0 * time.as_secs_f64() / total.as_secs_f64();
            let each = time.as_secs_f64() * 1e6 / *calls as f64;
            println!(
                "  {name:<34} {:>8.3} ms {share:>5.1} %   {:>3} calls of {each:.1} µs",
                per_step(*time),
                calls / self.num_steps
            );
        }
        let ops: Duration = self.times.values().map(|(time, _)| *time).sum();
        println!("  {:<34} {:>8.3} ms", "outside of operations", per_step(total.saturating_sub(ops)));
    }
}

#[allow(clippy::disallowed_methods, reason = "measuring time is what it is for")]
fn now() -> Instant {
    Instant::now()
}

/// A CPU device that notes how long each operation takes.
struct TimedDevice {
    device: CpuDevice,
    /// Time and calls by operation.
    times: BTreeMap<String, (Duration, usize)>,
}

impl TimedDevice {
    fn timed<R>(&mut self, name: impl Into<String>, operation: impl FnOnce(&mut CpuDevice) -> R) -> R {
        let start = now();
        let result = operation(&mut self.device);
        let time = self.times.entry(name.into()).or_default();
        time.0 += start.elapsed();
        time.1 += 1;
        result
    }
}

impl Compute for TimedDevice {
    type Buffer = CpuBuffer;
    type Matrix = PackedMatrix;
    type Vector = AlignedVec;
    type KvPool = KvPool;
    type Step = UploadedStep;

    fn load_matrix(&mut self, parts: &[TensorView<'_>], numerics: Numerics) -> Result<PackedMatrix, ComputeError> {
        self.device.load_matrix(parts, numerics)
    }

    fn load_gate_up(
        &mut self,
        gate: &TensorView<'_>,
        up: &TensorView<'_>,
        numerics: Numerics,
    ) -> Result<PackedMatrix, ComputeError> {
        self.device.load_gate_up(gate, up, numerics)
    }

    fn load_vector(&mut self, values: &[f32]) -> Result<AlignedVec, ComputeError> {
        self.device.load_vector(values)
    }

    fn alloc(&mut self, max_rows: usize, width: usize) -> Result<CpuBuffer, ComputeError> {
        self.device.alloc(max_rows, width)
    }

    fn alloc_kv_pool(&mut self, layout: KvLayout, num_blocks: usize) -> Result<Arc<KvPool>, ComputeError> {
        self.device.alloc_kv_pool(layout, num_blocks)
    }

    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<UploadedStep, ComputeError> {
        self.timed("begin_step", |device| device.begin_step(plan))
    }

    fn embed(&mut self, step: &UploadedStep, table: &PackedMatrix, out: &mut CpuBuffer) {
        self.timed("embed", |device| device.embed(step, table, out));
    }

    fn matmul(&mut self, step: &UploadedStep, op: Matmul<'_, Self>, x: &CpuBuffer, out: &mut CpuBuffer) {
        let Matmul { weight, norm, bias, epilogue, rows, rounding } = op;
        let norm_text = if norm.is_some() { "norm " } else { "" };
        let name = format!("{norm_text}{} x {} {epilogue:?} {rows:?}", weight.num_inputs(), weight.num_outputs());
        let op = Matmul { weight, norm, bias, epilogue, rows, rounding };
        self.timed(name, |device| device.matmul(step, op, x, out));
    }

    fn rope_and_store_kv(&mut self, step: &UploadedStep, op: RopeAndStore<'_, Self>, qkv: &mut CpuBuffer, kv: &KvPool) {
        let RopeAndStore { layer, num_heads, qk_norm, rope } = op;
        let op = RopeAndStore { layer, num_heads, qk_norm, rope };
        self.timed("rope_and_store_kv", |device| device.rope_and_store_kv(step, op, qkv, kv));
    }

    fn paged_attention(
        &mut self,
        step: &UploadedStep,
        op: &Attention,
        qkv: &CpuBuffer,
        kv: &KvPool,
        out: &mut CpuBuffer,
    ) {
        self.timed("paged_attention", |device| device.paged_attention(step, op, qkv, kv, out));
    }

    fn gather_outputs(&mut self, step: &UploadedStep, x: &CpuBuffer, out: &mut CpuBuffer) {
        self.timed("gather_outputs", |device| device.gather_outputs(step, x, out));
    }

    fn sample(&mut self, step: &UploadedStep, logits: &mut CpuBuffer) {
        self.timed("sample", |device| device.sample(step, logits));
    }

    fn finish(&mut self, step: UploadedStep) -> Result<Vec<RowOutput>, ComputeError> {
        self.device.finish(step)
    }
}
