//! The text of one answer as its tokens come in. Pure: events in, pieces out.
//!
//! **Invariant:** the pieces' texts joined are the answer; the entries of a piece are the tokens whose text has begun to
//! leave, in order, so that no log-probability betrays text that a stop string cuts away.

use std::collections::VecDeque;
use std::sync::Arc;

use relevo_wire::{FinishReason, TokenId, TokenLogprobs};

use super::words::Words;
use crate::text::{SpecialTokens, TextStream};

/// What leaves at a time. Reused, so that a token costs no allocation.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// Text to append to the answer.
    pub(super) text: String,
    /// Tokens whose text this is, if log-probabilities were asked for.
    pub(super) entries: Vec<Entry>,
    /// Why the answer ends here.
    pub(super) finish: Option<FinishReason>,
}

/// A token of an answer with its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// The token.
    pub(super) token: TokenId,
    /// Characters of the answer before it.
    pub(super) offset: usize,
    /// `None` for the first token of an echoed prompt: nothing comes before it.
    pub(super) logprobs: Option<TokenLogprobs>,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Choice {
    /// `None`: the model has no tokenizer, the answer's text stays empty.
    text: Option<TextStream>,
    stop_ids: Arc<[TokenId]>,
    /// Tokens whose text is held back.
    waiting: VecDeque<Entry>,
    /// Characters that have left.
    released_chars: usize,
    num_tokens: u32,
    /// Tells where the tokens of an echoed prompt stand in its text.
    prompt: Option<TextStream>,
    prompt_chars: usize,
}

/// The prompt as the beginning of an answer.
#[derive(Clone, Debug)]
pub(super) struct Echo {
    /// As the client wrote it.
    pub(super) text: String,
    /// Its first token, if log-probabilities are wanted: it has none, and no event tells it.
    pub(super) first_token: Option<TokenId>,
}

impl Piece {
    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.entries.is_empty() && self.finish.is_none()
    }

    /// Makes it empty, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.entries.clear();
        self.finish = None;
    }
}

impl Choice {
    /// An answer that ends at one of `stop_ids` or `stop_strings`.
    pub(super) fn new(words: Option<Words<'_>>, stop_ids: Arc<[TokenId]>, stop_strings: &[String]) -> Self {
        Self {
            text: words.map(|words| words.stream(SpecialTokens::Skipped, stop_strings)),
            stop_ids,
            waiting: VecDeque::new(),
            released_chars: 0,
            num_tokens: 0,
            prompt: words.map(|words| words.stream(SpecialTokens::Shown, &[])),
            prompt_chars: 0,
        }
    }

    /// Begins the answer with its prompt.
    pub(super) fn echo(&mut self, echo: &Echo, piece: &mut Piece) {
        piece.text.push_str(&echo.text);
        self.released_chars += echo.text.chars().count();
        if let Some(token) = echo.first_token {
            piece.entries.push(Entry { token, offset: 0, logprobs: None });
            self.read_prompt(token);
        }
    }

    /// Log-probabilities of the echoed prompt's next tokens.
    pub(super) fn echo_logprobs(&mut self, logprobs: Vec<TokenLogprobs>, piece: &mut Piece) {
        for known in logprobs {
            let offset = self.prompt_chars + self.prompt.as_ref().map_or(0, |prompt| prompt.held().chars().count());
            let token = known.token;
            self.read_prompt(token);
            piece.entries.push(Entry { token, offset, logprobs: Some(known) });
        }
    }

    fn read_prompt(&mut self, token: TokenId) {
        if let Some(prompt) = &mut self.prompt {
            self.prompt_chars += prompt.push(token).text.chars().count();
        }
    }

    /// Takes in the next token. Sets `piece.finish` if a stop string ends the answer here.
    pub(super) fn push(&mut self, token: TokenId, logprobs: Option<TokenLogprobs>, piece: &mut Piece) {
        self.num_tokens += 1;
        if self.stop_ids.contains(&token) {
            // Not part of the answer; that it ends comes as an event of its own.
            return;
        }
        let Some(text) = &mut self.text else {
            piece.entries.extend(logprobs.map(|known| Entry { token, offset: 0, logprobs: Some(known) }));
            return;
        };
        let offset = self.released_chars + text.held().chars().count();
        let streamed = text.push(token);
        if let Some(known) = logprobs {
            self.waiting.push_back(Entry { token, offset, logprobs: Some(known) });
        }
        self.release(&streamed.text, piece);
        if streamed.stopped {
            self.waiting.clear();
            piece.finish = Some(FinishReason::Stop);
        }
    }

    /// Takes in the end: what was held back leaves.
    pub(super) fn finish(&mut self, reason: FinishReason, piece: &mut Piece) {
        if let Some(text) = &mut self.text {
            let last = text.finish().text;
            self.release(&last, piece);
        }
        piece.entries.extend(self.waiting.drain(..));
        piece.finish = Some(reason);
    }

    /// Tokens taken in.
    pub(super) fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// Lets text go, and the tokens whose text has begun to leave.
    fn release(&mut self, text: &str, piece: &mut Piece) {
        piece.text.push_str(text);
        self.released_chars += text.chars().count();
        while let Some(entry) = self.waiting.pop_front_if(|entry| entry.offset < self.released_chars) {
            piece.entries.push(entry);
        }
    }
}
