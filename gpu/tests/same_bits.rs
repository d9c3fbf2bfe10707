//! Same bits everywhere: what a row yields depends neither on who shares its step, nor on chunks, threads, cached prefixes or instruction sets.
//!
//! Compared are drawn tokens, and log-probabilities and logits bit for bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail by panicking")]

use std::path::{Path, PathBuf};

use default_model::default_model;
use relevo_gpu::compute::{OutputRow, Piece, RowOutput, SampleRow, StepPlan};
use relevo_gpu::cpu::{CpuDevice, CpuOptions, Isa};
use relevo_gpu::model::{Model, ModelOptions, Progress, StepModel};
use relevo_gpu::weights::ModelFiles;
use relevo_wire::{BLOCK_TOKENS, BlockIndex, LayerIndex, Numerics, SamplingParams, TokenId, blocks_for_tokens};

mod default_model;

/// How a run is done; none of it may show.
#[derive(Clone, Copy, Debug)]
struct Manner {
    chunk: usize,
    num_threads: usize,
    isa: Isa,
    /// Other sequences in every step.
    num_neighbours: usize,
}

/// What is run.
struct Case {
    files: PathBuf,
    numerics: Numerics,
    prompt: Vec<TokenId>,
    num_generated: usize,
}

/// Blocks of a sequence.
const BLOCKS: usize = 12;

fn plain() -> Manner {
    Manner { chunk: usize::MAX, num_threads: 1, isa: Isa::detect(), num_neighbours: 0 }
}

fn tiny(name: &str, numerics: Numerics) -> Case {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tiny").join(name);
    Case { files, numerics, prompt: (0..75).map(|i| (i * 37 + 11) % 512).collect(), num_generated: 5 }
}

fn smollm2(numerics: Numerics) -> Case {
    // Two blocks and five: the portable kernels are slow.
    let prompt = (0..37).map(|i| (i * i * 31 + 504 * i + 260) % 49_152).collect();
    Case { files: default_model(), numerics, prompt, num_generated: 3 }
}

impl Case {
    fn model(&self, manner: Manner) -> Model<CpuDevice> {
        let files = ModelFiles::open(&self.files).unwrap();
        let options = CpuOptions { num_threads: manner.num_threads, pin: false, isa: manner.isa };
        let max_context = files.description().max_context.min(BLOCKS * BLOCK_TOKENS);
        let options_of_model = ModelOptions {
            numerics: self.numerics,
            max_rows: 256,
            max_outputs: 16,
            max_context,
            kv_blocks: BLOCKS * (manner.num_neighbours + 1),
        };
        Model::load(CpuDevice::new(options).unwrap(), &files, options_of_model).unwrap()
    }

    /// Prefills in chunks and generates; every sampled row with its log-probabilities and raw logits.
    fn run(&self, manner: Manner) -> Vec<RowOutput> {
        let mut model = self.model(manner);
        let table: Vec<BlockIndex> = (0..BLOCKS as u32).rev().map(BlockIndex).collect();
        self.generate(&mut model, manner, &table, 0)
    }

    /// The same from position `start` on; what lies before is in the cache.
    fn generate(
        &self,
        model: &mut Model<CpuDevice>,
        manner: Manner,
        table: &[BlockIndex],
        mut start: usize,
    ) -> Vec<RowOutput> {
        let mut tokens = self.prompt.clone();
        let mut outputs = Vec::new();
        while outputs.len() < self.num_generated {
            let end = tokens.len().min(start.saturating_add(manner.chunk));
            let output = self.step(model, manner, (&tokens[..end], start, table), end == tokens.len());
            start = end;
            if let Some(output) = output {
                tokens.extend(output.token);
                outputs.push(output);
            }
        }
        outputs
    }

    fn step(
        &self,
        model: &mut Model<CpuDevice>,
        manner: Manner,
        (tokens, start, table): (&[TokenId], usize, &[BlockIndex]),
        draws: bool,
    ) -> Option<RowOutput> {
        let params = SamplingParams { temperature: 0.8, top_p: 0.95, seed: 17, ..SamplingParams::default() };
        let generated = &tokens[self.prompt.len().min(tokens.len())..];
        let sample = Some(SampleRow { params: &params, choice: 0, prompt: &self.prompt, generated, banned: &[] });
        let output =
            OutputRow { row: tokens.len() - 1 - start, sample, target: None, top_logprobs: Some(3), logits: true };
        let own = Piece { tokens: &tokens[start..], start, block_table: table, outputs: vec![output] };
        let own = if draws { own } else { Piece { outputs: Vec::new(), ..own } };
        // Neighbours before and after, of different lengths, with outputs of their own.
        let others: Vec<(Vec<TokenId>, Vec<BlockIndex>)> = (1..=manner.num_neighbours)
            .map(|index| {
                let first = (index * BLOCKS) as u32;
                let tokens = (0..index * 7 + 1).map(|i| (i * 5 + index) as TokenId).collect();
                (tokens, (first..first + BLOCKS as u32).map(BlockIndex).collect())
            })
            .collect();
        let mut pieces: Vec<Piece<'_>> = others
            .iter()
            .map(|(tokens, block_table)| {
                let output = OutputRow { row: tokens.len() - 1, target: Some(1), ..OutputRow::default() };
                Piece { tokens, start: 0, block_table, outputs: vec![output] }
            })
            .collect();
        let place = pieces.len() / 2;
        pieces.insert(place, own);
        model.begin_step(&StepPlan { pieces }).unwrap();
        while model.advance().unwrap() != Progress::Done {}
        let mut outputs = model.finish_step().unwrap();
        draws.then(|| outputs.swap_remove(place))
    }
}

