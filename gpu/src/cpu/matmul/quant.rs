//! How quantised weights lie in memory: panels of 16 output rows, blocks of 32 inputs.
//!
//! A panel is a run of records; a record is `GROUP` blocks of codes, then their scales, so that reading a panel is one pass through memory and every
//! load of codes is one aligned cache line. Codes are unsigned. Line `g` of a block of 8-bit codes holds inputs `4g .. 4g + 4` of the 16 rows, four bytes a
//! row: one operand of a dot product. Codes of 4 bits share a line by twos (low nibbles inputs `8i .. 8i + 4`, high nibbles the next four); the fifth and
//! sixth bits follow in lines of their own, one or two bits for each group of four inputs.
//!
//! A weight is `scale * (code - offset)` or `scale * code + min`; nothing is rounded when a file's blocks are packed.

use super::vector::Vector;
use crate::weights::TensorType;

/// Output rows of a panel.
pub(super) const PANEL_ROWS: usize = 16;
/// Inputs of a block.
pub(super) const BLOCK: usize = 32;
/// Bytes of a cache line: four inputs of each row of a panel, one byte each.
pub(super) const LINE: usize = 64;

/// Scales of one block for the lanes at hand.
#[derive(Clone, Copy)]
pub(super) struct Scales<S: Vector> {
    /// Of the first and the second 16 inputs; one and the same unless [`Quant::HALVES`].
    pub(super) scale: [S::F; 2],
    /// Added to each weight; unused unless [`Quant::HAS_MIN`].
    pub(super) min: S::F,
}

/// A quantised type: how its file blocks become codes and scales, and how kernels read those.
pub(super) trait Quant: Copy {
    /// The type in the file.
    const TYPE: TensorType;
    /// Bits of a code: 4, 5, 6 or 8.
    const CODE_BITS: usize;
    /// Blocks of a record.
    const GROUP: usize;
    /// Bytes of the scales of a record; keeps records on cache lines.
    const SCALE_BYTES: usize;
    /// Each 16 inputs have a scale of their own.
    const HALVES: bool = false;
    /// Blocks have minima.
    const HAS_MIN: bool = false;
    /// Taken off each code: `1 << OFFSET_SHIFT`, nothing if 0.
    const OFFSET_SHIFT: u32 = 0;

    /// Bytes of a block's codes.
    const CODE_BYTES: usize = Self::CODE_BITS * LINE;
    /// Bytes of a record.
    const RECORD_BYTES: usize = Self::GROUP * Self::CODE_BYTES + Self::SCALE_BYTES;

    /// Codes of the 32 inputs of block `index` of a record, out of the file's bytes of the same inputs (one or more file blocks).
    fn codes(file: &[u8], index: usize) -> [u8; BLOCK];

    /// Puts the scales of one row into a record's scales. `file`: as for [`Quant::codes`], but of the whole record; `num_blocks` of it are there.
    fn put_scales(file: &[u8], num_blocks: usize, lane: usize, scales: &mut [u8]);

    /// Scales of block `index` of a record, for the lanes from `lane` on.
    ///
    /// # Safety
    /// `scales` points to the `SCALE_BYTES` of a record; `index < GROUP`; the lanes are within the panel.
    unsafe fn scales<S: Vector>(s: S, scales: *const u8, index: usize, lane: usize) -> Scales<S>;

    /// Bytes of a panel of `num_inputs`.
    fn panel_bytes(num_inputs: usize) -> usize {
        (num_inputs / BLOCK).div_ceil(Self::GROUP) * Self::RECORD_BYTES
    }
}

/// Codes of a block for the lanes from `lane` on: register `g` holds inputs `4g .. 4g + 4`, one byte each.
///
/// # Safety
/// `codes` points to the codes of a block of `Q`, and the lanes are within the panel.
#[inline(always)]
pub(super) unsafe fn load_codes<Q: Quant, S: Vector>(s: S, codes: *const u8, lane: usize) -> [S::I; 8] {
    // SAFETY: a block has `CODE_BITS` lines, and `line` stays below that.
    let line = |line: usize| unsafe { s.load_bits(codes.add(line * LINE + lane * 4)) };
    let nibbles = s.splat_i32(0x0f0f_0f0f);
    let low = |pair: usize| {
        let bits = line(pair);
        [s.and(bits, nibbles), s.and(s.shift_right::<4>(bits), nibbles)]
    };
    if Q::CODE_BITS == 8 {
        return [line(0), line(1), line(2), line(3), line(4), line(5), line(6), line(7)];
    }
    let [[a, b], [c, d], [e, f], [g, h]] = [low(0), low(1), low(2), low(3)];
    let mut codes = [a, b, c, d, e, f, g, h];
    if Q::CODE_BITS > 4 {
        let high = if Q::CODE_BITS == 5 { fifth_bits(s, line(4)) } else { fifth_and_sixth_bits(s, line(4), line(5)) };
        for (code, high) in codes.iter_mut().zip(high) {
            *code = s.or(*code, high);
        }
    }
    codes
}

