//! One row: what is wanted of its logits, and how it is done.
//!
//! The one source is compiled a second and a third time for AVX2 and AVX-512. It has no fused multiply-add and no order of summation that depends
//! on the width of a register, so all of them compute the same bits.

#![allow(
    unsafe_code,
    reason = "functions compiled for an instruction set are called once the processor is known to have it"
)]

use std::sync::Arc;

use relevo_wire::TokenId;

use super::adjustments::Adjustments;
use super::candidates::{CHUNK, Cutoff, Ranked, keep_best, mass};
use super::logprobs::logprobs;
use super::philox::random_bits;
use crate::compute::{OutputRow, RowOutput, SampleRow};

/// Below this a temperature counts as 0 (vLLM's limit): the masses of all but the best would be 0 anyway.
const LEAST_TEMPERATURE: f32 = 1e-5;

/// What is wanted of a row, with nothing borrowed: a device keeps it from the step's begin to its end.
#[derive(Clone, Debug, Default)]
pub struct RowRequest {
    draw: Option<Draw>,
    target: Option<TokenId>,
    top_logprobs: Option<u8>,
    logits: bool,
}

#[derive(Clone, Debug)]
struct Draw {
    adjustments: Adjustments,
    logit_bias: Arc<[(TokenId, f32)]>,
    temperature: f32,
    top_k: usize,
    min_p: f32,
    top_p: f32,
    random: u64,
}

impl RowRequest {
    /// Takes from the plan what the row needs; token lists are copied only for penalties that look at them.
    pub fn new(row: &OutputRow<'_>) -> Self {
        Self {
            draw: row.sample.as_ref().map(Draw::new),
            target: row.target,
            top_logprobs: row.top_logprobs,
            logits: row.logits,
        }
    }

    const fn wants_logprobs(&self) -> bool {
        self.target.is_some() || self.top_logprobs.is_some()
    }
}

impl Draw {
    fn new(row: &SampleRow<'_>) -> Self {
        let params = row.params;
        Self {
            adjustments: Adjustments::new(params, row.prompt, row.generated, row.banned),
            logit_bias: params.logit_bias.clone(),
            temperature: params.temperature,
            top_k: params.top_k as usize,
            min_p: params.min_p,
            top_p: params.top_p,
            random: random_bits(params.seed, row.choice, row.generated.len() as u32),
        }
    }
}

/// Memory that rows take turns to use, so that none is allocated for a token.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Largest logit of each [`CHUNK`].
    pub(super) chunk_maxima: Vec<f32>,
    pub(super) ranked: Vec<Ranked>,
    /// A copy of the logits that penalties and bias may change while log-probabilities need the raw ones.
    shaped: Vec<f32>,
    tallies: Vec<u32>,
    masses: Vec<u32>,
    crossing: Vec<u32>,
}

impl Scratch {
    /// Notes each chunk's largest logit.
    #[inline(always)]
    fn scan(&mut self, logits: &[f32]) {
        self.chunk_maxima.resize(logits.len().div_ceil(CHUNK), 0.0);
        for (max, chunk) in self.chunk_maxima.iter_mut().zip(logits.chunks(CHUNK)) {
            *max = largest(chunk);
        }
    }

    /// The largest logit of the row that was scanned.
    pub(super) fn max(&self) -> f32 {
        largest(&self.chunk_maxima)
    }

    /// The first token of the largest logit.
    #[inline(always)]
    fn argmax(&self, logits: &[f32]) -> TokenId {
        let max = self.max();
        let chunk = self.chunk_maxima.iter().position(|chunk_max| *chunk_max == max).unwrap_or(0);
        let start = chunk * CHUNK;
        let offset = logits.iter().skip(start).position(|logit| *logit == max).unwrap_or(0);
        (start + offset) as TokenId
    }
}

/// The largest number; NaN is none, -inf if there is none.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for group in whole {
        for (lane, value) in lanes.iter_mut().zip(group) {
            *lane = larger(*lane, *value);
        }
    }
    rest.iter().copied().chain(lanes).fold(f32::NEG_INFINITY, larger)
}

