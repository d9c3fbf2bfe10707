//! What happens to a row before it is multiplied: RMSNorm, and rounding to 8 bits.
//!
//! Every operation is one lane's own or exact, and the sum of squares has one fixed tree, so that all instruction sets give the same bits.

use std::array::from_fn;

use super::kernel::ActivationBlock;
use super::quant::{BLOCK, PANEL_ROWS};
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use super::vector::{Portable, Vector};
use crate::cpu::isa::Isa;
use crate::cpu::math::rms_scale;
use crate::cpu::simd::{self, Lanes, multiversion};

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

/// A block as a sum of `TERMS` blocks of 8 bits: each after the first holds what those before it leave.
pub(super) type Terms<const TERMS: usize> = [ActivationBlock; TERMS];

/// Normalises a row and rounds it to 8 bits, `TERMS` times.
pub(super) fn write_int8<const TERMS: usize>(isa: Isa, row: Row<'_>, to: &mut Strided<Terms<TERMS>>) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn avx512<const TERMS: usize>(row: Row<'_>, to: &mut Strided<Terms<TERMS>>) {
        // SAFETY: the features are this function's.
        write_int8_generic::<simd::Avx512, _, TERMS>(unsafe { Avx512::new() }, row, to);
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2<const TERMS: usize>(row: Row<'_>, to: &mut Strided<Terms<TERMS>>) {
        // SAFETY: the features are this function's.
        write_int8_generic::<simd::Avx2, _, TERMS>(unsafe { Avx2::new() }, row, to);
    }
    match isa {
        // SAFETY: whoever holds this Isa has found its instructions in this processor.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => unsafe { avx512(row, to) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(row, to) },
        _ => write_int8_generic::<simd::Portable, _, TERMS>(Portable::<PANEL_ROWS>, row, to),
    }
}

multiversion! {
    /// Normalises a row.
    pub(super) fn write_f32(row: Row<'_>, to: &mut Strided<f32>) = write_f32_generic
}

#[inline(always)]
fn write_int8_generic<V: Lanes, S: Vector, const TERMS: usize>(
    s: S,
    (x, norm): Row<'_>,
    to: &mut Strided<Terms<TERMS>>,
) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().enumerate();
    match norm {
        None => blocks.for_each(|(index, x)| to.write(index, terms(s, x))),
        Some((weight, epsilon)) => {
            let scale = rms_scale::<V>(x, epsilon);
            for ((index, x), weight) in blocks.zip(weight.as_chunks::<BLOCK>().0) {
                to.write(index, terms(s, &from_fn(|i| x[i] * scale * weight[i])));
            }
        }
    }
}

/// With one term nothing is left to be computed; written so that the compiler sees it (else rounding took five times as long).
#[inline(always)]
fn terms<S: Vector, const TERMS: usize>(s: S, x: &[f32; BLOCK]) -> Terms<TERMS> {
    let mut terms = [s.quantise(x); TERMS];
    let mut left = *x;
    for index in 1..TERMS {
        let before = terms[index - 1];
        for (left, code) in left.iter_mut().zip(before.codes.iter().flat_map(|codes| codes.to_le_bytes())) {
            *left = (-before.scale).mul_add(f32::from(code as i8), *left);
        }
        terms[index] = s.quantise(&left);
    }
    terms
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
