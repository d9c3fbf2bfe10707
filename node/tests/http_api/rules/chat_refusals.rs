//! Chats that are refused, by which parameter and with which code.

use serde_json::{Value, json};

use super::{Ask, Rule, Server, Wants};

fn message(message: Value) -> Value {
    json!({ "messages": [message] })
}

fn part(part: Value) -> Value {
    message(json!({"role": "user", "content": [part]}))
}

pub(super) fn rules() -> Vec<Rule> {
    [messages(), numbers(), types(), combinations(), not_yet()].into_iter().flatten().collect()
}

fn messages() -> Vec<Rule> {
    let no = Rule::no_chat;
    vec![
        no("messages are required", json!({"messages": null}), "messages", "missing_required_parameter"),
        no("messages are not empty", json!({"messages": []}), "messages", "empty_array"),
        no("messages are an array", json!({"messages": "hi"}), "messages", "invalid_type"),
        no("a message is an object", message(json!("hi")), "messages[0]", "invalid_type"),
        no("a message has a role", message(json!({"content": "a"})), "messages[0].role", "missing_required_parameter"),
        no(
            "a role is a known one",
            message(json!({"role": "wizard", "content": "a"})),
            "messages[0].role",
            "invalid_value",
        ),
        no("a role is a string", message(json!({"role": 1, "content": "a"})), "messages[0].role", "invalid_type"),
        no(
            "a user message has content",
            message(json!({"role": "user"})),
            "messages[0].content",
            "missing_required_parameter",
        ),
        no(
            "content is text or parts",
            message(json!({"role": "user", "content": 1})),
            "messages[0].content",
            "invalid_type",
        ),
        no(
            "content has a part at least",
            message(json!({"role": "user", "content": []})),
            "messages[0].content",
            "empty_array",
        ),
        no(
            "a name is a string",
            message(json!({"role": "user", "content": "a", "name": 1})),
            "messages[0].name",
            "invalid_type",
        ),
        no(
            "a part has a type",
            part(json!({"text": "a"})),
            "messages[0].content[0].type",
            "missing_required_parameter",
        ),
        no(
            "a text part has a text",
            part(json!({"type": "text"})),
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        no(
            "the text of a part is a string",
            part(json!({"type": "text", "text": 1})),
            "messages[0].content[0].text",
            "invalid_type",
        ),
        no(
            "the type of a part is a known one",
            part(json!({"type": "smell", "text": "a"})),
            "messages[0].content[0].type",
            "invalid_value",
        ),
        no(
            "messages have no unknown fields",
            message(json!({"role": "user", "content": "a", "mood": "good"})),
            "messages[0].mood",
            "unknown_parameter",
        ),
    ]
}

fn numbers() -> Vec<Rule> {
    let no = Rule::no_chat;
    let (low, high) = ("decimal_below_min_value", "decimal_above_max_value");
    let (few, many) = ("integer_below_min_value", "integer_above_max_value");
    vec![
        no("temperature is at least 0", json!({"temperature": -0.1}), "temperature", low),
        no("temperature is at most 2", json!({"temperature": 2.1}), "temperature", high),
        no("top_p is at least 0", json!({"top_p": -0.1}), "top_p", low),
        no("top_p is at most 1", json!({"top_p": 1.1}), "top_p", high),
        no("presence_penalty is at least -2", json!({"presence_penalty": -2.1}), "presence_penalty", low),
        no("presence_penalty is at most 2", json!({"presence_penalty": 2.1}), "presence_penalty", high),
        no("frequency_penalty is at least -2", json!({"frequency_penalty": -2.1}), "frequency_penalty", low),
        no("frequency_penalty is at most 2", json!({"frequency_penalty": 2.1}), "frequency_penalty", high),
        no("n is at least 1", json!({"n": 0}), "n", few),
        no("n is at most 128", json!({"n": 129}), "n", many),
        no("max_tokens is not negative", json!({"max_tokens": -1}), "max_tokens", few),
        no("max_completion_tokens is not negative", json!({"max_completion_tokens": -1}), "max_completion_tokens", few),
        no("top_logprobs is not negative", json!({"logprobs": true, "top_logprobs": -1}), "top_logprobs", few),
        no("top_logprobs is at most 20", json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", many),
        no("seed is 64 bits", json!({"seed": u64::MAX}), "seed", many),
        no("a bias is at least -100", json!({"logit_bias": {"1": -101}}), "logit_bias.1", low),
        no("a bias is at most 100", json!({"logit_bias": {"1": 101}}), "logit_bias.1", high),
    ]
}

fn types() -> Vec<Rule> {
    let wrong = |says, more, param| Rule::no_chat(says, more, param, "invalid_type");
    vec![
        wrong("model is a string", json!({"model": 1}), "model"),
        wrong("temperature is no string", json!({"temperature": "1"}), "temperature"),
        wrong("top_p is no boolean", json!({"top_p": true}), "top_p"),
        wrong("n is no fraction", json!({"n": 1.5}), "n"),
        wrong("max_tokens is no string", json!({"max_tokens": "5"}), "max_tokens"),
        wrong("max_completion_tokens is no fraction", json!({"max_completion_tokens": 1.5}), "max_completion_tokens"),
        wrong("seed is no fraction", json!({"seed": 0.5}), "seed"),
        wrong("stop is no number", json!({"stop": 1}), "stop"),
        wrong("stop holds strings", json!({"stop": ["a", 1]}), "stop[1]"),
        wrong("stream is no string", json!({"stream": "true"}), "stream"),
        wrong("stream_options is an object", json!({"stream": true, "stream_options": true}), "stream_options"),
        wrong(
            "include_usage is a boolean",
            json!({"stream": true, "stream_options": {"include_usage": "yes"}}),
            "stream_options.include_usage",
        ),
        wrong("logprobs is a boolean", json!({"logprobs": 1}), "logprobs"),
        wrong("top_logprobs is an integer", json!({"logprobs": true, "top_logprobs": "1"}), "top_logprobs"),
        wrong("logit_bias is an object", json!({"logit_bias": [1]}), "logit_bias"),
        wrong("user is a string", json!({"user": 1}), "user"),
        wrong("store is a boolean", json!({"store": "yes"}), "store"),
        wrong("metadata is an object", json!({"metadata": "a"}), "metadata"),
        wrong("metadata holds strings", json!({"metadata": {"a": 1}}), "metadata.a"),
        wrong("parallel_tool_calls is a boolean", json!({"parallel_tool_calls": "no"}), "parallel_tool_calls"),
    ]
}

fn combinations() -> Vec<Rule> {
    let no = Rule::no_chat;
    let pairs: serde_json::Map<_, _> = (0..17).map(|index| (index.to_string(), json!("a"))).collect();
    let combination = "invalid_parameter_combination";
    let unknown_model = Rule {
        says: "a model that is not served is a 404",
        server: Server::Plain,
        ask: Ask::Chat(json!({"model": "gpt-9"})),
        wants: Wants::Error(404, Some("model"), "model_not_found"),
    };
    vec![
        unknown_model,
        no("fields are known ones", json!({"mood": "good"}), "mood", "unknown_parameter"),
        no(
            "there are at most four stop strings",
            json!({"stop": ["a", "b", "c", "d", "e"]}),
            "stop",
            "array_above_max_length",
        ),
        no("a list of stop strings is not empty", json!({"stop": []}), "stop", "empty_array"),
        no(
            "stream_options are for streams",
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
            combination,
        ),
        no(
            "stream_options have no unknown fields",
            json!({"stream": true, "stream_options": {"mood": 1}}),
            "stream_options.mood",
            "unknown_parameter",
        ),
        no("top_logprobs needs logprobs", json!({"top_logprobs": 1}), "top_logprobs", combination),
        no(
            "one length limit is enough",
            json!({"max_tokens": 1, "max_completion_tokens": 1}),
            "max_tokens",
            combination,
        ),
        no("a bias is of a token", json!({"logit_bias": {"word": 1}}), "logit_bias", "invalid_value"),
        no("metadata has at most 16 pairs", json!({ "metadata": pairs }), "metadata", "object_above_max_properties"),
        no(
            "keys of metadata have at most 64 characters",
            json!({"metadata": {"k".repeat(65): "a"}}),
            "metadata",
            "string_above_max_length",
        ),
        no(
            "values of metadata have at most 512 characters",
            json!({"metadata": {"a": "v".repeat(513)}}),
            "metadata.a",
            "string_above_max_length",
        ),
        no(
            "safety_identifier has at most 64 characters",
            json!({"safety_identifier": "s".repeat(65)}),
            "safety_identifier",
            "string_above_max_length",
        ),
        no("service_tier is a known one", json!({"service_tier": "gold"}), "service_tier", "invalid_value"),
        no(
            "a prompt beyond the context says so",
            message(json!({"role": "user", "content": "a".repeat(300)})),
            "messages",
            "context_length_exceeded",
        ),
        no("an answer beyond the context says so", json!({"max_tokens": 256}), "messages", "context_length_exceeded"),
    ]
}

fn not_yet() -> Vec<Rule> {
    let no = |says, more, param| Rule::no_chat(says, more, param, "unsupported_parameter");
    let tool = json!({"type": "function", "function": {"name": "f"}});
    vec![
        no("tools are not ignored", json!({"tools": [tool]}), "tools"),
        no("a wanted tool is not ignored", json!({"tool_choice": "required"}), "tool_choice"),
        no("functions are not ignored", json!({"functions": [{"name": "f"}]}), "functions"),
        no("a JSON format is not ignored", json!({"response_format": {"type": "json_object"}}), "response_format"),
        no(
            "a JSON schema is not ignored",
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}),
            "response_format",
        ),
        no("audio is not ignored", json!({"modalities": ["text", "audio"]}), "modalities"),
        no("predictions are not ignored", json!({"prediction": {"type": "content", "content": "a"}}), "prediction"),
        no("reasoning is not ignored", json!({"reasoning_effort": "high"}), "reasoning_effort"),
        no(
            "images are not ignored",
            part(json!({"type": "image_url", "image_url": {"url": "data:,"}})),
            "messages[0].content[0].type",
        ),
        no(
            "tool messages are not ignored",
            message(json!({"role": "tool", "content": "a", "tool_call_id": "c"})),
            "messages[0].tool_call_id",
        ),
    ]
}
