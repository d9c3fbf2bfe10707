//! Real files: the default model and the tiny checkpoints open, and say what they are.
#![allow(clippy::expect_used, clippy::panic, reason = "a test's helpers fail by panicking")]

use std::path::{Path, PathBuf};

use relevo_gpu::description::{Architecture, AttentionBiases, Role, RopeScaling};
use relevo_gpu::weights::{ModelFiles, TensorType, TokenizerSource};
use relevo_wire::Numerics;

mod default_model;

fn tiny(name: &str) -> ModelFiles {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tiny").join(name);
    ModelFiles::open(&path).unwrap_or_else(|error| panic!("{name}: {error:?}"))
}

fn smollm2() -> ModelFiles {
    ModelFiles::open(&default_model::default_model()).unwrap_or_else(|error| panic!("{error:?}"))
}

#[test]
fn the_default_model_is_described_by_its_file() {
    let files = smollm2();
    let model = files.description();
    assert_eq!(model.architecture, Architecture::Llama);
    assert_eq!((model.num_layers, model.hidden_size, model.ffn_size), (30, 576, 1536));
    assert_eq!((model.num_heads, model.num_kv_heads, model.head_dim), (9, 3, 64));
    assert_eq!((model.vocab_size, model.max_context), (49_152, 8192));
    assert_eq!(model.norm_epsilon, 1e-5);
    assert_eq!((model.rope.theta, model.rope.rotary_dim, model.rope.interleaved), (100_000.0, 64, true));
    assert_eq!(model.rope.scaling, RopeScaling::None);
    assert!(model.tied_embeddings && !model.qk_norm);
    assert_eq!(model.biases, AttentionBiases::default());
    assert_eq!(model.sliding_windows, [None; 30]);
    assert_eq!(model.weight_bytes, 66_355_200 + 30_081_024 + 140_544);
    let types: Vec<_> = model.quantisation.iter().map(|share| (share.ty, share.num_tensors)).collect();
    assert_eq!(types, [(TensorType::Q4_1, 210), (TensorType::Q8_0, 1), (TensorType::F32, 61)]);
    assert_eq!(model.kv_bytes_per_token(Numerics::Default), 30 * 2 * 3 * 64 * 2);
    assert_eq!(model.kv_bytes_per_token(Numerics::Exact), 30 * 2 * 3 * 64 * 4);
}

#[test]
fn two_files_have_one_digest_if_and_only_if_their_weights_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let original = default_model::default_model();
    let mut bytes = std::fs::read(&original).unwrap();
    let digest_of = |bytes: &[u8]| {
        let path = folder.path().join("another name.gguf");
        std::fs::write(&path, bytes).unwrap();
        ModelFiles::open(&path).unwrap().digest().to_string()
    };
    let digest = smollm2().digest().to_string();
    assert_eq!(digest_of(&bytes), digest);
    assert_eq!(digest.len(), 32);
    // The last byte is of a tensor, and near the file's beginning stands what it says of itself.
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert_ne!(digest_of(&bytes), digest);
    bytes[last] ^= 1;
    let theta = bytes.windows(20).position(|window| window == b"llama.rope.freq_base").unwrap() + 20 + 4;
    assert_eq!(bytes[theta..theta + 4], 100_000_f32.to_le_bytes());
    bytes[theta..theta + 4].copy_from_slice(&10_000_f32.to_le_bytes());
    assert_ne!(digest_of(&bytes), digest);
    assert_ne!(tiny("llama").digest(), tiny("qwen3").digest());
}

