//! exp and ln in plain arithmetic.
//!
//! Additions and multiplications only, no fused multiply-add: so the compiler turns a loop over [`exp`] into the vectors of whatever it
//! builds for, and every build computes the same bits.

/// Below this, e^x is less than half of the smallest mass and of the last bit of any sum.
const LEAST_EXPONENT: f32 = -80.0;

/// 2^23 + 2^22: added and subtracted, it rounds a small number to the nearest whole one.
const ROUNDER: f32 = 12_582_912.0;

/// e^x for x ≤ 0, to 2 units in the last place; NaN and everything below -80 gives at most e^-80. e^0 is 1.
///
/// Reduction to `|r| ≤ ln 2 / 2` after Cody and Waite, polynomial of Cephes' `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Written so that NaN takes the second branch.
    let x = if x > LEAST_EXPONENT { x } else { LEAST_EXPONENT };
    let rounded = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // 2^n for a whole n in [-116, 0]: the lowest bits of `rounded` are n, shifted to where the exponent is (the rest falls off above).
    y * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// ln x for finite x ≥ 1, to about 1e-15 relative.
pub(super) fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let exponent = (bits >> 52) as i64 - 1023;
    let mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    // ln m = 2 artanh s with s = (m - 1) / (m + 1) in [0, 1/3]: the 16th term is below 1e-16.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = (0..17).rev().fold(0.0, |sum, term| sum * square + 1.0 / f64::from(2 * term + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in 0..=160_000 {
            let x = -80.0 * step as f32 / 160_000.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 2.4e-7, "e^{x} is {ours}, expected {exact}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for x in [f32::NEG_INFINITY, f32::NAN, -1e30] {
            assert_eq!(exp(x), exp(-80.0));
        }
    }

    #[test]
    fn ln_is_exact_to_the_last_bits() {
        for x in [1.0, 1.000_001, 1.5, 2.0, 3.999_999, 49_152.0, 1e6, 1e300] {
            assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().max(0.5), "ln {x} is {}, expected {}", ln(x), x.ln());
        }
    }
}
