//! Sixteen lanes in an array: the definition of what the others compute.

use half::f16;

use super::Lanes;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 16]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| op(self.0[lane], other.0[lane])))
    }

    #[inline(always)]
    fn fold(self, op: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] = op(lanes[lane], lanes[lane + half]);
            }
        }
        lanes[0]
    }
}

impl Lanes for Portable {
    const NUM_REGISTERS: usize = 8;

    #[inline(always)]
    fn prefetch<T>(_address: *const T) {}

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 16])
    }

    #[inline(always)]
    fn load(source: &[f32; 16]) -> Self {
        Self(*source)
    }

    #[inline(always)]
    fn load_part(source: &[f32]) -> Self {
        let mut lanes = [0.0; 16];
        lanes[..source.len()].copy_from_slice(source);
        Self(lanes)
    }

    #[inline(always)]
    fn load_f16(source: &[f16; 16]) -> Self {
        Self(source.map(f16::to_f32_const))
    }

    #[inline(always)]
    fn store(self, target: &mut [f32; 16]) {
        *target = self.0;
    }

    #[inline(always)]
    fn store_part(self, target: &mut [f32]) {
        target.copy_from_slice(&self.0[..target.len()]);
    }

    #[inline(always)]
    fn to_f16(self) -> [f16; 16] {
        self.0.map(f16::from_f32_const)
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], addend.0[lane])))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn zero_below(self, key: Self, bound: Self) -> Self {
        Self(std::array::from_fn(|lane| if key.0[lane] < bound.0[lane] { 0.0 } else { self.0[lane] }))
    }

    #[inline(always)]
    fn exponent_from_low_bits(self) -> Self {
        Self(self.0.map(|value| f32::from_bits((value.to_bits() << 23).wrapping_add(1.0f32.to_bits()))))
    }

    #[inline(always)]
    fn swap_pairs(self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane ^ 1]))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        self.fold(|a, b| a + b)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.fold(|a, b| if a > b { a } else { b })
    }
}
