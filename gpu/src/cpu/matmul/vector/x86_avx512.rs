//! Sixteen lanes in one AVX-512 register, dot products by VNNI.

use std::arch::x86_64::*;

use super::{TINY, Vector, activation_block};
use crate::cpu::matmul::kernel::ActivationBlock;
use crate::cpu::matmul::quant::BLOCK;

/// Proof of AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ, VL and VNNI.
    #[inline(always)]
    pub(in super::super) unsafe fn new() -> Self {
        Self(())
    }
}

/// An intrinsic on values.
macro_rules! vector {
    ($intrinsic:expr) => {
        // SAFETY: `self` proves that the processor has the instruction, and it touches no memory.
        unsafe { $intrinsic }
    };
}

impl Vector for Avx512 {
    const LANES: usize = 16;
    const SUBTRACTS_128: bool = false;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        vector!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> __m512i {
        vector!(_mm512_set1_epi32(value))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        vector!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        vector!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        vector!(_mm512_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        vector!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512i, b: __m512i) -> __m512i {
        vector!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        vector!(_mm512_and_si512(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        vector!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: __m512i) -> __m512i {
        vector!(_mm512_slli_epi32::<BITS>(a))
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: __m512i) -> __m512i {
        vector!(_mm512_srli_epi32::<BITS>(a))
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, acc: __m512i, codes: __m512i, a: __m512i) -> __m512i {
        vector!(_mm512_dpbusd_epi32(acc, codes, a))
    }

    #[inline(always)]
    unsafe fn load_bits(self, from: *const u8) -> __m512i {
        // SAFETY: the caller's promise, and `self` proves the instruction.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const u8) -> __m512 {
        // SAFETY: the caller's promise, and `self` proves the instruction.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m512 {
        // SAFETY: the caller's promise, and `self` proves the instruction.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> __m512 {
        // SAFETY: the caller's promise, and `self` proves the instructions.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m512 {
        // SAFETY: the caller's promise, and `self` proves the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m512 {
        // SAFETY: the caller's promise, and `self` proves the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: __m512) {
        // SAFETY: the caller's promise, and `self` proves the instruction.
        unsafe { _mm512_storeu_ps(to, a) };
    }

    #[inline(always)]
    fn prefetch<const FAR: bool>(self, at: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { if FAR { _mm_prefetch::<_MM_HINT_T1>(at.cast()) } else { _mm_prefetch::<_MM_HINT_T0>(at.cast()) } }
    }

    #[inline(always)]
    fn quantise(self, x: &[f32; BLOCK]) -> ActivationBlock {
        // SAFETY: `self` proves the instructions; loads and stores stay within `x` and `codes`.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16)));
            // Magnitudes of floats are ordered as their bits are; so ordered, what is no number is the largest and comes through.
            let magnitude = |x| _mm512_castps_si512(_mm512_abs_ps(x));
            let largest = _mm512_reduce_max_epi32(_mm512_max_epi32(magnitude(low), magnitude(high)));
            let largest = f32::from_bits(largest as u32);
            if largest < TINY {
                return ActivationBlock::default();
            }
            let inverse = _mm512_set1_ps(127.0 / largest);
            // The conversion rounds to nearest, ties to even.
            let round = |x| _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
            let bytes = _mm256_set_m128i(round(high), round(low));
            let mut codes = [0; 8];
            _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes);
            let sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
            let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b0100_1110>(sums));
            let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b1011_0001>(sums));
            activation_block(largest, codes, [_mm256_extract_epi32::<0>(sums), _mm256_extract_epi32::<4>(sums)])
        }
    }
}
