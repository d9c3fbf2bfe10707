//! What a tokenizer is made of, as the model's files hold it.

use std::path::PathBuf;

use relevo_wire::TokenId;

use super::{Metadata, Value};
use crate::description::{DescriptionError, Keys};

/// Where a model's tokenizer comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// Out of a GGUF file's keys.
    Gguf(GgufVocabulary),
    /// A `tokenizer.json` beside the weights.
    HuggingFace(HuggingFaceTokenizer),
}

/// The `tokenizer.ggml.*` keys of a GGUF file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece)…
    pub model: String,
    /// How text is split before BPE: `smollm`, `llama-bpe`, `qwen2`…; absent in old files.
    pub pre: Option<String>,
    /// The text of each id.
    pub tokens: Vec<String>,
    /// The kind of each id; as long as `tokens`.
    pub kinds: Vec<TokenKind>,
    /// BPE merges, best first, each `left right`.
    pub merges: Vec<String>,
    /// SentencePiece scores; empty or as long as `tokens`.
    pub scores: Vec<f32>,
    /// Begin of sequence.
    pub bos: Option<TokenId>,
    /// End of sequence.
    pub eos: Option<TokenId>,
    /// End of turn.
    pub eot: Option<TokenId>,
    /// End of message.
    pub eom: Option<TokenId>,
    /// What stands for text without a token.
    pub unknown: Option<TokenId>,
    /// Padding.
    pub padding: Option<TokenId>,
    /// Whether prompts begin with `bos`; `None` leaves it to the model's kind.
    pub add_bos: Option<bool>,
    /// Whether prompts end with `eos`.
    pub add_eos: Option<bool>,
    /// Whether SentencePiece puts a space before the text.
    pub add_space_prefix: Option<bool>,
}

/// ggml's `llama_token_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    #[default]
    Normal,
    /// Stands for text that has no token.
    Unknown,
    /// Steers the model, is never shown: `<|im_end|>`.
    Control,
    /// Added by the model's makers; matched before anything else, and shown.
    UserDefined,
    /// Not used.
    Unused,
    /// One byte: `<0x0A>`.
    Byte,
}

/// A Hugging Face tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HuggingFaceTokenizer {
    /// The crate `tokenizers` reads it.
    pub tokenizer_json: PathBuf,
    /// Text of the begin-of-sequence token, for chat templates.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token.
    pub eos_token: Option<String>,
    /// `add_bos_token` of `tokenizer_config.json`, if it says so.
    pub add_bos: Option<bool>,
}

impl GgufVocabulary {
    /// Reads the vocabulary, if the file has one.
    ///
    /// # Errors
    /// The file's fault: a key of the wrong type, lists of different lengths, an id beyond the list.
    pub(super) fn read(metadata: Metadata<'_>) -> Result<Option<Self>, DescriptionError> {
        let keys = Keys::new(metadata);
        let Some(model) = keys.text("tokenizer.ggml.model")? else { return Ok(None) };
        // A file may say that it has none: `no_vocab`, `none`.
        let Some(tokens) = strings(&keys, "tokenizer.ggml.tokens")? else { return Ok(None) };
        let num_tokens = tokens.len();
        let id = |key| token_id(&keys, key, num_tokens);
        Ok(Some(Self {
            model: model.to_owned(),
            pre: keys.text("tokenizer.ggml.pre")?.map(str::to_owned),
            kinds: kinds(&keys, num_tokens)?,
            merges: strings(&keys, "tokenizer.ggml.merges")?.unwrap_or_default(),
            scores: scores(&keys, num_tokens)?,
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            eot: id("tokenizer.ggml.eot_token_id")?,
            eom: id("tokenizer.ggml.eom_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            padding: id("tokenizer.ggml.padding_token_id")?,
            add_bos: keys.boolean("tokenizer.ggml.add_bos_token")?,
            add_eos: keys.boolean("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: keys.boolean("tokenizer.ggml.add_space_prefix")?,
            tokens,
        }))
    }
}

fn strings(keys: &Keys<'_>, key: &str) -> Result<Option<Vec<String>>, DescriptionError> {
    let Some(array) = keys.array(key)? else { return Ok(None) };
    let text = |value: Value<'_>| value.as_str().map(str::to_owned);
    let strings: Option<Vec<String>> = array.iter().map(text).collect();
    strings.map(Some).ok_or_else(|| keys.wrong_type(key, "an array of strings"))
}

/// An id, or `None` where the file has none or says −1.
fn token_id(keys: &Keys<'_>, key: &str, num_tokens: usize) -> Result<Option<TokenId>, DescriptionError> {
    match keys.metadata().value(key) {
        None | Some(Value::Signed(-1) | Value::Unsigned(0xFFFF_FFFF)) => Ok(None),
        Some(value) => {
            let id = value.as_u64().ok_or_else(|| keys.wrong_type(key, "an integer"))?;
            match TokenId::try_from(id) {
                Ok(id) if (id as usize) < num_tokens => Ok(Some(id)),
                _ => Err(DescriptionError::OutOfRange {
                    key: key.to_owned(),
                    value: id.to_string(),
                    expected: format!("below {num_tokens}, the length of tokenizer.ggml.tokens"),
                }),
            }
        }
    }
}

fn same_length(key: &str, found: usize, num_tokens: usize) -> Result<(), DescriptionError> {
    if found == num_tokens {
        return Ok(());
    }
    Err(DescriptionError::OutOfRange {
        key: key.to_owned(),
        value: format!("a list of {found}"),
        expected: format!("{num_tokens} entries, one for each of tokenizer.ggml.tokens"),
    })
}

fn kinds(keys: &Keys<'_>, num_tokens: usize) -> Result<Vec<TokenKind>, DescriptionError> {
    let key = "tokenizer.ggml.token_type";
    let Some(array) = keys.array(key)? else { return Ok(vec![TokenKind::Normal; num_tokens]) };
    same_length(key, array.len(), num_tokens)?;
    let kind = |value: Value<'_>| {
        Some(match value.as_u64()? {
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Normal,
        })
    };
    let kinds: Option<Vec<TokenKind>> = array.iter().map(kind).collect();
    kinds.ok_or_else(|| keys.wrong_type(key, "an array of integers"))
}

fn scores(keys: &Keys<'_>, num_tokens: usize) -> Result<Vec<f32>, DescriptionError> {
    let key = "tokenizer.ggml.scores";
    let Some(array) = keys.array(key)? else { return Ok(Vec::new()) };
    same_length(key, array.len(), num_tokens)?;
    let scores: Option<Vec<f32>> = array.iter().map(|value| value.as_f64().map(|score| score as f32)).collect();
    scores.ok_or_else(|| keys.wrong_type(key, "an array of floats"))
}
