//! A tokenizer whose tokens are bytes, made as a GGUF file would describe it.

use std::sync::Arc;

use relevo::text::{ChatTemplate, ModelText, Tokenizer};
use relevo_gpu::weights::{GgufVocabulary, TokenKind, TokenizerSource};

/// Each message in angle brackets, a line each, then the head of the answer.
const TEMPLATE: &str = "{% for message in messages %}\
    {% if message.content == 'refuse me' %}{{ raise_exception('no such words') }}{% endif %}\
    <{{ message.role }}>{{ message.content }}{{ '\n' }}{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% endif %}";

/// Ids 0 to 255 are the bytes; 256 ends a generation, 257 begins a document.
pub(crate) fn byte_text() -> ModelText {
    let tokens: Vec<String> =
        (0..=255).map(|byte| letter(byte).to_string()).chain(["<|end|>", "<|start|>"].map(String::from)).collect();
    let mut kinds = vec![TokenKind::Normal; 256];
    kinds.extend([TokenKind::Control; 2]);
    let vocabulary = GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: Some("default".to_owned()),
        tokens,
        kinds,
        bos: Some(257),
        eos: Some(256),
        add_bos: Some(false),
        ..GgufVocabulary::default()
    };
    ModelText {
        tokenizer: Some(Arc::new(Tokenizer::open(&TokenizerSource::Gguf(vocabulary)).unwrap())),
        chat_template: Some(ChatTemplate::new(TEMPLATE, None, None).unwrap()),
    }
}

/// How GPT-2 writes a byte: itself if it is a visible Latin-1 character, else one from 256 on.
fn letter(byte: u8) -> char {
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_visible(byte) {
        return char::from(byte);
    }
    let nth = (0..byte).filter(|&before| !is_visible(before)).count();
    char::from_u32(256 + u32::try_from(nth).unwrap()).unwrap()
}
