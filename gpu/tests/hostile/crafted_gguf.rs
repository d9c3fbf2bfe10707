//! GGUF files, each with one lie.

use proptest::prelude::*;
use relevo_gpu::description::{Role, RopeScaling};
use relevo_gpu::weights::{GgufHeader, ModelFiles, StoredType, TensorType, Value};

use super::{chain, open_gguf};
use crate::gguf_writer::{GgufWriter, array, smallest_model, string};

fn refusal(bytes: &[u8]) -> String {
    match open_gguf(bytes) {
        Ok(_) => panic!("opened"),
        Err(error) => chain(&error),
    }
}

/// Asserts that a file is refused with all of these words.
fn refused(file: &GgufWriter, words: &[&str]) {
    let text = refusal(&file.build());
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

fn llama() -> GgufWriter {
    smallest_model("llama")
}

#[test]
fn the_smallest_models_open() {
    for architecture in ["llama", "mistral", "qwen2", "qwen3"] {
        let files =
            open_gguf(&smallest_model(architecture).build()).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let model = files.description();
        assert_eq!((model.architecture.name(), model.head_dim, model.vocab_size), (architecture, 4, 5));
        assert_eq!(model.rope.interleaved, matches!(architecture, "llama" | "mistral"));
        assert!(files.tokenizer().is_none() && files.end_of_generation_ids().is_empty());
        assert_eq!(files.role(Role::Down(0)).unwrap().unwrap().shape, [8, 12]);
    }
}

#[test]
fn a_file_that_is_no_gguf_is_told_apart() {
    refused(&GgufWriter { magic: *b"PK\x03\x04", ..llama() }, &["50, 4b", "GGUF"]);
    refused(&GgufWriter { version: 1, ..llama() }, &["version is 1", "2 or 3"]);
    refused(&GgufWriter { version: 3_u32.swap_bytes(), ..llama() }, &["big-endian", "gguf_convert_endian"]);
    assert!(refusal(b"").contains("magic number"));
    assert!(refusal(b"GG").contains("magic number"));
    let v2 = GgufWriter { version: 2, ..llama() };
    assert!(open_gguf(&v2.build()).is_ok());
}

#[test]
fn every_truncation_is_refused() {
    let whole = llama().text("tokenizer.chat_template", "{{ x }}").build();
    for len in 0..whole.len() {
        assert!(GgufHeader::parse(&whole[..len]).is_err(), "the first {len} of {} bytes opened", whole.len());
    }
}

#[test]
fn absurd_counts_allocate_nothing() {
    for count in [1 << 20, u64::from(u32::MAX), 1 << 63, u64::MAX] {
        refused(&GgufWriter { num_tensors: Some(count), ..llama() }, &["tensors", "room for"]);
        refused(&GgufWriter { num_keys: Some(count), ..llama() }, &["keys", "room for"]);
        refused(&llama().key("test.list", 9, array(4, count, &[])), &["elements of key test.list"]);
        refused(&llama().key("test.list", 9, array(8, count, &[])), &["elements of key test.list"]);
        refused(&llama().key("test.text", 8, count.to_le_bytes().to_vec()), &["key test.text"]);
    }
}

#[test]
fn values_that_are_none_name_their_key() {
    refused(&llama().key("test.kind", 13, vec![0; 8]), &["test.kind", "value type 13"]);
    refused(&llama().key("test.flag", 7, vec![2]), &["test.flag", "boolean 2"]);
    refused(&llama().key("test.flags", 9, array(7, 3, &[0, 1, 9])), &["test.flags", "boolean 9"]);
    refused(
        &llama().key("test.text", 8, [2_u64.to_le_bytes().to_vec(), vec![0xFF, 0xFE]].concat()),
        &["test.text", "UTF-8"],
    );
    refused(&llama().text("test.twice", "a").text("test.twice", "b"), &["test.twice", "twice"]);
    let deep = (0..9).fold(array(4, 0, &[]), |inner, _| array(9, 1, &inner));
    refused(&llama().key("test.deep", 9, deep), &["test.deep", "nested"]);
}

#[test]
fn alignment_is_a_power_of_two() {
    for (type_id, bytes) in [
        (4, 0_u32.to_le_bytes().to_vec()),
        (4, 33_u32.to_le_bytes().to_vec()),
        (4, (1_u32 << 31).to_le_bytes().to_vec()),
        (8, string("32")),
    ] {
        refused(&llama().key("general.alignment", type_id, bytes), &["general.alignment", "power of two"]);
    }
    let wide = GgufWriter { alignment: 4096, ..llama() }.number("general.alignment", 4096);
    assert!(open_gguf(&wide.build()).is_ok());
}

#[test]
fn tensors_lie_within_the_file_and_apart() {
    const NAME: &str = "blk.0.ffn_up.weight";
    refused(&llama().with_tensor(NAME, |tensor| tensor.offset = Some(1 << 40)), &[NAME, "beyond"]);
    refused(&llama().with_tensor(NAME, |tensor| tensor.offset = Some(u64::MAX - 31)), &[NAME, "beyond"]);
    refused(&llama().with_tensor(NAME, |tensor| tensor.offset = Some(4)), &[NAME, "multiple", "32"]);
    refused(&llama().with_tensor(NAME, |tensor| tensor.offset = Some(0)), &["overlap"]);
    refused(&llama().zeros(NAME, &[12, 8]), &[NAME, "twice"]);
}

#[test]
fn shapes_that_overflow_are_refused() {
    const NAME: &str = "blk.0.ffn_up.weight";
    for dimensions in [
        vec![1 << 32, 1 << 32],
        vec![u64::MAX, u64::MAX, u64::MAX, u64::MAX],
        vec![1 << 62, 4],
        vec![0, 12],
        vec![8, 0],
    ] {
        refused(&llama().with_tensor(NAME, |tensor| tensor.dimensions = dimensions), &[NAME]);
    }
    refused(&llama().with_tensor(NAME, |tensor| tensor.dimensions = vec![1; 5]), &[NAME, "5 dimensions"]);
    // 8 elements are no whole block of Q4_0.
    refused(&llama().with_tensor(NAME, |tensor| tensor.type_id = 2), &[NAME, "Q4_0", "32"]);
    refused(&llama().with_tensor(NAME, |tensor| tensor.type_id = 4), &[NAME, "type 4"]);
    refused(&llama().with_tensor(NAME, |tensor| tensor.type_id = 24), &[NAME, "I8", "Q4_K"]);
    refused(&llama().with_tensor(NAME, |tensor| tensor.dimensions.reverse()), &[NAME, "[8, 12]", "[12, 8]"]);
}

#[test]
fn an_architecture_that_is_not_served_is_named_with_those_that_are() {
    refused(&smallest_model("mamba"), &["mamba", "llama, mistral, qwen2 and qwen3"]);
    refused(&llama().change("general.architecture", None), &["general.architecture", "missing"]);
    refused(&llama().change("general.architecture", Some((4, vec![1, 0, 0, 0]))), &["general.architecture", "string"]);
    refused(&llama().zeros("blk.0.ffn_gate_exps.weight", &[2, 12, 8]), &["blk.0.ffn_gate_exps.weight", "another kind"]);
    refused(&llama().number("split.count", 3), &["split.count", "--merge"]);
}

#[test]
fn numbers_that_contradict_each_other_name_their_key() {
    let number = |value: u32| Some((4, value.to_le_bytes().to_vec()));
    let with = |key: &str, value| llama().change(&format!("llama.{key}"), value);
    for key in ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length"] {
        refused(&with(key, None), &[key, "missing"]);
        refused(&with(key, number(0)), &[key]);
        refused(&with(key, Some((8, string("many")))), &[key, "a string"]);
    }
    refused(&with("block_count", number(2)), &["blk.1.attn_norm.weight", "missing"]);
    refused(&with("block_count", number(u32::MAX)), &["block_count", "4294967295"]);
    refused(&with("attention.head_count_kv", number(3)), &["head_count_kv", "divisor"]);
    refused(&with("attention.head_count_kv", number(0)), &["head_count_kv"]);
    refused(&with("attention.layer_norm_rms_epsilon", Some((6, f32::NAN.to_le_bytes().to_vec()))), &["epsilon", "NaN"]);
    refused(&with("rope.dimension_count", number(3)), &["rope.dimension_count", "even"]);
    refused(&with("rope.dimension_count", number(6)), &["rope.dimension_count", "4"]);
    refused(&with("rope.freq_base", Some((6, (-1_f32).to_le_bytes().to_vec()))), &["rope.freq_base"]);
    refused(&with("rope.scaling.type", Some((8, string("longrope")))), &["longrope", "yarn"]);
    refused(&with("attention.value_length", number(2)), &["value_length"]);
    let per_layer: Vec<u8> = [1_u32, 2].iter().flat_map(|count| count.to_le_bytes()).collect();
    refused(&with("attention.head_count_kv", Some((9, array(4, 2, &per_layer)))), &["head_count_kv", "layer to layer"]);
}

