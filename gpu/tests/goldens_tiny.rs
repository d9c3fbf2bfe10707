//! Tiny checkpoints of every dense family, in `exact` numerics, against transformers in float32.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking, and say how close it was"
)]

use std::path::{Path, PathBuf};

use relevo_gpu::compute::{OutputRow, Piece, SampleRow, StepPlan};
use relevo_gpu::cpu::{CpuDevice, CpuOptions, Isa};
use relevo_gpu::model::{Model, ModelOptions, Progress, StepModel};
use relevo_gpu::weights::ModelFiles;
use relevo_wire::{BlockIndex, Numerics, SamplingParams, TokenId};
use safetensors::SafeTensors;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
struct Sequence {
    ids: Vec<TokenId>,
    greedy: Vec<TokenId>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tiny").join(name)
}

fn model(name: &str) -> Model<CpuDevice> {
    let files = ModelFiles::open(&folder(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let device = CpuDevice::new(CpuOptions { num_threads: 2, pin: false, isa: Isa::detect() }).unwrap();
    let max_context = files.description().max_context.min(128);
    let options = ModelOptions { numerics: Numerics::Exact, max_rows: 80, max_outputs: 8, max_context, kv_blocks: 8 };
    Model::load(device, &files, options).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Logits of the last 8 positions, and the token drawn greedily after the last.
fn step(model: &mut Model<CpuDevice>, tokens: &[TokenId], start: usize) -> (Vec<Vec<f32>>, TokenId) {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let table: Vec<BlockIndex> = [5, 2, 7, 0, 1, 3, 6, 4].map(BlockIndex).to_vec();
    let outputs = (tokens.len().saturating_sub(8)..tokens.len()).map(|row| {
        let sample = Some(SampleRow { params: &params, choice: 0, prompt: &[], generated: &[], banned: &[] });
        OutputRow { row, sample, logits: true, ..OutputRow::default() }
    });
    let piece = Piece { tokens, start, block_table: &table, outputs: outputs.collect() };
    model.begin_step(&StepPlan { pieces: vec![piece] }).unwrap();
    while model.advance().unwrap() != Progress::Done {}
    let rows = model.finish_step().unwrap();
    let next = rows.last().unwrap().token.unwrap();
    (rows.into_iter().map(|row| row.logits.unwrap()).collect(), next)
}

fn check(name: &str) {
    let expected: Expected =
        serde_json::from_slice(&std::fs::read(folder(name).join("expected.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut model = model(name);
    for (index, sequence) in expected.sequences.iter().enumerate() {
        let (ours, mut next) = step(&mut model, &sequence.ids, 0);
        let reference = tensors.tensor(&format!("seq{index}.logits_last8")).unwrap();
        let reference: Vec<f32> =
            reference.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let ours: Vec<f32> = ours.into_iter().flatten().collect();
        assert_eq!(ours.len(), reference.len());
        let largest = reference.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
        let difference = ours.iter().zip(&reference).fold(0.0f32, |largest, (a, b)| largest.max((a - b).abs()));
        println!("{name} {index}: max |Δlogit| / max |logit| = {:e}", difference / largest);
        assert!(difference <= 1e-4 * largest, "{name}, sequence {index}: {difference} of {largest}");

        for (position, token) in (sequence.ids.len()..).zip(&sequence.greedy) {
            assert_eq!(next, *token, "{name}, sequence {index}, position {position}");
            (_, next) = step(&mut model, &[next], position);
        }
        assert_eq!(sequence.greedy.len(), 24);
    }
}

#[test]
fn llama_with_a_tied_head_and_grouped_queries() {
    check("llama");
}

#[test]
fn llama3_rope_scaling_in_bf16() {
    check("llama3_rope");
}

#[test]
fn mistral_below_and_above_its_window() {
    check("mistral");
}

#[test]
fn qwen2_with_biases() {
    check("qwen2");
}

#[test]
fn qwen3_with_normalised_heads() {
    check("qwen3");
}
