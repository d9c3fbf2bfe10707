//! Sixteen f32 lanes, the vocabulary that row-wise kernels are written in once for all instruction sets.
//!
//! A kernel is a generic `#[inline(always)]` function over [`Lanes`]; [`multiversion`] makes it into one function for each [`Isa`](super::Isa), with
//! the features enabled, and a dispatch over them. Every operation is exactly rounded (IEEE 754) or moves bits, so all three give the same ones.
//!
//! **Invariant:** the types of [`x86_lanes`] are named by [`multiversion`] alone, whose wrappers run only where the processor has the instructions.

mod portable_lanes;
#[cfg(target_arch = "x86_64")]
mod x86_lanes;

pub(crate) use portable_lanes::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_lanes::{Avx2, Avx512};

use half::f16;

/// Sixteen f32 lanes.
pub(crate) trait Lanes: Copy {
    /// Registers of sixteen lanes that a kernel may keep its sums in.
    const NUM_REGISTERS: usize;

    /// Asks for the cache line at `address`, which need not be mapped.
    fn prefetch<T>(address: *const T);

    /// All lanes `value`.
    fn splat(value: f32) -> Self;
    /// Loads sixteen.
    fn load(source: &[f32; 16]) -> Self;
    /// Loads up to sixteen; the lanes beyond are 0.
    fn load_part(source: &[f32]) -> Self;
    /// Loads sixteen halves; exact.
    fn load_f16(source: &[f16; 16]) -> Self;
    /// Stores all lanes.
    fn store(self, target: &mut [f32; 16]);
    /// Stores the first `target.len() <= 16` lanes.
    fn store_part(self, target: &mut [f32]);
    /// Rounds to halves, to nearest, ties to even.
    fn to_f16(self) -> [f16; 16];

    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger of each; `other` if one is not a number.
    fn max(self, other: Self) -> Self;
    /// The smaller of each; `other` if one is not a number.
    fn min(self, other: Self) -> Self;
    /// `self` where `key >= bound` or either is not a number, 0 elsewhere.
    fn zero_below(self, key: Self, bound: Self) -> Self;
    /// Bits shifted left by 23, plus those of 1.0: 2^n out of the sum of n and 1.5 × 2^23.
    fn exponent_from_low_bits(self) -> Self;
    /// Lanes 2i and 2i + 1 exchanged.
    fn swap_pairs(self) -> Self;

    /// The sum of all lanes: i with i + 8, then + 4, + 2, + 1.
    fn sum(self) -> f32;
    /// The largest lane, by the same tree.
    fn largest(self) -> f32;
}

/// Where a kernel reads f32 lanes from: f32, or f16 widened.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Sixteen of them as lanes; exact.
    fn load<V: Lanes>(source: &[Self; 16]) -> V;
    /// Lanes rounded to sixteen of them.
    fn round<V: Lanes>(lanes: V) -> [Self; 16];
    /// Zero.
    const ZERO: Self;
}

impl Element for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn load<V: Lanes>(source: &[Self; 16]) -> V {
        V::load(source)
    }

    #[inline(always)]
    fn round<V: Lanes>(lanes: V) -> [Self; 16] {
        let mut out = [0.0; 16];
        lanes.store(&mut out);
        out
    }
}

impl Element for f16 {
    const ZERO: Self = f16::ZERO;

    #[inline(always)]
    fn load<V: Lanes>(source: &[Self; 16]) -> V {
        V::load_f16(source)
    }

    #[inline(always)]
    fn round<V: Lanes>(lanes: V) -> [Self; 16] {
        lanes.to_f16()
    }
}

/// Makes `fn name(isa, args…)` out of the generic kernel `generic::<V>(args…)`, where V is the [`Lanes`] of that instruction set.
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$generics:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:ident) => {
        $(#[$doc])*
        $vis fn $name $(<$generics: $bound>)? (isa: $crate::cpu::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            fn avx512 $(<$generics: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                $generic::<$crate::cpu::simd::Avx512 $(, $generics)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$generics: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                $generic::<$crate::cpu::simd::Avx2 $(, $generics)?>($($arg),*)
            }
            match isa {
                // SAFETY: whoever holds this Isa has found its instructions in this processor.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Avx512Vnni => unsafe { avx512 $(::<$generics>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Avx2 => unsafe { avx2 $(::<$generics>)? ($($arg),*) },
                _ => $generic::<$crate::cpu::simd::Portable $(, $generics)?>($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

/// Calls `each(offset, lanes, num)` for every sixteen of `row`, the last filled up with zeros.
#[inline(always)]
pub(crate) fn for_lanes<V: Lanes>(row: &[f32], mut each: impl FnMut(usize, V, usize)) {
    let (whole, rest) = row.as_chunks::<16>();
    for (index, chunk) in whole.iter().enumerate() {
        each(index * 16, V::load(chunk), 16);
    }
    if !rest.is_empty() {
        each(whole.len() * 16, V::load_part(rest), rest.len());
    }
}
