//! The products of one panel with one tile of rows, written once for all instruction sets.
//!
//! **Invariant:** what a row gets depends on its activations and the panel alone. The formulas, for each lane (output) and row:
//!
//! * int8: for each block of 32 inputs in order, `acc = fma(f32(Σ (code - offset) * a), scale * a_scale, acc)` (twice, for 16 inputs each, where a type has
//!   scales for 16), then `acc = fma(min, a_scale * Σ a, acc)` where it has minima; the sums are exact integers.
//! * f32: for each input in order, `acc = fma(weight, x, acc)`, the weight widened or dequantised as the file's type defines it.

use super::quant::{BLOCK, PANEL_ROWS, Quant, Scales, load_codes};
use super::vector::Vector;

/// How far ahead of its reads a kernel asks for weights.
///
/// Hardware prefetchers stop at 4 KiB pages; 2 KiB ahead bridges the gap at the bandwidth of memory times its latency for one core.
const PREFETCH_AHEAD: usize = 2048;

/// One block of a row's activations, rounded to 8 bits.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct ActivationBlock {
    /// Four signed bytes each.
    pub(super) codes: [i32; 8],
    /// `a = scale * code`.
    pub(super) scale: f32,
    /// `scale * Σ codes`.
    pub(super) scaled_sum: f32,
    /// `-Σ codes`.
    pub(super) negative_sum: i32,
    /// `-Σ codes` of the first 16.
    pub(super) negative_sum_low: i32,
}

/// Some panels times one tile of rows.
pub(super) struct PanelRun {
    /// The first panel.
    pub(super) panels: *const u8,
    /// Bytes from one panel to the next.
    pub(super) stride: usize,
    /// How many.
    pub(super) num_panels: usize,
    /// Inputs of a row.
    pub(super) num_inputs: usize,
    /// The tile's activations: `[num_inputs / 32, tile]` of [`ActivationBlock`], or `[num_inputs, tile]` of f32.
    pub(super) activations: *const u8,
    /// Results: `[num_panels, tile, 16]`.
    pub(super) out: *mut f32,
}

/// How a kernel reads weights and activations.
pub(super) trait PanelKind {
    /// Multiplies the `LANES` rows of a panel from `lane` on with a tile of `TILE` rows of activations.
    ///
    /// # Safety
    /// `panel` and `activations` hold what this kind reads, for `num_inputs`; the lanes are within the panel.
    unsafe fn multiply<S: Vector, const TILE: usize>(
        s: S,
        panel: *const u8,
        lane: usize,
        num_inputs: usize,
        activations: *const u8,
    ) -> [S::F; TILE];
}

/// Does `run` with one kind, instruction set and tile.
///
/// # Safety
/// The pointers of `run` hold what its fields say.
#[inline(always)]
pub(super) unsafe fn run_panels<K: PanelKind, S: Vector, const TILE: usize>(s: S, run: &PanelRun) {
    for panel_index in 0..run.num_panels {
        for lane in (0..PANEL_ROWS).step_by(S::LANES) {
            // SAFETY: the caller's promise; `lane` steps through the panel's rows.
            unsafe {
                let panel = run.panels.add(panel_index * run.stride);
                let acc = K::multiply::<S, TILE>(s, panel, lane, run.num_inputs, run.activations);
                for (row, &acc) in acc.iter().enumerate() {
                    s.store(run.out.add((panel_index * TILE + row) * PANEL_ROWS + lane), acc);
                }
            }
        }
    }
}

/// Where block `index` of a panel has its codes, and its record its scales.
///
/// # Safety
/// The panel has that many blocks.
#[inline(always)]
unsafe fn block_at<Q: Quant>(panel: *const u8, index: usize) -> (*const u8, *const u8) {
    // SAFETY: the caller's promise: inside the panel.
    unsafe {
        let record = panel.add(index / Q::GROUP * Q::RECORD_BYTES);
        (record.add(index % Q::GROUP * Q::CODE_BYTES), record.add(Q::GROUP * Q::CODE_BYTES))
    }
}

/// Quantised weights, 8-bit activations.
pub(super) struct Int8<Q>(std::marker::PhantomData<Q>);

