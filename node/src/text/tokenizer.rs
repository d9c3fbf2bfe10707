//! The tokenizer of a model, whichever file it came from.

use relevo_gpu::weights::TokenizerSource;
use relevo_wire::TokenId;

use super::byte_vocabulary;
use super::encoder::{Encoder, without_panic};
use super::token_table::TokenTable;
use super::vocabulary::{self, Parts};

/// Text to ids and back.
pub struct Tokenizer {
    encoder: Encoder,
    table: TokenTable,
    /// Ids that go around a prompt, where the vocabulary says so and the encoder does not do it.
    around: Around,
}

/// What the model wants before and after a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Around {
    pub(super) before: Option<TokenId>,
    pub(super) after: Option<TokenId>,
}

/// How the text of special tokens (`<|im_end|>`) within a text is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialText {
    /// As the tokens: for a rendered chat template, and for prompts as every server takes them.
    Parsed,
    /// As the letters that it consists of.
    Plain,
}

/// What special tokens decode to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// To their text.
    Shown,
    /// To nothing.
    Skipped,
}

/// A token by itself, as log-probabilities show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPiece<'a> {
    /// Its bytes: not always whole characters.
    pub bytes: &'a [u8],
    /// Whether it steers the model and is not shown in answers.
    pub is_special: bool,
}

impl TokenPiece<'_> {
    /// Its text; U+FFFD where it holds half a character.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes).into_owned()
    }
}

/// Why there is no tokenizer, or no ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// The file has a kind of tokenizer that is not known.
    #[error("{key} is {found}, known are {known}; the model can be served with token ids only")]
    Unknown {
        /// What says so.
        key: &'static str,
        /// What it says.
        found: String,
        /// What is known.
        known: &'static str,
    },
    /// The tokenizer's parts contradict each other.
    #[error("the model's tokenizer is damaged: {reason}")]
    Damaged {
        /// What the library says.
        reason: String,
    },
    /// The text could not be encoded.
    #[error("the text cannot be tokenised: {reason}")]
    Encode {
        /// What the library says.
        reason: String,
    },
}

impl Tokenizer {
    /// Makes the tokenizer that a model's files describe.
    ///
    /// # Errors
    /// The file's fault: a kind that is not known, or parts that contradict each other.
    pub fn open(source: &TokenizerSource) -> Result<Self, TokenizerError> {
        let made = without_panic(|| match source {
            TokenizerSource::Gguf(vocabulary) => vocabulary::from_gguf(vocabulary),
            TokenizerSource::HuggingFace(files) => vocabulary::from_hugging_face(files),
        });
        let parts = made.unwrap_or_else(|reason| Err(TokenizerError::Damaged { reason }))?;
        Ok(Self::of_parts(parts))
    }

    /// A tokenizer whose tokens are bytes, up to `vocab_size`, at least [`super::BYTE_VOCABULARY`], filled up with words.
    pub fn of_bytes(vocab_size: u32) -> Self {
        Self::of_parts(byte_vocabulary::parts(vocab_size))
    }

    fn of_parts(parts: Parts) -> Self {
        Self { encoder: parts.encoder, table: parts.table, around: parts.around }
    }

    /// The ids of a text, with nothing put around it.
    ///
    /// # Errors
    /// The model's fault: a vocabulary without a token for some text.
    pub fn encode(&self, text: &str, special: SpecialText) -> Result<Vec<TokenId>, TokenizerError> {
        // Without a special token's text in it there is no difference, and the plain encoder costs memory.
        let mentioned = special == SpecialText::Plain && self.table.mentions_special(text);
        self.encoder.encode(text, if mentioned { SpecialText::Plain } else { SpecialText::Parsed }, false)
    }

    /// The ids of a prompt, with what the model wants around it (often a begin-of-sequence token).
    ///
    /// A rendered chat template is not such a prompt: it has those tokens in its text; see [`Tokenizer::encode`].
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let ids = self.encoder.encode(text, SpecialText::Parsed, true)?;
        let Around { before, after } = self.around;
        Ok(before.into_iter().chain(ids).chain(after).collect())
    }

    /// The text of a whole sequence; the inverse of [`Tokenizer::encode`]. U+FFFD stands for bytes that are no character, and
    /// nothing for ids beyond the vocabulary.
    pub fn decode(&self, ids: &[TokenId], special: SpecialTokens) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.shown_bytes(id, special)).copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let prefix = if self.table.has_space_prefix() { " " } else { "" };
        text.strip_prefix(prefix).unwrap_or(&text).to_owned()
    }

    /// A token by itself, if the vocabulary has it.
    pub fn token(&self, id: TokenId) -> Option<TokenPiece<'_>> {
        self.table.piece(id)
    }

    /// Ids are below this.
    pub const fn num_tokens(&self) -> usize {
        self.table.num_tokens()
    }

    /// The bytes that a token contributes to a text.
    pub(super) fn shown_bytes(&self, id: TokenId, special: SpecialTokens) -> &[u8] {
        match self.table.piece(id) {
            Some(piece) if !(piece.is_special && special == SpecialTokens::Skipped) => piece.bytes,
            _ => &[],
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("num_tokens", &self.num_tokens()).finish_non_exhaustive()
    }
}
