//! The objects of answers, as OpenAI's specification has them: a field absent where it wants absence, null where it wants null.

use std::borrow::Cow;

use relevo_wire::{FinishReason, TokenId};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::choice::Entry;
use super::words::Words;

/// JSON has no infinity: what OpenAI writes for a token that cannot come.
const LEAST_LOGPROB: f32 = -9999.0;

/// `chat.completion`
#[derive(Serialize)]
pub(super) struct ChatCompletion<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: Vec<ChatChoice<'a>>,
    pub(super) usage: Usage,
}

#[derive(Serialize)]
pub(super) struct ChatChoice<'a> {
    pub(super) index: usize,
    pub(super) message: ChatMessage<'a>,
    /// Null if not asked for.
    pub(super) logprobs: Option<ChatLogprobs<'a>>,
    pub(super) finish_reason: FinishReason,
}

#[derive(Serialize)]
pub(super) struct ChatMessage<'a> {
    pub(super) role: &'static str,
    pub(super) content: &'a str,
    /// Required by the specification; this server never refuses.
    pub(super) refusal: Option<()>,
}

/// `chat.completion.chunk`
#[derive(Serialize)]
pub(super) struct ChatChunk<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: &'a [ChatChunkChoice<'a>],
    /// With `include_usage`: null in every chunk but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
pub(super) struct ChatChunkChoice<'a> {
    pub(super) index: usize,
    pub(super) delta: ChatDelta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logprobs: Option<ChatLogprobs<'a>>,
    pub(super) finish_reason: Option<FinishReason>,
}

#[derive(Default, Serialize)]
pub(super) struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct ChatLogprobs<'a> {
    content: Vec<ChatTokenLogprob<'a>>,
    /// Required by the specification; this server never refuses.
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatTokenLogprob<'a> {
    #[serde(flatten)]
    token: NamedLogprob<'a>,
    top_logprobs: Vec<NamedLogprob<'a>>,
}

#[derive(Serialize)]
struct NamedLogprob<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    bytes: Option<Cow<'a, [u8]>>,
}

/// `text_completion`, in one piece or as a chunk.
#[derive(Serialize)]
pub(super) struct Completion<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) choices: &'a [CompletionChoice<'a>],
    /// In chunks only with `include_usage`: null in every chunk but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
pub(super) struct CompletionChoice<'a> {
    pub(super) index: usize,
    pub(super) text: &'a str,
    /// Null if not asked for.
    pub(super) logprobs: Option<CompletionLogprobs<'a>>,
    pub(super) finish_reason: Option<FinishReason>,
}

/// Four lists of one length; those of an echoed prompt begin with null.
#[derive(Serialize)]
pub(super) struct CompletionLogprobs<'a> {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<Cow<'a, str>>,
    top_logprobs: Vec<Option<TopLogprobs<'a>>>,
}

/// An object from token to log-probability, best first.
struct TopLogprobs<'a>(Vec<(Cow<'a, str>, f32)>);

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) total_tokens: u64,
    pub(super) prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct PromptTokensDetails {
    pub(super) cached_tokens: u64,
}

/// What tokens are called in log-probabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenNames<'a> {
    pub(super) words: Option<Words<'a>>,
    /// Call them `token_id:123`.
    pub(super) as_ids: bool,
}

impl<'a> TokenNames<'a> {
    fn bytes(&self, token: TokenId) -> Option<Cow<'a, [u8]>> {
        self.words.and_then(|words| words.token_bytes(token))
    }

    /// What a token is called.
    pub(super) fn name(&self, token: TokenId) -> Cow<'a, str> {
        match self.bytes(token) {
            Some(bytes) if !self.as_ids => name_of(bytes),
            _ => Cow::Owned(format!("token_id:{token}")),
        }
    }

    fn named(&self, token: TokenId, logprob: f32) -> NamedLogprob<'a> {
        NamedLogprob { token: self.name(token), logprob: logprob.max(LEAST_LOGPROB), bytes: self.bytes(token) }
    }

    /// The log-probabilities of a chat answer's tokens.
    pub(super) fn chat(&self, entries: &[Entry]) -> ChatLogprobs<'a> {
        let content = entries.iter().filter_map(|entry| entry.logprobs.as_ref()).map(|entry| ChatTokenLogprob {
            token: self.named(entry.token, entry.logprob),
            top_logprobs: entry.top.iter().map(|&(token, logprob)| self.named(token, logprob)).collect(),
        });
        ChatLogprobs { content: content.collect(), refusal: None }
    }

    /// The log-probabilities of a completion's tokens.
    pub(super) fn completion(&self, entries: &[Entry]) -> CompletionLogprobs<'a> {
        CompletionLogprobs {
            text_offset: entries.iter().map(|entry| entry.offset).collect(),
            token_logprobs: entries
                .iter()
                .map(|entry| entry.logprobs.as_ref().map(|known| known.logprob.max(LEAST_LOGPROB)))
                .collect(),
            tokens: entries.iter().map(|entry| self.name(entry.token)).collect(),
            top_logprobs: entries.iter().map(|entry| self.top(entry)).collect(),
        }
    }

    /// The best tokens and, as OpenAI does, the one that stands there.
    fn top(&self, entry: &Entry) -> Option<TopLogprobs<'a>> {
        let known = entry.logprobs.as_ref()?;
        let mut top: Vec<_> = Vec::with_capacity(known.top.len() + 1);
        let own = (!known.top.iter().any(|&(token, _)| token == known.token)).then_some((known.token, known.logprob));
        for (token, logprob) in known.top.iter().copied().chain(own) {
            let name = self.name(token);
            // Two tokens may be called the same; the likelier one keeps the name.
            if !top.iter().any(|(known, _)| *known == name) {
                top.push((name, logprob.max(LEAST_LOGPROB)));
            }
        }
        Some(TopLogprobs(top))
    }
}

/// The text of a token, or `bytes:\xf0\x9f` if it is none by itself.
fn name_of(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map_or_else(|_| Cow::Owned(escape(bytes)), Cow::Borrowed),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).unwrap_or_else(|error| escape(error.as_bytes()))),
    }
}

fn escape(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("bytes:"), |text, byte| text + &format!("\\x{byte:02x}"))
}

impl Serialize for TopLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, logprob) in &self.0 {
            map.serialize_entry(name, logprob)?;
        }
        map.end()
    }
}
