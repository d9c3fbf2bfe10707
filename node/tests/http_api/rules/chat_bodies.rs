//! Chats that are answered, and what the answers hold.

use serde_json::{Value, json};

use super::Rule;
use crate::harness::{ALIAS, MODEL, Reply};

fn choice(reply: &Reply, index: usize) -> Value {
    reply.json()["choices"][index].clone()
}

fn content(reply: &Reply) -> String {
    choice(reply, 0)["message"]["content"].as_str().unwrap().to_owned()
}

fn answers(reply: &Reply) -> bool {
    content(reply) == "answer 0"
}

fn logprobs(reply: &Reply) -> Vec<Value> {
    choice(reply, 0)["logprobs"]["content"].as_array().unwrap().clone()
}

fn conversation(messages: Value) -> Value {
    json!({ "messages": messages })
}

pub(super) fn rules() -> Vec<Rule> {
    [conversations(), parameters(), without_effect(), objects(), log_probabilities()].into_iter().flatten().collect()
}

fn conversations() -> Vec<Rule> {
    let user = json!({"role": "user", "content": "a"});
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    vec![
        Rule::chat("a user message is enough", json!({}), answers),
        Rule::chat(
            "system messages are taken",
            conversation(json!([{"role": "system", "content": "s"}, user])),
            answers,
        ),
        Rule::chat(
            "developer messages are taken",
            conversation(json!([{"role": "developer", "content": "d"}, user])),
            answers,
        ),
        Rule::chat(
            "assistant messages are taken",
            conversation(json!([user, {"role": "assistant", "content": "b"}, user])),
            answers,
        ),
        Rule::chat(
            "an assistant message may carry a null refusal",
            conversation(json!([user, {"role": "assistant", "content": "b", "refusal": null}, user])),
            answers,
        ),
        Rule::chat(
            "a participant may have a name",
            conversation(json!([{"role": "user", "content": "a", "name": "ada"}])),
            answers,
        ),
        Rule::chat("content may be text parts", conversation(json!([{"role": "user", "content": parts}])), answers),
        Rule::chat(
            "a system message may be text parts",
            conversation(json!([{"role": "system", "content": parts}, user])),
            answers,
        ),
        Rule::chat("content may be empty", conversation(json!([{"role": "user", "content": ""}])), answers),
        Rule::chat(
            "content may be any Unicode",
            conversation(json!([{"role": "user", "content": "é \u{1F980} \u{0}"}])),
            answers,
        ),
        Rule::chat("the model may be named by an alias", json!({"model": ALIAS}), |reply| {
            reply.json()["model"] == MODEL
        }),
    ]
}

fn parameters() -> Vec<Rule> {
    vec![
        Rule::chat("temperature may be 0", json!({"temperature": 0}), answers),
        Rule::chat("temperature may be 2", json!({"temperature": 2}), answers),
        Rule::chat("top_p may be 0", json!({"top_p": 0}), answers),
        Rule::chat("top_p may be 1", json!({"top_p": 1}), answers),
        Rule::chat("presence_penalty may be -2", json!({"presence_penalty": -2}), answers),
        Rule::chat("presence_penalty may be 2", json!({"presence_penalty": 2}), answers),
        Rule::chat("frequency_penalty may be -2", json!({"frequency_penalty": -2}), answers),
        Rule::chat("frequency_penalty may be 2", json!({"frequency_penalty": 2}), answers),
        Rule::chat("logit_bias may be empty", json!({"logit_bias": {}}), answers),
        Rule::chat("logit_bias goes from -100 to 100", json!({"logit_bias": {"1": -100, "2": 100}}), answers),
        Rule::chat("seed may be negative", json!({"seed": -1}), answers),
        Rule::chat("max_tokens ends the answer", json!({"max_tokens": 3}), |reply| content(reply) == "ans"),
        Rule::chat("max_completion_tokens ends the answer", json!({"max_completion_tokens": 3}), |reply| {
            content(reply) == "ans"
        }),
        Rule::chat("a length limit is the finish reason length", json!({"max_tokens": 3}), |reply| {
            choice(reply, 0)["finish_reason"] == "length"
        }),
        Rule::chat("stop may be a string", json!({"stop": "w"}), |reply| content(reply) == "ans"),
        Rule::chat("stop may be an array", json!({"stop": ["x", "w"]}), |reply| content(reply) == "ans"),
        Rule::chat("stop may be four strings", json!({"stop": ["1", "2", "3", " "]}), |reply| {
            content(reply) == "answer"
        }),
        Rule::chat("a stop string is the finish reason stop", json!({"stop": "w"}), |reply| {
            choice(reply, 0)["finish_reason"] == "stop"
        }),
        Rule::chat("stream may be false", json!({"stream": false}), answers),
        Rule::chat("n gives as many choices", json!({"n": 3}), |reply| {
            reply.json()["choices"].as_array().unwrap().len() == 3
        }),
        Rule::chat("choices are numbered in order", json!({"n": 2}), |reply| {
            (0..2).all(|index| choice(reply, index)["index"] == index)
        }),
        Rule::chat("choices are answers of their own", json!({"n": 2}), |reply| {
            choice(reply, 1)["message"]["content"] == "answer 1"
        }),
    ]
}

