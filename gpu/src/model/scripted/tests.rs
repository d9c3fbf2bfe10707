//! The scripted model through its public surface.

use relevo_wire::{SamplingParams, TokenId, blocks_for_tokens};

use super::*;
use crate::compute::{OutputRow, Piece, SampleRow};

const PROMPT: [TokenId; 40] = {
    let mut prompt = [0; 40];
    let mut i = 0;
    while i < 40 {
        prompt[i] = (i as u32 * 37 + 5) % 512;
        i += 1;
    }
    prompt
};

fn model() -> ScriptedModel {
    ScriptedModel::new(ScriptedOptions::default())
}

fn blocks(first: u32, num_tokens: usize) -> Vec<BlockIndex> {
    (first..).take(blocks_for_tokens(num_tokens)).map(BlockIndex).collect()
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

fn sample(params: &SamplingParams) -> Option<SampleRow<'_>> {
    Some(SampleRow { params, choice: 0, prompt: &[], generated: &[], banned: &[] })
}

fn run(model: &mut ScriptedModel, plan: &StepPlan<'_>) -> Vec<RowOutput> {
    model.begin_step(plan).unwrap();
    while model.advance().unwrap() != Progress::Done {}
    model.finish_step().unwrap()
}

/// Runs `tokens` from `start` on and draws after the last of them.
fn next_token(
    model: &mut ScriptedModel,
    tokens: &[TokenId],
    start: usize,
    table: &[BlockIndex],
    params: &SamplingParams,
) -> TokenId {
    let output = OutputRow { row: tokens.len() - 1, sample: sample(params), ..OutputRow::default() };
    let piece = Piece { tokens, start, block_table: table, outputs: vec![output] };
    run(model, &StepPlan { pieces: vec![piece] })[0].token.unwrap()
}

fn generate(model: &mut ScriptedModel, chunk: usize, table: &[BlockIndex], params: &SamplingParams) -> Vec<TokenId> {
    let mut tokens = PROMPT.to_vec();
    let mut start = 0;
    for piece in PROMPT.chunks(chunk) {
        let next = next_token(model, piece, start, table, params);
        start += piece.len();
        if start == PROMPT.len() {
            tokens.push(next);
        }
    }
    while tokens.len() < 60 {
        let last = tokens.len() - 1;
        tokens.push(next_token(model, &[tokens[last]], last, table, params));
    }
    tokens
}

#[test]
fn chunks_and_block_tables_do_not_change_the_tokens() {
    let expected = generate(&mut model(), 40, &blocks(0, 60), &greedy());
    assert_eq!(generate(&mut model(), 16, &blocks(0, 60), &greedy()), expected);
    let mut reversed = blocks(100, 60);
    reversed.reverse();
    assert_eq!(generate(&mut model(), 7, &reversed, &greedy()), expected);
}

#[test]
fn one_wrong_bit_in_any_layer_of_any_context_block_changes_the_next_token() {
    let table = blocks(0, 41);
    let expected = {
        let mut model = model();
        generate(&mut model, 40, &blocks(0, 60), &greedy())[40]
    };
    let mut num_changed = 0;
    for layer in 0..2 {
        for block in &table {
            let mut model = model();
            next_token(&mut model, &PROMPT[..39], 0, &table, &greedy());
            let kv = model.kv_memory();
            let mut bytes = kv.read(LayerIndex(layer), *block).to_vec();
            bytes[0] ^= 1;
            kv.write(LayerIndex(layer), *block, &bytes).unwrap();
            num_changed += usize::from(next_token(&mut model, &PROMPT[39..], 39, &table, &greedy()) != expected);
        }
    }
    assert_eq!(num_changed, 6);
}

#[test]
fn blocks_moved_to_another_model_go_on_as_before() {
    let expected = generate(&mut model(), 40, &blocks(0, 60), &greedy());
    let (mut prefill, mut decode) = (model(), model());
    let (source, target) = (blocks(0, 60), blocks(50, 60));
    let first = next_token(&mut prefill, &PROMPT, 0, &source, &greedy());
    for layer in (0..2).map(LayerIndex) {
        for (from, to) in source.iter().zip(&target) {
            decode.kv_memory().write(layer, *to, &prefill.kv_memory().read(layer, *from)).unwrap();
        }
    }
    let second = next_token(&mut decode, &[first], 40, &target, &greedy());
    assert_eq!([first, second], expected[40..42]);
}

