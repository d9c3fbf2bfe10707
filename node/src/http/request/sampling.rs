//! Fields that chat and text completions share: how tokens are drawn, where the answer ends, how it is delivered.

use std::sync::Arc;

use relevo_wire::{SamplingParams, TokenId};
use serde_json::{Map, Value, json};

use super::Planner;
use super::fields::{Field, Fields, check_array, check_number, check_object, check_text, wrong_type};
use crate::http::api_error::ApiError;
use crate::http::mint::Mint;

/// Most stop strings, as OpenAI has it.
const MAX_STOP_STRINGS: usize = 4;

/// Longest stop string: text is held back while it could become one.
const MAX_STOP_CHARS: usize = 256;

/// Most entries of `logit_bias`; each is looked up for each token drawn.
const MAX_BIASED_TOKENS: usize = 1024;

/// Most candidates that `top_k` may name; vocabularies are smaller.
const MAX_TOP_K: i64 = 1 << 20;

/// Pairs and characters of `metadata`, as OpenAI has it.
const MAX_METADATA_PAIRS: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;

pub(super) const MODEL: Field = Field::text("model", 256, "Any name that the model is served under; may be left out.");
pub(super) const TEMPERATURE: Field = Field::number("temperature", 0.0, 2.0, "0 is greedy. Default 1.");
pub(super) const TOP_P: Field =
    Field::number("top_p", 0.0, 1.0, "Nucleus: the fewest tokens whose probabilities reach this. Default 1.");
pub(super) const TOP_K: Field =
    Field::integer("top_k", -1, MAX_TOP_K, "Most candidates; 0 and -1 keep all. Default 0.");
pub(super) const MIN_P: Field =
    Field::number("min_p", 0.0, 1.0, "Least probability, as a fraction of the best token's. Default 0.");
pub(super) const SEED: Field =
    Field::integer("seed", i64::MIN, i64::MAX, "The same seed draws the same tokens. Drawn if left out.");
pub(super) const FREQUENCY_PENALTY: Field =
    Field::number("frequency_penalty", -2.0, 2.0, "Times a token's count in the answer so far. Default 0.");
pub(super) const PRESENCE_PENALTY: Field =
    Field::number("presence_penalty", -2.0, 2.0, "Once for each token that is in the answer. Default 0.");
