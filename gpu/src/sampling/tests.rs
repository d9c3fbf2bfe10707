//! Sampling against obvious references.

use std::collections::HashSet;

use proptest::prelude::*;
use relevo_wire::{SamplingParams, TokenId};

use super::candidates::{Cutoff, ONE, keep_best};
use super::*;
use crate::compute::{OutputRow, RowOutput, SampleRow};

fn sample(logits: &[f32], row: SampleRow<'_>) -> TokenId {
    let row = OutputRow { sample: Some(row), ..OutputRow::default() };
    evaluate(logits, &row).token.unwrap()
}

fn evaluate(logits: &[f32], row: &OutputRow<'_>) -> RowOutput {
    sample_row(&mut logits.to_vec(), &RowRequest::new(row), &mut Scratch::default())
}

fn row(params: &SamplingParams) -> SampleRow<'_> {
    SampleRow { params, choice: 0, prompt: &[], generated: &[], banned: &[] }
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// Logits as models have them: a bell with a few high ones. From a generator of its own.
fn bell(count: usize, seed: u64) -> Vec<f32> {
    let uniform = |word: u32| f64::from(word) / 4_294_967_296.0;
    (0..count as u32)
        .map(|index| {
            let words = philox4x32([index, 7, 0, 0], [seed as u32, 99]);
            let sum: f64 = words.into_iter().map(uniform).sum();
            ((sum - 2.0) * 5.0) as f32
        })
        .collect()
}

/// Tokens by falling logit, then rising id, NaN left out.
fn sorted(logits: &[f32]) -> Vec<TokenId> {
    let mut tokens: Vec<TokenId> = (0..logits.len() as TokenId).filter(|t| !logits[*t as usize].is_nan()).collect();
    tokens.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap());
    tokens
}

/// Any float but mostly tame ones with many ties.
fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => (-40i32..40).prop_map(|steps| steps as f32 * 0.25),
        4 => -20.0f32..20.0,
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::NAN),
        1 => Just(-0.0f32),
    ]
}

