//! The scripted model through its public surface.

use relevo_wire::{SamplingParams, TokenId, blocks_for_tokens};

use super::super::script::{AnswerChoice, ScriptedEdges, ScriptedTokens};
use super::*;
use crate::compute::{OutputRow, SampleRow};

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

const EDGES: ScriptedEdges = ScriptedEdges { start: 256, end: 257 };

fn saying(tokens: ScriptedTokens, end_after: Option<u32>) -> ScriptedModel {
    model().with_script(Arc::new(Script { tokens, edges: Some(EDGES), end_after }))
}

/// What it says after the prompt, decoded token by token.
fn say(model: &mut ScriptedModel, num_tokens: usize, params: &SamplingParams, choice: u32) -> Vec<TokenId> {
    let table = blocks(0, PROMPT.len() + num_tokens);
    let mut generated: Vec<TokenId> = Vec::new();
    while generated.len() < num_tokens {
        let (tokens, start) = match generated.last() {
            None => (PROMPT.as_slice(), 0),
            Some(_) => (&generated[generated.len() - 1..], PROMPT.len() + generated.len() - 1),
        };
        let sample = Some(SampleRow { params, choice, prompt: &PROMPT, generated: &generated, banned: &[] });
        let outputs = vec![OutputRow { row: tokens.len() - 1, sample, ..OutputRow::default() }];
        let piece = Piece { tokens, start, block_table: &table, outputs };
        let next = run(model, &StepPlan { pieces: vec![piece] })[0].token.unwrap();
        generated.push(next);
    }
    generated
}

#[test]
fn an_echo_repeats_the_prompt_however_hot_it_is() {
    let hot = SamplingParams { temperature: 2.0, seed: 5, ..SamplingParams::default() };
    let said = say(&mut saying(ScriptedTokens::Echo, None), 90, &hot, 0);
    assert_eq!(said, PROMPT.iter().copied().cycle().take(90).collect::<Vec<_>>());
    let ended = say(&mut saying(ScriptedTokens::Echo, Some(3)), 6, &hot, 0);
    assert_eq!(ended, [PROMPT[0], PROMPT[1], PROMPT[2], EDGES.end, PROMPT[4], PROMPT[5]]);
}

#[test]
fn an_echo_reads_its_tokens_back_from_every_layer() {
    for (layer, slot) in [(0, 2), (1, 0), (1, 35)] {
        let mut model = saying(ScriptedTokens::Echo, None);
        let table = blocks(0, PROMPT.len() + 40);
        say(&mut model, 1, &greedy(), 0);
        let kv = model.kv_memory();
        let block = table[slot / BLOCK_TOKENS];
        let mut bytes = kv.read(LayerIndex(layer), block).to_vec();
        bytes[slot % BLOCK_TOKENS * 4] ^= 1;
        kv.write(LayerIndex(layer), block, &bytes).unwrap();
        let mut wrong = Vec::new();
        for index in 1..40 {
            let (token, generated) = (PROMPT[index - 1], &PROMPT[..index]);
            let params = greedy();
            let sample = Some(SampleRow { params: &params, choice: 0, prompt: &PROMPT, generated, banned: &[] });
            let outputs = vec![OutputRow { row: 0, sample, ..OutputRow::default() }];
            let start = PROMPT.len() + index - 1;
            let piece = Piece { tokens: &[token], start, block_table: &table, outputs };
            if run(&mut model, &StepPlan { pieces: vec![piece] })[0].token != Some(PROMPT[index]) {
                wrong.push(index);
            }
        }
        let expected: &[usize] = if slot == 0 { &[] } else { &[slot] };
        assert_eq!(wrong, expected, "layer {layer}, slot {slot}; the first token was said before the damage");
    }
}

#[test]
fn answers_are_chosen_by_prompt_or_seed_and_end_where_they_end() {
    let answers = vec![vec![1, 2, 3], vec![], vec![9]];
    let by = |choice| ScriptedTokens::Answers { answers: answers.clone(), choice };
    let seeded = |seed| SamplingParams { seed, ..SamplingParams::default() };
    let say_by = |choice, seed, of| say(&mut saying(by(choice), None), 5, &seeded(seed), of);
    assert_eq!(say_by(AnswerChoice::Seed, 0, 0), [1, 2, 3, EDGES.end, 1]);
    assert_eq!(say_by(AnswerChoice::Seed, 4, 0), [EDGES.end; 5]);
    assert_eq!(say_by(AnswerChoice::Seed, 1, 1), [9, EDGES.end, 9, EDGES.end, 9]);
    let by_prompt: Vec<_> = (0..3).map(|choice| say_by(AnswerChoice::Prompt, u64::from(choice), choice)).collect();
    assert_eq!(say_by(AnswerChoice::Prompt, 77, 3), by_prompt[0], "the seed does not count, the choice does");
    let distinct: std::collections::BTreeSet<_> = by_prompt.iter().collect();
    assert_eq!(distinct.len(), 3, "three choices get three answers");
}

#[test]
fn a_script_of_hashes_says_an_edge_only_where_it_ends() {
    let hot = SamplingParams { temperature: 2.0, ..SamplingParams::default() };
    let said = say(&mut saying(ScriptedTokens::Hash, Some(30)), 900, &hot, 0);
    assert_eq!(said.iter().position(|&token| token == EDGES.end), Some(30));
    assert!(said.iter().enumerate().all(|(index, token)| index == 30 || ![256, 257].contains(token)), "{said:?}");
}

#[test]
fn wide_blocks_of_halves_give_tokens_that_chunks_do_not_change() {
    let options = ScriptedOptions {
        num_kv_heads: 3,
        key_dim: 5,
        value_dim: 4,
        element: ElementType::F16,
        ..ScriptedOptions::default()
    };
    let wide = || ScriptedModel::new(options);
    assert_eq!(options.layout().block_bytes(), 3 * 9 * 16 * 2 * 2);
    let expected = generate(&mut wide(), 40, &blocks(0, 60), &greedy());
    assert_eq!(generate(&mut wide(), 16, &blocks(7, 60), &greedy()), expected);
    assert!(options.memory_plan().total_bytes() > 256 * options.layout().block_bytes() as u64);
}

/// Each look at it is 50 µs after the last one.
fn hasty_clock() -> relevo_wire::Instant64 {
    static NOW: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    relevo_wire::Instant64(NOW.fetch_add(50_000, std::sync::atomic::Ordering::Relaxed))
}

#[test]
fn a_step_is_done_when_its_time_is_over_and_not_before() {
    let timings = ScriptedTimings { fixed_us: 1000, ..ScriptedTimings::default() };
    let mut model = model().with_timings(timings, hasty_clock);
    let began = hasty_clock();
    next_token(&mut model, &PROMPT, 0, &blocks(0, 40), &greedy());
    let took = hasty_clock().since(began);
    assert!(took.as_micros() >= 1000, "{took:?}");
    let before = hasty_clock();
    let mut hurried = self::model().with_timings(ScriptedTimings::default(), hasty_clock);
    next_token(&mut hurried, &PROMPT, 0, &blocks(0, 40), &greedy());
    assert_eq!(hasty_clock().since(before).as_micros(), 50, "a step without a time does not look at the clock");
}
