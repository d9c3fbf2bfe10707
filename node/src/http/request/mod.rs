//! From a body to a plan: what the cluster shall generate, with every bound checked before anything is allocated for it.

mod chat;
mod completion;
mod fields;
mod sampling;
mod tokenize;

use std::sync::Arc;

use relevo_wire::{SamplingParams, TokenId};

pub(super) use self::chat::{FIELDS as CHAT_FIELDS, Message};
pub(super) use self::completion::FIELDS as COMPLETION_FIELDS;
use self::fields::Fields;
pub(super) use self::fields::{Field, Kind, all};
pub(super) use self::sampling::StreamOptions;
pub(super) use self::tokenize::{DETOKENIZE_FIELDS, TOKENIZE_FIELDS};
use super::api_error::ApiError;
use super::mint::Mint;
use super::words::Words;
use super::{Limits, ServedModel};

/// Upper bound of `max_tokens`; the context is shorter.
const MAX_TOKENS_BOUND: i64 = i32::MAX as i64;

/// The two bodies that ask for text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// What the cluster shall generate for one body: `prompts.len() * n` sequences.
#[derive(Debug)]
pub(super) struct Plan {
    /// Never empty.
    pub(super) prompts: Vec<Prompt>,
    /// Answers for each prompt.
    pub(super) n: u32,
    /// The same for all; sequences differ by their index.
    pub(super) sampling: SamplingParams,
    /// Ids that end an answer.
    pub(super) stop_ids: Arc<[TokenId]>,
    /// Texts that end an answer.
    pub(super) stop_strings: Vec<String>,
    /// Log-probabilities, with this many alternatives.
    pub(super) top_logprobs: Option<u8>,
    /// Whether the prompt begins the answer.
    pub(super) echo: bool,
    /// Whether tokens are written as `token_id:123`.
    pub(super) tokens_as_ids: bool,
    /// As server-sent events, or in one piece.
    pub(super) stream: Option<StreamOptions>,
}

/// One prompt of a plan.
#[derive(Debug)]
pub(super) struct Prompt {
    /// Never empty.
    pub(super) tokens: Arc<[TokenId]>,
    /// As the client wrote it, or decoded if he wrote token ids and wants it echoed.
    pub(super) text: String,
    /// Most tokens to generate; fits into the context.
    pub(super) max_tokens: u32,
}

/// A prompt as the client wrote it.
enum PromptInput<'a> {
    Text(&'a str),
    Tokens(Vec<TokenId>),
}

/// What a body wants, in the words that chat and completion differ in.
struct Wanted {
    n: Option<i64>,
    max_tokens: Option<i64>,
    top_logprobs: Option<i64>,
    echo: bool,
    /// How errors call the prompt.
    prompt_field: &'static str,
}

/// Makes plans: what a body is checked against.
pub(super) struct Planner<'a> {
    pub(super) model: &'a ServedModel,
    pub(super) mint: &'a Mint,
    pub(super) limits: &'a Limits,
    /// Bytes of the model's longest token.
    pub(super) longest_token: usize,
}