proptest! {
    #[test]
    fn the_best_of_a_row_are_those_of_a_full_sort(
        logits in prop::collection::vec(any_logit(), 1..700),
        count in 0usize..720,
    ) {
        let maxima: Vec<f32> =
            logits.chunks(candidates::CHUNK).map(|c| c.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
        let mut best = Vec::new();
        keep_best(&logits, count, &maxima, &mut best);
        best.sort_unstable_by(|a, b| b.cmp(a));
        let best: Vec<TokenId> = best.iter().map(|ranked| ranked.token()).collect();
        let mut expected = sorted(&logits);
        expected.truncate(count);
        prop_assert_eq!(best, expected);
    }

    #[test]
    fn a_cutoff_keeps_what_a_full_sort_keeps(
        masses in prop::collection::vec(prop_oneof![0u32..4, 0..ONE, Just(ONE), Just(1 << 20)], 1..300),
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
        top_p in 0.0001f32..1.0,
    ) {
        let least = f64::from(min_p) * f64::from(ONE);
        let mut expected: Vec<usize> = (0..masses.len()).filter(|i| masses[*i] > 0 && f64::from(masses[*i]) >= least).collect();
        expected.sort_by_key(|index| std::cmp::Reverse(masses[*index]));
        let total: u64 = expected.iter().map(|index| u64::from(masses[*index])).sum();
        let mut sum = 0;
        let kept = expected.iter().take_while(|index| {
            let goes_on = (sum as f64) < f64::from(top_p) * total as f64;
            sum += u64::from(masses[**index]);
            goes_on
        }).count();
        expected.truncate(kept);
        expected.sort_unstable();

        let cutoff = Cutoff::min_p(&masses, min_p).top_p(&masses, top_p, &mut Vec::new());
        let total: u64 = expected.iter().map(|index| u64::from(masses[*index])).sum();
        // Every index is drawn at the first and the last point of its share.
        let mut point = 0u64;
        for index in &expected {
            let mass = u64::from(masses[*index]);
            for within in [point, point + mass - 1] {
                let random = ((u128::from(within) << 64).div_ceil(u128::from(total))) as u64;
                prop_assert_eq!(cutoff.draw(&masses, random), Some(*index));
            }
            point += mass;
        }
        prop_assert_eq!(cutoff.draw(&masses, u64::MAX), expected.last().copied());
    }

    #[test]
    fn penalties_bias_and_bans_do_what_their_formulas_say(
        logits in prop::collection::vec(-10.0f32..10.0, 20),
        prompt in prop::collection::vec(0u32..24, 0..30),
        generated in prop::collection::vec(0u32..24, 0..30),
        banned in prop::collection::vec(0u32..24, 0..4),
        (repetition, frequency, presence) in (0.5f32..2.0, -2.0f32..2.0, -2.0f32..2.0),
        bias in -100.0f32..100.0,
    ) {
        let mut expected = logits.clone();
        for (token, logit) in (0u32..).zip(&mut expected) {
            let count = generated.iter().filter(|t| **t == token).count();
            if count > 0 || prompt.contains(&token) {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
            if count > 0 {
                *logit = *logit - frequency * count as f32 - presence;
            }
            if token == 3 {
                *logit += bias;
            }
            if banned.contains(&token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let params = SamplingParams {
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            presence_penalty: presence,
            logit_bias: [(3, bias), (1000, 1.0)].into(),
            ..greedy()
        };
        let drawn = SampleRow { params: &params, choice: 0, prompt: &prompt, generated: &generated, banned: &banned };
        let row = OutputRow { sample: Some(drawn), ..OutputRow::default() };
        let (mut shaped, mut scratch) = (logits.clone(), Scratch::default());
        // Twice, so that tallies left behind would show.
        for _ in 0..2 {
            shaped.copy_from_slice(&logits);
            let output = sample_row(&mut shaped, &RowRequest::new(&row), &mut scratch);
            prop_assert_eq!(output.token, sorted(&expected).first().copied());
            prop_assert_eq!(&shaped, &expected);
        }
    }

    #[test]
    fn whatever_the_logits_a_token_of_the_vocabulary_is_drawn(
        logits in prop::collection::vec(prop_oneof![any_logit(), Just(f32::INFINITY), any::<f32>()], 1..200),
        temperature in prop_oneof![Just(0.0f32), Just(1e-30f32), 0.0f32..2.0],
        (top_k, top_p, min_p) in (0u32..300, 0.0f32..1.1, 0.0f32..1.0),
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
        let row = OutputRow { sample: Some(row(&params)), top_logprobs: Some(20), ..OutputRow::default() };
        let token = evaluate(&logits, &row).token.unwrap();
        prop_assert!((token as usize) < logits.len());
    }

    #[test]
    fn log_probabilities_are_those_of_a_softmax_in_double_precision(seed in any::<u64>(), count in 1usize..3000) {
        let logits = bell(count, seed);
        let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let order = sorted(&logits);
        let target = order[order.len() / 2];
        let row = OutputRow { target: Some(target), top_logprobs: Some(5), ..OutputRow::default() };
        let logprobs = evaluate(&logits, &row).logprobs.unwrap();
        prop_assert_eq!(logprobs.rank as usize, order.len() / 2);
        let top: Vec<TokenId> = logprobs.top.iter().map(|top| top.0).collect();
        prop_assert_eq!(&top[..], &order[..count.min(5)]);
        for (token, logprob) in logprobs.top.iter().chain([&(target, logprobs.logprob)]) {
            let expected = f64::from(logits[*token as usize]) - total.ln();
            prop_assert!((f64::from(*logprob) - expected).abs() < 2e-6, "{} instead of {}", logprob, expected);
        }
    }
}

/// Draws `num_draws` tokens at consecutive positions and compares their counts with `probabilities` (Pearson's chi-square test).
fn assert_distribution(logits: &[f32], params: &SamplingParams, probabilities: &[f64]) {
    const NUM_DRAWS: u32 = 40_000;
    let mut counts = vec![0u32; logits.len()];
    let generated = vec![0; NUM_DRAWS as usize];
    let mut scratch = Scratch::default();
    for position in 0..NUM_DRAWS as usize {
        let drawn = SampleRow { generated: &generated[..position], ..row(params) };
        let request = RowRequest::new(&OutputRow { sample: Some(drawn), ..OutputRow::default() });
        counts[sample_row(&mut logits.to_vec(), &request, &mut scratch).token.unwrap() as usize] += 1;
    }
    let (mut chi_square, mut num_cells) = (0.0, 0.0);
    for (count, probability) in counts.into_iter().zip(probabilities) {
        let expected = probability * f64::from(NUM_DRAWS);
        if expected == 0.0 {
            assert_eq!(count, 0);
        } else {
            chi_square += (f64::from(count) - expected).powi(2) / expected;
            num_cells += 1.0;
        }
    }
    // Mean n, variance 2n: five standard deviations. Seeds are fixed, so this either holds or does not.
    let freedom: f64 = num_cells - 1.0;
    assert!((chi_square - freedom).abs() < 5.0 * (2.0 * freedom).sqrt(), "chi-square {chi_square} at {freedom}");
}

fn softmax(logits: &[f32], temperature: f64, is_kept: impl Fn(usize) -> bool) -> Vec<f64> {
    let weight = |index: usize| if is_kept(index) { (f64::from(logits[index]) / temperature).exp() } else { 0.0 };
    let total: f64 = (0..logits.len()).map(weight).sum();
    (0..logits.len()).map(|index| weight(index) / total).collect()
}

#[test]
fn draws_are_distributed_as_the_softmax_says() {
    let logits: Vec<f32> = bell(40, 1).iter().map(|logit| logit * 0.3).collect();
    for (temperature, seed) in [(1.0, 11), (0.6, 12), (2.0, 13)] {
        let params = SamplingParams { temperature, seed, ..SamplingParams::default() };
        assert_distribution(&logits, &params, &softmax(&logits, temperature.into(), |_| true));
    }
}

#[test]
fn draws_under_each_filter_are_distributed_as_the_rest_renormalised() {
    let logits: Vec<f32> = bell(40, 2).iter().map(|logit| logit * 0.3).collect();
    let order = sorted(&logits);
    let rank: Vec<usize> = (0..40).map(|token| order.iter().position(|t| *t == token).unwrap()).collect();
    let all = softmax(&logits, 1.0, |_| true);
    let base = SamplingParams { seed: 5, ..SamplingParams::default() };

    let params = SamplingParams { top_k: 7, ..base.clone() };
    assert_distribution(&logits, &params, &softmax(&logits, 1.0, |token| rank[token] < 7));

    let params = SamplingParams { min_p: 0.4, ..base.clone() };
    let most = all[order[0] as usize];
    assert_distribution(&logits, &params, &softmax(&logits, 1.0, |token| all[token] >= 0.4 * most));

    let params = SamplingParams { top_p: 0.7, ..base.clone() };
    let before = |token: usize| -> f64 { order[..rank[token]].iter().map(|t| all[*t as usize]).sum() };
    assert_distribution(&logits, &params, &softmax(&logits, 1.0, |token| before(token) < 0.7));

    // top_p looks at what top_k has left, renormalised.
    let params = SamplingParams { top_k: 7, top_p: 0.7, ..base };
    let seven = softmax(&logits, 1.0, |token| rank[token] < 7);
    let before = |token: usize| -> f64 { order[..rank[token]].iter().map(|t| seven[*t as usize]).sum() };
    assert_distribution(&logits, &params, &softmax(&logits, 1.0, |token| rank[token] < 7 && before(token) < 0.7));
}

#[test]
fn a_draw_depends_on_seed_choice_and_position_alone() {
    let logits = vec![0.0; 100_000];
    let draw = |seed, choice, position: usize| {
        let params = SamplingParams { seed, ..SamplingParams::default() };
        sample(&logits, SampleRow { choice, generated: &vec![1; position], ..row(&params) })
    };
    assert_eq!(draw(1, 0, 5), draw(1, 0, 5));
    let distinct: HashSet<TokenId> =
        [draw(1, 0, 5), draw(2, 0, 5), draw(1 << 40, 0, 5), draw(1, 1, 5), draw(1, 0, 6)].into();
    assert_eq!(distinct.len(), 5, "each of them turns the generator");
}

#[test]
fn greedy_takes_the_first_of_the_best() {
    let mut logits = bell(5000, 4);
    logits[4321] = 50.0;
    logits[1234] = 50.0;
    assert_eq!(sample(&logits, row(&greedy())), 1234);
    let params = greedy();
    let banned = SampleRow { banned: &[1234], ..row(&params) };
    assert_eq!(sample(&logits, banned), 4321);
    assert_eq!(sample(&[f32::NAN; 70], row(&greedy())), 0);
}

#[test]
fn log_probabilities_are_of_the_raw_logits_whatever_the_sampling() {
    let logits = bell(3000, 5);
    let best = sorted(&logits)[0];
    let params = SamplingParams { logit_bias: [(best, -100.0)].into(), ..greedy() };
    let row = OutputRow { sample: Some(row(&params)), top_logprobs: Some(2), logits: true, ..OutputRow::default() };
    let output = evaluate(&logits, &row);
    let logprobs = output.logprobs.unwrap();
    assert_eq!((output.token, logprobs.token, logprobs.rank), (Some(sorted(&logits)[1]), sorted(&logits)[1], 1));
    assert_eq!(logprobs.top[0].0, best);
    assert_eq!(output.logits.unwrap(), logits);
}

#[test]
fn a_mass_is_the_nearest_whole_number() {
    for step in 0..100_000 {
        let logit = -30.0 * step as f32 / 100_000.0;
        let expected = (f64::from(exponential::exp(logit)) * f64::from(ONE)).round_ties_even();
        assert_eq!(f64::from(candidates::mass(logit, 0.0, 1.0)), expected, "of {logit}");
    }
    assert_eq!(candidates::mass(7.0, 7.0, 1e5), ONE);
    assert_eq!(candidates::mass(f32::NAN, 7.0, 1.0), 0);
    assert_eq!(candidates::mass(f32::NEG_INFINITY, 7.0, 1.0), 0);
}

#[test]
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "what sample_row dispatches to is compared with the plain one")]
fn every_instruction_set_computes_the_same_bits() {
    let logits = bell(49_152, 6);
    let (mut scratch, mut shaped) = (Scratch::default(), Vec::new());
    for (seed, top_k, top_p, min_p) in [(1, 0, 1.0, 0.0), (2, 0, 0.9, 0.0), (3, 50, 0.9, 0.0), (4, 0, 1.0, 0.1)] {
        let params = SamplingParams { seed, top_k, top_p, min_p, temperature: 1.3, ..SamplingParams::default() };
        let row = OutputRow { sample: Some(row(&params)), top_logprobs: Some(20), ..OutputRow::default() };
        let request = RowRequest::new(&row);
        let mut run = |sample: &dyn Fn(&mut [f32], &RowRequest, &mut Scratch) -> RowOutput| {
            shaped.clone_from(&logits);
            let output = sample(&mut shaped, &request, &mut scratch).logprobs.unwrap();
            let top = output.top.iter().flat_map(|(token, logprob)| [*token, logprob.to_bits()]);
            top.chain([output.token, output.logprob.to_bits(), output.rank]).collect::<Vec<u32>>()
        };
        let plain = run(&row::sample_row_plain);
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            assert_eq!(run(&|l, r, s| unsafe { row::sample_row_avx2(l, r, s) }), plain);
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: the processor has AVX-512.
            assert_eq!(run(&|l, r, s| unsafe { row::sample_row_avx512(l, r, s) }), plain);
        }
    }
}
