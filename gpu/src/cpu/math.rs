//! Elementary functions of our own, the same bits on every processor, and what kernels build from them.

#![allow(unsafe_code, reason = "dispatch to functions with instructions enabled")]

use super::simd::{Lanes, for_lanes, multiversion};

/// Below this, [`exp`] is 0: the logarithm of the smallest normal number.
const EXP_MIN: f32 = -87.336_54;
/// Above this, [`exp`] stays where it is here: 2.4 × 10^38, still finite.
const EXP_MAX: f32 = 88.37;
/// 1.5 × 2^23: a float of this size has no fraction, so that adding it rounds to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// e to the power of each lane.
///
/// The argument is split as n ln 2 + r with |r| <= ln 2 / 2 and e^r is Cephes' polynomial of degree 7 (`expf.c`). The relative error is
/// at most 1.5 × 2^-23 within [-87.3, 88.3] (tested against f64); below it is 0, above it is the value at 88.37. Not a number stays so.
#[inline(always)]
pub(crate) fn exp<V: Lanes>(x: V) -> V {
    const COEFFICIENTS: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // The operand that may be no number stands second, so that it comes through.
    let clamped = V::splat(EXP_MAX).min(V::splat(EXP_MIN).max(x));
    let shifted = clamped.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
    let n = shifted.sub(V::splat(ROUND));
    // ln 2 in two parts.
    let r = n.mul_add(V::splat(-0.693_359_4), clamped);
    let r = n.mul_add(V::splat(2.121_944_4e-4), r);
    let mut p = V::splat(1.987_569_1e-4);
    for coefficient in COEFFICIENTS {
        p = p.mul_add(r, V::splat(coefficient));
    }
    let e_r = p.mul_add(r.mul(r), r).add(V::splat(1.0));
    e_r.mul(shifted.exponent_from_low_bits()).zero_below(x, V::splat(EXP_MIN))
}

/// x / (1 + e^-x) for each lane (Hendrycks and Gimpel, arXiv:1606.08415, section 2).
#[inline(always)]
pub(crate) fn silu<V: Lanes>(x: V) -> V {
    x.div(V::splat(1.0).add(exp(V::splat(0.0).sub(x))))
}

/// Sum of squares of `row`: sixteen lanes, each over every sixteenth element in order, then one tree.
#[inline(always)]
pub(crate) fn sum_of_squares<V: Lanes>(row: &[f32]) -> f32 {
    let mut sum = V::splat(0.0);
    for_lanes(row, |_, x: V, _| sum = x.mul_add(x, sum));
    sum.sum()
}

/// What RMSNorm multiplies a row by, besides the weights: 1 / sqrt(mean of squares + epsilon), each operation rounded to f32.
#[inline(always)]
pub(crate) fn rms_scale<V: Lanes>(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum_of_squares::<V>(row) / row.len() as f32 + epsilon).sqrt()
}

/// RMSNorm in place: `row[i] * scale * weight[i]`, in this order (Zhang and Sennrich, arXiv:1910.07467).
#[inline(always)]
pub(crate) fn normalise<V: Lanes>(row: &mut [f32], weight: &[f32], epsilon: f32) {
    assert_eq!(row.len(), weight.len(), "one weight for each element");
    let scale = V::splat(rms_scale::<V>(row, epsilon));
    for (x, weight) in row.chunks_mut(16).zip(weight.chunks(16)) {
        V::load_part(x).mul(scale).mul(V::load_part(weight)).store_part(x);
    }
}

#[inline(always)]
fn map_generic<V: Lanes>(values: &mut [f32], function: Function) {
    let apply = |x: V| match function {
        Function::Exp => exp(x),
        Function::Silu => silu(x),
    };
    let (whole, rest) = values.as_chunks_mut::<16>();
    for chunk in whole {
        apply(V::load(chunk)).store(chunk);
    }
    apply(V::load_part(rest)).store_part(rest);
}

/// A function that [`map`] applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// e^x.
    Exp,
    /// x / (1 + e^-x).
    Silu,
}

multiversion! {
    /// Applies `function` to each of `values`, for those outside the kernels (tests among them).
    pub fn map(values: &mut [f32], function: Function) = map_generic
}

/// Sine and cosine of `angle`: within 2^-52 for |angle| < 2^20 (a million positions at the highest frequency), within 2^-29 up to 2^23.
///
/// In f64 without fused operations, once for each position and frequency of a step. π/2 in three parts (fdlibm's `rem_pio2`), Taylor polynomials on ±π/4,
/// whose next terms are below 2^-56.
pub fn sin_cos(angle: f64) -> (f64, f64) {
    // The first two parts have 33 bits, so that their products with n < 2^20 are exact.
    const HALF_PI: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];
    let n = (angle * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = ((angle - n * HALF_PI[0]) - n * HALF_PI[1]) - n * HALF_PI[2];
    let square = r * r;
    let polynomial = |first: u32| {
        // Σ (-1)^i r^2i first! / (2i + first)!, from the last term to the first.
        (1..=9u32).rev().fold(1.0, |sum, i| {
            let divisor = f64::from((2 * i + first) * (2 * i + first - 1));
            1.0 - square / divisor * sum
        })
    };
    let (sin, cos) = (r * polynomial(1), polynomial(0));
    match (n as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}