#[test]
fn vocabularies_that_contradict_themselves_name_their_key() {
    let vocabulary = || {
        llama()
            .text("tokenizer.ggml.model", "gpt2")
            .texts("tokenizer.ggml.tokens", &["a", "b"])
            .text("general.name", "x")
    };
    assert!(open_gguf(&vocabulary().build()).is_ok());
    refused(&vocabulary().number("tokenizer.ggml.eos_token_id", 2), &["eos_token_id", "below 2"]);
    let one = array(5, 1, &1_u32.to_le_bytes());
    refused(&vocabulary().key("tokenizer.ggml.token_type", 9, one), &["token_type", "2 entries"]);
    refused(&vocabulary().key("tokenizer.ggml.scores", 9, array(6, 0, &[])), &["scores", "2 entries"]);
    refused(&vocabulary().change("tokenizer.ggml.tokens", Some((4, vec![0; 4]))), &["tokenizer.ggml.tokens", "array"]);
    let none = vocabulary().key("tokenizer.ggml.bos_token_id", 5, (-1_i32).to_le_bytes().to_vec());
    assert!(open_gguf(&none.build()).is_ok());
}

#[test]
fn rope_scaling_is_read_from_its_keys() {
    let scaling = |file: GgufWriter| -> RopeScaling {
        let files: ModelFiles = open_gguf(&file.build()).unwrap_or_else(|error| panic!("{}", chain(&error)));
        files.description().rope.scaling.clone()
    };
    assert_eq!(scaling(llama().float("llama.rope.scaling.factor", 4.0)), RopeScaling::Linear { factor: 4.0 });
    assert_eq!(scaling(llama().float("llama.rope.scale_linear", 2.0)), RopeScaling::Linear { factor: 2.0 });
    let yarn = llama().text("llama.rope.scaling.type", "yarn").float("llama.rope.scaling.factor", 4.0);
    let RopeScaling::Yarn(yarn) = scaling(yarn.number("llama.rope.scaling.original_context_length", 16)) else {
        panic!("no YaRN")
    };
    assert_eq!((yarn.factor, yarn.original_context, yarn.beta_fast, yarn.beta_slow), (4.0, 16.0, 32.0, 1.0));
    let factors = open_gguf(&llama().zeros("rope_freqs.weight", &[2]).build()).unwrap();
    assert_eq!(factors.role(Role::RopeFactors).unwrap().unwrap().shape, [2]);
    let window = open_gguf(&llama().number("llama.attention.sliding_window", 7).build()).unwrap();
    assert_eq!(window.description().sliding_windows, [Some(7)]);
}

