//! What happens to a row before it is multiplied: RMSNorm, and rounding to 8 bits.
//!
//! Every operation is one lane's own or exact, and the sum of squares has one fixed tree, so that all instruction sets give the same bits.

use std::array::from_fn;

use super::kernel::ActivationBlock;
use super::quant::BLOCK;
use crate::cpu::math::rms_scale;
use crate::cpu::simd::{Lanes, multiversion};

/// Largest block of activations that counts as zero: its scale's reciprocal would overflow near 3.7e-37.
const TINY: f32 = 1e-30;

/// 1.5 × 2^23: added to a float of magnitude under 2^22, leaves it rounded to the nearest integer (ties to even) in the low bits.
const ROUND: f32 = 12_582_912.0;

/// A row before its product, and its norm's weight and epsilon.
pub(super) type Row<'a> = (&'a [f32], Option<(&'a [f32], f32)>);

/// Every `step`-th element of some memory: one row of a tile.
pub(super) struct Strided<T> {
    first: *mut T,
    step: usize,
    len: usize,
}

impl<T> Strided<T> {
    /// # Safety
    /// `first` and the `len - 1` elements after it, `step` apart, can be written, and nobody else touches them while this lives.
    pub(super) unsafe fn new(first: *mut T, step: usize, len: usize) -> Self {
        Self { first, step, len }
    }

    #[inline(always)]
    fn write(&mut self, index: usize, value: T) {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: the promise made to `new`.
        unsafe { self.first.add(index * self.step).write(value) };
    }
}

multiversion! {
    /// Normalises a row and rounds it to 8 bits.
    pub(super) fn write_int8(row: Row<'_>, to: &mut Strided<ActivationBlock>) = write_int8_generic
}

multiversion! {
    /// Normalises a row.
    pub(super) fn write_f32(row: Row<'_>, to: &mut Strided<f32>) = write_f32_generic
}

#[inline(always)]
fn write_int8_generic<V: Lanes>((x, norm): Row<'_>, to: &mut Strided<ActivationBlock>) {
    let norm = norm.map(|(weight, epsilon)| (weight.as_chunks::<BLOCK>().0, rms_scale::<V>(x, epsilon)));
    for (index, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let block = match norm {
            None => quantise(x),
            Some((weight, scale)) => quantise(&from_fn(|i| x[i] * scale * weight[index][i])),
        };
        to.write(index, block);
    }
}

#[inline(always)]
fn write_f32_generic<V: Lanes>((x, norm): Row<'_>, to: &mut Strided<f32>) {
    match norm {
        None => x.iter().enumerate().for_each(|(index, &x)| to.write(index, x)),
        Some((weight, epsilon)) => {
            let scale = rms_scale::<V>(x, epsilon);
            x.iter().zip(weight).enumerate().for_each(|(index, (x, weight))| to.write(index, x * scale * weight));
        }
    }
}

/// Symmetric: the scale is a 127th of the largest magnitude, codes are rounded to nearest, ties to even.
#[inline(always)]
fn quantise(x: &[f32; BLOCK]) -> ActivationBlock {
    // Magnitudes of floats are ordered as their bits are, and the maximum of integers has an instruction that NaN does not confuse.
    let magnitudes: [i32; 16] = from_fn(|i| {
        let bits = |x: f32| (x.to_bits() & 0x7fff_ffff) as i32;
        bits(x[i]).max(bits(x[i + 16]))
    });
    let largest = f32::from_bits(magnitudes.into_iter().fold(0, i32::max) as u32);
    if largest < TINY {
        return ActivationBlock::default();
    }
    let inverse = 127.0 / largest;
    let rounded: [i32; BLOCK] =
        from_fn(|i| ((x[i] * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32));
    let codes: [u8; BLOCK] = rounded.map(|code| code as u8);
    let sum = |codes: &[i32]| codes.iter().fold(0, |sum: i32, &code| sum.wrapping_add(code));
    let (low, high) = (sum(&rounded[..16]), sum(&rounded[16..]));
    let sum = low.wrapping_add(high);
    let scale = largest / 127.0;
    ActivationBlock {
        codes: from_fn(|i| i32::from_le_bytes([codes[4 * i], codes[4 * i + 1], codes[4 * i + 2], codes[4 * i + 3]])),
        scale,
        scaled_sum: scale * sum as f32,
        negative_sum: sum.wrapping_neg(),
        negative_sum_low: low.wrapping_neg(),
    }
}
