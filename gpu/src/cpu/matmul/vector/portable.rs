//! Lanes in an array, for any processor; a single lane reads one row of a packed matrix.

use std::array::from_fn;

use half::{bf16, f16};

use super::{TINY, Vector, activation_block};
use crate::cpu::matmul::kernel::ActivationBlock;
use crate::cpu::matmul::quant::BLOCK;

/// Plain Rust on `N` lanes.
#[derive(Clone, Copy)]
pub(in super::super) struct Portable<const N: usize>;

/// Reads one value of `SIZE` bytes for each lane.
///
/// # Safety
/// `N * SIZE` bytes at `from` can be read.
#[inline(always)]
unsafe fn lanes<const SIZE: usize, const N: usize, T>(from: *const u8, decode: impl Fn([u8; SIZE]) -> T) -> [T; N] {
    // SAFETY: the caller's promise; arrays of bytes need no alignment.
    let bytes = unsafe { from.cast::<[[u8; SIZE]; N]>().read() };
    bytes.map(decode)
}

impl<const N: usize> Vector for Portable<N> {
    const LANES: usize = N;
    const SUBTRACTS_128: bool = false;
    type F = [f32; N];
    type I = [i32; N];

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; N] {
        [value; N]
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> [i32; N] {
        [value; N]
    }

    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn to_float(self, a: [i32; N]) -> [f32; N] {
        a.map(|a| a as f32)
    }

    #[inline(always)]
    fn add(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn sub(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn and(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn or(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: [i32; N]) -> [i32; N] {
        a.map(|a| a << BITS)
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: [i32; N]) -> [i32; N] {
        a.map(|a| (a as u32 >> BITS) as i32)
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, acc: [i32; N], codes: [i32; N], a: [i32; N]) -> [i32; N] {
        from_fn(|i| {
            let (codes, a) = (codes[i].to_le_bytes(), a[i].to_le_bytes());
            (0..4).fold(acc[i], |acc, j| acc.wrapping_add(i32::from(codes[j]) * i32::from(a[j] as i8)))
        })
    }

    #[inline(always)]
    unsafe fn load_bits(self, from: *const u8) -> [i32; N] {
        // SAFETY: the caller's promise.
        unsafe { lanes(from, i32::from_le_bytes) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const u8) -> [f32; N] {
        // SAFETY: the caller's promise.
        unsafe { lanes(from, f32::from_le_bytes) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> [f32; N] {
        // SAFETY: the caller's promise.
        unsafe { lanes(from, |bytes| f16::from_le_bytes(bytes).to_f32()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> [f32; N] {
        // SAFETY: the caller's promise.
        unsafe { lanes(from, |bytes| bf16::from_le_bytes(bytes).to_f32()) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> [f32; N] {
        // SAFETY: the caller's promise.
        unsafe { lanes(from, |[byte]| f32::from(byte)) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> [f32; N] {
        // SAFETY: the caller's promise.
        unsafe { lanes(from, |[byte]| f32::from(byte as i8)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: [f32; N]) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; N]>().write_unaligned(a) };
    }

    #[inline(always)]
    fn prefetch<const FAR: bool>(self, _at: *const u8) {}

    #[inline(always)]
    fn quantise(self, x: &[f32; BLOCK]) -> ActivationBlock {
        // Magnitudes of floats are ordered as their bits are; so ordered, what is no number is the largest and comes through.
        let largest = f32::from_bits(x.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max));
        if largest < TINY {
            return ActivationBlock::default();
        }
        let inverse = 127.0 / largest;
        let codes = x.map(|x| (x * inverse).round_ties_even() as i8);
        let sum = |codes: &[i8]| codes.iter().map(|&code| i32::from(code)).sum::<i32>();
        let groups = from_fn(|i| i32::from_le_bytes(from_fn(|j| codes[4 * i + j] as u8)));
        activation_block(largest, groups, [sum(&codes[..16]), sum(&codes[16..])])
    }
}
