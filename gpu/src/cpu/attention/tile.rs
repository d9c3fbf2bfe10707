//! A tile: some query rows of one sequence, times the heads that share one kv head, over all spans of their context.

#![allow(
    unsafe_code,
    reason = "dispatch to functions with instructions enabled; output rows are shared out to threads"
)]

use std::ops::Range;

use relevo_wire::{BLOCK_TOKENS, KvLayout};

use super::products::{SpanValues, add_weighted, scores};
use super::{AttentionTask, Item, SPAN};
use crate::cpu::kv_pool::KvElement;
use crate::cpu::math::exp;
use crate::cpu::pool::DisjointMut;
use crate::cpu::simd::{Lanes, multiversion};
use crate::model::KvMemory;

const SPAN_BLOCKS: usize = SPAN / BLOCK_TOKENS;

/// Working memory of a tile. A *tile row* is (query row, head of the group), the heads of a row side by side.
#[derive(Debug, Default)]
pub(super) struct Tile {
    /// `[tile rows, key_dim]`, times the scale.
    queries: Vec<f32>,
    /// `[tile rows, SPAN]`: scores, then weights, of the span at hand.
    weights: Vec<f32>,
    /// `[tile rows, value_dim up to 16]`: Σ p v of the span at hand.
    span_sums: Vec<f32>,
    /// The same over all spans so far.
    sums: Vec<f32>,
    rows: Vec<RowState>,
}

/// The softmax of a tile row.
#[derive(Clone, Copy, Debug)]
struct RowState {
    /// Largest score so far.
    max: f32,
    /// Sums of the weights so far, by position mod 16.
    weight_sums: [f32; 16],
    /// The same of the span at hand.
    span_max: f32,
    span_weight_sums: [f32; 16],
}

impl RowState {
    const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        weight_sums: [0.0; 16],
        span_max: f32::NEG_INFINITY,
        span_weight_sums: [0.0; 16],
    };
}

impl Tile {
    /// Makes room for `num_rows` tile rows.
    pub(super) fn prepare(&mut self, num_rows: usize, layout: &KvLayout) {
        let width = (layout.value_dim as usize).next_multiple_of(16);
        grow(&mut self.queries, num_rows * layout.key_dim as usize);
        grow(&mut self.weights, num_rows * SPAN);
        grow(&mut self.span_sums, num_rows * width);
        grow(&mut self.sums, num_rows * width);
        if self.rows.len() < num_rows {
            self.rows.resize(num_rows, RowState::EMPTY);
        }
    }
}

fn grow(vec: &mut Vec<f32>, len: usize) {
    if vec.len() < len {
        vec.resize(len, 0.0);
    }
}

/// What a row at `position` sees.
fn visible(position: usize, window: Option<usize>) -> Range<usize> {
    let end = position + 1;
    window.map_or(0, |window| end.saturating_sub(window.max(1)))..end
}

multiversion! {
    /// Attention of the rows of `item`, written to their rows of `out`.
    pub(super) fn attend<E: KvElement>(
        task: &AttentionTask<'_>,
        item: &Item<'_>,
        tile: &mut Tile,
        out: &DisjointMut<'_, f32>,
    ) = attend_generic
}

#[inline(always)]
fn attend_generic<V: Lanes, E: KvElement>(
    task: &AttentionTask<'_>,
    item: &Item<'_>,
    tile: &mut Tile,
    out: &DisjointMut<'_, f32>,
) {
    let layout = task.kv.layout();
    let (group, value_dim) = (task.group(), layout.value_dim as usize);
    let width = value_dim.next_multiple_of(16);
    let num_rows = item.num_rows * group;
    load_queries::<V>(task, item, &mut tile.queries);
    tile.rows[..num_rows].fill(RowState::EMPTY);
    tile.sums[..num_rows * width].fill(0.0);
    let last = item.position + item.num_rows - 1;
    let seen = visible(item.position, task.op.sliding_window).start..last + 1;
    for span in seen.start / SPAN..=last / SPAN {
        let span = span * SPAN..(span + 1) * SPAN;
        attend_span::<V, E>(task, item, tile, (span, &seen));
    }
    for (index, state) in tile.rows[..num_rows].iter().enumerate() {
        let (row, head) = (item.first_row + index / group, item.kv_head * group + index % group);
        let start = (row * task.op.num_heads + head) * value_dim;
        // SAFETY: this row and head are this item's, and an item is one thread's.
        let out = unsafe { out.range(start..start + value_dim) };
        let inverse = V::splat(1.0 / V::load(&state.weight_sums).sum());
        for (out, sums) in out.chunks_mut(16).zip(tile.sums[index * width..].chunks(16)) {
            V::load_part(&sums[..out.len()]).mul(inverse).store_part(out);
        }
    }
}

/// Copies the tile's queries out of `qkv`, multiplied by the scale.
#[inline(always)]
fn load_queries<V: Lanes>(task: &AttentionTask<'_>, item: &Item<'_>, queries: &mut [f32]) {
    let layout = task.kv.layout();
    let (kv_heads, key_dim) = (layout.num_kv_heads as usize, layout.key_dim as usize);
    let width = (task.op.num_heads + kv_heads) * key_dim + kv_heads * layout.value_dim as usize;
    let num = task.group() * key_dim;
    let scale = V::splat(task.op.scale);
    for (row, queries) in (item.first_row..item.first_row + item.num_rows).zip(queries.chunks_exact_mut(num)) {
        let source = &task.qkv[row * width + item.kv_head * num..][..num];
        for (q, source) in queries.chunks_mut(16).zip(source.chunks(16)) {
            V::load_part(source).mul(scale).store_part(q);
        }
    }
}

