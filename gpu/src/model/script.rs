//! What a [`super::ScriptedModel`] says: each next token by a formula or a list of answers, out of the prompt and what was generated so far.
//!
//! **Invariant:** a token depends on the request alone (its prompt, its seed, its choice, the tokens before), so that a replay on another device
//! goes on with the same answer.

use relevo_wire::TokenId;

use super::scripted::mix;
use crate::compute::SampleRow;

/// What the scripted token leads all others by: more than any temperature up to 2 lets another one catch up with (masses end at a lead of 21.5
/// times the temperature), less than a bias of -100 takes back.
const LEAD: f32 = 64.0;

/// Tokens by rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// Which rule.
    pub tokens: ScriptedTokens,
    /// Ids that mark begin and end of a sequence. Without them every id is like every other, and nothing ends by itself.
    pub edges: Option<ScriptedEdges>,
    /// The end of sequence comes after this many tokens.
    pub end_after: Option<u32>,
}

/// Where tokens come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ScriptedTokens {
    /// Out of every byte of the context's KV blocks: what is lost or damaged shows at once. Temperature and its like apply.
    #[default]
    Hash,
    /// The prompt's tokens in turn, over and over.
    Echo,
    /// One of these answers, token by token, and then the end of sequence; over and over for a request that goes on after it.
    Answers {
        /// The answers; none are as good as one that is empty.
        answers: Vec<Vec<TokenId>>,
        /// Which of them.
        choice: AnswerChoice,
    },
}

/// Which answer a request gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerChoice {
    /// By the hash of its prompt; the further choices of a request get those that follow.
    #[default]
    Prompt,
    /// The one whose number, counted from 0, its seed is, modulo how many there are; further choices get those that follow.
    Seed,
}

/// Ids that a script does not say but where a sequence ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScriptedEdges {
    /// Begins a document.
    pub start: TokenId,
    /// Ends a generation.
    pub end: TokenId,
}

/// What a row is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cue {
    line: Line,
    is_end: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// What its word makes up.
    Hash,
    /// This token.
    Token(TokenId),
    /// Nothing in particular: all tokens are alike.
    Blank,
}

/// A token of the prompt that is read back from the KV blocks before the next one is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recall {
    pub(super) position: usize,
    pub(super) token: TokenId,
}

impl Script {
    /// Whether each row reads its whole context. Where it does not, one token of it is read back for each token said ([`Script::recall`]), so that
    /// large blocks cost no more than their writing.
    pub(super) const fn reads_context(&self) -> bool {
        matches!(self.tokens, ScriptedTokens::Hash)
    }

    /// What is to be said after these tokens; without any, a row whose probabilities alone are asked for.
    pub(super) fn cue(&self, sample: Option<&SampleRow<'_>>) -> Cue {
        let Some(sample) = sample else {
            let line = if self.reads_context() { Line::Hash } else { Line::Blank };
            return Cue { line, is_end: false };
        };
        let index = sample.generated.len();
        let is_last = self.end_after.is_some_and(|after| after as usize == index);
        let (line, ends) = match &self.tokens {
            ScriptedTokens::Hash => (Line::Hash, false),
            ScriptedTokens::Echo => (Line::in_turn(sample.prompt, index), false),
            ScriptedTokens::Answers { answers, choice } => {
                let answer = choice.of(answers, sample);
                let place = if self.edges.is_some() { index % (answer.len() + 1) } else { index };
                (Line::in_turn(answer, place), place == answer.len())
            }
        };
        Cue { line, is_end: self.edges.is_some() && (ends || is_last) }
    }

    /// The token to be read back before the next one is said: the prompt's in turn.
    pub(super) fn recall(&self, sample: &SampleRow<'_>) -> Option<Recall> {
        if self.reads_context() {
            return None;
        }
        let position = sample.generated.len().checked_rem(sample.prompt.len())?;
        Some(Recall { position, token: *sample.prompt.get(position)? })
    }

    /// Logits that make a row say its cue. `damage`: other than 0 if a token was not read back as it was stored; then another one is said.
    pub(super) fn fill_logits(&self, cue: &Cue, word: u64, damage: u64, vocab_size: usize, logits: &mut Vec<f32>) {
        logits.clear();
        match cue.line {
            Line::Hash => {
                logits.extend((0..vocab_size as u64).map(|token| logit(mix(word, token))));
                if let Some(ScriptedEdges { start, end }) = self.edges {
                    raise(logits, start, -LEAD);
                    raise(logits, end, -LEAD);
                }
            }
            Line::Token(token) => {
                logits.resize(vocab_size, 0.0);
                raise(logits, another(token, damage, vocab_size), LEAD);
            }
            Line::Blank => logits.resize(vocab_size, 0.0),
        }
        if let Some(ScriptedEdges { end, .. }) = self.edges.filter(|_| cue.is_end && damage == 0) {
            raise(logits, end, 2.0 * LEAD);
        }
    }
}

impl AnswerChoice {
    fn of<'a>(self, answers: &'a [Vec<TokenId>], sample: &SampleRow<'_>) -> &'a [TokenId] {
        let number = match self {
            Self::Prompt => sample.prompt.iter().fold(0, |hash, token| mix(hash, u64::from(*token))),
            Self::Seed => sample.params.seed,
        };
        let number = number.wrapping_add(u64::from(sample.choice)).checked_rem(answers.len() as u64);
        number.and_then(|number| answers.get(number as usize)).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Line {
    fn in_turn(tokens: &[TokenId], index: usize) -> Self {
        let token = index.checked_rem(tokens.len()).and_then(|index| tokens.get(index));
        token.map_or(Self::Blank, |token| Self::Token(*token))
    }
}

fn raise(logits: &mut [f32], token: TokenId, logit: f32) {
    if let Some(slot) = logits.get_mut(token as usize) {
        *slot = logit;
    }
}

/// The token itself, or one that is certainly not it.
fn another(token: TokenId, damage: u64, vocab_size: usize) -> TokenId {
    match damage.checked_rem((vocab_size as u64).saturating_sub(1)) {
        Some(shift) if damage != 0 => ((u64::from(token) + 1 + shift) % vocab_size as u64) as TokenId,
        _ => token,
    }
}

/// A number in [0, 16) of a word: the best of a vocabulary leads by about as much as a real model's.
fn logit(word: u64) -> f32 {
    (word >> 40) as f32 * (16.0 / (1 << 24) as f32)
}
