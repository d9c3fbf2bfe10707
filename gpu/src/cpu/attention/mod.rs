//! Causal attention over paged keys and values.
//!
//! The context is walked in *spans* of [`SPAN`] positions, counted from position 0. Within a span: scores q·k, their largest m, weights
//! p = exp(score - m), their sum l, and Σ p v. Spans are joined in order, as parts of a softmax are (Milakov and Gimelshein, arXiv:1805.02867;
//! FlashAttention, arXiv:2205.14135): both sides are scaled to the larger m and added.
//!
//! What happens to a query row is a function of its position and its sequence's keys and values alone:
//! * a score is one chain of fused multiply-adds over the head's elements in order, in a lane of its own (lanes are positions);
//! * l is summed in sixteen lanes, position mod 16, and by one tree at the end;
//! * an element of Σ p v is one chain over the positions that the row sees, in order (lanes are elements of the head), and positions it does not
//!   see take no part, not even with weight 0.
//!
//! So rows may be worked on together in tiles of any shape (which read each key and value once for all of them), by any thread, in any chunk.

#![allow(
    unsafe_code,
    reason = "dispatch to functions with instructions enabled; output rows are shared out to threads"
)]

mod products;
mod softmax;
mod tile;

use std::ops::Range;

use half::f16;
use relevo_wire::{ElementType, LayerIndex};

use self::softmax::RowState;
use self::tile::{Part, Tile, attend, attend_part, join_parts};
use super::isa::Isa;
use super::kv_pool::KvPool;
use super::pool::{DisjointMut, ThreadPool};
use super::uploaded_step::{StepPiece, UploadedStep};
use crate::compute::Attention;
use crate::model::KvMemory;

/// Positions of a span: eight blocks. A span's keys and values of one head (32 KiB for 64 elements in f16) stay in the first-level cache
/// while the rows of a tile pass over them, and the joining of spans costs a hundredth of the products.
pub(super) const SPAN: usize = 128;

/// Query rows (times the heads that share a kv head) that a tile aims at: two groups of six, the most that the sums of the kernels have registers for.
const TILE_ROWS: usize = 12;

/// The model's attention, as its layers call it.
pub(super) struct AttentionTask<'a> {
    pub(super) op: &'a Attention,
    pub(super) kv: &'a KvPool,
    /// `[rows, (num_heads + num_kv_heads) * key_dim + num_kv_heads * value_dim]`; only q is read.
    pub(super) qkv: &'a [f32],
}

impl AttentionTask<'_> {
    const fn layer(&self) -> LayerIndex {
        self.op.layer
    }

    /// Query heads that share a kv head.
    fn group(&self) -> usize {
        self.op.num_heads / self.kv.layout().num_kv_heads as usize
    }
}

/// Some rows of a piece and some kv heads: what a thread works on at a time.
struct Item<'a> {
    step: &'a UploadedStep,
    piece: &'a StepPiece,
    /// Rows of the step, and the position of the first.
    first_row: usize,
    num_rows: usize,
    position: usize,
    kv_heads: Range<usize>,
}

impl Item<'_> {
    /// Positions that some row sees.
    fn seen(&self, op: &Attention) -> Range<usize> {
        visible(self.position, op.sliding_window).start..self.position + self.num_rows
    }

    /// What row `row` of the item sees of the positions `span`, counted from their first.
    fn seen_by(&self, row: usize, op: &Attention, span: &Range<usize>) -> Range<usize> {
        let seen = visible(self.position + row, op.sliding_window);
        seen.start.clamp(span.start, span.end) - span.start..seen.end.clamp(span.start, span.end) - span.start
    }
}

/// What a row at `position` sees.
fn visible(position: usize, window: Option<usize>) -> Range<usize> {
    let end = position + 1;
    window.map_or(0, |window| end.saturating_sub(window.max(1)))..end
}

/// The spans that `seen` touches.
fn spans(seen: &Range<usize>) -> Range<usize> {
    seen.start / SPAN..seen.end.div_ceil(SPAN)
}

