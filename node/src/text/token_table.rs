//! The bytes of each token, so that decoding is a copy.

use relevo_wire::TokenId;

use super::tokenizer::TokenPiece;

/// How a vocabulary writes bytes as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's: each byte is a printable character, a space is `Ġ`.
    ByteLevel,
    /// SentencePiece's: `▁` is a space, `<0x0A>` a byte. With `space_prefix`, encoding puts a space before the text.
    SentencePiece { space_prefix: bool },
}

/// All tokens' bytes, one after the other.
#[derive(Debug)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<usize>,
    /// Sorted.
    special: Vec<TokenId>,
    /// Sorted texts of special tokens, grouped by their first byte; short.
    special_texts: Vec<Vec<u8>>,
    spelling: Spelling,
}

/// A token as it is spelled in a vocabulary.
pub(super) struct Spelled<'a> {
    pub(super) text: &'a str,
    /// Added to the vocabulary as it reads, not spelled in bytes.
    pub(super) is_verbatim: bool,
    pub(super) is_special: bool,
}

impl TokenTable {
    /// `tokens` in the order of their ids, `None` where an id is not used.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = Option<Spelled<'a>>>, spelling: Spelling) -> Self {
        let mut table =
            Self { bytes: Vec::new(), ends: Vec::new(), special: Vec::new(), special_texts: Vec::new(), spelling };
        for (id, token) in (0..).zip(tokens) {
            if let Some(token) = token {
                table.push(id, &token);
            }
            table.ends.push(table.bytes.len());
        }
        table
    }

    fn push(&mut self, id: TokenId, token: &Spelled<'_>) {
        if token.is_special {
            self.special.push(id);
            if !token.text.is_empty() {
                self.special_texts.push(token.text.as_bytes().to_vec());
            }
        }
        if token.is_verbatim {
            self.bytes.extend(token.text.as_bytes());
            return;
        }
        match self.spelling {
            Spelling::ByteLevel => self.push_byte_level(token.text),
            Spelling::SentencePiece { .. } => match byte_token(token.text) {
                Some(byte) => self.bytes.push(byte),
                None => self.bytes.extend(token.text.replace('▁', " ").as_bytes()),
            },
        }
    }

    /// Text with a character that stands for no byte is taken as it reads, as `tokenizers` does.
    fn push_byte_level(&mut self, text: &str) {
        let start = self.bytes.len();
        for character in text.chars() {
            let Some(byte) = byte_level_byte(character) else {
                self.bytes.truncate(start);
                self.bytes.extend(text.as_bytes());
                return;
            };
            self.bytes.push(byte);
        }
    }

    pub(super) fn piece(&self, id: TokenId) -> Option<TokenPiece<'_>> {
        let index = id as usize;
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |&end| end);
        let bytes = self.bytes.get(start..end)?;
        Some(TokenPiece { bytes, is_special: self.special.binary_search(&id).is_ok() })
    }

    pub(super) const fn num_tokens(&self) -> usize {
        self.ends.len()
    }

    pub(super) const fn has_space_prefix(&self) -> bool {
        matches!(self.spelling, Spelling::SentencePiece { space_prefix: true })
    }

    /// Whether a special token's text occurs in `text`.
    pub(super) fn mentions_special(&self, text: &str) -> bool {
        let text = text.as_bytes();
        (0..text.len()).any(|start| self.special_texts.iter().any(|special| text[start..].starts_with(special)))
    }
}

/// `<0x0A>` as a byte.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte that GPT-2 writes as this character: printable Latin-1 as itself, the 68 others from U+0100 on in ascending order
/// (`bytes_to_unicode` in GPT-2's encoder.py).
fn byte_level_byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        // 0x00 to 0x20.
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        // 0x7F to 0xA0.
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}
