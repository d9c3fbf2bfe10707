//! Log-probabilities of the raw logits.

use relevo_wire::{TokenId, TokenLogprobs};

use super::candidates::{Ranked, keep_best};
use super::exponential::{exp, ln};
use super::row::Scratch;

/// Partial sums of a row: as many as the widest registers hold, so that every width of register adds in the same order.
const LANES: usize = 16;

/// Elements whose exponentials are summed in f32 before they join the f64 total.
const SUMMED_IN_F32: usize = 64 * LANES;

/// The log-probability of `token`, its rank, and the `num_top` most likely tokens. The scratch holds the row's chunk maxima.
#[inline(always)]
pub(super) fn logprobs(logits: &[f32], token: TokenId, num_top: u8, scratch: &mut Scratch) -> TokenLogprobs {
    let log_total = log_sum_exp(logits, scratch.max());
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    keep_best(logits, num_top.into(), &scratch.chunk_maxima, &mut scratch.ranked);
    scratch.ranked.sort_unstable_by(|a, b| b.cmp(a));
    let top =
        scratch.ranked.iter().map(Ranked::token).map(|top| (top, (f64::from(logits[top as usize]) - log_total) as f32));
    TokenLogprobs {
        token,
        logprob: (f64::from(logit) - log_total) as f32,
        rank: rank(logits, token, logit),
        top: top.collect(),
    }
}

/// ln Σ e^logit.
#[inline(always)]
fn log_sum_exp(logits: &[f32], max: f32) -> f64 {
    let mut total = 0.0;
    for chunk in logits.chunks(SUMMED_IN_F32) {
        let mut lanes = [0.0f32; LANES];
        let (whole, rest) = chunk.as_chunks::<LANES>();
        for group in whole {
            for (lane, logit) in lanes.iter_mut().zip(group) {
                *lane += exp(logit - max);
            }
        }
        for (lane, logit) in lanes.iter_mut().zip(rest) {
            *lane += exp(logit - max);
        }
        total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
    }
    f64::from(max) + ln(total)
}

/// Tokens before this one, in the order of falling logits and then rising ids.
#[inline(always)]
fn rank(logits: &[f32], token: TokenId, logit: f32) -> u32 {
    let (before, rest) = logits.split_at((token as usize).min(logits.len()));
    let ahead = before.iter().map(|other| u32::from(*other >= logit)).sum::<u32>();
    ahead + rest.iter().map(|other| u32::from(*other > logit)).sum::<u32>()
}