/// Working memory of attention; grows to what a model needs and stays.
#[derive(Debug, Default)]
pub(super) struct AttentionScratch {
    /// One for each thread.
    tiles: Vec<Tile>,
    /// Tiles of the pieces before each piece, and of all.
    tile_starts: Vec<usize>,
    parts: Parts,
}

/// Spans that are worked on apart and joined afterwards.
#[derive(Debug, Default)]
struct Parts {
    /// (tile, kv head, span) of each.
    index: Vec<(usize, usize, usize)>,
    /// Where the parts of each (tile, kv head) begin, and where the last end.
    starts: Vec<usize>,
    /// For each part, a state for each tile row.
    rows: Vec<RowState>,
    /// For each part, `[tile rows, value_dim up to 16]`.
    sums: Vec<f32>,
}

/// Attention of every row of the step. `out`: `[rows, num_heads * value_dim]`.
pub(super) fn paged_attention(
    (pool, isa): (&ThreadPool, Isa),
    step: &UploadedStep,
    task: &AttentionTask<'_>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let layout = task.kv.layout();
    let kv_heads = layout.num_kv_heads as usize;
    assert!(task.op.num_heads.is_multiple_of(kv_heads), "{} heads over {kv_heads} kv heads", task.op.num_heads);
    let rows_per_tile = (TILE_ROWS / task.group()).max(1);
    let AttentionScratch { tiles, tile_starts, parts } = scratch;
    tile_starts.clear();
    tile_starts.push(0);
    let mut num_tiles = 0;
    for piece in &step.pieces {
        num_tiles += piece.rows.len().div_ceil(rows_per_tile);
        tile_starts.push(num_tiles);
    }
    tiles.resize_with(pool.num_threads(), Tile::default);
    for tile in tiles.iter_mut() {
        tile.prepare(rows_per_tile * task.group(), &layout);
    }
    let work = Work { pool, isa, step, task, tile_starts, rows_per_tile, tiles: DisjointMut::new(tiles) };
    let out = DisjointMut::new(out);
    // Nothing of this changes a bit: a row's spans are the same and joined in the same order.
    if num_tiles >= ENOUGH_ITEMS * pool.num_threads() {
        // The heads of a tile are neighbours in memory.
        work.by_tile(num_tiles, kv_heads, &out);
    } else if num_tiles * kv_heads < ENOUGH_ITEMS * pool.num_threads() && work.longest() >= MIN_SPLIT {
        work.by_span(num_tiles, parts, &out);
    } else {
        work.by_tile(num_tiles, 1, &out);
    }
}

/// Items for each thread from which on it does not matter that the last ones end at different times.
const ENOUGH_ITEMS: usize = 4;

/// Positions from which on the context of a few rows is shared out to threads: two spans for each head, several microseconds.
const MIN_SPLIT: usize = 2 * SPAN;

/// What the ways to share out the work have in common.
struct Work<'a> {
    pool: &'a ThreadPool,
    isa: Isa,
    step: &'a UploadedStep,
    task: &'a AttentionTask<'a>,
    tile_starts: &'a [usize],
    rows_per_tile: usize,
    /// One for each thread.
    tiles: DisjointMut<'a, Tile>,
}

