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
mod tile;

use std::ops::Range;

use half::f16;
use relevo_wire::{ElementType, LayerIndex};

use self::tile::{Tile, attend};
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

/// Working memory of attention, for each thread; grows to what a model needs and stays.
#[derive(Debug, Default)]
pub(super) struct AttentionScratch {
    tiles: Vec<Tile>,
    /// Tiles of the pieces before each piece, and of all.
    tile_starts: Vec<usize>,
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
    let AttentionScratch { tiles, tile_starts } = scratch;
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
    // Where there is enough else to share out, the heads of a tile, neighbours in memory, are one thread's.
    let heads_per_item = if num_tiles >= 4 * pool.num_threads() { kv_heads } else { 1 };
    let items_per_tile = kv_heads / heads_per_item;
    let (tiles, out) = (DisjointMut::new(tiles), DisjointMut::new(out));
    pool.for_each(num_tiles * items_per_tile, |thread_index, item| {
        // The last rows of a prompt see the most: begun first, they do not end last.
        let (tile, first_head) = (num_tiles - 1 - item / items_per_tile, item % items_per_tile * heads_per_item);
        let piece_index = tile_starts.partition_point(|&start| start <= tile) - 1;
        let piece = &step.pieces[piece_index];
        let offset = (tile - tile_starts[piece_index]) * rows_per_tile;
        let item = Item {
            step,
            piece,
            first_row: piece.rows.start + offset,
            num_rows: rows_per_tile.min(piece.rows.len() - offset),
            position: piece.start + offset,
            kv_heads: first_head..first_head + heads_per_item,
        };
        // SAFETY: each thread has a tile of its own.
        let tile = &mut unsafe { tiles.range(thread_index..thread_index + 1) }[0];
        match layout.element {
            ElementType::F32 => attend::<f32>(isa, task, &item, tile, &out),
            _ => attend::<f16>(isa, task, &item, tile, &out),
        }
    });
}