/// Floats compare by their bits: NaN and -0.0 would show.
fn bits(outputs: &[RowOutput]) -> Vec<(TokenId, Vec<u32>, Vec<u32>)> {
    let bits = |output: &RowOutput| {
        let logprobs = output.logprobs.as_ref().unwrap();
        let top = logprobs.top.iter().flat_map(|(token, logprob)| [*token, logprob.to_bits()]);
        let logits = output.logits.as_ref().unwrap().iter().map(|logit| logit.to_bits()).collect();
        (output.token.unwrap(), top.chain([logprobs.rank, logprobs.logprob.to_bits()]).collect(), logits)
    };
    outputs.iter().map(bits).collect()
}

fn assert_same(case: &Case, expected: &[RowOutput], manner: Manner) {
    assert!(bits(&case.run(manner)) == bits(expected), "{} {:?}: {manner:?}", case.files.display(), case.numerics);
}

/// Every manner against the plainest one.
fn check(case: &Case) {
    let expected = case.run(plain());
    let manners = [
        Manner { chunk: 16, ..plain() },
        Manner { chunk: 48, num_threads: 3, ..plain() },
        Manner { num_threads: 2, num_neighbours: 1, ..plain() },
    ];
    for manner in manners {
        assert_same(case, &expected, manner);
    }
    for isa in Isa::available() {
        assert_same(case, &expected, Manner { isa, chunk: 32, num_threads: 2, num_neighbours: 2 });
    }
}

/// A prefix that another sequence has computed, and blocks that were moved in from another pool, serve as if computed here.
fn check_reuse(case: &Case) {
    let manner = plain();
    let expected = case.run(manner);
    let (mut here, mut there) = (case.model(manner), case.model(Manner { num_threads: 2, ..manner }));
    let table: Vec<BlockIndex> = (0..BLOCKS as u32).map(BlockIndex).collect();
    case.generate(&mut there, Manner { chunk: 16, ..manner }, &table, 0);
    let num_shared = case.prompt.len() / BLOCK_TOKENS;
    // Another tail: the shared blocks stay where they are, the rest goes to blocks of its own.
    let mut other = table.clone();
    other[num_shared..].reverse();
    let again = case.generate(&mut there, manner, &other, num_shared * BLOCK_TOKENS);
    assert!(bits(&again) == bits(&expected), "{}: prefix reuse", case.files.display());

    for layer in (0..here.kv_layout().num_layers).map(LayerIndex) {
        for block in 0..blocks_for_tokens(case.prompt.len()) as u32 {
            let bytes = there.kv_memory().read(layer, other[block as usize]);
            here.kv_memory().write(layer, table[block as usize], &bytes).unwrap();
        }
    }
    let moved = case.generate(&mut here, manner, &table, case.prompt.len() - 1);
    assert!(bits(&moved) == bits(&expected), "{}: moved blocks", case.files.display());
}

#[test]
fn the_default_model_yields_the_same_bits_in_every_manner() {
    check(&smollm2(Numerics::Default));
}

#[test]
fn the_default_model_goes_on_from_cached_and_from_moved_blocks() {
    check_reuse(&smollm2(Numerics::Default));
}

#[test]
fn tiny_models_of_every_family_yield_the_same_bits_in_every_manner() {
    for name in ["llama", "llama3_rope", "mistral", "qwen2", "qwen3"] {
        for numerics in [Numerics::Default, Numerics::Exact] {
            check(&tiny(name, numerics));
        }
    }
}

#[test]
fn tiny_models_of_every_family_go_on_from_cached_and_from_moved_blocks() {
    for name in ["llama", "llama3_rope", "mistral", "qwen2", "qwen3"] {
        for numerics in [Numerics::Default, Numerics::Exact] {
            check_reuse(&tiny(name, numerics));
        }
    }
}