/// Bit `g` of each byte, moved to bit 4.
#[inline(always)]
fn fifth_bits<S: Vector>(s: S, bits: S::I) -> [S::I; 8] {
    let mask = s.splat_i32(0x1010_1010);
    [
        s.and(s.shift_left::<4>(bits), mask),
        s.and(s.shift_left::<3>(bits), mask),
        s.and(s.shift_left::<2>(bits), mask),
        s.and(s.shift_left::<1>(bits), mask),
        s.and(bits, mask),
        s.and(s.shift_right::<1>(bits), mask),
        s.and(s.shift_right::<2>(bits), mask),
        s.and(s.shift_right::<3>(bits), mask),
    ]
}

/// Bits `2g, 2g + 1` of each byte, moved to bits 4 and 5; four groups a line.
#[inline(always)]
fn fifth_and_sixth_bits<S: Vector>(s: S, first: S::I, second: S::I) -> [S::I; 8] {
    let mask = s.splat_i32(0x3030_3030);
    [
        s.and(s.shift_left::<4>(first), mask),
        s.and(s.shift_left::<2>(first), mask),
        s.and(first, mask),
        s.and(s.shift_right::<2>(first), mask),
        s.and(s.shift_left::<4>(second), mask),
        s.and(s.shift_left::<2>(second), mask),
        s.and(second, mask),
        s.and(s.shift_right::<2>(second), mask),
    ]
}

/// Puts the codes of one row into a block whose bits are still 0.
pub(super) fn put_codes<Q: Quant>(codes: &[u8; BLOCK], lane: usize, block: &mut [u8]) {
    for (input, &code) in codes.iter().enumerate() {
        let (group, byte) = (input / 4, lane * 4 + input % 4);
        if Q::CODE_BITS == 8 {
            block[group * LINE + byte] = code;
            continue;
        }
        block[group / 2 * LINE + byte] |= (code & 15) << (group % 2 * 4);
        match Q::CODE_BITS {
            5 => block[4 * LINE + byte] |= (code >> 4) << group,
            6 => block[(4 + group / 4) * LINE + byte] |= (code >> 4) << (group % 4 * 2),
            _ => {}
        }
    }
}

/// `scale` of the file's blocks: one f16, two blocks a record.
macro_rules! plain_scales {
    () => {
        const GROUP: usize = 2;
        const SCALE_BYTES: usize = 2 * 2 * PANEL_ROWS;

        fn put_scales(file: &[u8], num_blocks: usize, lane: usize, scales: &mut [u8]) {
            for (index, block) in file.chunks_exact(Self::TYPE.block().1).take(num_blocks).enumerate() {
                put(scales, (index * PANEL_ROWS + lane) * 2, &block[..2]);
            }
        }

        #[inline(always)]
        unsafe fn scales<S: Vector>(s: S, scales: *const u8, index: usize, lane: usize) -> Scales<S> {
            // SAFETY: block `index`'s f16 of these lanes lie within the record's scales.
            let scale = unsafe { s.load_f16(scales.add((index * PANEL_ROWS + lane) * 2)) };
            Scales { scale: [scale; 2], min: scale }
        }
    };
}

/// `scale` and `min` of the file's blocks: two f16, one block a record.
macro_rules! scales_and_minima {
    () => {
        const GROUP: usize = 1;
        const SCALE_BYTES: usize = 2 * 2 * PANEL_ROWS;
        const HAS_MIN: bool = true;

        fn put_scales(file: &[u8], _num_blocks: usize, lane: usize, scales: &mut [u8]) {
            put(scales, lane * 2, &file[..2]);
            put(scales, (PANEL_ROWS + lane) * 2, &file[2..4]);
        }

        #[inline(always)]
        unsafe fn scales<S: Vector>(s: S, scales: *const u8, _index: usize, lane: usize) -> Scales<S> {
            // SAFETY: the f16 of these lanes lie within the record's scales.
            let f16_at = |at: usize| unsafe { s.load_f16(scales.add((at + lane) * 2)) };
            Scales { scale: [f16_at(0); 2], min: f16_at(PANEL_ROWS) }
        }
    };
}

