//! Every kind of vocabulary against llama.cpp, and what a damaged one is refused with.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use relevo::text::{SpecialText, SpecialTokens, Tokenizer};
use relevo_gpu::weights::{GgufVocabulary, HuggingFaceTokenizer, TokenKind, TokenizerSource};
use serde_json::{Value, json};

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/goldens/vocabularies/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

fn vocabulary(golden: &Value, pre: &str) -> GgufVocabulary {
    let parts = &golden["vocabulary"];
    let id = |key: &str| parts[key].as_u64().map(|id| id as u32);
    let kind = |kind: u8| match kind {
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    };
    GgufVocabulary {
        model: parts["model"].as_str().unwrap().to_owned(),
        pre: Some(pre.to_owned()),
        tokens: list(&parts["tokens"]),
        kinds: list(&parts["kinds"]).into_iter().map(kind).collect(),
        merges: list(&parts["merges"]),
        scores: list(&parts["scores"]),
        bos: id("bos"),
        eos: id("eos"),
        unknown: id("unknown"),
        ..GgufVocabulary::default()
    }
}

fn open(vocabulary: GgufVocabulary) -> Result<Tokenizer, String> {
    Tokenizer::open(&TokenizerSource::Gguf(vocabulary)).map_err(|error| error.to_string())
}

fn all_cases_are_equal(name: &str, splits: usize) {
    let golden = golden(name);
    let cases = golden["cases"].as_object().unwrap();
    assert_eq!(cases.len(), splits);
    for (pre, cases) in cases {
        let tokenizer = open(vocabulary(&golden, pre)).unwrap();
        assert_eq!(tokenizer.encode_prompt("Hello world").unwrap(), list::<u32>(&golden["with_bos"][pre]), "{pre}");
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let parsed: Vec<u32> = list(&case["ids"]);
            let plain = case.get("ids_special_as_text").map_or_else(|| parsed.clone(), list);
            assert_eq!(tokenizer.encode(text, SpecialText::Parsed).unwrap(), parsed, "{pre}: {text:?}");
            assert_eq!(tokenizer.encode(text, SpecialText::Plain).unwrap(), plain, "{pre}: {text:?} as plain text");
            // SentencePiece puts a space after a special token, too, and nobody can tell it from the text's own.
            if parsed == plain || name == "byte_level" {
                assert_eq!(tokenizer.decode(&parsed, SpecialTokens::Shown), text, "{pre}: {text:?}");
            }
        }
    }
}

#[test]
fn byte_level_vocabularies_split_as_llama_cpp_splits() {
    all_cases_are_equal("byte_level", 9);
}

#[test]
fn a_sentence_piece_vocabulary_merges_as_llama_cpp_merges() {
    all_cases_are_equal("sentence_piece", 1);
}

#[test]
fn a_kind_that_is_not_known_is_named() {
    let golden = golden("byte_level");
    let known = vocabulary(&golden, "qwen2");
    let error = open(GgufVocabulary { pre: Some("klingon".to_owned()), ..known.clone() }).unwrap_err();
    assert!(error.contains("tokenizer.ggml.pre is klingon") && error.contains("token ids only"), "{error}");
    let error = open(GgufVocabulary { model: "bert".to_owned(), ..known }).unwrap_err();
    assert!(error.contains("tokenizer.ggml.model is bert") && error.contains("gpt2"), "{error}");
}

#[test]
fn a_damaged_vocabulary_is_refused() {
    let golden = golden("byte_level");
    let with = |merge: &str| {
        let mut damaged = vocabulary(&golden, "gpt-2");
        damaged.merges.push(merge.to_owned());
        open(damaged).unwrap_err()
    };
    assert!(with("nospace").contains("nospace"));
    assert!(with("").contains("two parts"));
    assert!(with("never heard").contains("never"));
    let scoreless = GgufVocabulary { model: "llama".to_owned(), scores: Vec::new(), ..vocabulary(&golden, "default") };
    assert!(open(scoreless).unwrap_err().contains("scores"));
}

fn tokenizer_json(json: &Value) -> Result<Tokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    let source = HuggingFaceTokenizer { tokenizer_json: path, ..HuggingFaceTokenizer::default() };
    Tokenizer::open(&TokenizerSource::HuggingFace(source)).map_err(|error| error.to_string())
}

/// A byte-level tokenizer.json with a `<s>` before each prompt.
fn sound_json() -> Value {
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null,
        "added_tokens": [{"id": 6, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [6], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ã": 4, "©": 5}, "merges": ["a b"]}
    })
}

#[test]
fn a_tokenizer_json_encodes_decodes_and_is_never_cut() {
    let tokenizer = tokenizer_json(&sound_json()).unwrap();
    assert_eq!(tokenizer.encode("ab aé<s>", SpecialText::Parsed).unwrap(), [2, 3, 0, 4, 5, 6]);
    assert_eq!(tokenizer.encode("ab<s>", SpecialText::Plain).unwrap(), [2], "the vocabulary has no < and no s");
    assert_eq!(tokenizer.encode_prompt("abb").unwrap(), [6, 2, 1]);
    assert_eq!(tokenizer.decode(&[6, 2, 3, 4, 5], SpecialTokens::Shown), "<s>ab é");
    assert_eq!(tokenizer.decode(&[6, 2, 4], SpecialTokens::Skipped), "ab\u{FFFD}");
    assert_eq!(tokenizer.num_tokens(), 7);
}

#[test]
fn a_tokenizer_json_that_lies_is_refused_and_ends_nothing() {
    let refused = |change: fn(&mut Value), word: &str| {
        let mut json = sound_json();
        change(&mut json);
        let error = tokenizer_json(&json).unwrap_err();
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    };
    refused(|json| json["model"] = json!(7), "damaged");
    refused(|json| json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), "WordPiece");
    refused(|json| json["decoder"] = Value::Null, "missing");
    refused(|json| json["model"]["vocab"]["a"] = json!(4_000_000_000_u32), "4000000001");
    // The library cuts this prefix off every right part without looking: it would panic.
    refused(|json| json["model"]["continuing_subword_prefix"] = json!("longer"), "damaged");
    refused(|json| json["model"]["merges"] = json!(["x y"]), "damaged");
}
