//! The default model against transformers in float32, and against what llama.cpp reaches on the same positions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail by panicking")]

use default_model::default_model;
use relevo_gpu::compute::{OutputRow, Piece, RowOutput, SampleRow, StepPlan};
use relevo_gpu::cpu::{CpuDevice, CpuOptions, Isa};
use relevo_gpu::model::{Model, ModelOptions, Progress, StepModel};
use relevo_gpu::weights::ModelFiles;
use relevo_wire::{BlockIndex, Numerics, SamplingParams, TokenId, blocks_for_tokens};
use serde::Deserialize;

mod default_model;

/// One line of `goldens/smollm2/prompts.json`.
#[derive(Deserialize)]
struct Prompt {
    name: String,
    ids: Vec<TokenId>,
    positions: Vec<usize>,
    best: Vec<(TokenId, f64)>,
    second: Vec<(TokenId, f64)>,
    greedy: Greedy,
    llama_cpp: LlamaCpp,
}

#[derive(Deserialize)]
struct Greedy {
    ids: Vec<TokenId>,
    logprob: Vec<f64>,
    margin: Vec<f64>,
}

#[derive(Deserialize)]
struct LlamaCpp {
    positions: usize,
    top1_same: usize,
    sum_abs_dlogprob: f64,
}

/// How far two runs are apart over some positions.
#[derive(Clone, Copy, Debug, Default)]
struct Agreement {
    positions: usize,
    top1_same: usize,
    sum_abs_dlogprob: f64,
    max_abs_dlogprob: f64,
}

impl Agreement {
    fn note(&mut self, is_same: bool, difference: f64) {
        self.positions += 1;
        self.top1_same += usize::from(is_same);
        self.sum_abs_dlogprob += difference.abs();
        self.max_abs_dlogprob = self.max_abs_dlogprob.max(difference.abs());
    }

    fn top1_percent(&self) -> f64 {
        100.0 * self.top1_same as f64 / self.positions as f64
    }

    fn mean(&self) -> f64 {
        self.sum_abs_dlogprob / self.positions as f64
    }
}

fn prompts() -> Vec<Prompt> {
    serde_json::from_str(include_str!("goldens/smollm2/prompts.json")).unwrap()
}

fn model(numerics: Numerics) -> Model<CpuDevice> {
    let files = ModelFiles::open(&default_model()).unwrap();
    let device = CpuDevice::new(CpuOptions { num_threads: 2, pin: false, isa: Isa::detect() }).unwrap();
    let options = ModelOptions { numerics, max_rows: 256, max_outputs: 256, max_context: 2048, kv_blocks: 128 };
    Model::load(device, &files, options).unwrap()
}

/// Runs `tokens` in chunks; `output` says what is wanted of each position.
fn run<'a>(
    model: &mut Model<CpuDevice>,
    tokens: &[TokenId],
    output: impl Fn(usize) -> Option<OutputRow<'a>>,
) -> Vec<RowOutput> {
    let table: Vec<BlockIndex> = (0..blocks_for_tokens(tokens.len()) as u32).map(BlockIndex).collect();
    let mut rows = Vec::new();
    for (index, tokens) in tokens.chunks(256).enumerate() {
        let start = index * 256;
        let outputs = (0..tokens.len()).filter_map(|row| Some(OutputRow { row, ..output(start + row)? })).collect();
        let piece = Piece { tokens, start, block_table: &table, outputs };
        model.begin_step(&StepPlan { pieces: vec![piece] }).unwrap();
        while model.advance().unwrap() != Progress::Done {}
        rows.extend(model.finish_step().unwrap());
    }
    rows
}

/// The log-probability of `target` and the most likely token.
fn target_and_best(target: TokenId) -> OutputRow<'static> {
    OutputRow { target: Some(target), top_logprobs: Some(1), ..OutputRow::default() }
}

fn prompt_agreement(model: &mut Model<CpuDevice>, prompt: &Prompt) -> Agreement {
    let best_at = |position| prompt.positions.binary_search(&position).ok().map(|index| prompt.best[index]);
    let rows = run(model, &prompt.ids, |position| best_at(position).map(|(best, _)| target_and_best(best)));
    let mut agreement = Agreement::default();
    for (row, (best, logprob)) in rows.iter().zip(&prompt.best) {
        let ours = row.logprobs.as_ref().unwrap();
        agreement.note(ours.top[0].0 == *best, f64::from(ours.logprob) - logprob);
    }
    agreement
}

/// Positions where ours names another token than the reference, with its margin there; the reference's greedy ids are given as context.
fn greedy_agreement(model: &mut Model<CpuDevice>, prompt: &Prompt) -> (Agreement, Vec<f64>) {
    let greedy = &prompt.greedy;
    let tokens: Vec<TokenId> = prompt.ids.iter().chain(&greedy.ids[..greedy.ids.len() - 1]).copied().collect();
    let first = prompt.ids.len() - 1;
    let rows =
        run(model, &tokens, |position| position.checked_sub(first).map(|index| target_and_best(greedy.ids[index])));
    let (mut agreement, mut margins) = (Agreement::default(), Vec::new());
    assert_eq!(rows.len(), greedy.ids.len());
    for (index, row) in rows.iter().enumerate() {
        let ours = row.logprobs.as_ref().unwrap();
        let is_same = ours.top[0].0 == greedy.ids[index];
        agreement.note(is_same, f64::from(ours.logprob) - greedy.logprob[index]);
        if !is_same {
            margins.push(greedy.margin[index]);
        }
    }
    (agreement, margins)
}

