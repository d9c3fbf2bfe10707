//! The default model's tokenizer and chat template against independent implementations.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use std::sync::{Arc, LazyLock};

use relevo::text::{
    ChatTemplate, ModelText, SpecialText, SpecialTokens, StopStrings, TemplateInput, TextStream, Tokenizer,
};
use relevo_gpu::weights::ModelFiles;
use serde_json::{Map, Value};

#[path = "../../gpu/tests/default_model/mod.rs"]
mod default_model;

static TEXT: LazyLock<ModelText> = LazyLock::new(|| {
    let files = ModelFiles::open(&default_model::default_model()).unwrap_or_else(|error| panic!("{error:?}"));
    ModelText::open(&files).unwrap_or_else(|error| panic!("{error:?}"))
});

fn tokenizer() -> &'static Arc<Tokenizer> {
    TEXT.tokenizer.as_ref().expect("the default model has a tokenizer")
}

fn template() -> &'static ChatTemplate {
    TEXT.chat_template.as_ref().expect("the default model has a chat template")
}

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/goldens/smollm2/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn all_tokenizer_cases_are_equal_in_both_modes() {
    let cases = golden("tokenizer_cases");
    let cases = cases["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 240);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let parsed = ids(&case["ids"]);
        let plain = case.get("ids_special_as_text").map_or_else(|| parsed.clone(), ids);
        assert_eq!(tokenizer().encode(text, SpecialText::Parsed).unwrap(), parsed, "{text:?}");
        assert_eq!(tokenizer().encode(text, SpecialText::Plain).unwrap(), plain, "{text:?} as plain text");
        assert_eq!(tokenizer().encode_prompt(text).unwrap(), parsed, "{text:?} as a prompt");
    }
}

#[test]
fn decoding_undoes_encoding_whole_and_in_a_stream() {
    for case in golden("tokenizer_cases")["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = ids(&case["ids"]);
        assert_eq!(tokenizer().decode(&ids, SpecialTokens::Shown), text);
        let mut stream = TextStream::new(Arc::clone(tokenizer()), SpecialTokens::Shown, StopStrings::default());
        let mut streamed: String = ids.iter().map(|&id| stream.push(id).text).collect();
        streamed.push_str(&stream.finish().text);
        assert_eq!(streamed, text);
    }
}

#[test]
fn all_conversations_are_rendered_and_tokenised_as_transformers_does() {
    let goldens = golden("chat_template");
    let conversations = goldens["conversations"].as_array().unwrap();
    assert_eq!(conversations.len(), 8);
    for conversation in conversations {
        let input = TemplateInput {
            messages: &conversation["messages"],
            add_generation_prompt: conversation["add_generation_prompt"].as_bool().unwrap(),
            extra: &Map::new(),
            unix_seconds: 0,
        };
        let rendered = template().render(&input).unwrap();
        let name = conversation["name"].as_str().unwrap();
        assert_eq!(rendered, conversation["rendered"].as_str().unwrap(), "{name}");
        assert_eq!(tokenizer().encode(&rendered, SpecialText::Parsed).unwrap(), ids(&conversation["ids"]), "{name}");
    }
}

#[test]
fn control_tokens_are_skipped_or_shown_as_asked() {
    let ids = tokenizer().encode("<|im_start|>a<|im_end|>", SpecialText::Parsed).unwrap();
    assert_eq!(tokenizer().decode(&ids, SpecialTokens::Shown), "<|im_start|>a<|im_end|>");
    assert_eq!(tokenizer().decode(&ids, SpecialTokens::Skipped), "a");
    let piece = tokenizer().token(2).unwrap();
    assert_eq!((piece.text().as_str(), piece.is_special), ("<|im_end|>", true));
    assert_eq!(tokenizer().num_tokens(), 49_152);
    assert!(tokenizer().token(49_152).is_none());
    assert_eq!(tokenizer().decode(&[49_152], SpecialTokens::Shown), "");
}

#[test]
fn half_a_character_is_held_back_until_it_is_whole() {
    let ids = tokenizer().encode("🦀", SpecialText::Parsed).unwrap();
    assert!(ids.len() > 1, "the crab is one token: choose another character");
    let mut stream = TextStream::new(Arc::clone(tokenizer()), SpecialTokens::Skipped, StopStrings::default());
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).text).collect();
    let (last, before) = pieces.split_last().unwrap();
    assert!(before.iter().all(String::is_empty), "{pieces:?}");
    assert_eq!(last, "🦀");
    stream.push(ids[0]);
    assert_eq!(stream.finish().text, "\u{FFFD}");
}