#[inline(always)]
fn attend_span<V: Lanes, E: KvElement>(
    task: &AttentionTask<'_>,
    item: &Item<'_>,
    tile: &mut Tile,
    (span, seen): (Range<usize>, &Range<usize>),
) {
    let layout = task.kv.layout();
    let (group, key_dim, value_dim) = (task.group(), layout.key_dim as usize, layout.value_dim as usize);
    let (num_rows, width) = (item.num_rows * group, value_dim.next_multiple_of(16));
    let first_block = seen.start.max(span.start) / BLOCK_TOKENS;
    let num_blocks = seen.end.min(span.end).div_ceil(BLOCK_TOKENS) - first_block;
    let mut keys: [&[[E; BLOCK_TOKENS]]; SPAN_BLOCKS] = [&[]; SPAN_BLOCKS];
    let mut values: [&[E]; SPAN_BLOCKS] = [&[]; SPAN_BLOCKS];
    for index in 0..num_blocks {
        let block = item.step.block(item.piece, first_block + index);
        // SAFETY: the step wrote its blocks before this operation and nobody writes to those that it reads.
        let (block_keys, block_values) = unsafe { task.kv.keys_and_values::<E>(task.layer(), block) };
        keys[index] = &block_keys[item.kv_head * key_dim..(item.kv_head + 1) * key_dim];
        values[index] =
            &block_values[item.kv_head * BLOCK_TOKENS * value_dim..(item.kv_head + 1) * BLOCK_TOKENS * value_dim];
    }
    let first_position = first_block * BLOCK_TOKENS - span.start;
    let loaded = first_position..first_position + num_blocks * BLOCK_TOKENS;
    scores::<V, E>(
        &tile.queries[..num_rows * key_dim],
        key_dim,
        &keys[..num_blocks],
        &mut tile.weights[first_position..],
    );

    // What each row sees of the span, relative to its start; and what all see.
    let seen_by = |row: usize| {
        let seen = visible(item.position + row, task.op.sliding_window);
        seen.start.clamp(span.start, span.end) - span.start..seen.end.clamp(span.start, span.end) - span.start
    };
    let (first_seen, last_seen) = (seen_by(0), seen_by(item.num_rows - 1));
    let common = last_seen.start..first_seen.end.max(last_seen.start);
    for row in 0..num_rows {
        weigh::<V>(&mut tile.weights[row * SPAN..(row + 1) * SPAN], &loaded, seen_by(row / group), &mut tile.rows[row]);
    }
    let values = SpanValues { blocks: &values[..num_blocks], first_position, value_dim };
    let sums = &mut tile.span_sums[..num_rows * width];
    sums.fill(0.0);
    let of_row = |row: usize| (row * group * SPAN, row * group * width..(row + 1) * group * width);
    for row in 0..item.num_rows {
        let (first, own) = of_row(row);
        let seen = seen_by(row);
        add_weighted::<V, E>(&tile.weights[first..], values, seen.start..seen.end.min(common.start), &mut sums[own]);
    }
    add_weighted::<V, E>(&tile.weights, values, common.clone(), sums);
    for row in 0..item.num_rows {
        let (first, own) = of_row(row);
        let seen = seen_by(row);
        add_weighted::<V, E>(&tile.weights[first..], values, seen.start.max(common.end)..seen.end, &mut sums[own]);
    }
    for row in (0..num_rows).filter(|row| !seen_by(row / group).is_empty()) {
        join::<V>(
            &mut tile.rows[row],
            &tile.span_sums[row * width..(row + 1) * width],
            &mut tile.sums[row * width..(row + 1) * width],
        );
    }
}

/// Scores into weights relative to the span's largest, 0 where the row does not see.
#[inline(always)]
fn weigh<V: Lanes>(weights: &mut [f32], loaded: &Range<usize>, seen: Range<usize>, state: &mut RowState) {
    if seen.is_empty() {
        return;
    }
    weights[loaded.start..seen.start].fill(f32::NEG_INFINITY);
    weights[seen.end..loaded.end].fill(f32::NEG_INFINITY);
    let (weights, _) = weights[loaded.clone()].as_chunks_mut::<16>();
    let mut max = V::splat(f32::NEG_INFINITY);
    for block in weights.iter() {
        max = V::load(block).max(max);
    }
    state.span_max = max.largest();
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
fn join<V: Lanes>(state: &mut RowState, span_sums: &[f32], sums: &mut [f32]) {
    let max = if state.span_max > state.max { state.span_max } else { state.max };
    let before = exp(V::splat(state.max).sub(V::splat(max)));
    let span = exp(V::splat(state.span_max).sub(V::splat(max)));
    let joined = |before_sums: V, span_sums: V| span_sums.mul_add(span, before_sums.mul(before));
    joined(V::load(&state.weight_sums), V::load(&state.span_weight_sums)).store(&mut state.weight_sums);
    let (sums, _) = sums.as_chunks_mut::<16>();
    for (sums, span_sums) in sums.iter_mut().zip(span_sums.as_chunks::<16>().0) {
        joined(V::load(sums), V::load(span_sums)).store(sums);
    }
    state.max = max;
}
