//! Text completions: what is answered, what the answers hold, and what is refused.

use serde_json::{Value, json};

use super::Rule;
use crate::harness::{MODEL, Reply};

fn choice(reply: &Reply, index: usize) -> Value {
    reply.json()["choices"][index].clone()
}

fn text(reply: &Reply) -> String {
    choice(reply, 0)["text"].as_str().unwrap().to_owned()
}

fn answers(reply: &Reply) -> bool {
    text(reply) == "answer 0"
}

fn num_choices(reply: &Reply) -> usize {
    reply.json()["choices"].as_array().unwrap().len()
}

/// The four lists of log-probabilities.
fn lists(reply: &Reply) -> [Vec<Value>; 4] {
    ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
        .map(|list| choice(reply, 0)["logprobs"][list].as_array().unwrap().clone())
}

pub(super) fn rules() -> Vec<Rule> {
    [prompts(), parameters(), objects(), log_probabilities(), refusals()].into_iter().flatten().collect()
}

fn prompts() -> Vec<Rule> {
    let rule = Rule::completion;
    vec![
        rule("a prompt may be a text", json!({"prompt": "a"}), answers),
        rule("a prompt may be empty", json!({"prompt": ""}), answers),
        rule("a prompt may be token ids", json!({"prompt": [1, 2]}), answers),
        rule("prompts may be a list of texts", json!({"prompt": ["a", "b"]}), |reply| num_choices(reply) == 2),
        rule("prompts may be a list of token ids", json!({"prompt": [[1], [2, 3]]}), |reply| num_choices(reply) == 2),
        rule("each prompt gets n choices", json!({"prompt": ["a", "b"], "n": 2}), |reply| {
            (0..4).all(|index| choice(reply, index)["index"] == index)
        }),
        rule("a prompt counts once", json!({"prompt": ["a", "b"], "n": 2}), |reply| {
            reply.json()["usage"]["prompt_tokens"] == 2
        }),
    ]
}

fn parameters() -> Vec<Rule> {
    let rule = Rule::completion;
    vec![
        rule("max_tokens ends the answer", json!({"max_tokens": 2}), |reply| text(reply) == "an"),
        rule("a length limit is the finish reason length", json!({"max_tokens": 2}), |reply| {
            choice(reply, 0)["finish_reason"] == "length"
        }),
        rule("max_tokens may be 0", json!({"max_tokens": 0}), |reply| text(reply).is_empty()),
        rule("echo begins with the prompt", json!({"echo": true, "max_tokens": 2}), |reply| text(reply) == "aban"),
        rule("echo alone scores a prompt", json!({"echo": true, "max_tokens": 0, "logprobs": 1}), |reply| {
            text(reply) == "ab" && reply.json()["usage"]["completion_tokens"] == 0
        }),
        rule("echo may be false", json!({"echo": false}), answers),
        rule("stop is not part of the text", json!({"stop": "wer"}), |reply| text(reply) == "ans"),
        rule("best_of may be 1", json!({"best_of": 1}), answers),
        rule("temperature may be 0", json!({"temperature": 0}), answers),
        rule("top_p may be 1", json!({"top_p": 1}), answers),
        rule("penalties may be at their bounds", json!({"presence_penalty": 2, "frequency_penalty": -2}), answers),
        rule("logit_bias goes from -100 to 100", json!({"logit_bias": {"1": -100, "2": 100}}), answers),
        rule("seed is taken", json!({"seed": 7}), answers),
        rule("user is taken", json!({"user": "u"}), answers),
    ]
}

fn objects() -> Vec<Rule> {
    let rule = Rule::completion;
    vec![
        rule("the object is text_completion", json!({}), |reply| reply.json()["object"] == "text_completion"),
        rule("the id says what it is of", json!({}), |reply| reply.json()["id"].as_str().unwrap().starts_with("cmpl-")),
        rule("the model is told", json!({}), |reply| reply.json()["model"] == MODEL),
        rule("an end by itself is the finish reason stop", json!({}), |reply| {
            choice(reply, 0)["finish_reason"] == "stop"
        }),
        rule("usage sums up", json!({}), |reply| {
            reply.json()["usage"]["prompt_tokens"] == 2 && reply.json()["usage"]["total_tokens"] == 11
        }),
    ]
}