fn without_effect() -> Vec<Rule> {
    vec![
        Rule::chat("store is taken", json!({"store": true}), answers),
        Rule::chat("metadata is taken", json!({"metadata": {"a": "b"}}), answers),
        Rule::chat("user is taken", json!({"user": "u"}), answers),
        Rule::chat("safety_identifier is taken", json!({"safety_identifier": "s"}), answers),
        Rule::chat("prompt_cache_key is taken", json!({"prompt_cache_key": "k"}), answers),
        Rule::chat("service_tier auto is taken", json!({"service_tier": "auto"}), answers),
        Rule::chat("service_tier fast is taken", json!({"service_tier": "fast"}), answers),
        Rule::chat("parallel_tool_calls is taken", json!({"parallel_tool_calls": false}), answers),
        Rule::chat("response_format text is the default", json!({"response_format": {"type": "text"}}), answers),
        Rule::chat("no tools ask for none", json!({"tools": []}), answers),
        Rule::chat("tool_choice none asks for none", json!({"tool_choice": "none"}), answers),
        Rule::chat("modalities text is the default", json!({"modalities": ["text"]}), answers),
        Rule::chat("verbosity medium is the default", json!({"verbosity": "medium"}), answers),
        Rule::chat("reasoning_effort none asks for none", json!({"reasoning_effort": "none"}), answers),
    ]
}

fn objects() -> Vec<Rule> {
    vec![
        Rule::chat("the object is chat.completion", json!({}), |reply| reply.json()["object"] == "chat.completion"),
        Rule::chat("the id says what it is of", json!({}), |reply| {
            reply.json()["id"].as_str().unwrap().starts_with("chatcmpl-")
        }),
        Rule::chat("created is in seconds", json!({}), |reply| {
            (1_700_000_000..5_000_000_000).contains(&reply.json()["created"].as_u64().unwrap())
        }),
        Rule::chat("the model is told", json!({}), |reply| reply.json()["model"] == MODEL),
        Rule::chat("the message is the assistant's", json!({}), |reply| {
            choice(reply, 0)["message"]["role"] == "assistant"
        }),
        Rule::chat("an end by itself is the finish reason stop", json!({}), |reply| {
            choice(reply, 0)["finish_reason"] == "stop"
        }),
        Rule::chat("refusal is null where there is none", json!({}), |reply| {
            choice(reply, 0)["message"].as_object().unwrap().get("refusal") == Some(&Value::Null)
        }),
        Rule::chat("tool_calls is absent where there are none", json!({}), |reply| {
            choice(reply, 0)["message"].get("tool_calls").is_none()
        }),
        Rule::chat("usage sums up", json!({}), |reply| {
            let usage = &reply.json()["usage"];
            let count = |name: &str| usage[name].as_u64().unwrap();
            count("prompt_tokens") > 0 && count("total_tokens") == count("prompt_tokens") + count("completion_tokens")
        }),
        Rule::chat("usage counts every choice", json!({"n": 3, "max_tokens": 2}), |reply| {
            reply.json()["usage"]["completion_tokens"] == 6
        }),
        Rule::chat("usage tells what was cached", json!({}), |reply| {
            reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 1
        }),
        Rule::chat("answers carry a request id", json!({}), |reply| {
            reply.header("x-request-id").is_some_and(|id| !id.is_empty())
        }),
    ]
}

fn log_probabilities() -> Vec<Rule> {
    vec![
        Rule::chat("logprobs is null unless asked for", json!({}), |reply| choice(reply, 0)["logprobs"].is_null()),
        Rule::chat("logprobs may be false", json!({"logprobs": false}), |reply| choice(reply, 0)["logprobs"].is_null()),
        Rule::chat("logprobs tell each token", json!({"logprobs": true, "max_tokens": 4}), |reply| {
            logprobs(reply).len() == 4
        }),
        Rule::chat("the tokens of logprobs are the content", json!({"logprobs": true, "max_tokens": 4}), |reply| {
            logprobs(reply).iter().map(|entry| entry["token"].as_str().unwrap()).collect::<String>() == content(reply)
        }),
        Rule::chat("log-probabilities are at most 0", json!({"logprobs": true}), |reply| {
            logprobs(reply).iter().all(|entry| entry["logprob"].as_f64().unwrap() <= 0.0)
        }),
        Rule::chat("logprobs tell bytes", json!({"logprobs": true}), |reply| {
            logprobs(reply)[0]["bytes"] == json!([97])
        }),
        Rule::chat("without top_logprobs there are no alternatives", json!({"logprobs": true}), |reply| {
            logprobs(reply)[0]["top_logprobs"] == json!([])
        }),
        Rule::chat("top_logprobs may be 0", json!({"logprobs": true, "top_logprobs": 0}), |reply| {
            logprobs(reply)[0]["top_logprobs"] == json!([])
        }),
        Rule::chat("top_logprobs gives as many, best first", json!({"logprobs": true, "top_logprobs": 3}), |reply| {
            let entry = &logprobs(reply)[0];
            let top: Vec<f64> =
                entry["top_logprobs"].as_array().unwrap().iter().map(|top| top["logprob"].as_f64().unwrap()).collect();
            top.len() == 3 && top.is_sorted_by(|a, b| a >= b)
        }),
        Rule::chat("top_logprobs may be 20", json!({"logprobs": true, "top_logprobs": 20}), |reply| {
            logprobs(reply)[0]["top_logprobs"].as_array().unwrap().len() == 20
        }),
    ]
}