/// A value, its GGUF type and its bytes.
#[derive(Clone, Debug)]
enum Written {
    Unsigned(u64),
    Signed(i64),
    Byte(i8),
    Float(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Shorts(Vec<i16>),
}

impl Written {
    fn bytes(&self) -> (u32, Vec<u8>) {
        match self {
            Self::Unsigned(value) => (10, value.to_le_bytes().to_vec()),
            Self::Signed(value) => (11, value.to_le_bytes().to_vec()),
            Self::Byte(value) => (1, value.to_le_bytes().to_vec()),
            Self::Float(value) => (6, value.to_le_bytes().to_vec()),
            Self::Flag(value) => (7, vec![u8::from(*value)]),
            Self::Text(value) => (8, string(value)),
            Self::Texts(values) => {
                (9, array(8, values.len() as u64, &values.iter().flat_map(|value| string(value)).collect::<Vec<_>>()))
            }
            Self::Shorts(values) => {
                let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (9, array(3, values.len() as u64, &elements))
            }
        }
    }

    fn is(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::Unsigned(a), Value::Unsigned(b)) => a == b,
            (Self::Signed(a), Value::Signed(b)) => a == b,
            (Self::Byte(a), Value::Signed(b)) => i64::from(*a) == *b,
            (Self::Float(a), Value::Float(b)) => f64::from(*a) == *b,
            (Self::Flag(a), Value::Bool(b)) => a == b,
            (Self::Text(a), Value::String(b)) => a == b,
            (Self::Texts(a), Value::Array(b)) => {
                b.iter().map(|text| text.as_str().map(str::to_owned)).eq(a.iter().cloned().map(Some))
            }
            (Self::Shorts(a), Value::Array(b)) => b.iter().eq(a.iter().map(|&value| Value::Signed(value.into()))),
            _ => false,
        }
    }
}

