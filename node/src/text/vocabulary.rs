//! From a model's files to the parts of a [`super::Tokenizer`].

use std::collections::HashSet;

use relevo_gpu::weights::{GgufVocabulary, HuggingFaceTokenizer, TokenKind};
use relevo_wire::TokenId;
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};

use super::TokenizerError;
use super::encoder::Encoder;
use super::sentence_piece::SentencePiece;
use super::split::Splitting;
use super::token_table::{Spelled, Spelling, TokenTable};
use super::tokenizer::Around;

/// What a tokenizer is made of.
pub(super) struct Parts {
    pub(super) encoder: Encoder,
    pub(super) table: TokenTable,
    pub(super) around: Around,
}

fn damaged(error: impl std::fmt::Display) -> TokenizerError {
    TokenizerError::Damaged { reason: error.to_string() }
}

/// Out of a GGUF file's keys.
pub(super) fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Parts, TokenizerError> {
    let (encoder, spelling, adds_bos) = match vocabulary.model.as_str() {
        "gpt2" => byte_level(vocabulary)?,
        "llama" => sentence_piece(vocabulary)?,
        found => {
            let (key, found) = ("tokenizer.ggml.model", found.to_owned());
            return Err(TokenizerError::Unknown { key, found, known: "gpt2 and llama" });
        }
    };
    let table = TokenTable::new(
        vocabulary
            .tokens
            .iter()
            .zip(&vocabulary.kinds)
            .map(|(text, &kind)| Some(Spelled { text, is_verbatim: is_added(kind), is_special: is_special(kind) })),
        spelling,
    );
    let around = Around {
        before: vocabulary.bos.filter(|_| vocabulary.add_bos.unwrap_or(adds_bos)),
        after: vocabulary.eos.filter(|_| vocabulary.add_eos.unwrap_or(false)),
    };
    Ok(Parts { encoder, table, around })
}

const fn is_special(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Control | TokenKind::Unknown)
}

const fn is_added(kind: TokenKind) -> bool {
    matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined)
}

fn added_tokens(vocabulary: &GgufVocabulary) -> Vec<AddedToken> {
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds);
    let added = tokens.filter(|&(text, &kind)| is_added(kind) && !text.is_empty());
    added.map(|(text, &kind)| AddedToken::from(text.clone(), is_special(kind)).normalized(false)).collect()
}

/// GPT-2's kind. Returns the encoder, how tokens are spelled, and whether prompts begin with `bos` by default.
fn byte_level(vocabulary: &GgufVocabulary) -> Result<(Encoder, Spelling, bool), TokenizerError> {
    let splitting = Splitting::named(vocabulary.pre.as_deref())?;
    let merges = vocabulary.merges.iter().map(|merge| split_merge(merge)).collect::<Result<Vec<_>, _>>()?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.tokens.iter().cloned().zip(0..).collect::<Vocab>(), merges)
        .ignore_merges(splitting.ignore_merges)
        .build()
        .map_err(damaged)?;
    let mut library = tokenizers::Tokenizer::new(model);
    library.with_pre_tokenizer(Some(splitting.pre_tokenizer()?));
    library.add_tokens(&added_tokens(vocabulary));
    Ok((Encoder::library(library), Spelling::ByteLevel, splitting.adds_bos))
}

/// `left right`; the left part may itself begin with a space.
fn split_merge(merge: &str) -> Result<(String, String), TokenizerError> {
    let space = merge.char_indices().skip(1).find(|&(_, character)| character == ' ');
    let parts = space.map(|(cut, _)| (merge[..cut].to_owned(), merge[cut + 1..].to_owned()));
    parts.ok_or_else(|| damaged(format_args!("merge {merge:?} in tokenizer.ggml.merges has no two parts")))
}

/// SentencePiece's kind.
fn sentence_piece(vocabulary: &GgufVocabulary) -> Result<(Encoder, Spelling, bool), TokenizerError> {
    if vocabulary.scores.is_empty() {
        return Err(damaged("tokenizer.ggml.scores is missing"));
    }
    let space_prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let encoder = Encoder::SentencePiece(SentencePiece::new(vocabulary, space_prefix));
    Ok((encoder, Spelling::SentencePiece { space_prefix }, true))
}

/// Out of a tokenizer.json.
pub(super) fn from_hugging_face(files: &HuggingFaceTokenizer) -> Result<Parts, TokenizerError> {
    let mut library = tokenizers::Tokenizer::from_file(&files.tokenizer_json).map_err(damaged)?;
    // Left over from training in some files; a prompt is never cut or filled up.
    library.with_padding(None).with_truncation(None).map_err(damaged)?;
    let spelling = spelling(&library)?;
    let vocabulary = library.get_vocab(true);
    let added = library.get_added_tokens_decoder();
    // A file may use ids as sparsely as it likes; a table of four times its size is enough for any real one.
    let num_ids = vocabulary.values().max().map_or(0, |&last| last as usize + 1);
    if num_ids > vocabulary.len().saturating_mul(4).saturating_add(1 << 16) {
        return Err(damaged(format_args!("{} tokens have ids up to {num_ids}", vocabulary.len())));
    }
    let mut texts: Vec<Option<&str>> = vec![None; num_ids];
    #[expect(
        clippy::iter_over_hash_type,
        reason = "the result does not depend on the order: the least text of an id stays"
    )]
    for (text, &id) in &vocabulary {
        if let Some(slot) = texts.get_mut(id as usize) {
            *slot = Some(slot.map_or(text.as_str(), |other| other.min(text)));
        }
    }
    let special: HashSet<TokenId> = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
    let spelled = (0..).zip(&texts).map(|(id, text)| {
        text.map(|text| Spelled { text, is_verbatim: added.contains_key(&id), is_special: special.contains(&id) })
    });
    let table = TokenTable::new(spelled, spelling);
    // Its post-processor puts `bos` in front where the model wants it.
    Ok(Parts { encoder: Encoder::library(library), table, around: Around::default() })
}

/// Tells by its decoder how a tokenizer.json spells bytes.
fn spelling(library: &tokenizers::Tokenizer) -> Result<Spelling, TokenizerError> {
    let decoder = serde_json::to_value(library.get_decoder()).map_err(damaged)?;
    let steps = match decoder.get("decoders") {
        Some(Value::Array(steps)) => steps.clone(),
        _ => vec![decoder],
    };
    let is = |step: &Value, name: &str| step.get("type").and_then(Value::as_str) == Some(name);
    let any = |name: &str| steps.iter().any(|step| is(step, name));
    if any("ByteLevel") {
        return Ok(Spelling::ByteLevel);
    }
    if any("ByteFallback") || any("Metaspace") {
        let strips = steps.iter().any(|step| {
            let strip = is(step, "Strip") && step.get("start").and_then(Value::as_u64).unwrap_or(0) > 0;
            strip || (is(step, "Metaspace") && step.get("prepend_scheme").and_then(Value::as_str) != Some("never"))
        });
        return Ok(Spelling::SentencePiece { space_prefix: strips });
    }
    let found = steps.iter().filter_map(|step| step.get("type").and_then(Value::as_str)).collect::<Vec<_>>().join(", ");
    Err(TokenizerError::Unknown {
        key: "the decoder of tokenizer.json",
        found: if found.is_empty() { "missing".to_owned() } else { found },
        known: "ByteLevel, ByteFallback and Metaspace",
    })
}
