//! Times the matrix products of one step of SmolLM2-135M (or of a shape of your own) on random weights, layer after layer as a model does.
//!
//! `cargo run --release -p relevo-gpu --example matmul_bench -- [threads] [type] [isa] [exact]`, such as `2 Q4_1 avx512-vnni`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for a person at a terminal")]
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::time::Instant;

use relevo_gpu::compute::{Epilogue, Rounding};
use relevo_gpu::cpu::matmul::{Input, PackedMatrix, Product, Scratch, matmul};
use relevo_gpu::cpu::{Isa, ThreadPool};
use relevo_gpu::weights::{TensorType, TensorView};
use relevo_wire::Numerics;

const HIDDEN: usize = 576;
const FFN: usize = 1536;
const QKV: usize = 576 + 192 + 192;
const VOCAB: usize = 49152;
const NUM_LAYERS: usize = 30;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &str| args.get(index).map_or(default.to_owned(), Clone::clone);
    let num_threads: usize = argument(0, "2").parse().unwrap();
    let ty = type_of(&argument(1, "Q4_1"));
    let isa: Isa = argument(2, Isa::detect().name()).parse().unwrap();
    let numerics = if argument(3, "default") == "exact" { Numerics::Exact } else { Numerics::Default };
    let mut bench = Bench::new(num_threads, ty, isa, numerics);
    println!("{ty:?}, {isa}, {num_threads} threads, {numerics:?}");
    for (num_rows, num_heads) in [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (512, 1)] {
        bench.report(num_rows, num_heads);
    }
}

fn type_of(name: &str) -> TensorType {
    use TensorType::{BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    let all = [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K];
    all.into_iter().find(|ty| format!("{ty:?}") == name).unwrap()
}

/// Random codes, scales that keep numbers near 1.
fn random_matrix(ty: TensorType, n: usize, k: usize) -> Vec<u8> {
    let (inputs, bytes) = ty.block();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut data = Vec::with_capacity(n * k / inputs * bytes);
    for _ in 0..n * k / inputs {
        let start = data.len();
        data.extend((0..bytes).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        }));
        let small = half::f16::from_f32(0.01).to_le_bytes();
        match ty {
            TensorType::F32 => data[start..].copy_from_slice(&0.01f32.to_le_bytes()),
            TensorType::Q6_K => data[start + 208..].copy_from_slice(&small),
            TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => {
                data[start..start + 4].copy_from_slice(&[small, small].concat());
            }
            _ => data[start..start + 2].copy_from_slice(&small),
        }
    }
    data
}

struct Bench {
    pool: ThreadPool,
    isa: Isa,
    scratch: Scratch,
    layers: Vec<[PackedMatrix; 4]>,
    head: PackedMatrix,
    norm: Vec<f32>,
}

impl Bench {
    fn new(num_threads: usize, ty: TensorType, isa: Isa, numerics: Numerics) -> Self {
        // K-quants need multiples of 256.
        let round = |k: usize| if ty.block().0 == 256 { k.next_multiple_of(256) } else { k };
        let pack = |ty: TensorType, n: usize, k: usize| {
            let data = random_matrix(ty, n, k);
            let view = |n: usize| (n, k);
            let (n, k) = view(n);
            PackedMatrix::pack(&[TensorView { name: "", ty, shape: &[n, k], data: &data }], numerics).unwrap()
        };
        let pack_gate_up = |k: usize| {
            let data = random_matrix(ty, FFN, k);
            let part = TensorView { name: "", ty, shape: &[FFN, k], data: &data };
            PackedMatrix::pack_gate_up(&part, &part, numerics).unwrap()
        };
        let hidden = round(HIDDEN);
        let start = Instant::now();
        let layers: Vec<_> = (0..NUM_LAYERS)
            .map(|_| [pack(ty, QKV, hidden), pack(ty, hidden, hidden), pack_gate_up(hidden), pack(ty, hidden, FFN)])
            .collect();
        let head_type = if ty.block().0 == 1 { ty } else { TensorType::Q8_0 };
        let head = pack(head_type, VOCAB, hidden);
        println!("packed in {:.2?}", start.elapsed());
        let pool = ThreadPool::new(num_threads, true).unwrap();
        pool.pin_caller();
        Self { pool, isa, scratch: Scratch::default(), layers, head, norm: vec![1.0; hidden] }
    }

