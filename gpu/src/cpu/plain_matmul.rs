//! Matrix products in obvious loops over dequantised weights.

use relevo_wire::Numerics;

use super::isa::Isa;
use super::math::{Function, map};
use super::pool::ThreadPool;
use crate::compute::{ComputeError, Epilogue};
use crate::weights::{TensorView, dequantize};

/// A matrix `[num_outputs, num_inputs]`.
pub struct PackedMatrix {
    values: Vec<f32>,
    num_inputs: usize,
    is_gate_up: bool,
}

/// What is multiplied.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// `[num_rows, num_inputs]`, row-major.
    pub x: &'a [f32],
    /// RMSNorm of each row first: weight `[num_inputs]` and epsilon.
    pub norm: Option<(&'a [f32], f32)>,
}

/// What it is multiplied with, and what then.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// The weights.
    pub weight: &'a PackedMatrix,
    /// Added to each row, `[num_outputs]`; for gate and up `[2 * num_outputs]`, the gate's first.
    pub bias: Option<&'a [f32]>,
    /// What happens to the product.
    pub epilogue: Epilogue,
}

/// Memory that products work in.
pub(super) struct Scratch;

impl Scratch {
    /// Empty.
    ///
    /// # Errors
    /// None.
    pub(super) fn new() -> Result<Self, ComputeError> {
        Ok(Self)
    }
}

impl PackedMatrix {
    /// Packs parts.
    ///
    /// # Errors
    /// The file's fault.
    pub fn pack(parts: &[TensorView<'_>], _numerics: Numerics) -> Result<Self, ComputeError> {
        let mut values = Vec::new();
        for part in parts {
            let mut part_values = vec![0.0; part.num_elements()];
            dequantize(part.ty, part.data, &mut part_values)
                .map_err(|error| ComputeError::Tensor { name: part.name.into(), reason: error.to_string() })?;
            values.append(&mut part_values);
        }
        Ok(Self { values, num_inputs: parts[0].shape[1], is_gate_up: false })
    }

    /// Packs gate and up.
    ///
    /// # Errors
    /// The file's fault.
    pub fn pack_gate_up(gate: &TensorView<'_>, up: &TensorView<'_>, numerics: Numerics) -> Result<Self, ComputeError> {
        Ok(Self { is_gate_up: true, ..Self::pack(&[*gate, *up], numerics)? })
    }

    /// Width of a row.
    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    /// Columns of a product.
    pub fn num_outputs(&self) -> usize {
        self.values.len() / self.num_inputs / if self.is_gate_up { 2 } else { 1 }
    }

    /// One row.
    pub fn embed_row(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[row * self.num_inputs..(row + 1) * self.num_inputs]);
    }
}

/// `out = epilogue(norm(x) · wᵀ + bias)`.
///
/// # Errors
/// None.
pub(super) fn matmul(
    _pool: &ThreadPool,
    isa: Isa,
    input: Input<'_>,
    product: Product<'_>,
    out: &mut [f32],
    _scratch: &mut Scratch,
) -> Result<(), ComputeError> {
    let (k, n) = (product.weight.num_inputs(), product.weight.num_outputs());
    let mut row = vec![0.0; k];
    for (x, out) in input.x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
        row.copy_from_slice(x);
        if let Some((weight, epsilon)) = input.norm {
            super::math::normalise::<super::simd::Portable>(&mut row, weight, epsilon);
        }
        let dot = |output: usize| {
            let weights = &product.weight.values[output * k..(output + 1) * k];
            let sum = row.iter().zip(weights).fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum));
            product.bias.map_or(sum, |bias| sum + bias[output])
        };
        for (output, out) in out.iter_mut().enumerate() {
            match product.epilogue {
                Epilogue::Store => *out = dot(output),
                Epilogue::Add => *out += dot(output),
                Epilogue::SiluMul => {
                    let mut gate = [dot(output)];
                    map(isa, &mut gate, Function::Silu);
                    *out = gate[0] * dot(n + output);
                }
            }
        }
    }
    Ok(())
}
