//! Rotary position embedding of queries and keys, and the writing of keys and values into their blocks.

#![allow(
    unsafe_code,
    reason = "dispatch to functions with instructions enabled; rows and blocks are shared out to threads"
)]

use half::f16;
use relevo_wire::{BLOCK_TOKENS, ElementType, LayerIndex};

use super::aligned::AlignedVec;
use super::isa::Isa;
use super::kv_pool::{KvElement, KvPool};
use super::math::{normalise, sin_cos};
use super::pool::{DisjointMut, ThreadPool, share};
use super::simd::{Element, Lanes, multiversion};
use super::uploaded_step::{BlockWrite, UploadedStep};
use crate::compute::{ComputeError, Rope};
use crate::model::KvMemory;

/// Rows from which on the work is shared: one row takes about 0.1 µs, a join of the threads 1 µs.
const MIN_SHARED_ROWS: usize = 16;

/// Sines and cosines of the rows of a step, for one way to rotate: computed by the first layer that asks, read by all.
#[derive(Debug, Default)]
pub(super) struct RopeTable {
    rotation: Option<Rotation>,
    /// Whether it holds the rows of the step at hand.
    is_current: bool,
    /// `[num_rows, 2, rotary_dim]`: what an element is multiplied by, then what its partner is.
    factors: AlignedVec,
}

/// How a table's rows are rotated; the frequencies by where they lie, since they live as long as the model.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rotation {
    frequencies: usize,
    rotary_dim: usize,
    interleaved: bool,
    attention_factor: f32,
}

impl Rotation {
    fn of(rope: &Rope<AlignedVec>) -> Self {
        Self {
            frequencies: rope.inverse_frequencies.as_slice().as_ptr().addr(),
            rotary_dim: rope.rotary_dim,
            interleaved: rope.interleaved,
            attention_factor: rope.attention_factor,
        }
    }
}

/// The tables of a step; models have one way to rotate, or two (local and global layers).
#[derive(Debug, Default)]
pub(super) struct RopeTables {
    tables: Vec<RopeTable>,
}

impl RopeTables {
    /// The step is over: its positions are no longer these.
    pub(super) fn invalidate(&mut self) {
        self.tables.iter_mut().for_each(|table| table.is_current = false);
    }

    /// The factors of every row of `step`.
    pub(super) fn factors(
        &mut self,
        pool: &ThreadPool,
        step: &UploadedStep,
        rope: &Rope<AlignedVec>,
    ) -> Result<&[f32], ComputeError> {
        let rotation = Rotation::of(rope);
        let found = self.tables.iter().position(|table| table.rotation == Some(rotation));
        let index = found.unwrap_or_else(|| {
            self.tables.push(RopeTable { rotation: Some(rotation), ..RopeTable::default() });
            self.tables.len() - 1
        });
        let table = &mut self.tables[index];
        if !table.is_current {
            table.factors.grow(step.num_rows() * 2 * rope.rotary_dim, "rotary embeddings")?;
            fill(pool, step, rope, table.factors.as_mut_slice());
            table.is_current = true;
        }
        Ok(table.factors.as_slice())
    }
}

/// The angle is the product of position and frequency in f32, as the models were trained; its sine and cosine are exact to f32.
fn fill(pool: &ThreadPool, step: &UploadedStep, rope: &Rope<AlignedVec>, factors: &mut [f32]) {
    let (dim, half) = (rope.rotary_dim, rope.rotary_dim / 2);
    let frequencies = rope.inverse_frequencies.as_slice();
    assert!(frequencies.len() == half, "{} frequencies for {dim} rotated elements", frequencies.len());
    let factors = DisjointMut::new(factors);
    pool.run(|thread_index, num_threads| {
        let rows = share(step.num_rows(), 1, (thread_index, num_threads));
        for piece in &step.pieces {
            for row in piece.rows.start.max(rows.start)..piece.rows.end.min(rows.end) {
                let position = (piece.start + row - piece.rows.start) as f32;
                // SAFETY: rows are shared out to the threads.
                let row = unsafe { factors.range(row * 2 * dim..(row + 1) * 2 * dim) };
                let (own, partner) = row.split_at_mut(dim);
                for (pair, frequency) in frequencies.iter().enumerate() {
                    let (sin, cos) = sin_cos(f64::from(position * frequency));
                    let (sin, cos) = (sin as f32 * rope.attention_factor, cos as f32 * rope.attention_factor);
                    let (first, second) = if rope.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
                    (own[first], own[second]) = (cos, cos);
                    (partner[first], partner[second]) = (-sin, sin);
                }
            }
        }
    });
}

/// What [`rope_and_store`] does to each head, and where.
pub(super) struct RopeAndStoreTask<'a> {
    pub(super) layer: LayerIndex,
    pub(super) num_heads: usize,
    /// Weights of q's and k's head norms, and epsilon.
    pub(super) qk_norm: Option<(&'a [f32], &'a [f32], f32)>,
    pub(super) rotary_dim: usize,
    pub(super) interleaved: bool,
    /// From [`RopeTables::factors`].
    pub(super) factors: &'a [f32],
    pub(super) kv: &'a KvPool,
}