impl<Q: Quant> PanelKind for Int8<Q> {
    #[inline(always)]
    unsafe fn multiply<S: Vector, const TILE: usize>(
        s: S,
        panel: *const u8,
        lane: usize,
        num_inputs: usize,
        activations: *const u8,
    ) -> [S::F; TILE] {
        let mut acc = [s.splat(0.0); TILE];
        let mut tile = activations.cast::<ActivationBlock>();
        for index in 0..num_inputs / BLOCK {
            // SAFETY: the panel has this block, the activations this row of blocks.
            let (codes, scales) = unsafe {
                let (codes, scales) = block_at::<Q>(panel, index);
                prefetch_block::<Q, S>(s, codes);
                (load_codes::<Q, S>(s, codes, lane), Q::scales(s, scales, index % Q::GROUP, lane))
            };
            for (row, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the tile has this row.
                *acc = multiply_block::<Q, S>(s, &codes, &scales, unsafe { &*tile.add(row) }, *acc);
            }
            // SAFETY: the next row of blocks, or one past the last.
            tile = unsafe { tile.add(TILE) };
        }
        acc
    }
}

/// One block of one row: the int8 formula.
#[inline(always)]
fn multiply_block<Q: Quant, S: Vector>(
    s: S,
    codes: &[S::I; 8],
    scales: &Scales<S>,
    a: &ActivationBlock,
    acc: S::F,
) -> S::F {
    let wide = Q::CODE_BITS == 8;
    let dot = |codes: &[S::I], a: &[i32], negative_sum: S::I| {
        let offset_is_off = Q::OFFSET_SHIFT == 0 || wide && S::SUBTRACTS_128;
        let mut dot = if offset_is_off { s.splat_i32(0) } else { times_offset::<Q, S>(s, negative_sum) };
        for (&codes, &a) in codes.iter().zip(a) {
            let a = s.splat_i32(a);
            dot = if wide { s.dot::<true>(dot, codes, a) } else { s.dot::<false>(dot, codes, a) };
        }
        s.to_float(dot)
    };
    let a_scale = s.splat(a.scale);
    let sum = s.splat_i32(a.negative_sum);
    let acc = if Q::HALVES {
        let low_sum = s.splat_i32(a.negative_sum_low);
        let low = dot(&codes[..4], &a.codes[..4], low_sum);
        let high = dot(&codes[4..], &a.codes[4..], s.sub(sum, low_sum));
        let acc = s.fma(low, s.mul(scales.scale[0], a_scale), acc);
        s.fma(high, s.mul(scales.scale[1], a_scale), acc)
    } else {
        s.fma(dot(codes, &a.codes, sum), s.mul(scales.scale[0], a_scale), acc)
    };
    if Q::HAS_MIN { s.fma(scales.min, s.splat(a.scaled_sum), acc) } else { acc }
}

/// `a << OFFSET_SHIFT`: the match turns the type's constant into the instruction's.
#[inline(always)]
fn times_offset<Q: Quant, S: Vector>(s: S, a: S::I) -> S::I {
    match Q::OFFSET_SHIFT {
        3 => s.shift_left::<3>(a),
        4 => s.shift_left::<4>(a),
        5 => s.shift_left::<5>(a),
        7 => s.shift_left::<7>(a),
        _ => a,
    }
}

/// Asks for as many bytes as a block has, [`PREFETCH_AHEAD`] of it.
#[inline(always)]
fn prefetch_block<Q: Quant, S: Vector>(s: S, codes: *const u8) {
    for line in (0..Q::RECORD_BYTES.div_ceil(Q::GROUP)).step_by(64) {
        s.prefetch(codes.wrapping_add(PREFETCH_AHEAD + line));
    }
}

/// Quantised weights, f32 activations.
pub(super) struct Dequantised<Q>(std::marker::PhantomData<Q>);

