//! The two products of attention, q·k and p·v, over blocks as the cache stores them.
//!
//! A few rows times a few registers of sums, so that each key and value that is loaded (and widened) serves all rows at hand.

use relevo_wire::BLOCK_TOKENS;

use super::SPAN;
use crate::cpu::simd::{Element, Lanes};

/// Runs `$body` with `$row` = 0 and on, in steps of a constant `M` from the list, the largest that the rest of `$num_rows` allows.
macro_rules! in_groups {
    ($num_rows:expr, [$($size:literal),*], |$row:ident| $body:expr) => {{
        let mut $row = 0;
        $(
            while $num_rows - $row >= $size {
                const M: usize = $size;
                $body;
                $row += M;
            }
        )*
    }};
}

/// Scores of `q` (`[rows, key_dim]`) against the keys of `blocks` (each `[key_dim, 16]`): `scores[row][16 * block..]`, rows at `SPAN` floats.
#[inline(always)]
pub(super) fn scores<V: Lanes, E: Element>(
    q: &[f32],
    key_dim: usize,
    blocks: &[&[[E; BLOCK_TOKENS]]],
    scores: &mut [f32],
) {
    let num_rows = q.len() / key_dim;
    in_groups!(num_rows, [6, 3, 2, 1], |row| scores_of_rows::<V, E, M>(
        &q[row * key_dim..],
        key_dim,
        blocks,
        &mut scores[row * SPAN..]
    ));
}

#[inline(always)]
fn scores_of_rows<V: Lanes, E: Element, const M: usize>(
    q: &[f32],
    key_dim: usize,
    blocks: &[&[[E; BLOCK_TOKENS]]],
    scores: &mut [f32],
) {
    let q: [&[f32]; M] = std::array::from_fn(|row| &q[row * key_dim..(row + 1) * key_dim]);
    let mut index = 0;
    // M × 4 sums where there are registers for them, else fewer; a score does not depend on it.
    while V::NUM_REGISTERS >= 32 && blocks.len() - index >= 4 {
        scores_of_blocks::<V, E, M, 4>(
            &q,
            std::array::from_fn(|block| blocks[index + block]),
            &mut scores[index * 16..],
        );
        index += 4;
    }
    while (V::NUM_REGISTERS >= 32 || M <= 3) && blocks.len() - index >= 2 {
        scores_of_blocks::<V, E, M, 2>(
            &q,
            std::array::from_fn(|block| blocks[index + block]),
            &mut scores[index * 16..],
        );
        index += 2;
    }
    while index < blocks.len() {
        scores_of_blocks::<V, E, M, 1>(&q, [blocks[index]], &mut scores[index * 16..]);
        index += 1;
    }
}

#[inline(always)]
fn scores_of_blocks<V: Lanes, E: Element, const M: usize, const N: usize>(
    q: &[&[f32]; M],
    keys: [&[[E; BLOCK_TOKENS]]; N],
    scores: &mut [f32],
) {
    let key_dim = q[0].len();
    assert!(q.iter().all(|q| q.len() == key_dim) && keys.iter().all(|keys| keys.len() == key_dim));
    let mut sums = [[V::splat(0.0); N]; M];
    for d in 0..key_dim {
        let mut key = [V::splat(0.0); N];
        for block in 0..N {
            key[block] = E::load(&keys[block][d]);
        }
        for row in 0..M {
            let q = V::splat(q[row][d]);
            for block in 0..N {
                sums[row][block] = q.mul_add(key[block], sums[row][block]);
            }
        }
    }
    for row in 0..M {
        let (out, _) = scores[row * SPAN..row * SPAN + 16 * N].as_chunks_mut::<16>();
        for block in 0..N {
            sums[row][block].store(&mut out[block]);
        }
    }
}

/// Values of one kv head in the blocks of a span.
#[derive(Clone, Copy)]
pub(super) struct SpanValues<'a, E> {
    /// Each `[16, value_dim]`; the first holds the positions from `first_position` on.
    pub(super) blocks: &'a [&'a [E]],
    /// Within the span.
    pub(super) first_position: usize,
    pub(super) value_dim: usize,
}

