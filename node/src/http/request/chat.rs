//! The body of `POST /v1/chat/completions`.

use serde::Serialize;
use serde_json::{Value, json};

use super::fields::{Field, Fields, check_array, check_object, check_text, parse_object, wrong_type, wrong_value};
use super::{MAX_TOKENS_BOUND, Plan, Planner, Wanted, sampling as s};
use crate::http::api_error::ApiError;

/// Longest text of one message part; the body's own limit is below.
const MAX_CONTENT_CHARS: usize = 1 << 24;

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 4096;

/// Most text parts of a message.
const MAX_PARTS: usize = 1024;

const MESSAGES: Field = Field::structured(
    "messages",
    || {
        json!({"type": "array", "minItems": 1, "maxItems": MAX_MESSAGES, "items": {
            "type": "object",
            "required": ["role", "content"],
            "properties": {
                "role": {"type": "string", "enum": ROLES},
                "name": {"type": "string", "maxLength": 64},
                "refusal": {"type": "null"},
                "content": {"anyOf": [
                    {"type": "string"},
                    {"type": "array", "minItems": 1, "maxItems": MAX_PARTS, "items": {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {"type": {"type": "string", "enum": ["text"]}, "text": {"type": "string"}},
                        "additionalProperties": false,
                    }},
                ]},
            },
            "additionalProperties": false,
        }})
    },
    "The conversation so far.",
);
const MAX_TOKENS: Field =
    Field::integer("max_tokens", 1, MAX_TOKENS_BOUND, "Most tokens of an answer. Default: the rest of the context.");
const MAX_COMPLETION_TOKENS: Field = Field::integer(
    "max_completion_tokens",
    1,
    MAX_TOKENS_BOUND,
    "The newer name of `max_tokens`; only one of both may be set.",
);
const LOGPROBS: Field = Field::boolean("logprobs", "Give the log-probabilities of the answer's tokens. Default false.");
const TOP_LOGPROBS: Field =
    Field::integer("top_logprobs", 0, 20, "How many alternatives to give with each token. Only with `logprobs`.");
const RESPONSE_FORMAT: Field =
    Field::not_yet_unless("response_format", "formats other than text are", |value| value == &json!({"type": "text"}));

/// All fields of the body.
pub(in crate::http) const FIELDS: &[&[&Field]] = &[s::SHARED_FIELDS, OWN_FIELDS];

const OWN_FIELDS: &[&Field] = &[
    &MESSAGES,
    &MAX_TOKENS,
    &MAX_COMPLETION_TOKENS,
    &LOGPROBS,
    &TOP_LOGPROBS,
    &s::PARALLEL_TOOL_CALLS,
    &RESPONSE_FORMAT,
    &Field::not_yet_unless("tools", "tool calls are", is_empty_array),
    &Field::not_yet_unless("tool_choice", "tool calls are", |value| value == "none"),
    &Field::not_yet("functions", "function calls are"),
    &Field::not_yet_unless("function_call", "function calls are", |value| value == "none"),
    &Field::not_yet_unless("modalities", "modalities other than text are", |value| value == &json!(["text"])),
    &Field::not_yet("audio", "audio is"),
    &Field::not_yet("prediction", "predicted outputs are"),
    &Field::not_yet("web_search_options", "web search is"),
    &Field::not_yet("moderation", "moderation is"),
    &Field::not_yet_unless("reasoning_effort", "reasoning models are", |value| value == "none"),
    &Field::not_yet_unless("verbosity", "verbosities other than medium are", |value| value == "medium"),
    &Field::not_yet_unless("prompt_cache_retention", "retention beyond memory is", |value| value == "in_memory"),
    &Field::not_yet("prompt_cache_options", "options of prompt caches are"),
];

const ROLES: &[&str] = &["system", "developer", "user", "assistant"];

const ROLE: Field = Field::structured("role", || json!({}), "");
const CONTENT: Field = Field::structured("content", || json!({}), "");
const NAME: Field = Field::text("name", 64, "");
const REFUSAL: Field = Field::not_yet("refusal", "refusals are");
const MESSAGE_FIELDS: &[&Field] = &[
    &ROLE,
    &CONTENT,
    &NAME,
    &REFUSAL,
    &Field::not_yet_unless("tool_calls", "tool calls are", is_empty_array),
    &Field::not_yet("tool_call_id", "tool calls are"),
    &Field::not_yet("function_call", "function calls are"),
    &Field::not_yet("audio", "audio is"),
    // Clients send back the message that they were answered with, every field of it.
    &Field::not_yet_unless("annotations", "annotations are", is_empty_array),
];

