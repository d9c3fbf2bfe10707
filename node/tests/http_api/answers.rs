//! Answers in one piece.

use std::time::Duration;

use relevo_wire::{FinishReason, RequestError, StreamEvent, TokenLogprobs};
use serde_json::json;

use crate::harness::{END, MODEL, World, generates, says};

#[tokio::test]
async fn a_chat_answer_has_what_the_specification_wants_and_nothing_else() {
    let world = World::scripted(|request| says(request, "hello")).await;
    let reply = world.chat(json!({})).await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let body = reply.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!(MODEL)));
    let message = json!({"role": "assistant", "content": "hello", "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    let prompt_tokens = body["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(
        body["usage"],
        json!({
            "prompt_tokens": prompt_tokens, "completion_tokens": 6, "total_tokens": prompt_tokens + 6,
            "prompt_tokens_details": {"cached_tokens": 1},
        })
    );
}

#[tokio::test]
async fn a_text_answer_has_what_the_specification_wants_and_nothing_else() {
    let world = World::scripted(|request| says(request, "hello")).await;
    let body = world.complete(json!({})).await.json();
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"], json!([{"index": 0, "text": "hello", "logprobs": null, "finish_reason": "stop"}]));
    assert_eq!(body["usage"]["total_tokens"], 8);
}

#[tokio::test]
async fn an_answer_says_why_it_ends() {
    let world = World::scripted(|request| says(request, "hello")).await;
    let cut = world.chat(json!({"max_tokens": 3})).await.json();
    assert_eq!(
        (&cut["choices"][0]["finish_reason"], &cut["choices"][0]["message"]["content"]),
        (&json!("length"), &json!("hel"))
    );
    let stopped = world.chat(json!({"stop": "ll"})).await.json();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["message"]["content"], "he");
    assert_eq!(stopped["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn an_answer_that_a_stop_string_ends_tells_what_came_from_the_cache() {
    let world = World::scripted(|request| {
        let prefilled = StreamEvent::Prefilled { cached_tokens: 7 };
        [prefilled].into_iter().chain(says(request, "hello")).collect()
    })
    .await;
    for more in [json!({"stop": "ll"}), json!({"stop": "h", "n": 3})] {
        let answer = world.chat(more).await.json();
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 7, "{answer}");
    }
    let options = json!({"stop": "ll", "stream": true, "stream_options": {"include_usage": true}});
    let chunks = world.complete(options).await.chunks();
    assert_eq!(chunks.last().unwrap()["usage"]["prompt_tokens_details"]["cached_tokens"], 7);
}

#[tokio::test]
async fn several_answers_stand_at_their_index() {
    let world = World::scripted(|request| says(request, format!("{}!", request.sequence.choice))).await;
    let body = world.post("/v1/completions", json!({"prompt": ["ab", "c"], "n": 2})).await.json();
    let texts: Vec<_> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["0!", "1!", "2!", "3!"]);
    assert_eq!(body["usage"]["prompt_tokens"], 3, "a prompt counts once");
    assert_eq!(body["usage"]["completion_tokens"], 12);
    assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
    let chat = world.chat(json!({"n": 3})).await.json();
    assert_eq!(chat["choices"][2]["message"]["content"], "2!");
}