impl<Q: Quant> PanelKind for Dequantised<Q> {
    #[inline(always)]
    unsafe fn multiply<S: Vector, const TILE: usize>(
        s: S,
        panel: *const u8,
        lane: usize,
        num_inputs: usize,
        activations: *const u8,
    ) -> [S::F; TILE] {
        let mut acc = [s.splat(0.0); TILE];
        let mut tile = activations.cast::<f32>();
        for index in 0..num_inputs / BLOCK {
            // SAFETY: the panel has this block.
            let weights = unsafe { Weights::<Q, S>::load(s, panel, index, lane) };
            for group in 0..8 {
                for weight in weights.group(s, group) {
                    for (row, acc) in acc.iter_mut().enumerate() {
                        // SAFETY: the tile has this row of this input.
                        *acc = s.fma(weight, s.splat(unsafe { *tile.add(row) }), *acc);
                    }
                    // SAFETY: the next input, or one past the last.
                    tile = unsafe { tile.add(TILE) };
                }
            }
        }
        acc
    }
}

/// The weights of one block, still packed.
pub(super) struct Weights<Q: Quant, S: Vector> {
    codes: [S::I; 8],
    scales: Scales<S>,
    kind: std::marker::PhantomData<Q>,
}

impl<Q: Quant, S: Vector> Weights<Q, S> {
    /// # Safety
    /// The panel has this block, and the lanes are within it.
    #[inline(always)]
    pub(super) unsafe fn load(s: S, panel: *const u8, index: usize, lane: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let (codes, scales) = block_at::<Q>(panel, index);
            let scales = Q::scales(s, scales, index % Q::GROUP, lane);
            Self { codes: load_codes::<Q, S>(s, codes, lane), scales, kind: std::marker::PhantomData }
        }
    }

    /// The weights of inputs `4 * group ..`, rounded once.
    #[inline(always)]
    pub(super) fn group(&self, s: S, group: usize) -> [S::F; 4] {
        let bits = self.codes[group];
        let byte = s.splat_i32(255);
        [
            s.and(bits, byte),
            s.and(s.shift_right::<8>(bits), byte),
            s.and(s.shift_right::<16>(bits), byte),
            s.shift_right::<24>(bits),
        ]
        .map(|code| {
            let scale = self.scales.scale[group / 4];
            if Q::HAS_MIN {
                s.fma(s.to_float(code), scale, self.scales.min)
            } else {
                s.mul(s.to_float(s.sub(code, s.splat_i32(1 << Q::OFFSET_SHIFT))), scale)
            }
        })
    }
}

/// A float type: panels are `[num_inputs, 16]`.
pub(super) trait FloatType {
    /// Bytes of an element.
    const BYTES: usize;
    /// Widens `LANES` elements.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load<S: Vector>(s: S, from: *const u8) -> S::F;
}

/// Float weights, f32 activations.
pub(super) struct Float<T>(std::marker::PhantomData<T>);

impl<T: FloatType> PanelKind for Float<T> {
    #[inline(always)]
    unsafe fn multiply<S: Vector, const TILE: usize>(
        s: S,
        panel: *const u8,
        lane: usize,
        num_inputs: usize,
        activations: *const u8,
    ) -> [S::F; TILE] {
        let mut acc = [s.splat(0.0); TILE];
        let mut tile = activations.cast::<f32>();
        for input in 0..num_inputs {
            // SAFETY: the panel has this input.
            let weight = unsafe {
                let at = panel.add(input * PANEL_ROWS * T::BYTES);
                s.prefetch(at.wrapping_add(PREFETCH_AHEAD));
                T::load(s, at.add(lane * T::BYTES))
            };
            for (row, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the tile has this row of this input.
                *acc = s.fma(weight, s.splat(unsafe { *tile.add(row) }), *acc);
            }
            // SAFETY: the next input, or one past the last.
            tile = unsafe { tile.add(TILE) };
        }
        acc
    }
}

/// IEEE binary32.
pub(super) struct F32;

impl FloatType for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Vector>(s: S, from: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f32(from) }
    }
}

/// IEEE binary16.
pub(super) struct F16;

impl FloatType for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Vector>(s: S, from: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from) }
    }
}

/// bfloat16.
pub(super) struct BF16;

impl FloatType for BF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Vector>(s: S, from: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(from) }
    }
}
