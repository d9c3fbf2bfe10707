//! Streams: the order of their events, and what each holds.

use serde_json::{Value, json};

use super::{Ask, Rule, Server, Wants};
use crate::harness::Reply;

/// What stands at `path` of the first choice of every chunk that has one.
fn of_choices(reply: &Reply, path: &str) -> Vec<Value> {
    let chunks = reply.chunks();
    let choices = chunks.iter().filter_map(|chunk| chunk["choices"].get(0));
    choices.map(|choice| choice.pointer(path).cloned().unwrap_or(Value::Null)).collect()
}

fn same_in_all(reply: &Reply, key: &str) -> bool {
    let chunks = reply.chunks();
    chunks.len() > 1 && chunks.iter().all(|chunk| chunk[key] == chunks[0][key] && !chunk[key].is_null())
}

fn with(more: Value) -> Value {
    let mut body = json!({"stream": true});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn chat(says: &'static str, more: Value, holds: fn(&Reply) -> bool) -> Rule {
    Rule::chat(says, with(more), holds)
}

fn completion(says: &'static str, more: Value, holds: fn(&Reply) -> bool) -> Rule {
    Rule::completion(says, with(more), holds)
}

pub(super) fn rules() -> Vec<Rule> {
    [chats(), completions(), failures()].into_iter().flatten().collect()
}

fn chats() -> Vec<Rule> {
    let usage = || json!({"stream_options": {"include_usage": true}});
    vec![
        chat("a stream is server-sent events", json!({}), |reply| {
            reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"))
        }),
        chat("a stream ends with [DONE]", json!({}), |reply| reply.events().last().unwrap().data == "[DONE]"),
        chat("chunks are chat.completion.chunk", json!({}), |reply| {
            reply.chunks().iter().all(|chunk| chunk["object"] == "chat.completion.chunk")
        }),
        chat("all chunks have one id", json!({}), |reply| same_in_all(reply, "id")),
        chat("all chunks have one created", json!({}), |reply| same_in_all(reply, "created")),
        chat("all chunks have one model", json!({}), |reply| same_in_all(reply, "model")),
        chat("the first delta tells the role, and no other", json!({}), |reply| {
            let roles = of_choices(reply, "/delta/role");
            roles[0] == "assistant" && roles[1..].iter().all(Value::is_null)
        }),
        chat("the deltas are the answer", json!({}), |reply| reply.streamed(0).0 == "answer 0"),
        chat("only the last chunk has a finish reason", json!({}), |reply| {
            let mut reasons = of_choices(reply, "/finish_reason");
            reasons.pop() == Some(json!("stop")) && reasons.iter().all(Value::is_null)
        }),
        chat("the last delta is empty", json!({}), |reply| of_choices(reply, "/delta").last() == Some(&json!({}))),
        chat("a length limit ends a stream", json!({"max_tokens": 3}), |reply| {
            reply.streamed(0) == ("ans".to_owned(), "length".to_owned())
        }),
        chat("no part of a stop string leaves", json!({"stop": "wer"}), |reply| {
            reply.streamed(0) == ("ans".to_owned(), "stop".to_owned())
        }),
        chat("every choice of a stream ends", json!({"n": 2}), |reply| {
            reply.streamed(0).0 == "answer 0" && reply.streamed(1).0 == "answer 1"
        }),
        chat("usage is absent unless asked for", json!({}), |reply| {
            reply.chunks().iter().all(|chunk| chunk.get("usage").is_none())
        }),
        chat("usage comes in a last chunk without choices", usage(), |reply| {
            let last = reply.chunks().pop().unwrap();
            last["choices"] == json!([]) && last["usage"]["completion_tokens"] == 9
        }),
        chat("usage is null in the chunks before", usage(), |reply| {
            let mut chunks = reply.chunks();
            chunks.pop();
            chunks.iter().all(|chunk| chunk.as_object().unwrap().get("usage") == Some(&Value::Null))
        }),
        chat("include_usage may be false", json!({"stream_options": {"include_usage": false}}), |reply| {
            reply.chunks().iter().all(|chunk| chunk.get("usage").is_none())
        }),
        chat("log-probabilities come with their text", json!({"logprobs": true, "max_tokens": 2}), |reply| {
            let tokens = of_choices(reply, "/logprobs/content/0/token");
            let tokens: Vec<&Value> = tokens.iter().filter(|token| !token.is_null()).collect();
            tokens == ["a", "n"]
        }),
        chat("include_obfuscation is taken", json!({"stream_options": {"include_obfuscation": false}}), |reply| {
            reply.streamed(0).0 == "answer 0"
        }),
    ]
}

fn completions() -> Vec<Rule> {
    vec![
        completion("a stream ends with [DONE]", json!({}), |reply| reply.events().last().unwrap().data == "[DONE]"),
        completion("chunks are text_completion", json!({}), |reply| {
            reply.chunks().iter().all(|chunk| chunk["object"] == "text_completion")
        }),
        completion("all chunks have one id", json!({}), |reply| same_in_all(reply, "id")),
        completion("the texts are the answer", json!({}), |reply| reply.streamed(0).0 == "answer 0"),
        completion("the last chunk has the finish reason", json!({}), |reply| {
            of_choices(reply, "/finish_reason").last() == Some(&json!("stop"))
        }),
        completion("echo streams the prompt first", json!({"echo": true}), |reply| reply.streamed(0).0 == "abanswer 0"),
        completion("the choices of all prompts stream", json!({"prompt": ["a", "b"]}), |reply| {
            reply.streamed(0).0 == "answer 0" && reply.streamed(1).0 == "answer 1"
        }),
        completion("usage comes last if asked for", json!({"stream_options": {"include_usage": true}}), |reply| {
            reply.chunks().pop().unwrap()["usage"]["total_tokens"] == 11
        }),
    ]
}

fn failures() -> Vec<Rule> {
    let full =
        |says, ask| Rule { says, server: Server::Full, ask, wants: Wants::Error(429, None, "rate_limit_exceeded") };
    vec![
        Rule::no_chat(
            "a stream that is refused is plain JSON with a status",
            with(json!({"temperature": 3})),
            "temperature",
            "decimal_above_max_value",
        ),
        full("a full server refuses a stream with a status", Ask::Chat(with(json!({})))),
        full("a full server refuses an answer", Ask::Completion(json!({}))),
        Rule {
            says: "a full server says when to try again",
            server: Server::Full,
            ask: Ask::Chat(json!({})),
            wants: Wants::Reply(|reply| reply.status == 429 && reply.header("retry-after") == Some("2")),
        },
    ]
}
