//! An answer's text, as its tokens come.

use std::sync::Arc;

use relevo_wire::TokenId;

use super::{SpecialTokens, StopStrings, Tokenizer};

/// Turns tokens into text, piece by piece: never half a character, never part of a stop string.
///
/// The pieces of all [`TextStream::push`]es and of [`TextStream::finish`] together are the decoded text, up to the first stop
/// string if one occurs. A leading space that SentencePiece would drop at the beginning of a text stays: an answer continues
/// its prompt.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    special: SpecialTokens,
    stops: StopStrings,
    /// The beginning of a character whose rest has not come.
    half: Vec<u8>,
    /// Text that may turn out to be the beginning of a stop.
    held: String,
    stopped: bool,
}

/// What a token added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamedText {
    /// Text that can be shown now; may be empty.
    pub text: String,
    /// A stop string is complete: `text` ends before it and nothing more will come.
    pub stopped: bool,
}

impl TextStream {
    /// A stream for one answer.
    pub const fn new(tokenizer: Arc<Tokenizer>, special: SpecialTokens, stops: StopStrings) -> Self {
        Self { tokenizer, special, stops, half: Vec::new(), held: String::new(), stopped: false }
    }

    /// Whole characters that have not been given yet, since a stop may have begun in them.
    pub fn held(&self) -> &str {
        &self.held
    }

    /// Takes the next token. After a stop, tokens change nothing.
    pub fn push(&mut self, id: TokenId) -> StreamedText {
        if self.stopped {
            return StreamedText { text: String::new(), stopped: true };
        }
        self.half.extend(self.tokenizer.shown_bytes(id, self.special));
        take_characters(&mut self.half, &mut self.held);
        self.release()
    }

    /// Takes the end of the answer, and gives what was held back: for a stop that did not come, or as U+FFFD for a character that
    /// stayed incomplete.
    pub fn finish(&mut self) -> StreamedText {
        if self.stopped {
            return StreamedText { text: String::new(), stopped: true };
        }
        self.held.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.half)));
        let mut last = self.release();
        last.text.push_str(&std::mem::take(&mut self.held));
        last
    }

    fn release(&mut self) -> StreamedText {
        if let Some(end) = self.stops.find(&self.held) {
            self.held.truncate(end);
            self.stopped = true;
            return StreamedText { text: std::mem::take(&mut self.held), stopped: true };
        }
        let rest = self.held.split_off(self.stops.held_from(&self.held));
        StreamedText { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }
}

/// Moves whole characters from `bytes` to `text`, and U+FFFD for what cannot become one, as `String::from_utf8_lossy` would for
/// the whole; the beginning of a character at the end stays.
fn take_characters(bytes: &mut Vec<u8>, text: &mut String) {
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = taken + invalid.len() == bytes.len();
        if invalid.is_empty() || (at_end && is_beginning(invalid)) {
            break;
        }
        text.push('\u{FFFD}');
        taken += invalid.len();
    }
    bytes.drain(..taken);
}

/// Whether more bytes can make a character of these.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
