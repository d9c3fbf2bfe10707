//! The default model against transformers in float32, and against what llama.cpp reaches on the same positions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking, and say how close it was"
)]

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

impl FromIterator<(bool, f64)> for Agreement {
    fn from_iter<I: IntoIterator<Item = (bool, f64)>>(positions: I) -> Self {
        let mut agreement = Self::default();
        positions.into_iter().for_each(|(is_same, difference)| agreement.note(is_same, difference));
        agreement
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

/// Teacher-forced: at each position of `expected` (position, token, log-probability), whether that token is ours too, and how far we are apart.
fn agreement<'a>(
    model: &mut Model<CpuDevice>,
    tokens: &[TokenId],
    expected: impl IntoIterator<Item = (usize, &'a (TokenId, f64))>,
) -> Vec<(bool, f64)> {
    let expected: Vec<_> = expected.into_iter().collect();
    let at = |position| expected.binary_search_by_key(&position, |(position, _)| *position).ok();
    let rows = run(model, tokens, |position| at(position).map(|index| target_and_best(expected[index].1.0)));
    let ours = rows.iter().map(|row| row.logprobs.as_ref().unwrap());
    ours.zip(&expected)
        .map(|(ours, (_, (token, logprob)))| (ours.top[0].0 == *token, f64::from(ours.logprob) - logprob))
        .collect()
}

fn prompt_agreement(model: &mut Model<CpuDevice>, prompt: &Prompt) -> Agreement {
    let expected = prompt.positions.iter().copied().zip(&prompt.best);
    agreement(model, &prompt.ids, expected).into_iter().collect()
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
    let (mut all, mut written) = (Agreement::default(), Agreement::default());
    // The long prompt's 1,817 tokens take as long as all others together: `default` runs them.
    for prompt in prompts().into_iter().filter(|prompt| prompt.ids.len() < 1000) {
        // The prompt and, after it, what float32 writes.
        let greedy = &prompt.greedy;
        let tokens: Vec<TokenId> = prompt.ids.iter().chain(&greedy.ids[..greedy.ids.len() - 1]).copied().collect();
        let continuation: Vec<(TokenId, f64)> =
            greedy.ids.iter().copied().zip(greedy.logprob.iter().copied()).collect();
        let last = prompt.ids.len() - 1;
        let inside = prompt.positions.iter().copied().zip(&prompt.best).filter(|(position, _)| *position < last);
        let expected = inside.chain((last..).zip(&continuation));
        let positions = agreement(&mut model, &tokens, expected);
        let (inside, after) = positions.split_at(positions.len() - continuation.len());
        all = sum([all, inside.iter().copied().collect()]);
        written = sum([written, after.iter().copied().collect()]);
        for (index, (is_same, _)) in after.iter().enumerate() {
            let margin = greedy.margin[index];
            assert!(*is_same || margin <= 0.01, "{}: greedy token {index}, which leads by {margin}", prompt.name);
        }
    }
    println!("exact, prompts: mean {:.7}, top-1 {:.2} %; {all:?}", all.mean(), all.top1_percent());
    println!("exact, greedy: mean {:.7}, top-1 {:.2} %; {written:?}", written.mean(), written.top1_percent());
    for agreement in [all, written] {
        assert!(agreement.top1_percent() >= 99.8, "{agreement:?}");
        assert!(agreement.mean() <= 0.0005, "{agreement:?}");
    }
}

#[test]
fn exact_numerics_write_the_text_of_float32_token_by_token() {
    let mut model = model(Numerics::Exact);
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let greedy = || SampleRow { params: &params, choice: 0, prompt: &[], generated: &[], banned: &[] };
    for prompt in prompts().iter().filter(|prompt| ["prose_capital", "single_space"].contains(&&*prompt.name)) {
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

/// An estimate over the 2,898 positions that llama.cpp was measured on: of the long prompt the goldens hold every 8th and the last 64, which stand for
/// all of it. It is weaker than a bound prompt by prompt: over the 23 short prompts alone top-1 was 95.74 % when last measured, llama.cpp's is 96.76 %.
#[test]
fn default_numerics_are_no_worse_than_llama_cpp() {
    let mut model = model(Numerics::Default);
    let (mut num_positions, mut ours, mut theirs) = (0.0, [0.0; 2], [0.0; 2]);
    for prompt in prompts() {
        let (agreement, reference) = (prompt_agreement(&mut model, &prompt), &prompt.llama_cpp);
        let positions = reference.positions as f64;
        num_positions += positions;
        ours[0] += agreement.mean() * positions;
        ours[1] += agreement.top1_percent() * positions;
        theirs[0] += reference.sum_abs_dlogprob;
        theirs[1] += 100.0 * reference.top1_same as f64;
    }
    let [ours, theirs] = [ours, theirs].map(|sums| sums.map(|sum| sum / num_positions));
    println!("default: mean {:.5} top-1 {:.2} %, llama.cpp's {:.5} {:.2} %", ours[0], ours[1], theirs[0], theirs[1]);
    assert_eq!(num_positions, 2898.0);
    assert!(ours[0] <= 1.1 * theirs[0], "mean difference {} against {}", ours[0], theirs[0]);
    assert!(ours[1] >= theirs[1] - 0.5, "top-1 {} % against {} %", ours[1], theirs[1]);
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
