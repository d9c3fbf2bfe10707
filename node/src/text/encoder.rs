//! What turns text into ids: the crate `tokenizers`, our own SentencePiece, or nothing at all.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Once, OnceLock};

use relevo_wire::TokenId;

use super::sentence_piece::SentencePiece;
use super::{SpecialText, TokenizerError, byte_vocabulary};

/// A way to encode.
pub(super) enum Encoder {
    /// BPE with a list of merges.
    Library {
        /// Takes special tokens in the text for what they are.
        parsing: Box<tokenizers::Tokenizer>,
        /// Takes them as plain text; made when it is first needed, since it copies the vocabulary.
        plain: OnceLock<Box<tokenizers::Tokenizer>>,
    },
    /// BPE with scores.
    SentencePiece(SentencePiece),
    /// Each byte is a token.
    Bytes,
}

impl Encoder {
    pub(super) fn library(parsing: tokenizers::Tokenizer) -> Self {
        Self::Library { parsing: Box::new(parsing), plain: OnceLock::new() }
    }

    /// Encodes. `around`: with what the library's own post-processor puts around a prompt.
    pub(super) fn encode(
        &self,
        text: &str,
        special: SpecialText,
        around: bool,
    ) -> Result<Vec<TokenId>, TokenizerError> {
        match (self, special) {
            (Self::SentencePiece(pieces), _) => Ok(pieces.encode(text, special)),
            (Self::Bytes, _) => Ok(byte_vocabulary::encode(text, special)),
            (Self::Library { parsing, .. }, SpecialText::Parsed) => run(parsing, text, around),
            (Self::Library { parsing, plain }, SpecialText::Plain) => {
                let plain = plain.get_or_init(|| {
                    let mut plain = parsing.clone();
                    plain.set_encode_special_tokens(true);
                    plain
                });
                run(plain, text, around)
            }
        }
    }
}

fn run(library: &tokenizers::Tokenizer, text: &str, around: bool) -> Result<Vec<TokenId>, TokenizerError> {
    let encoded = without_panic(|| library.encode_fast(text, around));
    let encoding = encoded.and_then(|result| result.map_err(|error| error.to_string()));
    encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(|reason| TokenizerError::Encode { reason })
}

thread_local! {
    /// Calls of [`without_panic`] that this thread is in.
    static MUFFLED: Cell<usize> = const { Cell::new(0) };
}

/// Calls the library, which indexes and unwraps on what tokenizer.json says: a damaged file must not end the process, and what it is
/// damaged by is said once, by the error. Panics elsewhere are reported as ever.
pub(super) fn without_panic<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if MUFFLED.get() == 0 {
                report(info);
            }
        }));
    });
    MUFFLED.set(MUFFLED.get() + 1);
    let called = panic::catch_unwind(AssertUnwindSafe(call));
    MUFFLED.set(MUFFLED.get() - 1);
    called.map_err(|panic| panic_text(&*panic))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_muffled_where_they_are_caught_and_nowhere_else() {
        assert_eq!(MUFFLED.get(), 0);
        let inner = without_panic(|| (MUFFLED.get(), without_panic(|| panic!("inner {}", 1)), MUFFLED.get()));
        assert_eq!(inner, Ok((1, Err::<(), _>("inner 1".to_owned()), 1)));
        assert_eq!(without_panic(|| -> u8 { panic!("outer") }), Err("outer".to_owned()));
        assert_eq!(MUFFLED.get(), 0);
    }
}