/// Q4_K's and Q5_K's: `d` and `-dmin` in f16, then for each of eight blocks the 6-bit factor of `d`, then that of `-dmin`, in a byte each.
macro_rules! super_scales_and_minima {
    () => {
        const GROUP: usize = 8;
        const SCALE_BYTES: usize = 2 * 2 * PANEL_ROWS + 2 * 8 * PANEL_ROWS;
        const HAS_MIN: bool = true;

        fn put_scales(file: &[u8], _num_blocks: usize, lane: usize, scales: &mut [u8]) {
            put(scales, lane * 2, &file[..2]);
            // The file subtracts the minimum.
            put(scales, (PANEL_ROWS + lane) * 2, &[file[2], file[3] ^ 0x80]);
            for index in 0..8 {
                let (scale, min) = six_bit_scales(&file[4..16], index);
                scales[(4 + index) * PANEL_ROWS + lane] = scale;
                scales[(12 + index) * PANEL_ROWS + lane] = min;
            }
        }

        #[inline(always)]
        unsafe fn scales<S: Vector>(s: S, scales: *const u8, index: usize, lane: usize) -> Scales<S> {
            // SAFETY: all four lie within the record's scales. The products are exact: 11 bits times 6 bits.
            unsafe {
                let scale =
                    s.mul(s.load_f16(scales.add(lane * 2)), s.load_u8(scales.add((4 + index) * PANEL_ROWS + lane)));
                let min = s.mul(
                    s.load_f16(scales.add((PANEL_ROWS + lane) * 2)),
                    s.load_u8(scales.add((12 + index) * PANEL_ROWS + lane)),
                );
                Scales { scale: [scale; 2], min }
            }
        }
    };
}

/// 32 × 4 bit, f16 scale, offset 8.
#[derive(Clone, Copy)]
pub(super) struct Q4_0;

impl Quant for Q4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    const CODE_BITS: usize = 4;
    const OFFSET_SHIFT: u32 = 3;
    plain_scales!();

    fn codes(file: &[u8], index: usize) -> [u8; BLOCK] {
        nibbles(&file[index * 18 + 2..][..16])
    }
}

/// 32 × 4 bit, f16 scale and minimum.
#[derive(Clone, Copy)]
pub(super) struct Q4_1;

impl Quant for Q4_1 {
    const TYPE: TensorType = TensorType::Q4_1;
    const CODE_BITS: usize = 4;
    scales_and_minima!();

    fn codes(file: &[u8], _index: usize) -> [u8; BLOCK] {
        nibbles(&file[4..20])
    }
}

/// 32 × 5 bit, f16 scale, offset 16.
#[derive(Clone, Copy)]
pub(super) struct Q5_0;

impl Quant for Q5_0 {
    const TYPE: TensorType = TensorType::Q5_0;
    const CODE_BITS: usize = 5;
    const OFFSET_SHIFT: u32 = 4;
    plain_scales!();

    fn codes(file: &[u8], index: usize) -> [u8; BLOCK] {
        let block = &file[index * 22..][..22];
        with_fifth_bits(nibbles(&block[6..22]), &block[2..6])
    }
}

/// 32 × 5 bit, f16 scale and minimum.
#[derive(Clone, Copy)]
pub(super) struct Q5_1;

impl Quant for Q5_1 {
    const TYPE: TensorType = TensorType::Q5_1;
    const CODE_BITS: usize = 5;
    scales_and_minima!();

    fn codes(file: &[u8], _index: usize) -> [u8; BLOCK] {
        with_fifth_bits(nibbles(&file[8..24]), &file[4..8])
    }
}

/// 32 × 8 bit, f16 scale, offset 128.
#[derive(Clone, Copy)]
pub(super) struct Q8_0;

