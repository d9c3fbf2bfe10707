//! The softmax of a row, span by span.

use std::ops::Range;

use crate::cpu::math::exp;
use crate::cpu::simd::Lanes;

/// The softmax of a tile row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowState {
    /// Largest score so far.
    pub(super) max: f32,
    /// Sums of the weights so far, by position mod 16.
    pub(super) weight_sums: [f32; 16],
    /// The same of the span at hand.
    pub(super) span_max: f32,
    pub(super) span_weight_sums: [f32; 16],
}

impl RowState {
    pub(super) const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        weight_sums: [0.0; 16],
        span_max: f32::NEG_INFINITY,
        span_weight_sums: [0.0; 16],
    };
}

/// Sets the scores of positions that the row does not see to -inf, and returns the largest of the others.
#[inline(always)]
pub(super) fn hide_unseen<V: Lanes>(scores: &mut [f32], loaded: &Range<usize>, seen: Range<usize>) -> f32 {
    if seen.is_empty() {
        scores[loaded.clone()].fill(f32::NEG_INFINITY);
        return f32::NEG_INFINITY;
    }
    scores[loaded.start..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..loaded.end].fill(f32::NEG_INFINITY);
    let (scores, _) = scores[loaded.clone()].as_chunks::<16>();
    let mut max = V::splat(f32::NEG_INFINITY);
    for block in scores {
        max = V::load(block).max(max);
    }
    max.largest()
}

/// Scores into weights relative to the span's largest score.
#[inline(always)]
pub(super) fn weigh<V: Lanes>(weights: &mut [[f32; 16]], state: &mut RowState) {
    let max = V::splat(state.span_max);
    let mut sum = V::splat(0.0);
    for block in weights {
        let weight = exp(V::load(block).sub(max));
        sum = sum.add(weight);
        weight.store(block);
    }
    sum.store(&mut state.span_weight_sums);
}

/// Joins the span at hand to those before it.
#[inline(always)]
pub(super) fn join<V: Lanes>(state: &mut RowState, span_sums: &[f32], sums: &mut [f32]) {
    if state.max == f32::NEG_INFINITY {
        // The first span that the row sees.
        sums.copy_from_slice(span_sums);
        (state.max, state.weight_sums) = (state.span_max, state.span_weight_sums);
        return;
    }
    let max = if state.span_max > state.max { state.span_max } else { state.max };
    let before = exp(V::splat(state.max).sub(V::splat(max)));
    let span = exp(V::splat(state.span_max).sub(V::splat(max)));
    let (weight_sums, span_weight_sums) = (V::load(&state.weight_sums), V::load(&state.span_weight_sums));
    span_weight_sums.mul_add(span, weight_sums.mul(before)).store(&mut state.weight_sums);
    let (sums, _) = sums.as_chunks_mut::<16>();
    for (sums, span_sums) in sums.iter_mut().zip(span_sums.as_chunks::<16>().0) {
        V::load(span_sums).mul_add(span, V::load(sums).mul(before)).store(sums);
    }
    state.max = max;
}