fn sum(agreements: impl IntoIterator<Item = Agreement>) -> Agreement {
    agreements.into_iter().fold(Agreement::default(), |a, b| Agreement {
        positions: a.positions + b.positions,
        top1_same: a.top1_same + b.top1_same,
        sum_abs_dlogprob: a.sum_abs_dlogprob + b.sum_abs_dlogprob,
        max_abs_dlogprob: a.max_abs_dlogprob.max(b.max_abs_dlogprob),
    })
}

#[test]
fn exact_numerics_say_what_float32_says() {
    let mut model = model(Numerics::Exact);
    let prompts = prompts();
    let all = sum(prompts.iter().map(|prompt| prompt_agreement(&mut model, prompt)));
    println!("exact: {all:?}, mean {:.7}, top-1 {:.2} %", all.mean(), all.top1_percent());
    assert!(all.top1_percent() >= 99.8, "{all:?}");
    assert!(all.mean() <= 0.0005, "{all:?}");
    for prompt in &prompts {
        let (agreement, margins) = greedy_agreement(&mut model, prompt);
        assert!(margins.iter().all(|margin| *margin <= 0.01), "{}: {margins:?}", prompt.name);
        assert!(agreement.mean() <= 0.0005, "{}: {agreement:?}", prompt.name);
    }
}

#[test]
fn exact_numerics_write_the_text_of_float32_token_by_token() {
    let mut model = model(Numerics::Exact);
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let greedy = || SampleRow { params: &params, choice: 0, prompt: &[], generated: &[], banned: &[] };
    for prompt in
        prompts().iter().filter(|prompt| ["prose_capital", "spanish", "single_space"].contains(&&*prompt.name))
    {
        let mut tokens = prompt.ids.clone();
        let last = tokens.len() - 1;
        let draw = |position| (position == last).then(|| OutputRow { sample: Some(greedy()), ..OutputRow::default() });
        tokens.extend(run(&mut model, &tokens, draw)[0].token);
        // Beyond the first narrow lead either may be taken, and the texts part.
        let num_certain = prompt.greedy.margin.iter().take_while(|margin| **margin > 0.01).count();
        let table: Vec<BlockIndex> = (0..8).map(BlockIndex).collect();
        while tokens.len() < prompt.ids.len() + num_certain {
            let start = tokens.len() - 1;
            let output = OutputRow { sample: Some(greedy()), ..OutputRow::default() };
            let piece = Piece { tokens: &tokens[start..], start, block_table: &table, outputs: vec![output] };
            model.begin_step(&StepPlan { pieces: vec![piece] }).unwrap();
            while model.advance().unwrap() != Progress::Done {}
            tokens.extend(model.finish_step().unwrap()[0].token);
        }
        assert_eq!(tokens[prompt.ids.len()..], prompt.greedy.ids[..num_certain], "{}", prompt.name);
    }
}

#[test]
fn default_numerics_are_no_worse_than_llama_cpp() {
    let mut model = model(Numerics::Default);
    let prompts = prompts();
    let (long, short): (Vec<_>, Vec<_>) = prompts.iter().partition(|p| p.positions.len() < p.ids.len());
    for (what, prompts) in [("all positions of 23 prompts", short), ("sampled positions of the long one", long)] {
        let ours = sum(prompts.iter().map(|prompt| prompt_agreement(&mut model, prompt)));
        let theirs = sum(prompts.iter().map(|prompt| Agreement {
            positions: prompt.llama_cpp.positions,
            top1_same: prompt.llama_cpp.top1_same,
            sum_abs_dlogprob: prompt.llama_cpp.sum_abs_dlogprob,
            max_abs_dlogprob: 0.0,
        }));
        println!(
            "{what}: ours mean {:.5} top-1 {:.2} %, llama.cpp's {:.5} {:.2} %",
            ours.mean(),
            ours.top1_percent(),
            theirs.mean(),
            theirs.top1_percent()
        );
        assert!(ours.mean() <= 1.1 * theirs.mean(), "{what}: {} against {}", ours.mean(), theirs.mean());
        assert!(ours.top1_percent() >= theirs.top1_percent() - 0.5, "{what}: {ours:?} against {theirs:?}");
    }
}

#[test]
fn the_second_most_likely_tokens_of_exact_numerics_are_float32s_too() {
    let mut model = model(Numerics::Exact);
    let prompts = prompts();
    let prompt = prompts.iter().find(|prompt| prompt.name == "mixed_scripts").unwrap();
    let rows = run(&mut model, &prompt.ids, |_| {
        Some(OutputRow { target: Some(0), top_logprobs: Some(2), ..OutputRow::default() })
    });
    for (row, (best, second)) in rows.iter().zip(prompt.best.iter().zip(&prompt.second)) {
        let top = &row.logprobs.as_ref().unwrap().top;
        assert!((f64::from(top[0].1) - best.1).abs() < 0.002 && (f64::from(top[1].1) - second.1).abs() < 0.002);
    }
}
