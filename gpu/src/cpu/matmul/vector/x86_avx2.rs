//! Eight lanes in one AVX2 register; a panel of sixteen takes two turns.

use std::arch::x86_64::*;

use super::{TINY, Vector, activation_block};
use crate::cpu::matmul::kernel::ActivationBlock;
use crate::cpu::matmul::quant::BLOCK;

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[inline(always)]
    pub(in super::super) unsafe fn new() -> Self {
        Self(())
    }
}

/// An intrinsic on values.
macro_rules! vector {
    ($($intrinsic:tt)*) => {
        // SAFETY: `self` proves that the processor has the instructions, and they touch no memory.
        unsafe { $($intrinsic)* }
    };
}

impl Vector for Avx2 {
    const LANES: usize = 8;
    const SUBTRACTS_128: bool = true;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        vector!(_mm256_set1_ps(value))
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> __m256i {
        vector!(_mm256_set1_epi32(value))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        vector!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        vector!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn to_float(self, a: __m256i) -> __m256 {
        vector!(_mm256_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        vector!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256i, b: __m256i) -> __m256i {
        vector!(_mm256_sub_epi32(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        vector!(_mm256_and_si256(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        vector!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(self, a: __m256i) -> __m256i {
        // The immediate of AVX2's shifts is an i32, which a u32 parameter cannot become; a constant in a register costs the same.
        vector!(_mm256_sll_epi32(a, _mm_cvtsi32_si128(BITS as i32)))
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(self, a: __m256i) -> __m256i {
        vector!(_mm256_srl_epi32(a, _mm_cvtsi32_si128(BITS as i32)))
    }

    /// `maddubs` adds two products in 16 bits and saturates. Codes up to 127 keep the sum under 2 · 127 · 127 = 32,258. Wider ones become
    /// signed, and |code| with the sign moved to `a` keeps it under 2 · 128 · 127 = 32,512.
    #[inline(always)]
    fn dot<const WIDE: bool>(self, acc: __m256i, codes: __m256i, a: __m256i) -> __m256i {
        vector! {
            let pairs = if WIDE {
                let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(a, signed))
            } else {
                _mm256_maddubs_epi16(codes, a)
            };
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn load_bits(self, from: *const u8) -> __m256i {
        // SAFETY: the caller's promise, and `self` proves the instruction.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const u8) -> __m256 {
        // SAFETY: the caller's promise, and `self` proves the instruction.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m256 {
        // SAFETY: the caller's promise, and `self` proves the instructions.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> __m256 {
        // SAFETY: the caller's promise, and `self` proves the instructions.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m256 {
        // SAFETY: the caller's promise, and `self` proves the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m256 {
        // SAFETY: the caller's promise, and `self` proves the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: __m256) {
        // SAFETY: the caller's promise, and `self` proves the instruction.
        unsafe { _mm256_storeu_ps(to, a) };
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
            let x: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.as_ptr().add(8 * i)));
            // Magnitudes of floats are ordered as their bits are; so ordered, what is no number is the largest and comes through.
            let [a, b, c, d] = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff)));
            let eight = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
            let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b0100_1110>(four));
            let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b1011_0001>(two));
            let largest = f32::from_bits(_mm_cvtsi128_si32(one) as u32);
            if largest < TINY {
                return ActivationBlock::default();
            }
            let inverse = _mm256_set1_ps(127.0 / largest);
            // The conversion rounds to nearest, ties to even.
            let [a, b, c, d] = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
            // Packing works in halves of a register: the groups of four come out as 0 2 4 6 1 3 5 7.
            let mixed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let bytes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            let mut codes = [0; 8];
            _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes);
            let ones = _mm256_set1_epi16(1);
            let sums = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), ones);
            let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b0100_1110>(sums));
            let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b1011_0001>(sums));
            activation_block(largest, codes, [_mm256_extract_epi32::<0>(sums), _mm256_extract_epi32::<4>(sums)])
        }
    }
}
