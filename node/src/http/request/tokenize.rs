//! The bodies of `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use relevo_wire::TokenId;
use serde_json::json;

use super::completion::token_ids;
use super::fields::{Field, Fields, check_array, parse_object};
use super::{Planner, chat, sampling as s};
use crate::http::api_error::ApiError;

/// Longest text; the body's own limit is below.
const MAX_TEXT_CHARS: usize = 1 << 24;

/// Most tokens to decode.
const MAX_TOKENS: usize = 1 << 22;

const PROMPT: Field = Field::text("prompt", MAX_TEXT_CHARS, "The text; either this or `messages`.");
const MESSAGES: Field = Field::structured(
    "messages",
    || json!({"type": "array", "items": {"type": "object"}}),
    "A conversation, as in chat.",
);
const ADD_SPECIAL_TOKENS: Field = Field::boolean(
    "add_special_tokens",
    "Add what begins a document. Default true for `prompt`, false for `messages`.",
);
const ADD_GENERATION_PROMPT: Field =
    Field::boolean("add_generation_prompt", "End a conversation with the head of the answer. Default true.");
const RETURN_TOKEN_STRS: Field =
    Field::boolean("return_token_strs", "Give the texts of the tokens too. Default false.");
const TOKENS: Field = Field::structured(
    "tokens",
    || json!({"type": "array", "items": {"type": "integer", "minimum": 0}}),
    "The token ids.",
);

/// All fields of `POST /tokenize`.
pub(in crate::http) const TOKENIZE_FIELDS: &[&[&Field]] =
    &[&[&s::MODEL, &PROMPT, &MESSAGES, &ADD_SPECIAL_TOKENS, &ADD_GENERATION_PROMPT, &RETURN_TOKEN_STRS]];

/// All fields of `POST /detokenize`.
pub(in crate::http) const DETOKENIZE_FIELDS: &[&[&Field]] = &[&[&s::MODEL, &TOKENS]];

/// What `POST /tokenize` answers.
#[derive(Debug)]
pub(in crate::http) struct TokenizePlan {
    /// The tokens.
    pub(in crate::http) tokens: Vec<TokenId>,
    /// Whether their texts are wanted.
    pub(in crate::http) with_names: bool,
}

impl Planner<'_> {
    /// Tokenises what a body holds.
    pub(in crate::http) fn tokenize(&self, body: &[u8]) -> Result<TokenizePlan, ApiError> {
        let map = parse_object(body)?;
        let fields = Fields::new(&map, TOKENIZE_FIELDS, "")?;
        self.model.check_name(fields.text(&s::MODEL))?;
        let add_special = fields.boolean(&ADD_SPECIAL_TOKENS);
        let tokens = match (fields.text(&PROMPT), fields.value(&MESSAGES)) {
            (Some(_), Some(_)) => {
                let message = "Only one of 'prompt' and 'messages' may be set.";
                return Err(ApiError::invalid(MESSAGES.name, "invalid_parameter_combination", message));
            }
            (None, Some(messages)) => {
                let messages = chat::messages(messages, MESSAGES.name)?;
                let words = self.words(MESSAGES.name)?;
                let text = words.render(&messages, fields.boolean(&ADD_GENERATION_PROMPT).unwrap_or(true))?;
                if add_special.unwrap_or(false) { words.encode_prompt(&text)? } else { words.encode(&text)? }
            }
            (_, None) => {
                fields.required(&PROMPT)?;
                let prompt = fields.text(&PROMPT).unwrap_or_default();
                let words = self.words(PROMPT.name)?;
                if add_special.unwrap_or(true) { words.encode_prompt(prompt)? } else { words.encode(prompt)? }
            }
        };
        Ok(TokenizePlan { tokens, with_names: fields.boolean(&RETURN_TOKEN_STRS).unwrap_or(false) })
    }

    /// The text of a body's tokens.
    pub(in crate::http) fn detokenize(&self, body: &[u8]) -> Result<String, ApiError> {
        let map = parse_object(body)?;
        let fields = Fields::new(&map, DETOKENIZE_FIELDS, "")?;
        self.model.check_name(fields.text(&s::MODEL))?;
        let value = fields.required(&TOKENS)?;
        if value.as_array().is_some_and(Vec::is_empty) {
            return Ok(String::new());
        }
        let items = check_array(value, MAX_TOKENS, TOKENS.name)?;
        let tokens = token_ids(items, self.model.vocab_size, TOKENS.name)?;
        Ok(self.words(TOKENS.name)?.decode(&tokens))
    }
}