#[tokio::test]
async fn chat_log_probabilities_name_tokens_and_bytes() {
    let world = World::scripted(|request| says(request, "aé")).await;
    let body = world.chat(json!({"logprobs": true, "top_logprobs": 2})).await.json();
    let entry = |token: &str, byte: u8, next: &str| {
        json!({
            "token": token, "logprob": -0.25, "bytes": [byte],
            "top_logprobs": [
                {"token": token, "logprob": -0.25, "bytes": [byte]},
                {"token": next, "logprob": -1.25, "bytes": [byte + 1]},
            ],
        })
    };
    let expected =
        [entry("a", 97, "b"), entry("bytes:\\xc3", 0xc3, "bytes:\\xc4"), entry("bytes:\\xa9", 0xa9, "bytes:\\xaa")];
    assert_eq!(body["choices"][0]["logprobs"], json!({"content": expected, "refusal": null}));
    let ids = world.chat(json!({"logprobs": true, "return_tokens_as_token_ids": true})).await.json();
    assert_eq!(ids["choices"][0]["logprobs"]["content"][0]["token"], "token_id:97");
    assert_eq!(ids["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn text_log_probabilities_are_four_lists() {
    let world = World::scripted(|request| says(request, "aéb")).await;
    let body = world.complete(json!({"logprobs": 1})).await.json();
    assert_eq!(
        body["choices"][0]["logprobs"],
        json!({
            "text_offset": [0, 1, 1, 2],
            "token_logprobs": [-0.25, -0.25, -0.25, -0.25],
            "tokens": ["a", "bytes:\\xc3", "bytes:\\xa9", "b"],
            "top_logprobs": [{"a": -0.25}, {"bytes:\\xc3": -0.25}, {"bytes:\\xa9": -0.25}, {"b": -0.25}],
        })
    );
    let none = world.complete(json!({"logprobs": 0})).await.json();
    assert_eq!(
        none["choices"][0]["logprobs"]["top_logprobs"][0],
        json!({"a": -0.25}),
        "the token itself is always there"
    );
    let ids = world.complete(json!({"logprobs": 0, "return_tokens_as_token_ids": true})).await.json();
    assert_eq!(ids["choices"][0]["logprobs"]["tokens"][0], "token_id:97");
}

#[tokio::test]
async fn an_unlikely_token_has_its_own_log_probability_beside_the_likeliest() {
    let world = World::scripted(|request| {
        let mut events = says(request, "a");
        if let StreamEvent::Token { logprobs: Some(known), .. } = &mut events[0] {
            *known = TokenLogprobs { token: 97, logprob: -3.5, rank: 4, top: vec![(98, -0.5)] };
        }
        events
    })
    .await;
    let body = world.complete(json!({"logprobs": 1})).await.json();
    let lists = &body["choices"][0]["logprobs"];
    assert_eq!(lists["token_logprobs"], json!([-3.5]));
    assert_eq!(lists["top_logprobs"], json!([{"b": -0.5, "a": -3.5}]));
    let chat = world.chat(json!({"logprobs": true, "top_logprobs": 1})).await.json();
    let likeliest = json!({"token": "b", "logprob": -0.5, "bytes": [98]});
    let expected = json!({"token": "a", "logprob": -3.5, "bytes": [97], "top_logprobs": [likeliest]});
    assert_eq!(chat["choices"][0]["logprobs"]["content"], json!([expected]));
}

#[tokio::test]
async fn an_echo_begins_with_the_prompt_and_its_log_probabilities() {
    let world = World::scripted(|request| says(request, "x")).await;
    let body = world.complete(json!({"prompt": "éb", "echo": true, "logprobs": 1})).await.json();
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "ébx");
    assert_eq!(
        choice["logprobs"],
        json!({
            "text_offset": [0, 0, 1, 2],
            "token_logprobs": [null, -0.25, -0.25, -0.25],
            "tokens": ["bytes:\\xc3", "bytes:\\xa9", "b", "x"],
            "top_logprobs": [null, {"bytes:\\xa9": -0.25}, {"b": -0.25}, {"x": -0.25}],
        })
    );
    let scored = world.complete(json!({"echo": true, "logprobs": 1, "max_tokens": 0})).await.json();
    assert_eq!(
        (&scored["choices"][0]["text"], &scored["choices"][0]["finish_reason"]),
        (&json!("ab"), &json!("length"))
    );
    assert_eq!(scored["choices"][0]["logprobs"]["token_logprobs"], json!([null, -0.25]));
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    let ids = world.complete(json!({"prompt": [104, 105], "echo": true, "max_tokens": 1})).await.json();
    assert_eq!(ids["choices"][0]["text"], "hix");
}

#[tokio::test]
async fn nothing_to_compute_does_not_bother_the_cluster() {
    let world = World::scripted(|_| panic!("a sequence without work")).await;
    for (more, text) in [(json!({"max_tokens": 0, "echo": true}), "ab"), (json!({"max_tokens": 0}), "")] {
        let body = world.complete(more).await.json();
        assert_eq!(body["choices"][0]["text"], text);
        assert_eq!(body["choices"][0]["finish_reason"], "length");
        assert_eq!(body["usage"]["prompt_tokens"], 2);
    }
    let stream = world.complete(json!({"max_tokens": 0, "echo": true, "stream": true})).await;
    assert_eq!(stream.streamed(0), ("ab".to_owned(), "length".to_owned()));
}

#[tokio::test]
async fn a_tokenless_end_and_an_ignored_end_are_answers_too() {
    let empty = World::scripted(|request| generates(request, &[END], FinishReason::Stop)).await;
    assert_eq!(empty.chat(json!({})).await.json()["choices"][0]["message"]["content"], "");
    let ignored = World::scripted(|request| generates(request, &[97, END, 98], FinishReason::Length)).await;
    let body = ignored.chat(json!({"ignore_eos": true, "logprobs": true})).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], "ab");
    assert_eq!(body["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn impossible_tokens_have_the_least_log_probability() {
    let world = World::scripted(|request| {
        let mut events = says(request, "a");
        if let StreamEvent::Token { logprobs: Some(known), .. } = &mut events[0] {
            known.logprob = f32::NEG_INFINITY;
        }
        events
    })
    .await;
    let body = world.complete(json!({"logprobs": 0})).await.json();
    assert_eq!(body["choices"][0]["logprobs"]["token_logprobs"], json!([-9999.0]));
}

#[tokio::test]
async fn every_failure_of_the_cluster_has_its_status() {
    let second = Duration::from_millis(1500);
    let failures = [
        (
            RequestError::QueueFull { num_waiting: 9, limit: 9, retry_after: second },
            429,
            "rate_limit_exceeded",
            Some("2"),
        ),
        (RequestError::NoWorker { retry_after: second }, 503, "no_worker", Some("2")),
        (RequestError::ShuttingDown, 503, "shutting_down", Some("5")),
        (RequestError::DeadlineExceeded, 504, "deadline_exceeded", None),
        (RequestError::Poisoned { num_deaths: 2 }, 500, "worker_failure", None),
        (RequestError::ContextTooLong { num_tokens: 9, max_context: 8 }, 400, "context_length_exceeded", None),
        (RequestError::KvPoolTooSmall { num_blocks: 9, pool_blocks: 8 }, 400, "context_length_exceeded", None),
    ];
    for (failure, status, code, retry_after) in failures {
        let cause = failure.clone();
        let world = World::scripted(move |_| vec![StreamEvent::Failed(cause.clone())]).await;
        for more in [json!({}), json!({"stream": true})] {
            let reply = world.chat(more).await;
            assert_eq!((reply.status.as_u16(), &*reply.error().1), (status, code), "{failure:?}");
            assert_eq!(reply.header("retry-after"), retry_after);
        }
    }
}

#[tokio::test]
async fn a_sequence_that_is_cut_off_is_an_error_of_the_server() {
    let world = World::scripted(|_| Vec::new()).await;
    assert_eq!(world.chat(json!({})).await.error().0, 500);
    let late = World::scripted(|request| says(request, "abc")[..2].to_vec()).await;
    assert_eq!(late.chat(json!({})).await.error().0, 500);
}
