//! The products of one panel with one tile of rows, written once for all instruction sets.
//!
//! **Invariant:** what a row gets depends on its activations and the panel alone. The formulas, for each lane (output) and row:
//!
//! * int8: for each block of 32 inputs in order, `acc = fma(f32(Σ (code - offset) * a), scale * a_scale, acc)` (twice, for 16 inputs each, where a type has
//!   scales for 16), then `acc = fma(min, a_scale * Σ a, acc)` where it has minima; the sums are exact integers.
//! * int8, activations rounded twice: both terms are rows to a kernel, multiplied as above; the product is the first's plus the second's.
//! * f32: for each input in order, `acc = fma(weight, x, acc)`, the weight widened or dequantised as the file's type defines it.

use super::quant::{BLOCK, PANEL_ROWS, Quant, Scales, load_codes};
use super::vector::Vector;

/// How far ahead of its reads a kernel asks for weights.
///
/// Hardware prefetchers stop at 4 KiB pages; 2 KiB ahead bridges the gap at the bandwidth of memory times its latency for one core.
const PREFETCH_AHEAD: usize = 2048;

/// Rows from which a tile's arithmetic takes longer than reading its weights from memory.
const HIGH_TILE: usize = 8;

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
    /// Bytes from these panels to those of the thread's next run; 0 if this is its last.
    pub(super) to_next_run: usize,
    /// Results: `[num_panels, tile, 16]`.
    pub(super) out: *mut f32,
}

/// Panels side by side, `stride` bytes apart, and the lanes of each that are wanted.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    first: *const u8,
    stride: usize,
    lane: usize,
    num_inputs: usize,
    to_next_run: usize,
}

/// Accumulators: one register for each panel and row.
type Sums<S, const PANELS: usize, const TILE: usize> = [[<S as Vector>::F; TILE]; PANELS];

/// How a kernel reads weights and activations.
pub(super) trait PanelKind {
    /// Multiplies the `LANES` rows of some panels with a tile of `TILE` rows of activations.
    ///
    /// # Safety
    /// `panels` and `activations` hold what this kind reads.
    unsafe fn multiply<S: Vector, const PANELS: usize, const TILE: usize>(
        s: S,
        panels: Panels,
        activations: *const u8,
    ) -> Sums<S, PANELS, TILE>;
}

/// Does `run` with one kind, instruction set and tile, `PANELS` at a time.
///
/// # Safety
/// The pointers of `run` hold what its fields say.
#[inline(always)]
pub(super) unsafe fn run_panels<K: PanelKind, S: Vector, const PANELS: usize, const TILE: usize>(s: S, run: &PanelRun) {
    let whole = run.num_panels - run.num_panels % PANELS;
    for index in (0..whole).step_by(PANELS) {
        // SAFETY: the caller's promise: these panels exist.
        unsafe { run_some::<K, S, PANELS, TILE>(s, run, index) };
    }
    for index in whole..run.num_panels {
        // SAFETY: as above.
        unsafe { run_some::<K, S, 1, TILE>(s, run, index) };
    }
}