fn is_empty_array(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

const PART_TYPE: Field = Field::structured("type", || json!({}), "");
const PART_TEXT: Field = Field::text("text", MAX_CONTENT_CHARS, "");
const PART_FIELDS: &[&Field] =
    &[&PART_TYPE, &PART_TEXT, &Field::not_yet("prompt_cache_breakpoint", "breakpoints of prompt caches are")];

/// A message as chat templates read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::http) struct Message {
    /// `system`, `user` or `assistant`.
    pub(in crate::http) role: &'static str,
    /// All text parts, a line each.
    pub(in crate::http) content: String,
    /// Who of several users or assistants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) name: Option<String>,
}

/// Makes a plan of the body.
pub(in crate::http) fn plan(body: &[u8], planner: &Planner<'_>) -> Result<Plan, ApiError> {
    let map = parse_object(body)?;
    let fields = s::checked_fields(&map, FIELDS, planner)?;
    let messages = messages(fields.required(&MESSAGES)?, &fields.path(&MESSAGES))?;
    let wanted = Wanted {
        n: fields.integer(&s::N),
        max_tokens: max_tokens(&fields)?,
        top_logprobs: top_logprobs(&fields)?,
        echo: false,
        prompt_field: MESSAGES.name,
    };
    let prompt = planner.chat_prompt(&messages)?;
    planner.plan(&fields, wanted, vec![prompt])
}

fn max_tokens(fields: &Fields<'_>) -> Result<Option<i64>, ApiError> {
    match (fields.integer(&MAX_TOKENS), fields.integer(&MAX_COMPLETION_TOKENS)) {
        (Some(_), Some(_)) => Err(ApiError::invalid(
            MAX_TOKENS.name,
            "invalid_parameter_combination",
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
        )),
        (old, new) => Ok(new.or(old)),
    }
}

fn top_logprobs(fields: &Fields<'_>) -> Result<Option<i64>, ApiError> {
    let wanted = fields.boolean(&LOGPROBS).unwrap_or(false);
    match fields.integer(&TOP_LOGPROBS) {
        Some(_) if !wanted => Err(ApiError::invalid(
            TOP_LOGPROBS.name,
            "invalid_parameter_combination",
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
        )),
        top => Ok(wanted.then(|| top.unwrap_or(0))),
    }
}

/// Reads the conversation.
pub(super) fn messages(value: &Value, path: &str) -> Result<Vec<Message>, ApiError> {
    check_array(value, MAX_MESSAGES, path)?
        .iter()
        .enumerate()
        .map(|(index, value)| message(value, &format!("{path}[{index}]")))
        .collect()
}

fn message(value: &Value, path: &str) -> Result<Message, ApiError> {
    let fields = Fields::new(check_object(value, path)?, &[MESSAGE_FIELDS], format!("{path}."))?;
    let role = role(fields.required(&ROLE)?, &fields.path(&ROLE))?;
    let content = content(fields.required(&CONTENT)?, &fields.path(&CONTENT))?;
    Ok(Message { role, content, name: fields.text(&NAME).map(str::to_owned) })
}

/// `developer` is what newer clients call `system`; templates know only the latter.
fn role(value: &Value, path: &str) -> Result<&'static str, ApiError> {
    match value.as_str().ok_or_else(|| wrong_type(path, "a string", value))? {
        "system" | "developer" => Ok("system"),
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        "tool" | "function" => Err(ApiError::not_yet(path, "tool calls are")),
        other => Err(wrong_value(path, other, ROLES)),
    }
}

fn content(value: &Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(_) => Ok(check_text(value, MAX_CONTENT_CHARS, path)?.to_owned()),
        Value::Array(_) => {
            let parts = check_array(value, MAX_PARTS, path)?.iter().enumerate();
            let texts: Result<Vec<_>, _> =
                parts.map(|(index, value)| part(value, &format!("{path}[{index}]"))).collect();
            Ok(texts?.join("\n"))
        }
        other => Err(wrong_type(path, "a string or an array of content parts", other)),
    }
}

fn part<'a>(value: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    let map = check_object(value, path)?;
    let kind = map.get(PART_TYPE.name).filter(|kind| !kind.is_null());
    if let Some(kind @ ("image_url" | "input_audio" | "file" | "refusal")) = kind.and_then(Value::as_str) {
        return Err(ApiError::not_yet(format!("{path}.type"), &format!("content parts of type '{kind}' are")));
    }
    let fields = Fields::new(map, &[PART_FIELDS], format!("{path}."))?;
    let type_path = fields.path(&PART_TYPE);
    let kind = fields.required(&PART_TYPE)?;
    match kind.as_str().ok_or_else(|| wrong_type(&type_path, "a string", kind))? {
        "text" => Ok(fields.required(&PART_TEXT)?.as_str().unwrap_or_default()),
        other => Err(wrong_value(&type_path, other, &["text"])),
    }
}
