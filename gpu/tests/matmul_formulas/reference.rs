//! The stated formulas, one number at a time.

use crate::encoded::Encoded;
use relevo_gpu::weights::TensorType;

/// RMSNorm, its sum of squares over sixteen lanes and one tree.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut lanes = [0.0f32; 16];
    for (i, x) in x.iter().enumerate() {
        lanes[i % 16] = x.mul_add(*x, lanes[i % 16]);
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    let scale = 1.0 / (lanes[0] / x.len() as f32 + epsilon).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

/// Scale and codes of a block of activations.
fn rounded(x: &[f32]) -> (f32, Vec<i32>) {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let code = |x: &f32| if largest == 0.0 { 0 } else { (x * (127.0 / largest)).round_ties_even() as i32 };
    (largest / 127.0, x.iter().map(code).collect())
}

/// One row times one output: the int8 formula for activations that are rounded twice.
pub(crate) fn two_int8_dots(row: &[f32], w: &Encoded, output: usize) -> f32 {
    let left: Vec<f32> = row
        .chunks(32)
        .flat_map(|x| {
            let (scale, codes) = rounded(x);
            x.iter().zip(codes).map(move |(x, code)| (-scale).mul_add(code as f32, *x))
        })
        .collect();
    int8_dot(row, w, output) + int8_dot(&left, w, output)
}

/// One row times one output: the int8 formula.
pub(crate) fn int8_dot(row: &[f32], w: &Encoded, output: usize) -> f32 {
    let k = w.shape[1];
    let mut acc = 0.0f32;
    for (index, x) in row.chunks(32).enumerate() {
        let (a_scale, codes) = rounded(x);
        let at = output * k + index * 32;
        let dot = |range: std::ops::Range<usize>| range.map(|i| w.codes[at + i] * codes[i]).sum::<i32>() as f32;
        if w.ty == TensorType::Q6_K {
            acc = dot(0..16).mul_add(w.scales[at / 16] * a_scale, acc);
            acc = dot(16..32).mul_add(w.scales[at / 16 + 1] * a_scale, acc);
        } else {
            acc = dot(0..32).mul_add(w.scales[at / 16] * a_scale, acc);
        }
        if w.has_minima() {
            acc = w.minima[at / 32].mul_add(a_scale * codes.iter().sum::<i32>() as f32, acc);
        }
    }
    acc
}

/// One row times one output: the float formula.
pub(crate) fn float_dot(row: &[f32], w: &Encoded, output: usize) -> f32 {
    let weights = &w.weights[output * row.len()..][..row.len()];
    row.iter().zip(weights).fold(0.0, |acc, (x, w)| w.mul_add(*x, acc))
}

/// In f64, activations as they are.
pub(crate) fn exact_dot(row: &[f32], w: &Encoded, output: usize) -> f64 {
    let weights = &w.weights[output * row.len()..][..row.len()];
    row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
}