fn written() -> impl Strategy<Value = Written> {
    prop_oneof![
        any::<u64>().prop_map(Written::Unsigned),
        any::<i64>().prop_map(Written::Signed),
        any::<i8>().prop_map(Written::Byte),
        (-1e30_f32..1e30).prop_map(Written::Float),
        any::<bool>().prop_map(Written::Flag),
        ".{0,20}".prop_map(Written::Text),
        proptest::collection::vec(".{0,8}", 0..5).prop_map(Written::Texts),
        proptest::collection::vec(any::<i16>(), 0..9).prop_map(Written::Shorts),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read(
        keys in proptest::collection::btree_map("[a-z.]{1,12}", written(), 0..8),
        tensors in proptest::collection::btree_map("[a-z0-9._]{1,20}", (1_u64..5, 1_u64..9), 0..6),
        alignment in prop_oneof![Just(8_usize), Just(32), Just(256)],
    ) {
        let mut file = GgufWriter { alignment, ..GgufWriter::default() }.number("general.alignment", alignment as u32);
        for (key, value) in &keys {
            let (type_id, bytes) = value.bytes();
            file = file.key(key, type_id, bytes);
        }
        for (number, (name, &(rows, columns))) in tensors.iter().enumerate() {
            file = file.zeros(name, &[rows, columns]);
            file = file.with_tensor(name, |tensor| tensor.data.fill(number as u8 + 1));
        }
        let bytes = file.build();
        let header = GgufHeader::parse(&bytes).unwrap();
        let metadata = header.metadata(&bytes);
        prop_assert_eq!(metadata.keys().count(), keys.len() + 1);
        for (key, value) in &keys {
            let read = metadata.value(key).unwrap();
            prop_assert!(value.is(&read), "{} is {:?}, was {:?}", key, read, value);
        }
        prop_assert_eq!(header.tensors.len(), tensors.len());
        for (number, (entry, (name, &(rows, columns)))) in header.tensors.iter().zip(&tensors).enumerate() {
            prop_assert_eq!((&entry.name, entry.ty), (name, StoredType::Served(TensorType::F32)));
            prop_assert_eq!(&entry.shape, &[rows as usize, columns as usize]);
            let data = &bytes[entry.offset..entry.offset + entry.byte_len];
            prop_assert!(data.iter().all(|&byte| byte == number as u8 + 1));
        }
    }

    #[test]
    fn arbitrary_bytes_after_a_true_beginning_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &tail].concat();
        let _ = GgufHeader::parse(&bytes);
    }
}
