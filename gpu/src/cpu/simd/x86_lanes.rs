//! Sixteen lanes in one AVX-512 register, or in two of AVX.
//!
//! **Invariant:** used only inside functions that have the instructions enabled (see [`super::multiversion`]); that is the reason of every `unsafe`.

#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all, above: the instructions are there"
)]

use std::arch::x86_64::*;

use half::f16;

use super::Lanes;

/// AVX-512.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// AVX2, FMA, F16C: lanes 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// The tree over eight lanes that both end with: i + 4, + 2, + 1.
macro_rules! fold_8 {
    ($lanes:expr, $op:ident, $op_ss:ident) => {{
        let lanes = $lanes;
        let four = $op(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
        let two = $op(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($op_ss(two, _mm_shuffle_ps(two, two, 1)))
    }};
}

/// The first `len` of sixteen mask bits.
#[inline(always)]
fn first(len: usize) -> __mmask16 {
    debug_assert!(len <= 16);
    ((1u32 << len) - 1) as __mmask16
}

impl Avx512 {
    #[inline(always)]
    fn halves(self) -> (__m256, __m256) {
        unsafe { (_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps(self.0, 1)) }
    }
}

impl Lanes for Avx512 {
    const NUM_REGISTERS: usize = 32;

    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    fn load(source: &[f32; 16]) -> Self {
        unsafe { Self(_mm512_loadu_ps(source.as_ptr())) }
    }

    #[inline(always)]
    fn load_part(source: &[f32]) -> Self {
        if let Ok(whole) = source.try_into() {
            return Self::load(whole);
        }
        unsafe { Self(_mm512_maskz_loadu_ps(first(source.len()), source.as_ptr())) }
    }

    #[inline(always)]
    fn load_f16(source: &[f16; 16]) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(source.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn store(self, target: &mut [f32; 16]) {
        unsafe { _mm512_storeu_ps(target.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn store_part(self, target: &mut [f32]) {
        if let Ok(whole) = target.try_into() {
            return self.store(whole);
        }
        unsafe { _mm512_mask_storeu_ps(target.as_mut_ptr(), first(target.len()), self.0) }
    }

    #[inline(always)]
    fn to_f16(self) -> [f16; 16] {
        let mut out = [f16::ZERO; 16];
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph(self.0, _MM_FROUND_TO_NEAREST_INT)) };
        out
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn zero_below(self, key: Self, bound: Self) -> Self {
        unsafe { Self(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(key.0, bound.0, _CMP_NLT_UQ), self.0)) }
    }

    #[inline(always)]
    fn exponent_from_low_bits(self) -> Self {
        unsafe {
            let shifted = _mm512_slli_epi32(_mm512_castps_si512(self.0), 23);
            Self(_mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3f80_0000))))
        }
    }

    #[inline(always)]
    fn swap_pairs(self) -> Self {
        unsafe { Self(_mm512_permute_ps(self.0, 0b10_11_00_01)) }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let (low, high) = self.halves();
        unsafe { fold_8!(_mm256_add_ps(low, high), _mm_add_ps, _mm_add_ss) }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        let (low, high) = self.halves();
        unsafe { fold_8!(_mm256_max_ps(low, high), _mm_max_ps, _mm_max_ss) }
    }
}

impl Lanes for Avx2 {
    const NUM_REGISTERS: usize = 8;

    #[inline(always)]
    fn prefetch<T>(address: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    #[inline(always)]
    fn load(source: &[f32; 16]) -> Self {
        unsafe { Self(_mm256_loadu_ps(source.as_ptr()), _mm256_loadu_ps(source.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn load_part(source: &[f32]) -> Self {
        if let Ok(whole) = source.try_into() {
            return Self::load(whole);
        }
        let mut lanes = [0.0; 16];
        lanes[..source.len()].copy_from_slice(source);
        Self::load(&lanes)
    }

    #[inline(always)]
    fn load_f16(source: &[f16; 16]) -> Self {
        let source = source.as_ptr().cast::<__m128i>();
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(source)), _mm256_cvtph_ps(_mm_loadu_si128(source.add(1)))) }
    }

    #[inline(always)]
    fn store(self, target: &mut [f32; 16]) {
        unsafe {
            _mm256_storeu_ps(target.as_mut_ptr(), self.0);
            _mm256_storeu_ps(target.as_mut_ptr().add(8), self.1);
        }
    }

    #[inline(always)]
    fn store_part(self, target: &mut [f32]) {
        if let Ok(whole) = target.try_into() {
            return self.store(whole);
        }
        let mut lanes = [0.0; 16];
        self.store(&mut lanes);
        target.copy_from_slice(&lanes[..target.len()]);
    }

    #[inline(always)]
    fn to_f16(self) -> [f16; 16] {
        let mut out = [f16::ZERO; 16];
        let target = out.as_mut_ptr().cast::<__m128i>();
        unsafe {
            _mm_storeu_si128(target, _mm256_cvtps_ph(self.0, _MM_FROUND_TO_NEAREST_INT));
            _mm_storeu_si128(target.add(1), _mm256_cvtps_ph(self.1, _MM_FROUND_TO_NEAREST_INT));
        }
        out
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn zero_below(self, key: Self, bound: Self) -> Self {
        unsafe {
            Self(
                _mm256_and_ps(_mm256_cmp_ps(key.0, bound.0, _CMP_NLT_UQ), self.0),
                _mm256_and_ps(_mm256_cmp_ps(key.1, bound.1, _CMP_NLT_UQ), self.1),
            )
        }
    }

    #[inline(always)]
    fn exponent_from_low_bits(self) -> Self {
        unsafe {
            let one = _mm256_set1_epi32(0x3f80_0000);
            let scale =
                |lanes| _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(lanes), 23), one));
            Self(scale(self.0), scale(self.1))
        }
    }

    #[inline(always)]
    fn swap_pairs(self) -> Self {
        unsafe { Self(_mm256_permute_ps(self.0, 0b10_11_00_01), _mm256_permute_ps(self.1, 0b10_11_00_01)) }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe { fold_8!(_mm256_add_ps(self.0, self.1), _mm_add_ps, _mm_add_ss) }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        unsafe { fold_8!(_mm256_max_ps(self.0, self.1), _mm_max_ps, _mm_max_ss) }
    }
}
