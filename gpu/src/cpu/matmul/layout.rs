//! How rows of a type's file bytes become lanes of a panel, and how one is read back.

use half::{bf16, f16};

use super::kernel::Weights;
use super::quant::{BLOCK, PANEL_ROWS, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Quant, put_codes};
use super::vector::Portable;
use crate::weights::TensorType;

/// Packing of one type.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Bytes of a panel of `num_inputs`; a multiple of what its records are aligned to.
    pub(super) panel_bytes: fn(num_inputs: usize) -> usize,
    /// Puts one row of the file into `lane` of a panel of zeros.
    pub(super) put_row: fn(file: &[u8], lane: usize, panel: &mut [u8]),
    /// Dequantises, or widens, `lane` of a panel.
    pub(super) read_row: fn(panel: &[u8], lane: usize, out: &mut [f32]),
}

impl Layout {
    /// That of `ty`.
    pub(super) const fn of(ty: TensorType) -> Self {
        const fn quantised<Q: Quant>() -> Layout {
            Layout { panel_bytes: Q::panel_bytes, put_row: put_row::<Q>, read_row: read_row::<Q> }
        }
        match ty {
            TensorType::F32 => Self {
                panel_bytes: float_panel_bytes::<4>,
                put_row: put_floats::<4>,
                read_row: |panel, lane, out| read_floats(panel, lane, out, f32::from_le_bytes),
            },
            TensorType::F16 => Self {
                panel_bytes: float_panel_bytes::<2>,
                put_row: put_floats::<2>,
                read_row: |panel, lane, out| read_floats(panel, lane, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            },
            TensorType::BF16 => Self {
                panel_bytes: float_panel_bytes::<2>,
                put_row: put_floats::<2>,
                read_row: |panel, lane, out| read_floats(panel, lane, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            },
            TensorType::Q4_0 => quantised::<Q4_0>(),
            TensorType::Q4_1 => quantised::<Q4_1>(),
            TensorType::Q5_0 => quantised::<Q5_0>(),
            TensorType::Q5_1 => quantised::<Q5_1>(),
            TensorType::Q8_0 => quantised::<Q8_0>(),
            TensorType::Q4_K => quantised::<Q4K>(),
            TensorType::Q5_K => quantised::<Q5K>(),
            TensorType::Q6_K => quantised::<Q6K>(),
        }
    }
}

fn put_row<Q: Quant>(file: &[u8], lane: usize, panel: &mut [u8]) {
    let (block_inputs, block_bytes) = Q::TYPE.block();
    let file_bytes = Q::GROUP * BLOCK / block_inputs * block_bytes;
    for (file, record) in file.chunks(file_bytes).zip(panel.chunks_exact_mut(Q::RECORD_BYTES)) {
        // The last record may hold fewer blocks than it has room for.
        let num_blocks = file.len() / block_bytes * (block_inputs / BLOCK);
        let (codes, scales) = record.split_at_mut(Q::GROUP * Q::CODE_BYTES);
        for (index, block) in codes.chunks_exact_mut(Q::CODE_BYTES).take(num_blocks).enumerate() {
            put_codes::<Q>(&Q::codes(file, index), lane, block);
        }
        Q::put_scales(file, num_blocks, lane, scales);
    }
}

fn read_row<Q: Quant>(panel: &[u8], lane: usize, out: &mut [f32]) {
    assert!(lane < PANEL_ROWS && panel.len() >= Q::panel_bytes(out.len()), "a row of this panel");
    let s = Portable::<1>;
    for (index, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        // SAFETY: the panel has a block for each 32 outputs, and the lane is within it, by the assertion.
        let weights = unsafe { Weights::<Q, _>::load(s, panel.as_ptr(), index, lane) };
        for (group, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *out = weights.group(s, group).map(|[weight]| weight);
        }
    }
}

fn float_panel_bytes<const BYTES: usize>(num_inputs: usize) -> usize {
    num_inputs * PANEL_ROWS * BYTES
}

fn put_floats<const BYTES: usize>(file: &[u8], lane: usize, panel: &mut [u8]) {
    for (element, line) in file.as_chunks::<BYTES>().0.iter().zip(panel.chunks_exact_mut(PANEL_ROWS * BYTES)) {
        line[lane * BYTES..][..BYTES].copy_from_slice(element);
    }
}

fn read_floats<const BYTES: usize>(panel: &[u8], lane: usize, out: &mut [f32], widen: fn([u8; BYTES]) -> f32) {
    for (out, line) in out.iter_mut().zip(panel.as_chunks::<BYTES>().0.chunks_exact(PANEL_ROWS)) {
        *out = widen(line[lane]);
    }
}