pub(super) const REPETITION_PENALTY: Field = Field::number(
    "repetition_penalty",
    0.01,
    10.0,
    "Divides the logits of tokens of prompt and answer (arXiv:1909.05858). Default 1.",
);
pub(super) const LOGIT_BIAS: Field = Field::structured(
    "logit_bias",
    || json!({"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}, "maxProperties": MAX_BIASED_TOKENS}),
    "Added to the logits: token id to bias.",
);
pub(super) const STOP: Field = Field::structured(
    "stop",
    || {
        let text = json!({"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS});
        json!({"anyOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": MAX_STOP_STRINGS}]})
    },
    "Texts that end the answer; they are not part of it.",
);
pub(super) const IGNORE_EOS: Field =
    Field::boolean("ignore_eos", "Go on after the model's end-of-generation token. Default false.");
pub(super) const N: Field = Field::integer("n", 1, 128, "How many answers. Default 1.");
pub(super) const STREAM: Field = Field::boolean("stream", "Send the answer as server-sent events. Default false.");
pub(super) const STREAM_OPTIONS: Field = Field::structured(
    "stream_options",
    || json!({"type": "object", "properties": {"include_usage": {"type": "boolean"}, "include_obfuscation": {"type": "boolean"}}, "additionalProperties": false}),
    "`include_usage` sends a last chunk with the token counts. Only with `stream`.",
);
pub(super) const RETURN_TOKENS_AS_TOKEN_IDS: Field =
    Field::boolean("return_tokens_as_token_ids", "Write tokens in log-probabilities as \"token_id:123\".");
pub(super) const USER: Field = Field::text("user", 1024, "Accepted without effect.");
pub(super) const METADATA: Field = Field::structured(
    "metadata",
    || json!({"type": "object", "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE_CHARS}, "maxProperties": MAX_METADATA_PAIRS}),
    "Accepted without effect.",
);
pub(super) const STORE: Field = Field::boolean("store", "Accepted without effect: nothing is stored.");
pub(super) const SERVICE_TIER: Field = Field::one_of(
    "service_tier",
    &["auto", "default", "flex", "scale", "priority", "fast"],
    "Accepted without effect.",
);
pub(super) const SAFETY_IDENTIFIER: Field = Field::text("safety_identifier", 64, "Accepted without effect.");
pub(super) const PROMPT_CACHE_KEY: Field =
    Field::text("prompt_cache_key", 1024, "Accepted without effect: prefixes are shared by content.");
pub(super) const PARALLEL_TOOL_CALLS: Field = Field::boolean("parallel_tool_calls", "Accepted without effect.");

/// What both bodies may hold.
pub(super) const SHARED_FIELDS: &[&Field] = &[
    &MODEL,
    &TEMPERATURE,
    &TOP_P,
    &TOP_K,
    &MIN_P,
    &SEED,
    &N,
    &STOP,
    &RETURN_TOKENS_AS_TOKEN_IDS,
    &FREQUENCY_PENALTY,
    &PRESENCE_PENALTY,
    &REPETITION_PENALTY,
    &LOGIT_BIAS,
    &IGNORE_EOS,
    &STREAM,
    &STREAM_OPTIONS,
    &USER,
    &METADATA,
    &STORE,
    &SERVICE_TIER,
    &SAFETY_IDENTIFIER,
    &PROMPT_CACHE_KEY,
];

const INCLUDE_USAGE: Field = Field::boolean("include_usage", "Send a last chunk with the token counts.");
const INCLUDE_OBFUSCATION: Field = Field::boolean("include_obfuscation", "Accepted without effect.");

/// How a stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct StreamOptions {
    /// Whether a last chunk carries the token counts.
    pub(in crate::http) include_usage: bool,
}

/// The fields of a body, its model being the one that is served.
pub(super) fn checked_fields<'a>(
    map: &'a Map<String, Value>,
    known: &[&[&'static Field]],
    planner: &Planner<'_>,
) -> Result<Fields<'a>, ApiError> {
    let fields = Fields::new(map, known, "")?;
    planner.model.check_name(fields.text(&MODEL))?;
    check_metadata(&fields)?;
    Ok(fields)
}

/// How tokens are drawn. A seed that is left out is drawn here, so that a replay draws the same tokens.
pub(super) fn sampling(fields: &Fields<'_>, mint: &Mint, vocab_size: u32) -> Result<SamplingParams, ApiError> {
    let number = |field, default: f32| fields.number(field).map_or(default, narrow);
    Ok(SamplingParams {
        temperature: number(&TEMPERATURE, 1.0),
        // OpenAI accepts 0: the best token alone.
        top_p: number(&TOP_P, 1.0).max(f32::MIN_POSITIVE),
        top_k: fields.integer(&TOP_K).map_or(0, |top_k| u32::try_from(top_k).unwrap_or(0)),
        min_p: number(&MIN_P, 0.0),
        seed: fields.integer(&SEED).map_or_else(|| mint.random(), i64::cast_unsigned),
        frequency_penalty: number(&FREQUENCY_PENALTY, 0.0),
        presence_penalty: number(&PRESENCE_PENALTY, 0.0),
        repetition_penalty: number(&REPETITION_PENALTY, 1.0),
        logit_bias: logit_bias(fields, vocab_size)?,
    })
}

/// The stop strings: one, or up to four.
pub(super) fn stop_strings(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let path = fields.path(&STOP);
    let one = |value: &Value, path: &str| {
        let text = check_text(value, MAX_STOP_CHARS, path)?;
        if text.is_empty() {
            let message = format!("Invalid '{path}': a stop sequence must not be an empty string.");
            return Err(ApiError::invalid(path, "string_below_min_length", message));
        }
        Ok(text.to_owned())
    };
    match fields.value(&STOP) {
        None => Ok(Vec::new()),
        Some(text @ Value::String(_)) => Ok(vec![one(text, &path)?]),
        Some(list @ Value::Array(_)) => check_array(list, MAX_STOP_STRINGS, &path)?
            .iter()
            .enumerate()
            .map(|(index, text)| one(text, &format!("{path}[{index}]")))
            .collect(),
        Some(other) => Err(wrong_type(&path, "a string or an array of strings", other)),
    }
}

/// How to stream, or `None` for an answer in one piece.
pub(super) fn stream_options(fields: &Fields<'_>) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.boolean(&STREAM).unwrap_or(false);
    let Some(options) = fields.value(&STREAM_OPTIONS) else {
        return Ok(stream.then_some(StreamOptions { include_usage: false }));
    };
    let path = fields.path(&STREAM_OPTIONS);
    if !stream {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
        return Err(ApiError::invalid(path, "invalid_parameter_combination", message));
    }
    let map = check_object(options, &path)?;
    let options = Fields::new(map, &[&[&INCLUDE_USAGE, &INCLUDE_OBFUSCATION]], format!("{path}."))?;
    Ok(Some(StreamOptions { include_usage: options.boolean(&INCLUDE_USAGE).unwrap_or(false) }))
}

/// OpenAI's bounds of `metadata`, which has no effect.
fn check_metadata(fields: &Fields<'_>) -> Result<(), ApiError> {
    let Some(metadata) = fields.value(&METADATA) else { return Ok(()) };
    let path = fields.path(&METADATA);
    let map = check_object(metadata, &path)?;
    if map.len() > MAX_METADATA_PAIRS {
        let message =
            format!("Invalid '{path}': at most {MAX_METADATA_PAIRS} pairs are accepted, but got {}.", map.len());
        return Err(ApiError::invalid(path, "object_above_max_properties", message));
    }
    for (key, value) in map {
        let key_chars = key.chars().count();
        if key_chars > MAX_METADATA_KEY_CHARS {
            let message = format!(
                "Invalid '{path}': a key has {key_chars} characters, at most {MAX_METADATA_KEY_CHARS} are accepted."
            );
            return Err(ApiError::invalid(path, "string_above_max_length", message));
        }
        check_text(value, MAX_METADATA_VALUE_CHARS, &format!("{path}.{key}"))?;
    }
    Ok(())
}

/// Biases by token, sorted by id.
fn logit_bias(fields: &Fields<'_>, vocab_size: u32) -> Result<Arc<[(TokenId, f32)]>, ApiError> {
    let Some(value) = fields.value(&LOGIT_BIAS) else { return Ok(Arc::from([])) };
    let path = fields.path(&LOGIT_BIAS);
    let map = check_object(value, &path)?;
    if map.len() > MAX_BIASED_TOKENS {
        let message =
            format!("Invalid '{path}': at most {MAX_BIASED_TOKENS} tokens are accepted, but got {}.", map.len());
        return Err(ApiError::invalid(path, "object_above_max_properties", message));
    }
    let mut biases = Vec::with_capacity(map.len());
    for (key, bias) in map {
        let token = key.parse().ok().filter(|&token: &TokenId| token < vocab_size).ok_or_else(|| {
            let key: String = key.chars().take(50).collect();
            let message =
                format!("Invalid key in '{path}': '{key}'. Expected a token id from 0 to {}.", vocab_size - 1);
            ApiError::invalid(path.clone(), "invalid_value", message)
        })?;
        biases.push((token, narrow(check_number(bias, -100.0, 100.0, &format!("{path}.{key}"))?)));
    }
    biases.sort_unstable_by_key(|&(token, _)| token);
    // "7" and "07" are one token.
    biases.dedup_by_key(|&mut (token, _)| token);
    Ok(biases.into())
}

/// The cluster computes in f32; what was checked in f64 fits.
#[expect(clippy::cast_possible_truncation, reason = "bounded values, and rounding is meant")]
fn narrow(number: f64) -> f32 {
    number as f32
}
