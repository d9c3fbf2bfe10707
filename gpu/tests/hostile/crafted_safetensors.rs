//! Safetensors headers that lie, and the crate `safetensors` as a second opinion.

use proptest::prelude::*;
use relevo_gpu::weights::{StoredType, TensorType, parse_safetensors};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{chain, corpus};

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), data].concat()
}

fn refused(header: &str, data: &[u8], words: &[&str]) {
    let text = match parse_safetensors(&file(header, data)) {
        Ok(tensors) => panic!("read as {tensors:?}"),
        Err(error) => chain(&error),
    };
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn headers_that_lie_are_refused_by_the_tensors_name() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    refused(&one("F32", "[2]", "[0,4]"), &[0; 8], &["tensor w", "0 to 4", "8 bytes"]);
    refused(&one("F32", "[2]", "[8,0]"), &[0; 8], &["tensor w"]);
    refused(&one("F32", "[2]", "[4,12]"), &[0; 8], &["tensor w", "beyond"]);
    refused(&one("F32", "[2]", "[18446744073709551612,18446744073709551615]"), &[0; 8], &["tensor w", "beyond"]);
    refused(&one("F32", "[4294967296,4294967296]", "[0,8]"), &[0; 8], &["tensor w", "not possible"]);
    refused(&one("F32", "[-1]", "[0,8]"), &[0; 8], &["tensor w"]);
    refused(&one("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), &[0; 8], &["tensor w", "8 dimensions"]);
    refused(&one("Q4", "[2]", "[0,8]"), &[0; 8], &["tensor w", "Q4"]);
    refused(&one("F32", "[2]", "[0,8]").replace("shape", "shap"), &[0; 8], &["tensor w"]);
    let twice =
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    refused(twice, &[0; 2], &["tensor w", "twice"]);
    let overlap =
        r#"{"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    refused(overlap, &[0; 3], &["tensor w", "overlap those of v"]);
    refused("[]", &[], &["header", "an entry for each tensor"]);
    refused("{", &[], &["header"]);
    refused(&"[".repeat(100_000), &[], &["header"]);
}

#[test]
fn lengths_that_lie_are_refused() {
    for len in [9_u64, 1 << 40, u64::MAX] {
        assert!(parse_safetensors(&[len.to_le_bytes().as_slice(), b"{}"].concat()).is_err());
    }
    assert!(parse_safetensors(b"1234567").is_err());
    for (name, whole) in corpus("safetensors") {
        for len in 0..whole.len() {
            assert!(parse_safetensors(&whole[..len]).is_err(), "the first {len} bytes of {name} were read");
        }
    }
}

/// Both readers' tensors, if both read the file.
fn same_as_the_crate(bytes: &[u8]) {
    let ours = parse_safetensors(bytes).unwrap();
    let theirs = SafeTensors::deserialize(bytes).unwrap();
    assert_eq!(ours.len(), theirs.len());
    for tensor in &ours {
        let other = theirs.tensor(&tensor.name).unwrap();
        assert_eq!(tensor.shape, other.shape(), "{}", tensor.name);
        assert_eq!(&bytes[tensor.offset..tensor.offset + tensor.byte_len], other.data(), "{}", tensor.name);
        assert_eq!(tensor.ty.name(), format!("{:?}", other.dtype()), "{}", tensor.name);
    }
}

#[test]
fn hugging_faces_own_files_are_read_as_its_crate_reads_them() {
    for (_, bytes) in corpus("safetensors") {
        same_as_the_crate(&bytes);
    }
    for name in ["llama", "llama3_rope", "mistral", "qwen2", "qwen3"] {
        let path = format!("{}/tests/goldens/tiny/{name}/model.safetensors", env!("CARGO_MANIFEST_DIR"));
        same_as_the_crate(&std::fs::read(path).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_crate_writes_is_read(shapes in proptest::collection::btree_map("[a-z.]{1,9}", (0_usize..4, 1_usize..5), 1..6)) {
        let data = [7_u8; 64];
        let views: Vec<_> = shapes.iter().map(|(name, &(kind, width))| {
            let (dtype, bytes) = [(Dtype::F32, 4), (Dtype::F16, 2), (Dtype::BF16, 2), (Dtype::I64, 8)][kind];
            (name, TensorView::new(dtype, vec![1, width], &data[..width * bytes]).unwrap())
        }).collect();
        let bytes = safetensors::serialize(views, None).unwrap();
        let tensors = parse_safetensors(&bytes).unwrap();
        prop_assert_eq!(tensors.len(), shapes.len());
        for tensor in &tensors {
            let (kind, width) = shapes[&tensor.name];
            prop_assert_eq!(&tensor.shape, &[1, width]);
            prop_assert_eq!(tensor.ty == StoredType::Served(TensorType::BF16), kind == 2);
        }
    }
}
