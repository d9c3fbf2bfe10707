//! A weight matrix as the kernels read it.

use super::layout::Layout;
use super::lines::Lines;
use super::quant::PANEL_ROWS;
use crate::compute::ComputeError;
use crate::weights::{TensorType, TensorView};
use relevo_wire::Numerics;

/// One or more matrices `[n, k]` of the same k, packed in panels of 16 outputs.
pub struct PackedMatrix {
    num_inputs: usize,
    num_outputs: usize,
    memory: Lines,
    segments: Vec<Segment>,
    joined: bool,
    numerics: Numerics,
}

/// The panels of one part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Its type.
    pub(super) ty: TensorType,
    /// Where its first panel lies.
    pub(super) offset: usize,
    /// Bytes from one panel to the next.
    pub(super) stride: usize,
    /// Its outputs; the last panel may hold fewer than 16.
    pub(super) num_outputs: usize,
    /// The column of its first output.
    pub(super) column: usize,
}

impl Segment {
    /// Its panels.
    pub(super) fn num_panels(&self) -> usize {
        self.num_outputs.div_ceil(PANEL_ROWS)
    }
}

impl PackedMatrix {
    /// Packs `parts`, stacked along their outputs; their types may differ. Done by all cores if it is large.
    ///
    /// # Errors
    /// The file's fault: a part that is no matrix, or whose inputs are not those of the first, or no multiple of the type's block; no parts.
    pub fn pack(parts: &[TensorView<'_>], numerics: Numerics) -> Result<Self, ComputeError> {
        let num_inputs = check_parts(parts)?;
        let mut segments = Vec::with_capacity(parts.len());
        let (mut offset, mut column) = (0, 0);
        for part in parts {
            let stride = (Layout::of(part.ty).panel_bytes)(num_inputs);
            let segment = Segment { ty: part.ty, offset, stride, num_outputs: part.shape[0], column };
            offset = (offset + segment.num_panels() * stride).next_multiple_of(Lines::LINE);
            column += segment.num_outputs;
            segments.push(segment);
        }
        let memory = fill(offset, &segments, parts)?;
        Ok(Self { num_inputs, num_outputs: column, memory, segments, joined: false, numerics })
    }

    /// Packs a gate and an up projection, both `[n, k]`, for [`Epilogue::SiluMul`](crate::compute::Epilogue::SiluMul): a panel of one beside the same
    /// panel of the other, so that one pass over the weights gives both factors.
    ///
    /// # Errors
    /// As [`PackedMatrix::pack`]; or n differs.
    pub fn pack_gate_up(gate: &TensorView<'_>, up: &TensorView<'_>, numerics: Numerics) -> Result<Self, ComputeError> {
        let parts = [*gate, *up];
        let num_inputs = check_parts(&parts)?;
        if gate.shape[0] != up.shape[0] {
            return Err(wrong(up, format!("it has {} outputs, its gate {}", up.shape[0], gate.shape[0])));
        }
        let num_outputs = gate.shape[0];
        let bytes = parts.map(|part| (Layout::of(part.ty).panel_bytes)(num_inputs));
        let stride = bytes[0] + bytes[1];
        let segment =
            |index: usize| Segment { ty: parts[index].ty, offset: index * bytes[0], stride, num_outputs, column: 0 };
        let segments = vec![segment(0), segment(1)];
        let memory = fill(stride * num_outputs.div_ceil(PANEL_ROWS), &segments, &parts)?;
        Ok(Self { num_inputs, num_outputs, memory, segments, joined: true, numerics })
    }

    /// Inputs of a row, k.
    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    /// Columns of the product: the sum of the parts' outputs, or those of the gate.
    pub fn num_outputs(&self) -> usize {
        self.num_outputs
    }

    /// Whether it came from [`PackedMatrix::pack_gate_up`].
    pub fn is_gate_up(&self) -> bool {
        self.joined
    }

    /// Bytes that it holds.
    pub fn byte_len(&self) -> usize {
        self.memory.bytes().len()
    }

    /// Dequantises one row, as an embedding that is the output head too needs it.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as a row.
    pub fn embed_row(&self, row: usize, out: &mut [f32]) {
        assert!(!self.joined && row < self.num_outputs, "row {row} of a matrix of {}", self.num_outputs);
        assert_eq!(out.len(), self.num_inputs, "length of a row");
        let Some(segment) = self.segments.iter().rfind(|segment| segment.column <= row) else { return };
        let row = row - segment.column;
        let panel = &self.memory.bytes()[segment.offset + row / PANEL_ROWS * segment.stride..][..segment.stride];
        (Layout::of(segment.ty).read_row)(panel, row % PANEL_ROWS, out);
    }

    /// Its parts, in order; gate and up if it is joined.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// Whether a segment of type `ty` takes activations in 8 bits.
    pub(super) fn takes_int8(&self, ty: TensorType) -> bool {
        self.numerics == Numerics::Default && !ty.is_float()
    }
}

/// The inputs that all parts share.
fn check_parts(parts: &[TensorView<'_>]) -> Result<usize, ComputeError> {
    let mut num_inputs = None;
    for part in parts {
        let &[outputs, inputs] = part.shape else {
            return Err(wrong(part, format!("its shape is {:?}, expected two dimensions", part.shape)));
        };
        let (block_inputs, block_bytes) = part.ty.block();
        if !inputs.is_multiple_of(block_inputs) {
            return Err(wrong(part, format!("{inputs} inputs, expected a multiple of {block_inputs} ({:?})", part.ty)));
        }
        let expected = outputs.checked_mul(inputs / block_inputs).and_then(|blocks| blocks.checked_mul(block_bytes));
        if expected != Some(part.data.len()) || outputs == 0 || inputs == 0 {
            return Err(wrong(part, format!("{} bytes for the shape {:?}", part.data.len(), part.shape)));
        }
        let expected = *num_inputs.get_or_insert(inputs);
        if expected != inputs {
            return Err(wrong(part, format!("{inputs} inputs, expected {expected} as in the part before")));
        }
    }
    num_inputs.ok_or_else(|| ComputeError::Tensor { name: String::new(), reason: "a matrix without parts".into() })
}

fn wrong(part: &TensorView<'_>, reason: String) -> ComputeError {
    ComputeError::Tensor { name: part.name.to_owned(), reason }
}

/// Packs all parts into memory of `byte_len`.
fn fill(byte_len: usize, segments: &[Segment], parts: &[TensorView<'_>]) -> Result<Lines, ComputeError> {
    let mut memory = Lines::zeroed(byte_len)?;
    let bytes = memory.bytes_mut();
    for (segment, part) in segments.iter().zip(parts) {
        fill_segment(bytes, segment, part);
    }
    Ok(memory)
}

/// Least bytes of a part for which threads are worth starting: some milliseconds of packing.
const PARALLEL_FROM: usize = 1 << 20;

fn fill_segment(bytes: &mut [u8], segment: &Segment, part: &TensorView<'_>) {
    let mut panels: Vec<&mut [u8]> =
        bytes[segment.offset..].chunks_mut(segment.stride).take(segment.num_panels()).collect();
    let row_bytes = part.data.len() / segment.num_outputs;
    let file_panels: Vec<&[u8]> = part.data.chunks(row_bytes * PANEL_ROWS).collect();
    let num_threads = if part.data.len() < PARALLEL_FROM {
        1
    } else {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    };
    let share = panels.len().div_ceil(num_threads);
    std::thread::scope(|scope| {
        let mut shares = panels.chunks_mut(share).zip(file_panels.chunks(share));
        let own = shares.next();
        for (panels, file) in shares {
            scope.spawn(move || fill_panels(panels, file, segment, row_bytes));
        }
        if let Some((panels, file)) = own {
            fill_panels(panels, file, segment, row_bytes);
        }
    });
}

fn fill_panels(panels: &mut [&mut [u8]], file: &[&[u8]], segment: &Segment, row_bytes: usize) {
    let layout = Layout::of(segment.ty);
    for (panel, file) in panels.iter_mut().zip(file) {
        for (lane, row) in file.chunks_exact(row_bytes).enumerate() {
            (layout.put_row)(row, lane, panel);
        }
    }
}