/// Normalises and rotates q and k in `qkv` and writes k and v into the blocks of the step, a block at a time.
pub(super) fn rope_and_store(
    (pool, isa): (&ThreadPool, Isa),
    step: &UploadedStep,
    task: &RopeAndStoreTask<'_>,
    qkv: &mut [f32],
) {
    let layout = task.kv.layout();
    let (kv_heads, key_dim, value_dim) =
        (layout.num_kv_heads as usize, layout.key_dim as usize, layout.value_dim as usize);
    let width = (task.num_heads + kv_heads) * key_dim + kv_heads * value_dim;
    let qkv = DisjointMut::new(&mut qkv[..step.num_rows() * width]);
    let write = |write: &BlockWrite| {
        // SAFETY: every row is in one block write, and a write is one thread's.
        let rows = unsafe { qkv.range(write.rows.start * width..write.rows.end * width) };
        match layout.element {
            ElementType::F32 => write_block::<f32>(isa, rows, write, task),
            _ => write_block::<f16>(isa, rows, write, task),
        }
    };
    if step.num_rows() < MIN_SHARED_ROWS {
        return step.writes.iter().for_each(write);
    }
    pool.run(|thread_index, num_threads| {
        step.writes[share(step.writes.len(), 1, (thread_index, num_threads))].iter().for_each(write);
    });
}

multiversion! {
    fn write_block<E: KvElement>(rows: &mut [f32], write: &BlockWrite, task: &RopeAndStoreTask<'_>) = write_block_generic
}

#[inline(always)]
fn write_block_generic<V: Lanes, E: KvElement>(rows: &mut [f32], write: &BlockWrite, task: &RopeAndStoreTask<'_>) {
    let layout = task.kv.layout();
    let (kv_heads, key_dim, value_dim) =
        (layout.num_kv_heads as usize, layout.key_dim as usize, layout.value_dim as usize);
    let width = rows.len() / write.rows.len();
    let (first_key, first_value) = (task.num_heads * key_dim, (task.num_heads + kv_heads) * key_dim);
    let first_slot = write.position % BLOCK_TOKENS;
    // SAFETY: the step writes each block once (checked when it began) and reads it after this operation; others leave it alone, it is not final.
    let (keys, values) = unsafe { task.kv.keys_and_values_mut::<E>(task.layer, write.block) };
    for ((slot, row), row_index) in (first_slot..).zip(rows.chunks_exact_mut(width)).zip(write.rows.clone()) {
        let factors = &task.factors[row_index * 2 * task.rotary_dim..(row_index + 1) * 2 * task.rotary_dim];
        for (head, x) in row[..first_value].chunks_exact_mut(key_dim).enumerate() {
            if let Some((q_norm, k_norm, epsilon)) = task.qk_norm {
                normalise::<V>(x, if head < task.num_heads { q_norm } else { k_norm }, epsilon);
            }
            rotate::<V>(&mut x[..task.rotary_dim], factors, task.interleaved);
        }
        for (element, key) in row[first_key..first_value].chunks(16).zip(keys.chunks_mut(16)) {
            let rounded = E::round(V::load_part(element));
            key.iter_mut().zip(rounded).for_each(|(key, element)| key[slot] = element);
        }
        for (value, stored) in
            row[first_value..].chunks_exact(value_dim).zip(values.chunks_exact_mut(BLOCK_TOKENS * value_dim))
        {
            store_rounded::<V, E>(value, &mut stored[slot * value_dim..(slot + 1) * value_dim]);
        }
    }
}

/// `x[i] * own[i] + x[partner of i] * partner[i]`, the second product rounded first.
#[inline(always)]
fn rotate<V: Lanes>(x: &mut [f32], factors: &[f32], interleaved: bool) {
    let (own, partner) = factors.split_at(x.len());
    if interleaved {
        for ((x, own), partner) in x.chunks_mut(16).zip(own.chunks(16)).zip(partner.chunks(16)) {
            let lanes = V::load_part(x);
            lanes.mul_add(V::load_part(own), lanes.swap_pairs().mul(V::load_part(partner))).store_part(x);
        }
        return;
    }
    let half = x.len() / 2;
    let (first, second) = x.split_at_mut(half);
    let first_factors = own.chunks(16).zip(partner.chunks(16));
    let second_factors = own[half..].chunks(16).zip(partner[half..].chunks(16));
    let factors = first_factors.zip(second_factors);
    for ((a, b), ((a_own, a_partner), (b_own, b_partner))) in
        first.chunks_mut(16).zip(second.chunks_mut(16)).zip(factors)
    {
        let num = a.len();
        let (x, y) = (V::load_part(a), V::load_part(b));
        let load = |factors: &[f32]| V::load_part(&factors[..num]);
        x.mul_add(load(a_own), y.mul(load(a_partner))).store_part(a);
        y.mul_add(load(b_own), x.mul(load(b_partner))).store_part(b);
    }
}

/// Stores `values` as the cache holds them.
#[inline(always)]
fn store_rounded<V: Lanes, E: Element>(values: &[f32], stored: &mut [E]) {
    for (values, stored) in values.chunks(16).zip(stored.chunks_mut(16)) {
        let rounded = E::round(V::load_part(values));
        stored.copy_from_slice(&rounded[..stored.len()]);
    }
}