impl Quant for Q8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    const CODE_BITS: usize = 8;
    const OFFSET_SHIFT: u32 = 7;
    plain_scales!();

    fn codes(file: &[u8], index: usize) -> [u8; BLOCK] {
        let block = &file[index * 34 + 2..][..32];
        std::array::from_fn(|input| block[input] ^ 0x80)
    }
}

/// 256 × 4 bit in 8 groups with 6-bit scales and minima.
#[derive(Clone, Copy)]
pub(super) struct Q4K;

impl Quant for Q4K {
    const TYPE: TensorType = TensorType::Q4_K;
    const CODE_BITS: usize = 4;
    super_scales_and_minima!();

    fn codes(file: &[u8], index: usize) -> [u8; BLOCK] {
        half_bytes(&file[16 + index / 2 * 32..][..32], index % 2)
    }
}

/// 256 × 5 bit in 8 groups with 6-bit scales and minima.
#[derive(Clone, Copy)]
pub(super) struct Q5K;

impl Quant for Q5K {
    const TYPE: TensorType = TensorType::Q5_K;
    const CODE_BITS: usize = 5;
    super_scales_and_minima!();

    fn codes(file: &[u8], index: usize) -> [u8; BLOCK] {
        let low = half_bytes(&file[48 + index / 2 * 32..][..32], index % 2);
        std::array::from_fn(|input| low[input] | (file[16 + input] >> index & 1) << 4)
    }
}

/// 256 × 6 bit in 16 groups with 8-bit scales, offset 32.
#[derive(Clone, Copy)]
pub(super) struct Q6K;

impl Quant for Q6K {
    const TYPE: TensorType = TensorType::Q6_K;
    const CODE_BITS: usize = 6;
    const GROUP: usize = 8;
    // f16 `d`, 32 bytes of nothing (records stay on cache lines), one signed byte for each 16 inputs.
    const SCALE_BYTES: usize = LINE + 16 * PANEL_ROWS;
    const HALVES: bool = true;
    const OFFSET_SHIFT: u32 = 5;

    fn codes(file: &[u8], index: usize) -> [u8; BLOCK] {
        // Four blocks share 64 bytes of low halves and 32 bytes of upper bits.
        let (half, quarter) = (index / 4, index % 4);
        let low = half_bytes(&file[half * 64 + quarter % 2 * 32..][..32], quarter / 2);
        std::array::from_fn(|input| low[input] | (file[128 + half * 32 + input] >> (quarter * 2) & 3) << 4)
    }

    fn put_scales(file: &[u8], _num_blocks: usize, lane: usize, scales: &mut [u8]) {
        put(scales, lane * 2, &file[208..210]);
        for (index, &scale) in file[192..208].iter().enumerate() {
            scales[LINE + index * PANEL_ROWS + lane] = scale;
        }
    }

    #[inline(always)]
    unsafe fn scales<S: Vector>(s: S, scales: *const u8, index: usize, lane: usize) -> Scales<S> {
        // SAFETY: all lie within the record's scales. The products are exact: 11 bits times 8 bits.
        unsafe {
            let d = s.load_f16(scales.add(lane * 2));
            let factor = |half: usize| s.load_i8(scales.add(LINE + (2 * index + half) * PANEL_ROWS + lane));
            Scales { scale: [s.mul(d, factor(0)), s.mul(d, factor(1))], min: d }
        }
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

/// 16 bytes: the low halves first, then the high ones.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|input| if input < 16 { bytes[input] & 15 } else { bytes[input - 16] >> 4 })
}

/// The low (0) or high (1) halves of 32 bytes.
fn half_bytes(bytes: &[u8], half: usize) -> [u8; BLOCK] {
    std::array::from_fn(|input| bytes[input] >> (half * 4) & 15)
}

/// Joins the fifth bit of each input, input 0 lowest.
fn with_fifth_bits(mut codes: [u8; BLOCK], bits: &[u8]) -> [u8; BLOCK] {
    for (input, code) in codes.iter_mut().enumerate() {
        *code |= (bits[input / 8] >> (input % 8) & 1) << 4;
    }
    codes
}

/// Scale and minimum of block `index` of a K-quant's 12 bytes: six bits each, those of the last four blocks split.
fn six_bit_scales(bytes: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (bytes[index] & 63, bytes[index + 4] & 63)
    } else {
        let both = bytes[index + 4];
        (both & 15 | bytes[index - 4] >> 6 << 4, both >> 4 | bytes[index] >> 6 << 4)
    }
}