    /// One step: `num_rows` rows through the layers, `num_heads` of them through the head. Seconds of each product, the head last.
    fn step(&mut self, num_rows: usize, num_heads: usize, memory: &mut Memory) -> Vec<f64> {
        let mut seconds = Vec::with_capacity(4 * NUM_LAYERS + 1);
        let Self { pool, isa, scratch, layers, head, norm } = self;
        let norm = Some((&**norm, 1e-5));
        let mut timed = |x: &[f32], norm, weight: &PackedMatrix, (epilogue, rounding), out: &mut [f32]| {
            let start = Instant::now();
            let product = Product { weight, bias: None, epilogue, rounding };
            matmul(pool, *isa, Input { x, norm }, product, out, scratch).unwrap();
            seconds.push(start.elapsed().as_secs_f64());
        };
        for [qkv, o, gate_up, down] in layers {
            let hidden = o.num_outputs();
            let x = &mut memory.x[..num_rows * hidden];
            timed(x, norm, qkv, (Epilogue::Store, Rounding::Once), &mut memory.qkv[..num_rows * QKV]);
            timed(&memory.attention[..num_rows * hidden], None, o, (Epilogue::Add, Rounding::Once), x);
            timed(x, norm, gate_up, (Epilogue::SiluMul, Rounding::Once), &mut memory.ffn[..num_rows * FFN]);
            timed(&memory.ffn[..num_rows * FFN], None, down, (Epilogue::Add, Rounding::Once), x);
        }
        let hidden = head.num_inputs();
        let logits = &mut memory.logits[..num_heads * VOCAB];
        timed(&memory.x[..num_heads * hidden], norm, head, (Epilogue::Store, Rounding::Twice), logits);
        seconds
    }

    fn report(&mut self, num_rows: usize, num_heads: usize) {
        let mut memory = Memory::new(num_rows, num_heads, self.head.num_inputs());
        let layer_bytes: usize = self.layers.iter().flatten().map(PackedMatrix::byte_len).sum();
        let hidden = self.head.num_inputs();
        let layer_weights = NUM_LAYERS * (QKV * hidden + hidden * hidden + 3 * FFN * hidden);
        let operations = 2.0 * (num_rows * layer_weights + num_heads * VOCAB * hidden) as f64;
        let repeats = (4000 / (num_rows + 8)).clamp(12, 200);
        self.step(num_rows, num_heads, &mut memory);
        let steps: Vec<Vec<f64>> = (0..repeats).map(|_| self.step(num_rows, num_heads, &mut memory)).collect();
        let mut totals: Vec<f64> = steps.iter().map(|step| step.iter().sum()).collect();
        totals.sort_by(f64::total_cmp);
        // What a step takes when nothing else runs: the least of each product.
        let least = |product: usize| steps.iter().map(|step| step[product]).fold(f64::INFINITY, f64::min);
        let mut kinds = [0.0; 5];
        (0..=4 * NUM_LAYERS)
            .for_each(|product| kinds[if product == 4 * NUM_LAYERS { 4 } else { product % 4 }] += least(product));
        let undisturbed: f64 = kinds.iter().sum();
        let gigabytes = (layer_bytes + self.head.byte_len()) as f64 / 1e9;
        println!(
            "{num_rows:4} rows: median {:7.2} ms, undisturbed {:7.2} ms = {:5.1} GB/s {:5.0} GOP/s; qkv {:.2} o {:.2} gate_up {:.2} down {:.2} head {:.2}",
            totals[repeats / 2] * 1e3,
            undisturbed * 1e3,
            gigabytes / undisturbed,
            operations / undisturbed / 1e9,
            kinds[0] * 1e3,
            kinds[1] * 1e3,
            kinds[2] * 1e3,
            kinds[3] * 1e3,
            kinds[4] * 1e3,
        );
    }
}

/// Activations.
struct Memory {
    x: Vec<f32>,
    attention: Vec<f32>,
    qkv: Vec<f32>,
    ffn: Vec<f32>,
    logits: Vec<f32>,
}

impl Memory {
    fn new(num_rows: usize, num_heads: usize, hidden: usize) -> Self {
        let waves = |len: usize| (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
        Self {
            x: waves(num_rows * hidden),
            attention: waves(num_rows * hidden),
            qkv: vec![0.0; num_rows * QKV],
            ffn: vec![0.0; num_rows * FFN],
            logits: vec![0.0; num_heads * VOCAB],
        }
    }
}