/// Draws a token from `logits` (`[vocab]`) and reports log-probabilities, as asked for. The logits are changed by penalties and bias.
///
/// Log-probabilities are of the raw logits (natural logarithm), of the target or else of the drawn token.
pub fn sample_row(logits: &mut [f32], request: &RowRequest, scratch: &mut Scratch) -> RowOutput {
    #[cfg(target_arch = "x86_64")]
    {
        let has_avx2 = is_x86_feature_detected!("avx2");
        if has_avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: the processor has what the function was compiled for.
            return unsafe { sample_row_avx512(logits, request, scratch) };
        }
        if has_avx2 {
            // SAFETY: as above.
            return unsafe { sample_row_avx2(logits, request, scratch) };
        }
    }
    sample_row_plain(logits, request, scratch)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512dq")]
pub(super) fn sample_row_avx512(logits: &mut [f32], request: &RowRequest, scratch: &mut Scratch) -> RowOutput {
    sample_row_plain(logits, request, scratch)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(super) fn sample_row_avx2(logits: &mut [f32], request: &RowRequest, scratch: &mut Scratch) -> RowOutput {
    sample_row_plain(logits, request, scratch)
}

#[inline(always)]
pub(super) fn sample_row_plain(logits: &mut [f32], request: &RowRequest, scratch: &mut Scratch) -> RowOutput {
    let raw = request.logits.then(|| logits.to_vec());
    let token = match &request.draw {
        Some(draw) if request.wants_logprobs() => {
            let mut shaped = std::mem::take(&mut scratch.shaped);
            shaped.clear();
            shaped.extend_from_slice(logits);
            let token = draw.token(&mut shaped, scratch);
            scratch.shaped = shaped;
            Some(token)
        }
        Some(draw) => Some(draw.token(logits, scratch)),
        None => None,
    };
    // No closure here: it would not be compiled for the instruction set of the function around it.
    let logprobs = match request.target.or(token) {
        Some(token) if request.wants_logprobs() => {
            scratch.scan(logits);
            Some(logprobs(logits, token, request.top_logprobs.unwrap_or(0), scratch))
        }
        _ => None,
    };
    RowOutput { token, logprobs, logits: raw }
}

impl Draw {
    #[inline(always)]
    fn token(&self, logits: &mut [f32], scratch: &mut Scratch) -> TokenId {
        self.adjustments.apply(logits, &self.logit_bias, &mut scratch.tallies);
        scratch.scan(logits);
        let drawn = if self.temperature < LEAST_TEMPERATURE { None } else { self.sample(logits, scratch) };
        drawn.unwrap_or_else(|| scratch.argmax(logits))
    }

    /// `None` if nothing has mass: all logits are NaN or infinite.
    #[inline(always)]
    fn sample(&self, logits: &[f32], scratch: &mut Scratch) -> Option<TokenId> {
        let is_top_k = 0 < self.top_k && self.top_k < logits.len();
        let (max, inverse_temperature) = (scratch.max(), 1.0 / self.temperature);
        let Scratch { chunk_maxima, ranked, masses, crossing, .. } = scratch;
        masses.clear();
        if is_top_k {
            keep_best(logits, self.top_k, chunk_maxima, ranked);
            ranked.sort_unstable_by_key(Ranked::token);
            masses.extend(ranked.iter().map(|best| mass(logits[best.token() as usize], max, inverse_temperature)));
        } else {
            masses.resize(logits.len(), 0);
            for (mass_of, logit) in masses.iter_mut().zip(logits) {
                *mass_of = mass(*logit, max, inverse_temperature);
            }
        }
        let mut cutoff = Cutoff::min_p(masses, self.min_p);
        if self.top_p < 1.0 {
            cutoff = cutoff.top_p(masses, self.top_p, crossing);
        }
        let index = cutoff.draw(masses, self.random)?;
        Some(if is_top_k { ranked[index].token() } else { index as TokenId })
    }
}
