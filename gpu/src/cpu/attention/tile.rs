//! A tile: some query rows of one sequence, times the heads that share one kv head, over all spans of their context.

#![allow(
    unsafe_code,
    reason = "dispatch to functions with instructions enabled; output rows are shared out to threads"
)]

use std::ops::Range;

use relevo_wire::{BLOCK_TOKENS, KvLayout};

use super::products::{SpanValues, add_weighted, scores};
use super::softmax::{RowState, hide_unseen, join, weigh};
use super::{AttentionTask, Item, SPAN, spans};
use crate::cpu::kv_pool::KvElement;
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
    let seen = item.seen(task.op);
    for kv_head in item.kv_heads.clone() {
        start_head::<V>(task, (item, kv_head), tile);
        for span in spans(&seen) {
            let span = Span::<E>::new(task, (item, kv_head), (span, &seen));
            // What is read next, if this item goes on: while few rows multiply, memory is what they wait for.
            let next = if span.range.end < seen.end {
                Some((kv_head, span.range.end / SPAN))
            } else {
                (kv_head + 1 < item.kv_heads.end).then_some((kv_head + 1, seen.start / SPAN))
            };
            let next = next
                .filter(|_| is_bound_by_memory(task, item))
                .map(|(kv_head, span)| Span::new(task, (item, kv_head), (span, &seen)));
            attend_span::<V, E>(task, item, tile, (&span, next.as_ref()));
            join_span::<V>(task, item, tile, &span.range);
        }
        finish_head::<V>(task, (item, kv_head), tile, out);
    }
}

/// Whether keys and values are multiplied with so few rows that fetching them takes longer: a line of 32 halves takes 2 to 3 ns from memory, and a third
/// of a nanosecond to be multiplied with a row.
fn is_bound_by_memory(task: &AttentionTask<'_>, item: &Item<'_>) -> bool {
    item.num_rows * task.group() <= 8
}

/// Loads the queries of the group of heads that share `kv_head`, and sets their sums to nothing.
#[inline(always)]
fn start_head<V: Lanes>(task: &AttentionTask<'_>, (item, kv_head): (&Item<'_>, usize), tile: &mut Tile) {
    let layout = task.kv.layout();
    let (kv_heads, key_dim, value_dim) =
        (layout.num_kv_heads as usize, layout.key_dim as usize, layout.value_dim as usize);
    let width = (task.op.num_heads + kv_heads) * key_dim + kv_heads * value_dim;
    let num = task.group() * key_dim;
    let scale = V::splat(task.op.scale);
    for (row, queries) in (item.first_row..item.first_row + item.num_rows).zip(tile.queries.chunks_exact_mut(num)) {
        let source = &task.qkv[row * width + kv_head * num..][..num];
        for (q, source) in queries.chunks_mut(16).zip(source.chunks(16)) {
            V::load_part(source).mul(scale).store_part(q);
        }
    }
    let num_rows = item.num_rows * task.group();
    tile.rows[..num_rows].fill(RowState::EMPTY);
    tile.sums[..num_rows * value_dim.next_multiple_of(16)].fill(0.0);
}

