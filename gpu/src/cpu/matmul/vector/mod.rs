//! The few vector operations that matrix products are made of, as each instruction set offers them.
//!
//! A kernel is written once, over [`Vector`], and compiled once for each instruction set. Lanes are output rows, so that an operation never
//! crosses lanes and the width of a register cannot change a result: sixteen lanes are one AVX-512 register, two AVX2 registers in turn, or an array.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_avx2;
#[cfg(target_arch = "x86_64")]
mod x86_avx512;

pub(super) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_avx512::Avx512;

use super::kernel::ActivationBlock;
use super::quant::BLOCK;

/// Proof that the processor has an instruction set, and its operations on `LANES` lanes of 32 bits.
///
/// Floats follow IEEE 754 with one rounding an operation; integers wrap.
pub(super) trait Vector: Copy {
    /// Lanes of a register: a divisor of 16.
    const LANES: usize;
    /// Whether [`Vector::dot`] takes 128 off each wide code.
    const SUBTRACTS_128: bool;
    /// `LANES` × f32.
    type F: Copy;
    /// `LANES` × 32 bits: one i32 or four bytes each.
    type I: Copy;

    /// The same number in each lane.
    fn splat(self, value: f32) -> Self::F;
    /// The same number in each lane.
    fn splat_i32(self, value: i32) -> Self::I;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c` with one rounding.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The nearest float, ties to even.
    fn to_float(self, a: Self::I) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`.
    fn sub(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bits of both.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bits of either.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Each lane's bits moved towards the high end.
    fn shift_left<const BITS: u32>(self, a: Self::I) -> Self::I;
    /// Each lane's bits moved towards the low end, zeros behind them.
    fn shift_right<const BITS: u32>(self, a: Self::I) -> Self::I;
    /// `acc + Σ u8(codes[i]) * i8(a[i])` over the four bytes of each lane; `a` is at least -127.
    ///
    /// `WIDE` says that codes may exceed 127; then it is `acc + Σ (u8(codes[i]) - 128) * i8(a[i])` if [`Vector::SUBTRACTS_128`].
    fn dot<const WIDE: bool>(self, acc: Self::I, codes: Self::I, a: Self::I) -> Self::I;

    /// # Safety
    /// `4 * LANES` bytes at `from` can be read.
    unsafe fn load_bits(self, from: *const u8) -> Self::I;
    /// # Safety
    /// `4 * LANES` bytes at `from` can be read.
    unsafe fn load_f32(self, from: *const u8) -> Self::F;
    /// Widens IEEE binary16.
    ///
    /// # Safety
    /// `2 * LANES` bytes at `from` can be read.
    unsafe fn load_f16(self, from: *const u8) -> Self::F;
    /// Widens bfloat16.
    ///
    /// # Safety
    /// `2 * LANES` bytes at `from` can be read.
    unsafe fn load_bf16(self, from: *const u8) -> Self::F;
    /// Widens unsigned bytes.
    ///
    /// # Safety
    /// `LANES` bytes at `from` can be read.
    unsafe fn load_u8(self, from: *const u8) -> Self::F;
    /// Widens signed bytes.
    ///
    /// # Safety
    /// `LANES` bytes at `from` can be read.
    unsafe fn load_i8(self, from: *const u8) -> Self::F;
    /// # Safety
    /// `4 * LANES` bytes at `to` can be written.
    unsafe fn store(self, to: *mut f32, a: Self::F);
    /// Asks for the cache line at `at`, which may lie anywhere: in the first level, or in the second only if it is `FAR` ahead.
    fn prefetch<const FAR: bool>(self, at: *const u8);

    /// Rounds a block of activations to 8 bits. Symmetric: the scale is a 127th of the largest magnitude, codes are rounded to nearest, ties to even.
    fn quantise(self, x: &[f32; BLOCK]) -> ActivationBlock;
}

/// Largest block of activations that counts as zero: its scale's reciprocal would overflow near 3.7e-37.
const TINY: f32 = 1e-30;

/// A block of which the largest magnitude, the codes, and the sums of the codes' halves are known.
#[inline(always)]
fn activation_block(largest: f32, codes: [i32; 8], [low, high]: [i32; 2]) -> ActivationBlock {
    let sum = low.wrapping_add(high);
    let scale = largest / 127.0;
    ActivationBlock {
        codes,
        scale,
        scaled_sum: scale * sum as f32,
        negative_sum: sum.wrapping_neg(),
        negative_sum_low: low.wrapping_neg(),
    }
}
