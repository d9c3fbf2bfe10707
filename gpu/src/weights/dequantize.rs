//! The plain reference for every type: what the elements of a block are, in f32.
//!
//! Packed kernels are tested against this. It computes what ggml's `dequantize_row_*` (ggml-quants.c) computes, operation by
//! operation: f16 and bf16 are widened exactly, a scale times an integer is one f32 product, and where there is a minimum
//! the product is rounded before it is added or subtracted (no fused multiply-add). So it is bit-equal to ggml's.

use half::f16;

use super::TensorType;

/// Why nothing was dequantised: our bug, lengths that do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{byte_len} bytes of {ty:?} do not hold {num_elements} elements")]
pub struct DequantizeError {
    /// The type.
    pub ty: TensorType,
    /// Bytes given.
    pub byte_len: usize,
    /// Elements asked for.
    pub num_elements: usize,
}

/// Widens whole blocks of `ty` to f32.
///
/// * `data`: blocks as the file has them, little-endian, unaligned.
/// * `out`: one element for each of the blocks'.
///
/// # Errors
/// Our bug: `data` and `out` are not the same whole number of blocks.
pub fn dequantize(ty: TensorType, data: &[u8], out: &mut [f32]) -> Result<(), DequantizeError> {
    let (elements, bytes) = ty.block();
    if !data.len().is_multiple_of(bytes) || data.len() / bytes * elements != out.len() {
        return Err(DequantizeError { ty, byte_len: data.len(), num_elements: out.len() });
    }
    match ty {
        TensorType::F32 => each_block::<4, 1>(data, out, |block, out| out[0] = f32::from_le_bytes(*block)),
        TensorType::F16 => each_block::<2, 1>(data, out, |block, out| out[0] = f16::from_le_bytes(*block).to_f32()),
        TensorType::BF16 => {
            each_block::<2, 1>(data, out, |block, out| {
                out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
            });
        }
        TensorType::Q4_0 => each_block(data, out, q4_0),
        TensorType::Q4_1 => each_block(data, out, q4_1),
        TensorType::Q5_0 => each_block(data, out, q5_0),
        TensorType::Q5_1 => each_block(data, out, q5_1),
        TensorType::Q8_0 => each_block(data, out, q8_0),
        TensorType::Q4_K => each_block(data, out, q4_k),
        TensorType::Q5_K => each_block(data, out, q5_k),
        TensorType::Q6_K => each_block(data, out, q6_k),
    }
    Ok(())
}

fn each_block<const BYTES: usize, const ELEMENTS: usize>(
    data: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (blocks, _) = data.as_chunks::<BYTES>();
    let (outs, _) = out.as_chunks_mut::<ELEMENTS>();
    for (bytes, elements) in blocks.iter().zip(outs) {
        block(bytes, elements);
    }
}

fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

/// Scale, then 16 bytes: low nibbles are elements 0 to 15, high ones 16 to 31. `(q - 8) * d`.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = (f32::from(byte & 15) - 8.0) * d;
        out[i + 16] = (f32::from(byte >> 4) - 8.0) * d;
    }
}

/// Scale, minimum, nibbles as in Q4_0. `q * d + m`.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = f32::from(byte & 15) * d + m;
        out[i + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// The 32 fifth bits of Q5_0 and Q5_1, bit `i` for element `i`.
fn fifth_bits(block: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([block[offset], block[offset + 1], block[offset + 2], block[offset + 3]])
}

/// Elements `i` and `i + 16` of a 5-bit block.
fn five_bits(byte: u8, fifth: u32, i: usize) -> (f32, f32) {
    let low = u32::from(byte & 15) | (fifth >> i & 1) << 4;
    let high = u32::from(byte >> 4) | (fifth >> (i + 16) & 1) << 4;
    (low as f32, high as f32)
}

/// Scale, 32 fifth bits, nibbles. `(q - 16) * d`.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let fifth = fifth_bits(block, 2);
    for (i, &byte) in block[6..].iter().enumerate() {
        let (low, high) = five_bits(byte, fifth, i);
        out[i] = (low - 16.0) * d;
        out[i + 16] = (high - 16.0) * d;
    }
}

/// Scale, minimum, 32 fifth bits, nibbles. `q * d + m`.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let fifth = fifth_bits(block, 4);
    for (i, &byte) in block[8..].iter().enumerate() {
        let (low, high) = five_bits(byte, fifth, i);
        out[i] = low * d + m;
        out[i + 16] = high * d + m;
    }
}

/// Scale, then 32 signed bytes. `q * d`.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (out, &byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * d;
    }
}

/// The 6-bit scale and minimum of group `group` (0 to 7) out of the 12 bytes that hold all eight pairs.
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        ((low & 15) | (packed[group - 4] >> 6) << 4, (low >> 4) | (packed[group] >> 6) << 4)
    }
}

/// d, dmin, 12 bytes of scales and minima, 128 bytes of nibbles: each 32 bytes hold group 2i low, group 2i+1 high.
/// `(d * scale) * q - dmin * min`.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        let (d, m) = (d * f32::from(scale), dmin * f32::from(min));
        let quants = &block[16 + group / 2 * 32..][..32];
        for (out, &byte) in out.iter_mut().zip(quants) {
            *out = d * f32::from(byte >> (group % 2 * 4) & 15) - m;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit `group` of byte `i` belongs to element `i` of the group.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let fifth = &block[16..48];
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        let (d, m) = (d * f32::from(scale), dmin * f32::from(min));
        let quants = &block[48 + group / 2 * 32..][..32];
        for ((out, &byte), &bits) in out.iter_mut().zip(quants).zip(fifth) {
            let q = (byte >> (group % 2 * 4) & 15) | (bits >> group & 1) << 4;
            *out = d * f32::from(q) - m;
        }
    }
}

/// 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales, d. Each half of 128 elements has four groups of 32: nibbles low of
/// bytes 0 to 31 and 32 to 63, then high of the same; bit pair `g` of byte `i`. `(d * scale) * (q - 32)`.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (i, out) in out.iter_mut().enumerate() {
        let (half, group, lane) = (i / 128, i / 32 % 4, i % 32);
        let low = block[half * 64 + group % 2 * 32 + lane] >> (group / 2 * 4) & 15;
        let upper = block[128 + half * 32 + lane] >> (group * 2) & 3;
        let scale = block[192 + i / 16].cast_signed();
        *out = d * f32::from(scale) * (f32::from(low | upper << 4) - 32.0);
    }
}