#[test]
fn the_default_model_gives_its_tensors_by_role() {
    let files = smollm2();
    assert_eq!(files.tensors().count(), 272);
    let down = files.role(Role::Down(29)).unwrap().unwrap();
    assert_eq!((down.name, down.ty, down.shape), ("blk.29.ffn_down.weight", TensorType::Q4_1, &[576, 1536][..]));
    assert_eq!(down.data.len(), 576 * 1536 / 32 * 20);
    let head = files.role(Role::OutputHead).unwrap().unwrap();
    assert_eq!((head.name, head.ty), ("token_embd.weight", TensorType::Q8_0));
    assert!(files.role(Role::QueryBias(0)).unwrap().is_none());
    assert!(files.role(Role::Down(30)).unwrap().is_none());
    assert!(files.tensor("output.weight").unwrap_err().to_string().contains("output.weight"));
}

#[test]
fn the_default_model_ends_where_llama_cpp_ends_it() {
    assert_eq!(smollm2().end_of_generation_ids(), [0, 2, 4]);
}

#[test]
fn the_default_model_carries_its_tokenizer_and_template() {
    let files = smollm2();
    let Some(TokenizerSource::Gguf(vocabulary)) = files.tokenizer() else { panic!("no GGUF vocabulary") };
    assert_eq!((vocabulary.model.as_str(), vocabulary.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((vocabulary.tokens.len(), vocabulary.merges.len()), (49_152, 48_900));
    assert_eq!(vocabulary.tokens[2], "<|im_end|>");
    assert_eq!((vocabulary.bos, vocabulary.eos, vocabulary.add_bos), (Some(1), Some(2), Some(false)));
    let template = files.chat_template().unwrap();
    assert!(template.starts_with("{% for message in messages %}") && template.contains("named SmolLM"));
    let listed = |key: &str| files.metadata().iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
    assert_eq!(listed("llama.attention.layer_norm_rms_epsilon"), Some("0.00001"));
    assert_eq!(listed("general.languages"), Some("1 of [en]"));
}

#[test]
fn the_tiny_checkpoints_are_described_by_their_configurations() {
    let llama = tiny("llama");
    let model = llama.description();
    assert_eq!((model.name.as_str(), model.architecture), ("llama", Architecture::Llama));
    assert_eq!((model.vocab_size, model.hidden_size, model.ffn_size, model.num_layers), (512, 64, 160, 3));
    assert_eq!((model.num_heads, model.num_kv_heads, model.head_dim), (4, 2, 16));
    assert!(model.tied_embeddings && !model.rope.interleaved);
    assert_eq!(llama.end_of_generation_ids(), [2]);
    assert!(llama.tokenizer().is_none() && llama.chat_template().is_none());

    let llama3 = tiny("llama3_rope");
    let model = llama3.description();
    assert_eq!((model.num_heads, model.head_dim, model.hidden_size, model.tied_embeddings), (8, 16, 64, false));
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 32.0,
    };
    assert_eq!(model.rope.scaling, expected);
    assert_eq!(llama3.role(Role::OutputHead).unwrap().unwrap().name, "lm_head.weight");

    assert_eq!(tiny("mistral").description().sliding_windows, [Some(48); 3]);

    let qwen2 = tiny("qwen2");
    assert_eq!(qwen2.description().biases, AttentionBiases { query: true, key: true, value: true, output: false });
    assert_eq!(qwen2.description().sliding_windows, [None; 3]);
    assert_eq!(qwen2.role(Role::ValueBias(1)).unwrap().unwrap().shape, [32]);

    let qwen3 = tiny("qwen3");
    assert_eq!((qwen3.description().qk_norm, qwen3.description().head_dim), (true, 32));
    assert_eq!(qwen3.role(Role::KeyNorm(2)).unwrap().unwrap().ty, TensorType::BF16);
}

#[test]
fn a_path_without_a_model_says_what_to_give() {
    let empty = tempfile::tempdir().unwrap();
    let text = ModelFiles::open(empty.path()).unwrap_err().to_string();
    assert!(text.contains("config.json") && text.contains(".gguf"), "{text}");
    let gone = PathBuf::from("/no/such/model.gguf");
    assert!(ModelFiles::open(&gone).unwrap_err().to_string().contains("/no/such/model.gguf"));
}