fn log_probabilities() -> Vec<Rule> {
    let rule = Rule::completion;
    vec![
        rule("logprobs is null unless asked for", json!({}), |reply| choice(reply, 0)["logprobs"].is_null()),
        rule("logprobs may be 0", json!({"logprobs": 0}), |reply| lists(reply)[0].len() == 8),
        rule("logprobs may be 5", json!({"logprobs": 5}), |reply| {
            lists(reply)[2].iter().all(|top| (5..=6).contains(&top.as_object().unwrap().len()))
        }),
        rule("the four lists of logprobs are of one length", json!({"logprobs": 1}), |reply| {
            lists(reply).iter().all(|list| list.len() == 8)
        }),
        rule("the tokens of logprobs are the text", json!({"logprobs": 1}), |reply| {
            lists(reply)[0].iter().map(|token| token.as_str().unwrap()).collect::<String>() == text(reply)
        }),
        rule("text_offset counts characters", json!({"logprobs": 1, "max_tokens": 3}), |reply| {
            json!(lists(reply)[3]) == json!([0, 1, 2])
        }),
        rule("the first token of an echo has no log-probability", json!({"echo": true, "logprobs": 1}), |reply| {
            lists(reply)[1][0].is_null() && lists(reply)[2][0].is_null() && lists(reply)[1][1].is_number()
        }),
    ]
}

fn refusals() -> Vec<Rule> {
    let no = Rule::no_completion;
    vec![
        no("a prompt is required", json!({"prompt": null}), "prompt", "missing_required_parameter"),
        no("prompts are not empty", json!({"prompt": []}), "prompt", "empty_array"),
        no("a prompt is no number", json!({"prompt": 1}), "prompt", "invalid_type"),
        no("prompts are of one kind", json!({"prompt": ["a", 1]}), "prompt[1]", "invalid_type"),
        no("token ids are of the vocabulary", json!({"prompt": [1, 100_000]}), "prompt[1]", "integer_above_max_value"),
        no("token ids are not negative", json!({"prompt": [-1]}), "prompt[0]", "integer_below_min_value"),
        no("max_tokens is not negative", json!({"max_tokens": -1}), "max_tokens", "integer_below_min_value"),
        no("logprobs is at most 5", json!({"logprobs": 6}), "logprobs", "integer_above_max_value"),
        no("logprobs is not negative", json!({"logprobs": -1}), "logprobs", "integer_below_min_value"),
        no("logprobs is no boolean", json!({"logprobs": true}), "logprobs", "invalid_type"),
        no("echo is a boolean", json!({"echo": "yes"}), "echo", "invalid_type"),
        no("n is at most 128", json!({"n": 129}), "n", "integer_above_max_value"),
        no("temperature is at most 2", json!({"temperature": 2.1}), "temperature", "decimal_above_max_value"),
        no("top_p is at least 0", json!({"top_p": -0.1}), "top_p", "decimal_below_min_value"),
        no(
            "there are at most four stop strings",
            json!({"stop": ["a", "b", "c", "d", "e"]}),
            "stop",
            "array_above_max_length",
        ),
        no("suffix is not ignored", json!({"suffix": "a"}), "suffix", "unsupported_parameter"),
        no("best_of is not ignored", json!({"best_of": 2}), "best_of", "unsupported_parameter"),
        no("messages belong to chats", json!({"messages": []}), "messages", "unknown_parameter"),
        no(
            "a prompt beyond the context says so",
            json!({"prompt": "a".repeat(300)}),
            "prompt",
            "context_length_exceeded",
        ),
        no(
            "stream_options are for streams",
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
            "invalid_parameter_combination",
        ),
    ]
}
