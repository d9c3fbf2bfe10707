//! Hugging Face folders whose parts do not belong together.

use relevo_gpu::description::RopeScaling;
use relevo_gpu::weights::{ModelFiles, TokenizerSource};

use super::{chain, corpus, folder};

fn seed(kind: &str, name: &str) -> Vec<u8> {
    let found = corpus(kind).into_iter().find(|(path, _)| path.ends_with(name));
    found.unwrap_or_else(|| panic!("{name} is not in the corpus")).1
}

fn weights() -> Vec<u8> {
    seed("safetensors", "llama_f32.safetensors")
}

fn config(name: &str) -> Vec<u8> {
    seed("config", name)
}

fn open(files: &[(&str, &[u8])]) -> Result<ModelFiles, String> {
    ModelFiles::open(folder(files).path()).map_err(|error| chain(&error))
}

fn refused(files: &[(&str, &[u8])], words: &[&str]) {
    let text = open(files).err().unwrap_or_else(|| panic!("opened"));
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn every_configuration_of_the_corpus_opens() {
    let opened = |name: &str| open(&[("config.json", &config(name)), ("model.safetensors", &weights())]).unwrap();
    assert_eq!(opened("plain.json").end_of_generation_ids(), [2, 9]);
    assert!(matches!(opened("llama3.json").description().rope.scaling, RopeScaling::Llama3 { .. }));
    assert!(matches!(opened("yarn.json").description().rope.scaling, RopeScaling::Yarn(_)));
    let parameters = opened("parameters.json");
    assert_eq!(parameters.description().rope.theta, 5000.0);
    assert_eq!(parameters.description().rope.scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(opened("window.json").description().sliding_windows, [Some(8)]);
    assert_eq!(opened("layer_types.json").description().sliding_windows, [Some(8)]);
}

#[test]
fn a_configuration_that_lies_names_its_key() {
    let weights = weights();
    let plain = String::from_utf8(config("plain.json")).unwrap();
    let with = |from: &str, to: &str, words: &[&str]| {
        assert!(plain.contains(from), "{from} is not in the seed");
        let changed = plain.replace(from, to);
        refused(&[("config.json", changed.as_bytes()), ("model.safetensors", &weights)], words);
    };
    with(r#""model_type": "llama""#, r#""model_type": "bert""#, &["bert", "llama, mistral"]);
    with(r#""hidden_size": 32"#, r#""hidden_size": 64"#, &["model.embed_tokens.weight", "[12, 32]", "[12, 64]"]);
    with(r#""hidden_size": 32"#, r#""hidden_size": "32""#, &["hidden_size", "whole number"]);
    with(r#""hidden_size": 32"#, r#""hidden_size": -1"#, &["hidden_size"]);
    with(r#""hidden_size": 32"#, r#""hidden_size": 1e300"#, &["hidden_size"]);
    with(r#""num_hidden_layers": 1"#, r#""num_hidden_layers": 4000000000"#, &["num_hidden_layers", "4096"]);
    with(r#""num_hidden_layers": 1"#, r#""num_hidden_layers": 2"#, &["model.layers.1.input_layernorm.weight"]);
    with(r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#, &["lm_head.weight", "missing"]);
    with(r#""hidden_act": "silu""#, r#""hidden_act": "gelu""#, &["hidden_act gelu"]);
    with(r#""rope_theta""#, r#""rope_scaling": {"rope_type": "longrope"}, "rope_theta""#, &["longrope"]);
    with(r#""rope_theta""#, r#""rope_scaling": {"rope_type": "linear"}, "rope_theta""#, &["rope_scaling.factor"]);
    with(r#""rope_theta""#, r#""quantization_config": {}, "rope_theta""#, &["quantization_config", "GGUF"]);
    with(r#""rope_theta""#, r#""partial_rotary_factor": 1e300, "rope_theta""#, &["partial_rotary_factor"]);
    with("{", "[", &["config.json"]);
}

#[test]
fn scaling_that_depends_on_the_length_is_served_only_where_it_does_not() {
    let (weights, plain) = (weights(), String::from_utf8(config("plain.json")).unwrap());
    let max_context = open(&[("config.json", plain.as_bytes()), ("model.safetensors", &weights)])
        .map(|files| files.description().max_context)
        .unwrap();
    let with = |scaling: &str| {
        let changed = plain.replace(r#""rope_theta""#, &format!(r#""rope_scaling": {scaling}, "rope_theta""#));
        open(&[("config.json", changed.as_bytes()), ("model.safetensors", &weights)])
    };
    for sound in [
        r#"{"rope_type": "dynamic", "factor": 4.0}"#.to_owned(),
        format!(r#"{{"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": {max_context}}}"#),
    ] {
        assert_eq!(with(&sound).unwrap().description().rope.scaling, RopeScaling::None, "{sound}");
    }
    let refused = |scaling: &str, word: &str| {
        let text = with(scaling).unwrap_err();
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    };
    refused(r#"{"rope_type": "dynamic"}"#, "rope_scaling.factor");
    refused(r#"{"rope_type": "dynamic", "factor": 1.0, "alpha": 1000}"#, "rope_scaling.alpha");
    refused(
        r#"{"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 2}"#,
        "rope_scaling.original_max_position_embeddings",
    );
}

#[test]
fn an_index_names_only_files_beside_it() {
    let (config, weights) = (config("plain.json"), weights());
    let indexed = |file: &str, words: &[&str]| {
        let index = format!(r#"{{"weight_map":{{"model.norm.weight":"{file}"}}}}"#);
        let files: [(&str, &[u8]); 3] =
            [("config.json", &config), ("model.safetensors.index.json", index.as_bytes()), ("a.safetensors", &weights)];
        refused(&files, words);
    };
    indexed("../a.safetensors", &["model.norm.weight", "../a.safetensors"]);
    indexed("/etc/passwd", &["/etc/passwd"]);
    indexed("a.bin", &["a.bin"]);
    indexed("b.safetensors", &["b.safetensors"]);
    let lost = br#"{"weight_map":{"model.norm.weight":"a.safetensors","gone":"a.safetensors"}}"#;
    let files: [(&str, &[u8]); 3] =
        [("config.json", &config), ("model.safetensors.index.json", lost), ("a.safetensors", &weights)];
    refused(&files, &["gone"]);
    let sound = br#"{"weight_map":{"model.norm.weight":"a.safetensors"}}"#;
    let files: [(&str, &[u8]); 3] =
        [("config.json", &config), ("model.safetensors.index.json", sound), ("a.safetensors", &weights)];
    assert!(open(&files).is_ok());
    let both = br#"{"weight_map":{"model.norm.weight":"a.safetensors","x":"b.safetensors"}}"#;
    let files: [(&str, &[u8]); 4] = [
        ("config.json", &config),
        ("model.safetensors.index.json", both),
        ("a.safetensors", &weights),
        ("b.safetensors", &weights),
    ];
    refused(&files, &["twice"]);
}

#[test]
fn the_tokenizers_files_are_found_and_checked() {
    let (config, weights) = (config("plain.json"), weights());
    let with = |more: &[(&str, &[u8])]| {
        let base: [(&str, &[u8]); 2] = [("config.json", &config), ("model.safetensors", &weights)];
        open(&[&base, more].concat())
    };
    let tokenizer = br#"{"added_tokens":[{"id":7,"content":"<|im_end|>","special":true},{"id":8,"content":"</s>"}]}"#;
    let settings = br#"{"bos_token":{"content":"<s>"},"eos_token":"</s>","add_bos_token":true,
        "chat_template":[{"name":"tool_use","template":"T"},{"name":"default","template":"D"}]}"#;
    let files = with(&[("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)]).unwrap();
    let Some(TokenizerSource::HuggingFace(source)) = files.tokenizer() else { panic!("no tokenizer") };
    assert_eq!((source.bos_token.as_deref(), source.add_bos), (Some("<s>"), Some(true)));
    assert_eq!(files.chat_template(), Some("D"));
    // 2 and 9 by config.json, 7 by its text, 8 by tokenizer_config.json.
    assert_eq!(files.end_of_generation_ids(), [2, 7, 8, 9]);
    let files = with(&[("generation_config.json", br#"{"eos_token_id": [1, 5]}"#)]).unwrap();
    assert_eq!(files.end_of_generation_ids(), [1, 2, 5, 9]);
    let files = with(&[("chat_template.jinja", b"J"), ("tokenizer_config.json", settings)]).unwrap();
    assert_eq!((files.chat_template(), files.tokenizer()), (Some("J"), None));
    assert!(with(&[("tokenizer.json", b"{")]).unwrap_err().contains("tokenizer.json"));
    assert!(with(&[("generation_config.json", b"[]")]).unwrap_err().contains("generation_config.json"));
}

#[test]
fn a_folder_without_weights_says_what_it_takes() {
    let config = config("plain.json");
    refused(&[("config.json", &config), ("pytorch_model.bin", b"x")], &["model.safetensors", "safe_serialization"]);
    refused(&[("a.gguf", b"x"), ("b.gguf", b"x")], &["several GGUF files", "a.gguf"]);
    refused(&[("a.gguf", b"GGUF")], &["a.gguf", "version"]);
    let weights = weights();
    let alone = folder(&[("model.safetensors", &weights)]);
    let text = chain(&ModelFiles::open(&alone.path().join("model.safetensors")).unwrap_err());
    assert!(text.contains("give the folder"), "{text}");
}
