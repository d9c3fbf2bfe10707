//! The body of `POST /v1/completions`.

use relevo_wire::TokenId;
use serde_json::{Value, json};

use super::fields::{Field, check_array, check_integer, check_text, parse_object, wrong_type};
use super::{MAX_TOKENS_BOUND, Plan, Planner, PromptInput, Wanted, sampling as s};
use crate::http::api_error::ApiError;

/// Longest prompt text; the body's own limit is below.
const MAX_PROMPT_CHARS: usize = 1 << 24;

/// Longest list of token ids or prompts; what is too long for the context or for one request is said by those limits.
const MAX_PROMPT_ITEMS: usize = 1 << 22;

const PROMPT: Field = Field::structured(
    "prompt",
    || {
        let ids = json!({"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}});
        json!({"anyOf": [
            {"type": "string"},
            {"type": "array", "minItems": 1, "items": {"type": "string"}},
            ids,
            {"type": "array", "minItems": 1, "items": ids},
        ]})
    },
    "What to continue: a text, a list of token ids, or a list of either.",
);
const MAX_TOKENS: Field = Field::integer(
    "max_tokens",
    0,
    MAX_TOKENS_BOUND,
    "Most tokens of an answer; 0 with `echo` gives the prompt alone. Default: the rest of the context.",
);
const LOGPROBS: Field =
    Field::integer("logprobs", 0, 5, "Give the tokens' log-probabilities, and this many alternatives to each.");
const ECHO: Field = Field::boolean("echo", "Begin the answer with the prompt. Default false.");

/// All fields of the body.
pub(in crate::http) const FIELDS: &[&[&Field]] = &[s::SHARED_FIELDS, OWN_FIELDS];

const OWN_FIELDS: &[&Field] = &[
    &PROMPT,
    &MAX_TOKENS,
    &LOGPROBS,
    &ECHO,
    &Field::not_yet_unless("best_of", "values other than 1 are", |value| value == 1),
    &Field::not_yet_unless("suffix", "insertion before a suffix is", |value| value == ""),
];

/// Makes a plan of the body.
pub(in crate::http) fn plan(body: &[u8], planner: &Planner<'_>) -> Result<Plan, ApiError> {
    let map = parse_object(body)?;
    let fields = s::checked_fields(&map, FIELDS, planner)?;
    let wanted = Wanted {
        n: fields.integer(&s::N),
        max_tokens: fields.integer(&MAX_TOKENS),
        top_logprobs: fields.integer(&LOGPROBS),
        echo: fields.boolean(&ECHO).unwrap_or(false),
        prompt_field: PROMPT.name,
    };
    let path = fields.path(&PROMPT);
    let inputs = prompts(fields.required(&PROMPT)?, planner.model.vocab_size, &path)?;
    planner.check_num_sequences(inputs.len(), &wanted)?;
    let prompts: Result<Vec<_>, _> = inputs.into_iter().map(|input| planner.completion_prompt(input, &path)).collect();
    planner.plan(&fields, wanted, prompts?)
}

/// The four shapes of a prompt.
fn prompts<'a>(value: &'a Value, vocab_size: u32, path: &str) -> Result<Vec<PromptInput<'a>>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![PromptInput::Text(text)]),
        Value::Array(_) => check_array(value, MAX_PROMPT_ITEMS, path)?,
        other => return Err(wrong_type(path, "a string or an array", other)),
    };
    let item_path = |index: usize| format!("{path}[{index}]");
    match items.first() {
        Some(Value::Number(_)) => Ok(vec![PromptInput::Tokens(token_ids(items, vocab_size, path)?)]),
        Some(Value::String(_)) => items
            .iter()
            .enumerate()
            .map(|(index, item)| Ok(PromptInput::Text(check_text(item, MAX_PROMPT_CHARS, &item_path(index))?)))
            .collect(),
        Some(Value::Array(_)) => items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                let path = item_path(index);
                Ok(PromptInput::Tokens(token_ids(check_array(item, MAX_PROMPT_ITEMS, &path)?, vocab_size, &path)?))
            })
            .collect(),
        Some(other) => Err(wrong_type(&item_path(0), "a string, an integer or an array of integers", other)),
        None => Ok(Vec::new()),
    }
}

/// A list of token ids of the vocabulary.
pub(super) fn token_ids(items: &[Value], vocab_size: u32, path: &str) -> Result<Vec<TokenId>, ApiError> {
    let max = i64::from(vocab_size) - 1;
    let mut ids = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let id = match item.as_u64().and_then(|id| TokenId::try_from(id).ok()).filter(|&id| id < vocab_size) {
            Some(id) => id,
            None => TokenId::try_from(check_integer(item, 0, max, &format!("{path}[{index}]"))?).unwrap_or_default(),
        };
        ids.push(id);
    }
    Ok(ids)
}
