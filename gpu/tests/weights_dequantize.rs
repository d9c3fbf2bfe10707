//! Every type against ggml's own Python side, bit for bit.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use relevo_gpu::weights::{TensorType, dequantize};

const TYPES: [TensorType; 11] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

/// (blocks, elements) of the golden file.
fn golden(ty: TensorType) -> (Vec<u8>, Vec<f32>) {
    let path = format!("{}/tests/goldens/dequantize/{}.bin", env!("CARGO_MANIFEST_DIR"), ty.name());
    let file = std::fs::read(path).unwrap();
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let (num_elements, byte_len) = (word(0), word(4));
    let (blocks, elements) = file[8..].split_at(byte_len);
    let elements: Vec<f32> = elements.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!(elements.len(), num_elements);
    (blocks.to_vec(), elements)
}

#[test]
fn every_type_is_dequantised_to_the_same_bits_as_ggml_does() {
    for ty in TYPES {
        let (blocks, expected) = golden(ty);
        let mut found = vec![f32::NAN; expected.len()];
        dequantize(ty, &blocks, &mut found).unwrap();
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{ty:?}, element {i}: {found} instead of {expected}");
        }
    }
}

#[test]
fn lengths_that_do_not_belong_together_are_an_error() {
    for ty in TYPES {
        let (elements, bytes) = ty.block();
        let (data, mut out) = (vec![0; 2 * bytes], vec![0.0; 2 * elements]);
        assert!(dequantize(ty, &data, &mut out).is_ok());
        assert!(dequantize(ty, &data[1..], &mut out).is_err());
        assert!(dequantize(ty, &data[..bytes], &mut out).is_err());
        assert!(dequantize(ty, &data, &mut out[1..]).is_err());
    }
}