/// Adds p·v over `positions` (of the span) to `sums`: `sums[row][element] += Σ weights[row][position] * value[position][element]`, rows of `weights` at
/// `SPAN` floats, rows of `sums` at `value_dim` rounded up to 16.
#[inline(always)]
pub(super) fn add_weighted<V: Lanes, E: Element>(
    weights: &[f32],
    values: SpanValues<'_, E>,
    positions: std::ops::Range<usize>,
    sums: &mut [f32],
) {
    if positions.is_empty() {
        return;
    }
    let width = values.value_dim.next_multiple_of(16);
    let num_rows = sums.len() / width;
    in_groups!(num_rows, [6, 3, 2, 1], |row| add_weighted_rows::<V, E, M>(
        &weights[row * SPAN..],
        values,
        positions.clone(),
        &mut sums[row * width..]
    ));
}

#[inline(always)]
fn add_weighted_rows<V: Lanes, E: Element, const M: usize>(
    weights: &[f32],
    values: SpanValues<'_, E>,
    positions: std::ops::Range<usize>,
    sums: &mut [f32],
) {
    let weights: [&[f32]; M] = std::array::from_fn(|row| &weights[row * SPAN..(row + 1) * SPAN]);
    let mut element = 0;
    while V::NUM_REGISTERS >= 32 && values.value_dim - element >= 64 {
        add_weighted_elements::<V, E, M, 4>(&weights, values, positions.clone(), (element, sums));
        element += 64;
    }
    while (V::NUM_REGISTERS >= 32 || M <= 3) && values.value_dim - element >= 32 {
        add_weighted_elements::<V, E, M, 2>(&weights, values, positions.clone(), (element, sums));
        element += 32;
    }
    while values.value_dim - element >= 16 {
        add_weighted_elements::<V, E, M, 1>(&weights, values, positions.clone(), (element, sums));
        element += 16;
    }
    if element < values.value_dim {
        add_weighted_tail::<V, E, M>(&weights, values, positions, (element, sums));
    }
}

/// Sixteen times `N` elements of each row's sum, kept in registers over all positions.
#[inline(always)]
fn add_weighted_elements<V: Lanes, E: Element, const M: usize, const N: usize>(
    weights: &[&[f32]; M],
    values: SpanValues<'_, E>,
    positions: std::ops::Range<usize>,
    (element, out): (usize, &mut [f32]),
) {
    let width = values.value_dim.next_multiple_of(16);
    assert!(positions.end <= SPAN && weights.iter().all(|weights| weights.len() == SPAN));
    let mut sums = [[V::splat(0.0); N]; M];
    for row in 0..M {
        let (own, _) = out[row * width + element..][..16 * N].as_chunks::<16>();
        for vector in 0..N {
            sums[row][vector] = V::load(&own[vector]);
        }
    }
    let mut position = positions.start;
    while position < positions.end {
        let offset = position - values.first_position;
        let (block, first) = (values.blocks[offset / BLOCK_TOKENS], offset % BLOCK_TOKENS);
        let num = (BLOCK_TOKENS - first).min(positions.end - position);
        let tokens = block[first * values.value_dim..].chunks_exact(values.value_dim);
        for (index, token) in (position..position + num).zip(tokens) {
            let (token, _) = token[element..element + 16 * N].as_chunks::<16>();
            let mut value = [V::splat(0.0); N];
            for vector in 0..N {
                value[vector] = E::load(&token[vector]);
            }
            for row in 0..M {
                let weight = V::splat(weights[row][index]);
                for vector in 0..N {
                    sums[row][vector] = weight.mul_add(value[vector], sums[row][vector]);
                }
            }
        }
        position += num;
    }
    for row in 0..M {
        let (own, _) = out[row * width + element..][..16 * N].as_chunks_mut::<16>();
        for vector in 0..N {
            sums[row][vector].store(&mut own[vector]);
        }
    }
}

/// The last elements, fewer than sixteen, of heads that are no multiple of that.
#[inline(always)]
fn add_weighted_tail<V: Lanes, E: Element, const M: usize>(
    weights: &[&[f32]; M],
    values: SpanValues<'_, E>,
    positions: std::ops::Range<usize>,
    (element, out): (usize, &mut [f32]),
) {
    let (width, num) = (values.value_dim.next_multiple_of(16), values.value_dim - element);
    for position in positions {
        let offset = position - values.first_position;
        let token =
            &values.blocks[offset / BLOCK_TOKENS][offset % BLOCK_TOKENS * values.value_dim..][..values.value_dim];
        let mut filled = [E::ZERO; 16];
        filled[..num].copy_from_slice(&token[element..]);
        let value = E::load::<V>(&filled);
        for (row, weights) in weights.iter().enumerate() {
            let own = &mut out[row * width + element..][..num];
            V::splat(weights[position]).mul_add(value, V::load_part(own)).store_part(own);
        }
    }
}
