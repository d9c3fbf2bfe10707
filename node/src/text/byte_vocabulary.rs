//! The text of a scripted model: a tokenizer whose first tokens are the 256 bytes, and a template that shows who says what.

use relevo_wire::TokenId;

use super::SpecialText;
use super::encoder::Encoder;
use super::token_table::{Spelled, Spelling, TokenTable};
use super::tokenizer::Around;
use super::vocabulary::Parts;

/// Ids of bytes and edges: the smallest vocabulary.
pub const BYTE_VOCABULARY: u32 = 258;

/// Begins a document.
pub const BYTE_START: TokenId = 256;

/// Ends a generation.
pub const BYTE_END: TokenId = 257;

/// Texts of the edges.
pub(super) const EDGES: [&str; 2] = ["<|start|>", "<|end|>"];

/// A line for each message, then the beginning of the answer's.
pub(super) const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";

/// Bytes, edges, and beyond them words that no text is encoded to, ` t258` and so on.
pub(super) fn parts(vocab_size: u32) -> Parts {
    let texts = (0..vocab_size).map(|id| match id {
        0..=255 => (format!("<0x{id:02X}>"), false),
        BYTE_START => (EDGES[0].to_owned(), true),
        BYTE_END => (EDGES[1].to_owned(), true),
        _ => (format!(" t{id}"), false),
    });
    let texts: Vec<(String, bool)> = texts.collect();
    let spelled = texts
        .iter()
        .zip(0..)
        .map(|((text, is_special), id)| Some(Spelled { text, is_verbatim: id >= BYTE_START, is_special: *is_special }));
    let table = TokenTable::new(spelled, Spelling::SentencePiece { space_prefix: false });
    Parts { encoder: Encoder::Bytes, table, around: Around::default() }
}

/// The ids of a text: its bytes, and the edges where they are written out.
pub(super) fn encode(text: &str, special: SpecialText) -> Vec<TokenId> {
    if special == SpecialText::Plain {
        return text.bytes().map(TokenId::from).collect();
    }
    let mut ids = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("<|") {
        let (before, from) = rest.split_at(at);
        ids.extend(before.bytes().map(TokenId::from));
        let edge = EDGES.iter().zip([BYTE_START, BYTE_END]).find_map(|(edge, id)| Some((from.strip_prefix(edge)?, id)));
        rest = match edge {
            Some((after, id)) => {
                ids.push(id);
                after
            }
            None => {
                ids.extend(b"<|".map(TokenId::from));
                &from[2..]
            }
        };
    }
    ids.extend(rest.bytes().map(TokenId::from));
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{ModelText, SpecialTokens};

    #[test]
    fn bytes_edges_and_words_have_their_ids() {
        let text = ModelText::of_bytes(300).unwrap();
        let tokenizer = text.tokenizer.unwrap();
        assert_eq!(tokenizer.num_tokens(), 300);
        let parsed = tokenizer.encode("é<|x<|end|><|start|><|", SpecialText::Parsed).unwrap();
        assert_eq!(parsed, [0xc3, 0xa9, 0x3c, 0x7c, 0x78, BYTE_END, BYTE_START, 0x3c, 0x7c]);
        assert_eq!(tokenizer.encode_prompt("a").unwrap(), [0x61]);
        let plain = tokenizer.encode("<|end|>", SpecialText::Plain).unwrap();
        assert_eq!(plain, b"<|end|>".map(TokenId::from));
        let all: Vec<TokenId> = (0x20..0x7f).chain([0xc3, 0xa9, 256, 257, 258, 299]).collect();
        let printable: String = (' '..='~').collect();
        assert_eq!(tokenizer.decode(&all, SpecialTokens::Skipped), format!("{printable}é t258 t299"));
        assert_eq!(tokenizer.decode(&all[97..99], SpecialTokens::Shown), "<|start|><|end|>");
    }

    #[test]
    fn every_byte_goes_there_and_back() {
        let tokenizer = ModelText::of_bytes(BYTE_VOCABULARY).unwrap().tokenizer.unwrap();
        for id in 0..256 {
            assert_eq!(tokenizer.token(id).unwrap().bytes, [u8::try_from(id).unwrap()]);
        }
        let text = "▁ line\r\n\ttab \0 日本 🙂";
        let ids = tokenizer.encode(text, SpecialText::Parsed).unwrap();
        assert_eq!((ids.len(), tokenizer.decode(&ids, SpecialTokens::Shown).as_str()), (text.len(), text));
    }
}