/// # Safety
/// As [`run_panels`], and there are `PANELS` from `index` on.
#[inline(always)]
unsafe fn run_some<K: PanelKind, S: Vector, const PANELS: usize, const TILE: usize>(
    s: S,
    run: &PanelRun,
    index: usize,
) {
    for lane in (0..PANEL_ROWS).step_by(S::LANES) {
        // SAFETY: the caller's promise; `lane` steps through the rows of a panel.
        unsafe {
            let first = run.panels.add(index * run.stride);
            let PanelRun { stride, num_inputs, to_next_run, .. } = *run;
            let panels = Panels { first, stride, lane, num_inputs, to_next_run };
            let sums = K::multiply::<S, PANELS, TILE>(s, panels, run.activations);
            for (panel, sums) in sums.iter().enumerate() {
                for (row, &sum) in sums.iter().enumerate() {
                    s.store(run.out.add(((index + panel) * TILE + row) * PANEL_ROWS + lane), sum);
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
    unsafe fn multiply<S: Vector, const PANELS: usize, const TILE: usize>(
        s: S,
        panels: Panels,
        activations: *const u8,
    ) -> Sums<S, PANELS, TILE> {
        let mut sums = [[s.splat(0.0); TILE]; PANELS];
        let mut tile = activations.cast::<ActivationBlock>();
        for index in 0..panels.num_inputs / BLOCK {
            prefetch_blocks::<Q, S, PANELS, TILE>(s, panels, index);
            // SAFETY: the panels have this block.
            let weights: [Weights<Q, S>; PANELS] = unsafe { load_weights(s, panels, index) };
            for row in 0..TILE {
                // SAFETY: the activations have this row of blocks, and it this row.
                let a = unsafe { &*tile.add(row) };
                let dots = dots(s, &weights, a);
                for ((sums, weights), dots) in sums.iter_mut().zip(&weights).zip(dots) {
                    sums[row] = weights.accumulate(s, dots, a, sums[row]);
                }
            }
            // SAFETY: the next row of blocks, or one past the last.
            tile = unsafe { tile.add(TILE) };
        }
        sums
    }
}

/// The two halves of a block's dot product for each panel, offsets taken off.
///
/// Two chains of four instead of one of eight: a dot instruction takes four cycles, and the scheduler holds only so many rows' chains at once
/// (measured: 8 % at 16 rows).
#[inline(always)]
fn dots<Q: Quant, S: Vector, const PANELS: usize>(
    s: S,
    weights: &[Weights<Q, S>; PANELS],
    a: &ActivationBlock,
) -> [[S::I; 2]; PANELS] {
    let wide = Q::CODE_BITS == 8;
    let start = if Q::OFFSET_SHIFT == 0 || wide && S::SUBTRACTS_128 {
        [s.splat_i32(0); 2]
    } else {
        let sum = s.splat_i32(a.negative_sum);
        let low = s.splat_i32(a.negative_sum_low);
        // Only types with scales for 16 inputs need to know which half the offset belongs to.
        if Q::HALVES {
            [times_offset::<Q, S>(s, low), times_offset::<Q, S>(s, s.sub(sum, low))]
        } else {
            [times_offset::<Q, S>(s, sum), s.splat_i32(0)]
        }
    };
    let mut dots = [start; PANELS];
    // The chains alternate, so that the scheduler meets them side by side.
    for group in [0, 4, 1, 5, 2, 6, 3, 7] {
        let a = s.splat_i32(a.codes[group]);
        for (dots, weights) in dots.iter_mut().zip(weights) {
            let (dot, codes) = (&mut dots[group / 4], weights.codes[group]);
            *dot = if wide { s.dot::<true>(*dot, codes, a) } else { s.dot::<false>(*dot, codes, a) };
        }
    }
    dots
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

/// The weights of one block, still packed.
#[derive(Clone, Copy)]
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

    /// Adds a block's dot product to a row's sum: the int8 formula.
    #[inline(always)]
    fn accumulate(&self, s: S, [low, high]: [S::I; 2], a: &ActivationBlock, sum: S::F) -> S::F {
        let Scales { scale, min } = self.scales;
        let a_scale = s.splat(a.scale);
        let sum = if Q::HALVES {
            let sum = s.fma(s.to_float(low), s.mul(scale[0], a_scale), sum);
            s.fma(s.to_float(high), s.mul(scale[1], a_scale), sum)
        } else {
            s.fma(s.to_float(s.add(low, high)), s.mul(scale[0], a_scale), sum)
        };
        if Q::HAS_MIN { s.fma(min, s.splat(a.scaled_sum), sum) } else { sum }
    }

    /// The weights of inputs `4 * group ..`, rounded once.
    #[inline(always)]
    pub(super) fn group(&self, s: S, group: usize) -> [S::F; 4] {
        let bits = self.codes[group];
        let byte = s.splat_i32(255);
        [
            self.weight(s, group, s.and(bits, byte)),
            self.weight(s, group, s.and(s.shift_right::<8>(bits), byte)),
            self.weight(s, group, s.and(s.shift_right::<16>(bits), byte)),
            self.weight(s, group, s.shift_right::<24>(bits)),
        ]
    }

    #[inline(always)]
    fn weight(&self, s: S, group: usize, code: S::I) -> S::F {
        let scale = self.scales.scale[group / 4];
        if Q::HAS_MIN {
            s.fma(s.to_float(code), scale, self.scales.min)
        } else {
            s.mul(s.to_float(s.sub(code, s.splat_i32(1 << Q::OFFSET_SHIFT))), scale)
        }
    }
}

/// One block of each panel.
///
/// # Safety
/// The panels have this block.
#[inline(always)]
unsafe fn load_weights<Q: Quant, S: Vector, const PANELS: usize>(
    s: S,
    panels: Panels,
    index: usize,
) -> [Weights<Q, S>; PANELS] {
    // A loop: what `array::from_fn` calls is not always inlined, and then compiled without the kernel's instructions.
    // SAFETY: the caller's promise.
    let mut weights = [unsafe { Weights::load(s, panels.first, index, panels.lane) }; PANELS];
    for (panel, weights) in weights.iter_mut().enumerate().skip(1) {
        // SAFETY: the caller's promise.
        *weights = unsafe { Weights::load(s, panels.first.add(panel * panels.stride), index, panels.lane) };
    }
    weights
}

/// Asks for as many bytes of each panel as a block has: [`PREFETCH_AHEAD`] of it, and, where a tile is high enough to multiply for longer than to read,
/// those of the next run, so that memory works while this one is multiplied with all its tiles.
#[inline(always)]
fn prefetch_blocks<Q: Quant, S: Vector, const PANELS: usize, const TILE: usize>(s: S, panels: Panels, index: usize) {
    let block_bytes = Q::RECORD_BYTES.div_ceil(Q::GROUP);
    for panel in 0..PANELS {
        let block = panels.first.wrapping_add(panel * panels.stride + index * block_bytes);
        for line in (0..block_bytes).step_by(64) {
            s.prefetch::<false>(block.wrapping_add(PREFETCH_AHEAD + line));
            if TILE >= HIGH_TILE {
                s.prefetch::<true>(block.wrapping_add(panels.to_next_run + line));
            }
        }
    }
}

/// Quantised weights, f32 activations.
pub(super) struct Dequantised<Q>(std::marker::PhantomData<Q>);

impl<Q: Quant> PanelKind for Dequantised<Q> {
    #[inline(always)]
    unsafe fn multiply<S: Vector, const PANELS: usize, const TILE: usize>(
        s: S,
        panels: Panels,
        activations: *const u8,
    ) -> Sums<S, PANELS, TILE> {
        let mut sums = [[s.splat(0.0); TILE]; PANELS];
        let mut tile = activations.cast::<f32>();
        for index in 0..panels.num_inputs / BLOCK {
            prefetch_blocks::<Q, S, PANELS, TILE>(s, panels, index);
            // SAFETY: the panels have this block.
            let weights: [Weights<Q, S>; PANELS] = unsafe { load_weights(s, panels, index) };
            for group in 0..8 {
                let mut inputs = [[s.splat(0.0); PANELS]; 4];
                for (panel, weights) in weights.iter().enumerate() {
                    for (input, weight) in inputs.iter_mut().zip(weights.group(s, group)) {
                        input[panel] = weight;
                    }
                }
                for weights in inputs {
                    // SAFETY: the tile has this input.
                    unsafe { accumulate_floats(s, weights, tile, &mut sums) };
                    // SAFETY: the next input, or one past the last.
                    tile = unsafe { tile.add(TILE) };
                }
            }
        }
        sums
    }
}

/// Adds one input's products: the f32 formula.
///
/// # Safety
/// `tile` holds one float for each row.
#[inline(always)]
unsafe fn accumulate_floats<S: Vector, const PANELS: usize, const TILE: usize>(
    s: S,
    weights: [S::F; PANELS],
    tile: *const f32,
    sums: &mut Sums<S, PANELS, TILE>,
) {
    for row in 0..TILE {
        // SAFETY: the caller's promise.
        let x = s.splat(unsafe { *tile.add(row) });
        for (sums, weight) in sums.iter_mut().zip(weights) {
            sums[row] = s.fma(weight, x, sums[row]);
        }
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
    unsafe fn multiply<S: Vector, const PANELS: usize, const TILE: usize>(
        s: S,
        panels: Panels,
        activations: *const u8,
    ) -> Sums<S, PANELS, TILE> {
        let mut sums = [[s.splat(0.0); TILE]; PANELS];
        let mut tile = activations.cast::<f32>();
        for input in 0..panels.num_inputs {
            let mut weights = [s.splat(0.0); PANELS];
            for (panel, weight) in weights.iter_mut().enumerate() {
                // SAFETY: the panels have this input.
                *weight = unsafe {
                    let at = panels.first.add(panel * panels.stride + input * PANEL_ROWS * T::BYTES);
                    s.prefetch::<false>(at.wrapping_add(PREFETCH_AHEAD));
                    T::load(s, at.add(panels.lane * T::BYTES))
                };
            }
            // SAFETY: the tile has this input.
            unsafe { accumulate_floats(s, weights, tile, &mut sums) };
            // SAFETY: the next input, or one past the last.
            tile = unsafe { tile.add(TILE) };
        }
        sums
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