impl Work<'_> {
    /// Positions of the longest context.
    fn longest(&self) -> usize {
        self.step.pieces.iter().map(|piece| piece.start + piece.rows.len()).max().unwrap_or(0)
    }

    fn item(&self, tile: usize, kv_heads: Range<usize>) -> Item<'_> {
        let piece_index = self.tile_starts.partition_point(|&start| start <= tile) - 1;
        let piece = &self.step.pieces[piece_index];
        let offset = (tile - self.tile_starts[piece_index]) * self.rows_per_tile;
        Item {
            step: self.step,
            piece,
            first_row: piece.rows.start + offset,
            num_rows: self.rows_per_tile.min(piece.rows.len() - offset),
            position: piece.start + offset,
            kv_heads,
        }
    }

    /// The working memory of a thread.
    ///
    /// # Safety
    /// Called with the index of the calling thread, once for each item that it works on.
    #[expect(clippy::mut_from_ref, reason = "each thread has a tile of its own")]
    unsafe fn tile(&self, thread_index: usize) -> &mut Tile {
        // SAFETY: the caller's promise.
        let own = unsafe { self.tiles.range(thread_index..thread_index + 1) };
        &mut own[0]
    }

    fn is_f32(&self) -> bool {
        self.task.kv.layout().element == ElementType::F32
    }

    /// Tiles of rows, with all their context and `heads_per_item` kv heads each.
    fn by_tile(&self, num_tiles: usize, heads_per_item: usize, out: &DisjointMut<'_, f32>) {
        let items_per_tile = self.task.kv.layout().num_kv_heads as usize / heads_per_item;
        self.pool.for_each(num_tiles * items_per_tile, |thread_index, index| {
            // The last rows of a prompt see the most: begun first, they do not end last.
            let (tile, first_head) = (num_tiles - 1 - index / items_per_tile, index % items_per_tile * heads_per_item);
            let item = self.item(tile, first_head..first_head + heads_per_item);
            // SAFETY: this is that thread, at its next item.
            let tile = unsafe { self.tile(thread_index) };
            if self.is_f32() {
                attend::<f32>(self.isa, self.task, &item, tile, out);
            } else {
                attend::<f16>(self.isa, self.task, &item, tile, out);
            }
        });
    }

    /// Spans of each tile and kv head apart, then their joining: for few rows with long contexts.
    fn by_span(&self, num_tiles: usize, parts: &mut Parts, out: &DisjointMut<'_, f32>) {
        let layout = self.task.kv.layout();
        let kv_heads = layout.num_kv_heads as usize;
        let num_rows = self.rows_per_tile * self.task.group();
        let num_sums = num_rows * (layout.value_dim as usize).next_multiple_of(16);
        let Parts { index, starts, rows, sums } = parts;
        index.clear();
        starts.clear();
        for (tile, kv_head) in (0..num_tiles).flat_map(|tile| (0..kv_heads).map(move |kv_head| (tile, kv_head))) {
            starts.push(index.len());
            let seen = self.item(tile, kv_head..kv_head + 1).seen(self.task.op);
            index.extend(spans(&seen).map(|span| (tile, kv_head, span)));
        }
        starts.push(index.len());
        rows.resize(rows.len().max(index.len() * num_rows), RowState::EMPTY);
        sums.resize(sums.len().max(index.len() * num_sums), 0.0);
        let (part_rows, part_sums) = (DisjointMut::new(rows), DisjointMut::new(sums));
        self.pool.for_each(index.len(), |thread_index, part| {
            let (tile, kv_head, span) = index[part];
            let item = self.item(tile, kv_head..kv_head + 1);
            // SAFETY: a part is one thread's, and this is that thread, at its next item.
            let (tile, rows, sums) = unsafe {
                (
                    self.tile(thread_index),
                    part_rows.range(part * num_rows..(part + 1) * num_rows),
                    part_sums.range(part * num_sums..(part + 1) * num_sums),
                )
            };
            let part = Part { span, rows, sums };
            if self.is_f32() {
                attend_part::<f32>(self.isa, self.task, &item, tile, part);
            } else {
                attend_part::<f16>(self.isa, self.task, &item, tile, part);
            }
        });
        let (rows, sums) = (&*rows, &*sums);
        self.pool.for_each(num_tiles * kv_heads, |thread_index, index| {
            let (tile, kv_head) = (index / kv_heads, index % kv_heads);
            let item = self.item(tile, kv_head..kv_head + 1);
            let own = starts[index]..starts[index + 1];
            let parts =
                (&rows[own.start * num_rows..own.end * num_rows], &sums[own.start * num_sums..own.end * num_sums]);
            // SAFETY: this is that thread, at its next item.
            let tile = unsafe { self.tile(thread_index) };
            join_parts(self.isa, self.task, &item, tile, parts, out);
        });
    }
}
