//! What a step of the default model costs, against counts made by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "functions that tests share")]

use default_model::default_model;
use relevo_gpu::compute::{OutputRow, Piece, SampleRow, StepPlan};
use relevo_gpu::cost::{CostDevice, Operation, StepCost};
use relevo_gpu::model::{LoadError, MemoryPlan, Model, ModelOptions};
use relevo_gpu::weights::ModelFiles;
use relevo_wire::{BlockIndex, Numerics, SamplingParams};

mod default_model;

const OPTIONS: ModelOptions =
    ModelOptions { numerics: Numerics::Default, max_rows: 512, max_outputs: 32, max_context: 8192, kv_blocks: 1024 };

fn model() -> Model<CostDevice> {
    let files = ModelFiles::open(&default_model()).unwrap();
    Model::load(CostDevice::new(), &files, OPTIONS).unwrap()
}

/// `count` pieces of `num_tokens` from `start` on, each with a draw after its last row if `draws`.
fn cost(count: usize, start: usize, num_tokens: usize, draws: bool) -> StepCost {
    let params = SamplingParams::default();
    let tokens = vec![1; num_tokens];
    let blocks_of_one = relevo_wire::blocks_for_tokens(start + num_tokens) as u32;
    let tables: Vec<Vec<BlockIndex>> = (0..count as u32)
        .map(|index| (0..blocks_of_one).map(|b| BlockIndex(index * blocks_of_one + b)).collect())
        .collect();
    let pieces = tables.iter().map(|block_table| {
        let sample = Some(SampleRow { params: &params, choice: 0, prompt: &[], generated: &[], banned: &[] });
        let output = OutputRow { row: num_tokens - 1, sample, ..OutputRow::default() };
        Piece { tokens: &tokens, start, block_table, outputs: if draws { vec![output] } else { vec![] } }
    });
    StepCost::of(&mut model(), &StepPlan { pieces: pieces.collect() }).unwrap()
}

#[test]
fn one_token_reads_every_weight_once() {
    // 210 matrices in Q4_1, the embedding in Q8_0 as the output head, 61 norms in f32: the goldens' hand count.
    assert_eq!(cost(1, 100, 1, true).total().weight_bytes, 66_355_200 + 30_081_024 + 140_544);
    assert_eq!(cost(8, 100, 1, true).total().weight_bytes, 96_576_768, "eight sequences share them");
}

#[test]
fn a_sequence_reads_its_cache_once_a_layer() {
    // 30 layers of 3 heads of 64 elements, keys and values, two bytes each.
    let token_bytes = 30 * 3 * 64 * 2 * 2;
    let decode = cost(8, 100, 1, true).total();
    assert_eq!((decode.kv_bytes_read, decode.kv_bytes_written), (8 * 101 * token_bytes, 8 * token_bytes));
    // The last layer of a chunk that nobody wants logits of needs no attention.
    let chunk = cost(1, 0, 512, false).total();
    assert_eq!((chunk.kv_bytes_read, chunk.kv_bytes_written), (512 * token_bytes / 30 * 29, 512 * token_bytes));
}

#[test]
fn a_prompt_of_512_takes_the_operations_of_its_matrices() {
    // Of a layer: q, k, v 576 × 960; output 576 × 576; gate, up and down 3 × 576 × 1536. The last layer computes them for one row; the head does it
    // twice, with what the first rounding left.
    let (stored, rest) = (576 * 960, 576 * 576 + 3 * 576 * 1536);
    let cost = cost(1, 0, 512, true);
    assert_eq!(cost.operation(Operation::Matmul).matmul_operations, 2 * 512 * (30 * stored + 29 * rest));
    assert_eq!(cost.operation(Operation::MatmulOutputs).matmul_operations, 2 * (rest + 2 * 49_152 * 576));
    let scores = 512 * 513 / 2;
    assert_eq!(cost.total().attention_operations, 30 * 9 * scores * 2 * (64 + 64));
}

#[test]
fn memory_is_known_before_it_is_taken() {
    let files = ModelFiles::open(&default_model()).unwrap();
    let plan = MemoryPlan::new(&files, OPTIONS).unwrap();
    // 32 rope frequencies are made, not read.
    assert_eq!(plan.memory().weights, 96_576_768 + 4 * 32);
    assert_eq!(plan.memory().kv, 1024 * 16 * 30 * 3 * 64 * 2 * 2);
    plan.check(plan.total_bytes()).unwrap();
    let text = plan.check(300 << 20).unwrap_err().to_string();
    assert_eq!(
        text,
        "the model needs 465.4 MiB: weights 92.1 MiB, KV cache 360.0 MiB for 16384 tokens, activations 13.3 MiB; \
         300.0 MiB are available: give the KV cache at most 194.6 MiB"
    );
    assert!(plan.check(50 << 20).unwrap_err().to_string().ends_with("take a smaller model"));
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let files = ModelFiles::open(&default_model()).unwrap();
    let refusal = |options| match Model::load(CostDevice::new(), &files, options) {
        Err(error @ LoadError::Option { .. }) => error.to_string(),
        _ => panic!("loaded"),
    };
    assert_eq!(refusal(ModelOptions { max_context: 8193, ..OPTIONS }), "max_context is 8193, expected 1 to 8192");
    assert_eq!(refusal(ModelOptions { max_outputs: 513, ..OPTIONS }), "max_outputs is 513, expected 1 to 512");
    assert!(refusal(ModelOptions { kv_blocks: 0, ..OPTIONS }).starts_with("kv_blocks is 0"));
}
