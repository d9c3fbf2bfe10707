//! A fuzz body for the HTTP side, and what runs it on stable Rust: bodies of a corpus as they are, and mutated by seeds.
//!
//! The body takes any bytes and asserts what must hold whatever they are; a coverage-guided fuzzer can call the same function.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use serde_json::{Value, json};

use crate::harness::{MODEL, World, says};

/// Mutations of each body of the corpus.
const MUTATIONS: u64 = 400;

/// Sends bytes as a body. They are answered, or refused as the caller's fault; the harness validates either by its schema.
async fn fuzz_body(world: &World, path: &str, body: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(body);
    let mut request = world.post_request(path, "");
    *request.body_mut() = bytes::Bytes::copy_from_slice(body).into();
    let reply = world.send(request).await;
    let status = reply.status.as_u16();
    assert!(matches!(status, 200 | 400 | 404), "{path}: {text}\n{reply:?}");
    if status != 200 {
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error", "{path}: {text}");
    }
    status
}

/// Sound bodies that hold every field there is.
fn corpus() -> Vec<(&'static str, Value)> {
    let shared = json!({
        "model": MODEL, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "seed": 1, "n": 2, "stop": ["x", "yz"],
        "frequency_penalty": 0.5, "presence_penalty": -0.5, "repetition_penalty": 1.1, "logit_bias": {"7": -1, "9": 2.5},
        "ignore_eos": false, "return_tokens_as_token_ids": true, "user": "u", "metadata": {"a": "b"}, "store": false,
        "service_tier": "auto", "safety_identifier": "s", "prompt_cache_key": "k", "max_tokens": 3,
    });
    let with = |more: Value| {
        let mut body = shared.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let messages = json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "é"}], "name": "ada"},
        {"role": "assistant", "content": "b", "refusal": null, "tool_calls": [], "annotations": []},
        {"role": "user", "content": "c"},
    ]);
    let (chat, completion) = ("/v1/chat/completions", "/v1/completions");
    vec![
        (
            chat,
            with(json!({
                "messages": messages, "logprobs": true, "top_logprobs": 2, "parallel_tool_calls": true, "tools": [],
                "response_format": {"type": "text"}, "tool_choice": "none", "modalities": ["text"], "verbosity": "medium",
            })),
        ),
        (chat, with(json!({"messages": messages, "stream": true, "stream_options": {"include_usage": true}}))),
        (chat, json!({"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 2})),
        (completion, with(json!({"prompt": ["ab", ""], "logprobs": 1, "echo": true, "best_of": 1, "suffix": ""}))),
        (
            completion,
            with(json!({"prompt": [[1, 2], [3]], "stream": true, "stream_options": {"include_usage": false}})),
        ),
        (completion, json!({"prompt": [7, 8], "max_tokens": 0, "echo": true, "logprobs": 5})),
        ("/tokenize", json!({"messages": messages, "add_generation_prompt": false, "return_token_strs": true})),
        ("/tokenize", json!({"model": MODEL, "prompt": "aé", "add_special_tokens": true})),
        ("/detokenize", json!({"model": MODEL, "tokens": [104, 105]})),
    ]
}

/// Numbers from a seed.
struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.drawn += 1;
        let drawn = BuildHasherDefault::<DefaultHasher>::default().hash_one((self.seed, self.drawn));
        (drawn % most.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Values that readers trip over.
fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(-0.0),
        json!(1e308),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(129),
        json!(""),
        json!("a"),
        json!("\u{0}"),
        json!("\u{1F980}\u{FEFF}\u{202E}"),
        json!("a".repeat(5000)),
        json!([]),
        json!([[]]),
        json!([null]),
        json!({}),
        json!({"": {}}),
        json!({"type": "text"}),
        json!([1, "a", {}]),
        json!({"role": "user"}),
        json!("<|end|>"),
        json!("text"),
        json!(vec![0; 300]),
    ]
}

/// Changes a value somewhere in the tree: another value, a key or item less, an item twice, a key under another name.
fn mutate_tree(value: &mut Value, random: &mut Random) {
    let go_deeper = random.below(4) > 0;
    match value {
        Value::Object(map) if !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = random.pick(&keys).clone();
            match random.below(8) {
                0 => drop(map.remove(&key)),
                1 => {
                    let moved = map.remove(&key).unwrap_or_default();
                    let ending = *random.pick(&["", "s", "\u{0}"]);
                    map.insert(random.pick(&keys).clone() + ending, moved);
                }
                _ if go_deeper => mutate_tree(&mut map[&key], random),
                _ => drop(map.insert(key, random.pick(&odd_values()).clone())),
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let index = random.below(items.len());
            match random.below(6) {
                0 => drop(items.remove(index)),
                1 => items.push(items[index].clone()),
                _ if go_deeper => mutate_tree(&mut items[index], random),
                _ => items[index] = random.pick(&odd_values()).clone(),
            }
        }
        _ => *value = random.pick(&odd_values()).clone(),
    }
}

/// Changes bytes: the result is seldom JSON.
fn mutate_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len());
    match random.below(5) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at] = *random.pick(b"{}[]\",:\\0-e.\xff\x00u"),
        3 => drop(bytes.drain(at..(at + random.below(32)).min(bytes.len()))),
        _ => {
            let copy = bytes[at..(at + random.below(32)).min(bytes.len())].to_vec();
            bytes.splice(at..at, copy);
        }
    }
}

fn mutated(body: &Value, seed: u64) -> Vec<u8> {
    let mut random = Random { seed, drawn: 0 };
    let mut tree = body.clone();
    for _ in 0..=random.below(3) {
        mutate_tree(&mut tree, &mut random);
    }
    let mut bytes = tree.to_string().into_bytes();
    if random.below(4) == 0 && !bytes.is_empty() {
        mutate_bytes(&mut bytes, &mut random);
    }
    bytes
}

#[tokio::test]
async fn mutated_bodies_are_answered_or_refused_as_the_specification_has_it() {
    let world = World::scripted(|request| says(request, "ok")).await;
    let (mut num_answered, mut num_refused) = (0, 0);
    for (path, body) in corpus() {
        assert_eq!(fuzz_body(&world, path, body.to_string().as_bytes()).await, 200, "{path}: {body}");
        for seed in 0..MUTATIONS {
            match fuzz_body(&world, path, &mutated(&body, seed)).await {
                200 => num_answered += 1,
                _ => num_refused += 1,
            }
        }
    }
    assert!(num_answered > 100 && num_refused > 1000, "{num_answered} answered, {num_refused} refused: too much alike");
}