/// Divides by the weights' sums and writes the rows' heads out.
#[inline(always)]
fn finish_head<V: Lanes>(
    task: &AttentionTask<'_>,
    (item, kv_head): (&Item<'_>, usize),
    tile: &Tile,
    out: &DisjointMut<'_, f32>,
) {
    let (group, value_dim) = (task.group(), task.kv.layout().value_dim as usize);
    let width = value_dim.next_multiple_of(16);
    for (index, state) in tile.rows[..item.num_rows * group].iter().enumerate() {
        let (row, head) = (item.first_row + index / group, kv_head * group + index % group);
        let start = (row * task.op.num_heads + head) * value_dim;
        // SAFETY: this row and head are this item's, and an item is one thread's.
        let out = unsafe { out.range(start..start + value_dim) };
        let inverse = V::splat(1.0 / V::load(&state.weight_sums).sum());
        for (out, sums) in out.chunks_mut(16).zip(tile.sums[index * width..].chunks(16)) {
            V::load_part(&sums[..out.len()]).mul(inverse).store_part(out);
        }
    }
}

/// The keys and values of one head in one span, as far as the rows of an item see them.
struct Span<'a, E> {
    /// Positions, seen or not.
    range: Range<usize>,
    /// First position of the first block, within the span.
    first_position: usize,
    num_blocks: usize,
    /// Each `[key_dim, 16]`.
    keys: [&'a [[E; BLOCK_TOKENS]]; SPAN_BLOCKS],
    /// Each `[16, value_dim]`.
    values: [&'a [E]; SPAN_BLOCKS],
}

impl<'a, E: KvElement> Span<'a, E> {
    #[inline(always)]
    fn new(
        task: &AttentionTask<'a>,
        (item, kv_head): (&Item<'_>, usize),
        (index, seen): (usize, &Range<usize>),
    ) -> Self {
        let layout = task.kv.layout();
        let (key_dim, value_dim) = (layout.key_dim as usize, layout.value_dim as usize);
        let range = index * SPAN..(index + 1) * SPAN;
        let first_block = seen.start.max(range.start) / BLOCK_TOKENS;
        let num_blocks = seen.end.min(range.end).div_ceil(BLOCK_TOKENS) - first_block;
        let (mut keys, mut values): ([&[_]; SPAN_BLOCKS], [&[_]; SPAN_BLOCKS]) =
            ([&[]; SPAN_BLOCKS], [&[]; SPAN_BLOCKS]);
        for block in 0..num_blocks {
            let index = item.step.block(item.piece, first_block + block);
            // SAFETY: the step wrote its blocks before this operation and nobody writes to those that it reads.
            let (block_keys, block_values) = unsafe { task.kv.keys_and_values::<E>(task.layer(), index) };
            keys[block] = &block_keys[kv_head * key_dim..(kv_head + 1) * key_dim];
            values[block] = &block_values[kv_head * BLOCK_TOKENS * value_dim..(kv_head + 1) * BLOCK_TOKENS * value_dim];
        }
        Self { first_position: first_block * BLOCK_TOKENS - range.start, range, num_blocks, keys, values }
    }
}

/// Asks for the lines of `data`.
#[inline(always)]
fn prefetch<V: Lanes, T>(data: &[T]) {
    let start = data.as_ptr();
    for offset in (0..size_of_val(data)).step_by(64) {
        V::prefetch(start.wrapping_byte_add(offset));
    }
}

#[inline(always)]
fn attend_span<V: Lanes, E: KvElement>(
    task: &AttentionTask<'_>,
    item: &Item<'_>,
    tile: &mut Tile,
    (span, next): (&Span<'_, E>, Option<&Span<'_, E>>),
) {
    let layout = task.kv.layout();
    let (group, key_dim, value_dim) = (task.group(), layout.key_dim as usize, layout.value_dim as usize);
    let num_rows = item.num_rows * group;
    let Span { range, first_position, num_blocks, keys, values } = span;
    let (first_position, num_blocks) = (*first_position, *num_blocks);
    let loaded = first_position..first_position + num_blocks * BLOCK_TOKENS;
    if is_bound_by_memory(task, item) {
        values[..num_blocks].iter().for_each(|values| prefetch::<V, E>(values));
    }
    scores::<V, E>(
        &tile.queries[..num_rows * key_dim],
        key_dim,
        &keys[..num_blocks],
        &mut tile.weights[first_position..],
    );
    if let Some(next) = next {
        next.keys[..next.num_blocks].iter().for_each(|keys| prefetch::<V, _>(keys));
    }

    // All rows' largest scores before all rows' weights: a row's are one long chain, those of several rows overlap.
    for row in 0..num_rows {
        let weights = &mut tile.weights[row * SPAN..(row + 1) * SPAN];
        tile.rows[row].span_max = hide_unseen::<V>(weights, &loaded, item.seen_by(row / group, task.op, range));
    }
    for row in 0..num_rows {
        let (weights, _) = tile.weights[row * SPAN..(row + 1) * SPAN][loaded.clone()].as_chunks_mut::<16>();
        weigh::<V>(weights, &mut tile.rows[row]);
    }
    let values = SpanValues { blocks: &values[..num_blocks], first_position, value_dim };
    sum_values::<V, E>((task, item), range, tile, values);
}

/// Σ p v of the span: the positions that all rows see for all rows at once, before and after them those that a row alone sees.
#[inline(always)]
fn sum_values<V: Lanes, E: KvElement>(
    (task, item): (&AttentionTask<'_>, &Item<'_>),
    range: &Range<usize>,
    tile: &mut Tile,
    values: SpanValues<'_, E>,
) {
    let (group, width) = (task.group(), values.value_dim.next_multiple_of(16));
    let seen_by = |row: usize| item.seen_by(row, task.op, range);
    let (first_seen, last_seen) = (seen_by(0), seen_by(item.num_rows - 1));
    let common = last_seen.start..first_seen.end.max(last_seen.start);
    let sums = &mut tile.span_sums[..item.num_rows * group * width];
    sums.fill(0.0);
    for (row, own) in sums.chunks_exact_mut(group * width).enumerate() {
        let seen = seen_by(row);
        let weights = &tile.weights[row * group * SPAN..];
        add_weighted::<V, E>(weights, values, seen.start..seen.end.min(common.start), own);
    }
    add_weighted::<V, E>(&tile.weights, values, common.clone(), sums);
    for (row, own) in sums.chunks_exact_mut(group * width).enumerate() {
        let seen = seen_by(row);
        let weights = &tile.weights[row * group * SPAN..];
        add_weighted::<V, E>(weights, values, seen.start.max(common.end)..seen.end, own);
    }
}

/// Joins the span at hand to those before it, for the rows that see some of it.
#[inline(always)]
fn join_span<V: Lanes>(task: &AttentionTask<'_>, item: &Item<'_>, tile: &mut Tile, range: &Range<usize>) {
    let (group, width) = (task.group(), (task.kv.layout().value_dim as usize).next_multiple_of(16));
    let Tile { rows, span_sums, sums, .. } = tile;
    let sums = span_sums.chunks_exact(width).zip(sums.chunks_exact_mut(width));
    for (row, (state, (span_sums, sums))) in rows[..item.num_rows * group].iter_mut().zip(sums).enumerate() {
        if !item.seen_by(row / group, task.op, range).is_empty() {
            join::<V>(state, span_sums, sums);
        }
    }
}

/// One span of an item, kept apart until its neighbours are done.
pub(super) struct Part<'a> {
    /// Index of the span.
    pub(super) span: usize,
    /// A state for each tile row.
    pub(super) rows: &'a mut [RowState],
    /// `[tile rows, value_dim up to 16]`: Σ p v.
    pub(super) sums: &'a mut [f32],
}

multiversion! {
    /// Works on one span of `item`, which has one kv head, and leaves what came out in `part`.
    pub(super) fn attend_part<E: KvElement>(task: &AttentionTask<'_>, item: &Item<'_>, tile: &mut Tile, part: Part<'_>) = attend_part_generic
}

#[inline(always)]
fn attend_part_generic<V: Lanes, E: KvElement>(
    task: &AttentionTask<'_>,
    item: &Item<'_>,
    tile: &mut Tile,
    part: Part<'_>,
) {
    let head = (item, item.kv_heads.start);
    start_head::<V>(task, head, tile);
    let span = Span::<E>::new(task, head, (part.span, &item.seen(task.op)));
    attend_span::<V, E>(task, item, tile, (&span, None));
    part.rows.copy_from_slice(&tile.rows[..part.rows.len()]);
    part.sums.copy_from_slice(&tile.span_sums[..part.sums.len()]);
}

multiversion! {
    /// Joins the spans of `item`, which has one kv head, in order, and writes its rows of `out`. `rows` and `sums` are those of its [`Part`]s.
    pub(super) fn join_parts(
        task: &AttentionTask<'_>,
        item: &Item<'_>,
        tile: &mut Tile,
        parts: (&[RowState], &[f32]),
        out: &DisjointMut<'_, f32>,
    ) = join_parts_generic
}

#[inline(always)]
fn join_parts_generic<V: Lanes>(
    task: &AttentionTask<'_>,
    item: &Item<'_>,
    tile: &mut Tile,
    (rows, sums): (&[RowState], &[f32]),
    out: &DisjointMut<'_, f32>,
) {
    let head = (item, item.kv_heads.start);
    let spans = spans(&item.seen(task.op));
    let (num_rows, num_sums) = (rows.len() / spans.len(), sums.len() / spans.len());
    start_head::<V>(task, head, tile);
    for (span, (rows, sums)) in spans.zip(rows.chunks_exact(num_rows).zip(sums.chunks_exact(num_sums))) {
        for (state, part) in tile.rows.iter_mut().zip(rows) {
            (state.span_max, state.span_weight_sums) = (part.span_max, part.span_weight_sums);
        }
        tile.span_sums[..num_sums].copy_from_slice(sums);
        join_span::<V>(task, item, tile, &(span * SPAN..(span + 1) * SPAN));
    }
    finish_head::<V>(task, head, tile, out);
}