#[test]
fn a_seed_repeats_its_tokens_and_another_one_does_not() {
    let seeded = |seed| SamplingParams { seed, ..SamplingParams::default() };
    let one = generate(&mut model(), 40, &blocks(0, 60), &seeded(1));
    assert_eq!(generate(&mut model(), 16, &blocks(0, 60), &seeded(1)), one);
    assert_ne!(generate(&mut model(), 16, &blocks(0, 60), &seeded(2)), one);
    assert_ne!(generate(&mut model(), 16, &blocks(0, 60), &greedy()), one);
}

#[test]
fn a_block_that_is_still_read_cannot_be_written() {
    let mut model = model();
    let table = blocks(0, 41);
    next_token(&mut model, &PROMPT, 0, &table, &greedy());
    let pinned = model.kv_memory().read(LayerIndex(1), table[2]);
    let piece = Piece { tokens: &[1], start: 40, block_table: &table, outputs: Vec::new() };
    model.begin_step(&StepPlan { pieces: vec![piece] }).unwrap();
    assert_eq!(model.advance().unwrap(), Progress::LayerDone(LayerIndex(0)));
    assert!(model.advance().unwrap_err().to_string().contains("still read"));
    drop(pinned);
    model.abandon_step();
    next_token(&mut model, &[1], 40, &table, &greedy());
}

#[test]
fn the_hook_sees_each_step_and_breaks_the_one_it_wants() {
    let hook: StepHook = Box::new(|step, plan| match step {
        1 if plan.pieces[0].tokens.len() == 1 => Fault::Fail(LayerIndex(1)),
        _ => Fault::None,
    });
    let mut model = model().with_hook(hook);
    let table = blocks(0, 60);
    let expected = next_token(&mut model, &PROMPT, 0, &table, &greedy());
    let piece = Piece { tokens: &[expected], start: 40, block_table: &table, outputs: Vec::new() };
    model.begin_step(&StepPlan { pieces: vec![piece] }).unwrap();
    model.advance().unwrap();
    assert!(model.advance().unwrap_err().to_string().contains("layer 1"));
    assert!(model.finish_step().is_err(), "a failed step is gone");
    assert_eq!(next_token(&mut model, &PROMPT, 0, &table, &greedy()), expected);
}

#[test]
fn targets_and_top_tokens_come_with_log_probabilities() {
    let mut model = model();
    let table = blocks(0, 40);
    let outputs = (0..39)
        .map(|row| OutputRow { row, target: Some(PROMPT[row + 1]), top_logprobs: Some(3), ..OutputRow::default() })
        .collect();
    let piece = Piece { tokens: &PROMPT, start: 0, block_table: &table, outputs };
    let rows = run(&mut model, &StepPlan { pieces: vec![piece] });
    assert_eq!(rows.len(), 39);
    for (row, next) in rows.iter().zip(&PROMPT[1..]) {
        let logprobs = row.logprobs.as_ref().unwrap();
        assert_eq!((row.token, logprobs.token, logprobs.top.len()), (None, *next, 3));
        assert!(logprobs.logprob < 0.0 && logprobs.top.is_sorted_by(|a, b| a.1 > b.1));
    }
}

#[test]
fn banned_ids_are_not_drawn() {
    let table = blocks(0, 40);
    let first = next_token(&mut model(), &PROMPT, 0, &table, &greedy());
    let (params, banned) = (greedy(), [first]);
    let sample = Some(SampleRow { params: &params, choice: 0, prompt: &[], generated: &[], banned: &banned });
    let outputs = vec![OutputRow { row: 39, sample, ..OutputRow::default() }];
    let piece = Piece { tokens: &PROMPT, start: 0, block_table: &table, outputs };
    assert_ne!(run(&mut model(), &StepPlan { pieces: vec![piece] })[0].token, Some(first));
}

#[test]
fn a_reset_forgets_the_blocks_and_leaves_the_old_ones_to_their_readers() {
    let mut model = model();
    let table = blocks(0, 60);
    let expected = next_token(&mut model, &PROMPT, 0, &table, &greedy());
    let old = model.kv_memory().read(LayerIndex(0), table[0]);
    let before = old.to_vec();
    model.reset().unwrap();
    assert!(model.kv_memory().read(LayerIndex(0), table[0]).iter().all(|byte| *byte == 0));
    assert_eq!(next_token(&mut model, &PROMPT, 0, &table, &greedy()), expected);
    assert_eq!(old, before);
}