impl Planner<'_> {
    /// Makes a plan of a body.
    pub(super) fn read(&self, format: Format, body: &[u8]) -> Result<Plan, ApiError> {
        match format {
            Format::Chat => chat::plan(body, self),
            Format::Completion => completion::plan(body, self),
        }
    }

    /// Refuses what would make more sequences than one request may.
    fn check_num_sequences(&self, num_prompts: usize, wanted: &Wanted) -> Result<u32, ApiError> {
        let n = wanted.n.unwrap_or(1);
        let limit = self.limits.max_sequences;
        let num_sequences = usize::try_from(n).unwrap_or(usize::MAX).saturating_mul(num_prompts);
        if num_sequences > limit {
            return Err(ApiError::invalid(
                if num_prompts > 1 { wanted.prompt_field } else { "n" },
                "too_many_sequences",
                format!(
                    "This request asks for {num_sequences} answers ({num_prompts} prompts, {n} each), at most {limit} are \
                     served at a time. Please send several requests."
                ),
            ));
        }
        Ok(u32::try_from(n).unwrap_or(1))
    }

    fn words(&self, param: &str) -> Result<Words<'_>, ApiError> {
        Words::of(self.model).ok_or_else(|| {
            ApiError::invalid(
                param,
                "no_tokenizer",
                format!("Invalid '{param}': this model has no tokenizer; it takes prompts as token ids only."),
            )
        })
    }

    /// Refuses a text that no tokenising can fit into the context, before time is spent on it.
    fn check_text_length(&self, text: &str, param: &str) -> Result<(), ApiError> {
        let least_tokens = text.len() / self.longest_token;
        if least_tokens > self.model.max_context {
            return Err(ApiError::context_length(self.model.max_context, least_tokens, 0, param));
        }
        Ok(())
    }

    /// The tokens of a conversation in the words of the model's template.
    fn chat_prompt(&self, messages: &[Message]) -> Result<(Vec<TokenId>, String), ApiError> {
        let text = self.words("messages")?.render(messages, true)?;
        self.check_text_length(&text, "messages")?;
        let tokens = self.words("messages")?.encode(&text)?;
        Ok((tokens, text))
    }

    fn completion_prompt(&self, input: PromptInput<'_>, path: &str) -> Result<(Vec<TokenId>, String), ApiError> {
        match input {
            PromptInput::Text(text) => {
                self.check_text_length(text, path)?;
                Ok((self.words(path)?.encode_prompt(text)?, text.to_owned()))
            }
            PromptInput::Tokens(tokens) => {
                let text = Words::of(self.model).map_or_else(String::new, |words| words.decode(&tokens));
                Ok((tokens, text))
            }
        }
    }

    fn plan(
        &self,
        fields: &Fields<'_>,
        wanted: Wanted,
        prompts: Vec<(Vec<TokenId>, String)>,
    ) -> Result<Plan, ApiError> {
        let n = self.check_num_sequences(prompts.len(), &wanted)?;
        let stop_strings = sampling::stop_strings(fields)?;
        if !stop_strings.is_empty() {
            self.words("stop")?;
        }
        let ignore_eos = fields.boolean(&sampling::IGNORE_EOS).unwrap_or(false);
        let prompts: Result<Vec<_>, _> =
            prompts.into_iter().map(|(tokens, text)| self.prompt(tokens, text, &wanted)).collect();
        Ok(Plan {
            prompts: prompts?,
            n,
            sampling: sampling::sampling(fields, self.mint, self.model.vocab_size)?,
            stop_ids: if ignore_eos { Arc::from([]) } else { Arc::clone(&self.model.end_ids) },
            stop_strings,
            top_logprobs: wanted.top_logprobs.map(|top| u8::try_from(top).unwrap_or(0)),
            echo: wanted.echo,
            // A model without a tokenizer has no other names for its tokens.
            tokens_as_ids: self.model.text.tokenizer.is_none()
                || fields.boolean(&sampling::RETURN_TOKENS_AS_TOKEN_IDS).unwrap_or(false),
            stream: sampling::stream_options(fields)?,
        })
    }

    /// Refuses a prompt that does not leave room for its answer in the context.
    fn prompt(&self, mut tokens: Vec<TokenId>, text: String, wanted: &Wanted) -> Result<Prompt, ApiError> {
        if tokens.is_empty() {
            // As OpenAI: an empty prompt is the beginning of a document.
            let start = self.model.start_id.or(self.model.end_ids.first().copied());
            tokens.push(start.ok_or_else(|| {
                let message = format!("Invalid '{0}': the prompt has no tokens.", wanted.prompt_field);
                ApiError::invalid(wanted.prompt_field, "empty_prompt", message)
            })?);
        }
        let max_context = self.model.max_context;
        let rest = max_context.saturating_sub(tokens.len());
        let asked = wanted.max_tokens.map(|asked| usize::try_from(asked).unwrap_or(usize::MAX));
        // Without a wish there must be room for one token.
        if asked.unwrap_or(1) > rest {
            return Err(ApiError::context_length(max_context, tokens.len(), asked.unwrap_or(1), wanted.prompt_field));
        }
        let max_tokens = u32::try_from(asked.unwrap_or(rest)).unwrap_or(u32::MAX);
        Ok(Prompt { tokens: tokens.into(), text, max_tokens })
    }
}
