//! What a body may hold, and how what it may not is called by its name.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::harness::{ALIAS, END, MAX_CONTEXT, MODEL, World, chat_body, completion_body, says};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

async fn world() -> World {
    World::scripted(|request| says(request, "ok")).await
}

/// Each body gets a 400 with this code and parameter.
async fn refuses(path: &str, cases: &[(Value, &str, &str)]) {
    let world = world().await;
    for (more, code, param) in cases {
        let body = if path == CHAT { chat_body(more.clone()) } else { completion_body(more.clone()) };
        let reply = world.post(path, &body).await;
        assert_eq!(reply.error(), (400, (*code).to_owned(), Some((*param).to_owned())), "{body}\n{}", reply.message());
        assert!(reply.message().contains(param.split('[').next().unwrap()), "{}", reply.message());
    }
}

/// Each body gets a 200.
async fn accepts(path: &str, cases: &[Value]) {
    let world = world().await;
    for more in cases {
        let body = if path == CHAT { chat_body(more.clone()) } else { completion_body(more.clone()) };
        let reply = world.post(path, &body).await;
        assert_eq!(reply.status, 200, "{body}\n{reply:?}");
    }
}

/// Both bounds of every number: vLLM's unbounded `n` (CVE-2026-34756), llama.cpp's negative `n_discard` (CVE-2026-21869).
#[tokio::test]
async fn numbers_outside_their_bounds_are_refused() {
    let below = [
        ("temperature", json!(-0.01), "decimal_below_min_value"),
        ("top_p", json!(-0.01), "decimal_below_min_value"),
        ("top_k", json!(-2), "integer_below_min_value"),
        ("min_p", json!(-0.01), "decimal_below_min_value"),
        ("max_tokens", json!(-1), "integer_below_min_value"),
        ("n", json!(0), "integer_below_min_value"),
        ("frequency_penalty", json!(-2.01), "decimal_below_min_value"),
        ("presence_penalty", json!(-2.01), "decimal_below_min_value"),
        ("repetition_penalty", json!(0), "decimal_below_min_value"),
        ("temperature", json!(2.01), "decimal_above_max_value"),
        ("top_p", json!(1.01), "decimal_above_max_value"),
        ("top_k", json!(1 << 21), "integer_above_max_value"),
        ("min_p", json!(1.01), "decimal_above_max_value"),
        ("max_tokens", json!(u64::MAX), "integer_above_max_value"),
        ("n", json!(129), "integer_above_max_value"),
        ("seed", json!(u64::MAX), "integer_above_max_value"),
        ("frequency_penalty", json!(2.01), "decimal_above_max_value"),
        ("presence_penalty", json!(2.01), "decimal_above_max_value"),
        ("repetition_penalty", json!(10.01), "decimal_above_max_value"),
    ];
    let cases: Vec<_> = below.iter().map(|(name, value, code)| (json!({ *name: value }), *code, *name)).collect();
    refuses(CHAT, &cases).await;
    refuses(COMPLETION, &cases).await;
    refuses(
        CHAT,
        &[
            (json!({"logprobs": true, "top_logprobs": 21}), "integer_above_max_value", "top_logprobs"),
            (json!({"logprobs": true, "top_logprobs": -1}), "integer_below_min_value", "top_logprobs"),
            (json!({"max_tokens": 0}), "integer_below_min_value", "max_tokens"),
            (json!({"max_completion_tokens": 0}), "integer_below_min_value", "max_completion_tokens"),
        ],
    )
    .await;
    refuses(
        COMPLETION,
        &[
            (json!({"logprobs": 6}), "integer_above_max_value", "logprobs"),
            (json!({"logprobs": -1}), "integer_below_min_value", "logprobs"),
        ],
    )
    .await;
}

#[tokio::test]
async fn values_of_a_wrong_type_are_refused() {
    let cases: Vec<_> = [
        ("model", json!(1)),
        ("temperature", json!("1")),
        ("temperature", json!(true)),
        ("top_k", json!(1.5)),
        ("seed", json!("1")),
        ("n", json!(1.0)),
        ("max_tokens", json!("10")),
        ("stop", json!(1)),
        ("stop", json!({})),
        ("logit_bias", json!([])),
        ("stream", json!("true")),
        ("stream", json!(1)),
        ("ignore_eos", json!(0)),
        ("user", json!(1)),
        ("metadata", json!("a")),
        ("store", json!("a")),
        ("service_tier", json!(1)),
        ("safety_identifier", json!(1)),
        ("prompt_cache_key", json!(1)),
    ]
    .into_iter()
    .map(|(name, value)| (json!({ name: value }), "invalid_type", name))
    .collect();
    refuses(CHAT, &cases).await;
    refuses(COMPLETION, &cases).await;
    refuses(
        CHAT,
        &[
            (json!({"messages": "hi"}), "invalid_type", "messages"),
            (json!({"messages": [1]}), "invalid_type", "messages[0]"),
            (json!({"messages": [{"role": 1, "content": "a"}]}), "invalid_type", "messages[0].role"),
            (json!({"messages": [{"role": "user", "content": 1}]}), "invalid_type", "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": ["a"]}]}), "invalid_type", "messages[0].content[0]"),
            (json!({"logprobs": 1}), "invalid_type", "logprobs"),
            (json!({"stream": true, "stream_options": 1}), "invalid_type", "stream_options"),
            (
                json!({"stream": true, "stream_options": {"include_usage": 1}}),
                "invalid_type",
                "stream_options.include_usage",
            ),
            (json!({"parallel_tool_calls": 1}), "invalid_type", "parallel_tool_calls"),
            (json!({"metadata": {"a": 1}}), "invalid_type", "metadata.a"),
        ],
    )
    .await;
    refuses(
        COMPLETION,
        &[
            (json!({"prompt": 1}), "invalid_type", "prompt"),
            (json!({"prompt": {}}), "invalid_type", "prompt"),
            (json!({"prompt": [true]}), "invalid_type", "prompt[0]"),
            (json!({"prompt": ["a", 1]}), "invalid_type", "prompt[1]"),
            (json!({"prompt": [1, "a"]}), "invalid_type", "prompt[1]"),
            (json!({"prompt": [[1], 1]}), "invalid_type", "prompt[1]"),
            (json!({"prompt": [[1, 1.5]]}), "invalid_type", "prompt[0][1]"),
            (json!({"logprobs": true}), "invalid_type", "logprobs"),
            (json!({"echo": 1}), "invalid_type", "echo"),
        ],
    )
    .await;
}

#[tokio::test]
async fn unknown_fields_are_refused_by_name() {
    let cases = [
        (json!({"temprature": 1}), "unknown_parameter", "temprature"),
        (json!({"": 1}), "unknown_parameter", ""),
        (json!({"Temperature": 1}), "unknown_parameter", "Temperature"),
        (json!({"stream": true, "stream_options": {"foo": 1}}), "unknown_parameter", "stream_options.foo"),
    ];
    refuses(CHAT, &cases).await;
    refuses(COMPLETION, &cases).await;
    refuses(CHAT, &[(json!({"prompt": "a"}), "unknown_parameter", "prompt")]).await;
    refuses(CHAT, &[(json!({"echo": true}), "unknown_parameter", "echo")]).await;
    refuses(COMPLETION, &[(json!({"messages": []}), "unknown_parameter", "messages")]).await;
    let message = json!([{"role": "user", "content": "a", "foo": 1}]);
    refuses(CHAT, &[(json!({ "messages": message }), "unknown_parameter", "messages[0].foo")]).await;
    let reply = world().await.chat(json!({"temprature": 1})).await;
    assert!(reply.message().contains("Did you mean 'temperature'?"), "{}", reply.message());
}

#[tokio::test]
async fn missing_and_empty_fields_are_refused() {
    let world = world().await;
    let missing = |param: &str| (400, "missing_required_parameter".to_owned(), Some(param.to_owned()));
    assert_eq!(world.post(CHAT, "{}").await.error(), missing("messages"));
    assert_eq!(world.post(CHAT, json!({"messages": null})).await.error(), missing("messages"));
    assert_eq!(world.post(COMPLETION, "{}").await.error(), missing("prompt"));
    assert_eq!(world.post("/detokenize", "{}").await.error(), missing("tokens"));
    assert_eq!(world.post("/tokenize", "{}").await.error(), missing("prompt"));
    refuses(
        CHAT,
        &[
            (json!({"messages": []}), "empty_array", "messages"),
            (json!({"messages": [{"content": "a"}]}), "missing_required_parameter", "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "missing_required_parameter", "messages[0].content"),
            (
                json!({"messages": [{"role": "user", "content": null}]}),
                "missing_required_parameter",
                "messages[0].content",
            ),
            (json!({"messages": [{"role": "user", "content": []}]}), "empty_array", "messages[0].content"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
                "missing_required_parameter",
                "messages[0].content[0].text",
            ),
            (json!({"stop": []}), "empty_array", "stop"),
            (json!({"stop": ""}), "string_below_min_length", "stop"),
            (json!({"stop": ["a", ""]}), "string_below_min_length", "stop[1]"),
        ],
    )
    .await;
    refuses(
        COMPLETION,
        &[
            (json!({"prompt": []}), "empty_array", "prompt"),
            (json!({"prompt": [[]]}), "empty_array", "prompt[0]"),
            (json!({"prompt": [[1], []]}), "empty_array", "prompt[1]"),
        ],
    )
    .await;
}

#[tokio::test]
async fn values_outside_their_choices_are_refused() {
    let long = "a".repeat(2000);
    let many: serde_json::Map<_, _> = (0..17).map(|index| (index.to_string(), json!("a"))).collect();
    let cases = [
        (json!({"service_tier": "gold"}), "invalid_value", "service_tier"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "array_above_max_length", "stop"),
        (json!({"stop": long}), "string_above_max_length", "stop"),
        (json!({"user": long}), "string_above_max_length", "user"),
        (json!({"safety_identifier": "a".repeat(65)}), "string_above_max_length", "safety_identifier"),
        (json!({"metadata": many}), "object_above_max_properties", "metadata"),
        (json!({"metadata": {"a": long}}), "string_above_max_length", "metadata.a"),
        (json!({"metadata": {long: "a"}}), "string_above_max_length", "metadata"),
        (json!({"logit_bias": {"a": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"-1": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"258": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "decimal_above_max_value", "logit_bias.1"),
        (json!({"logit_bias": {"1": -101}}), "decimal_below_min_value", "logit_bias.1"),
        (json!({"stream_options": {"include_usage": true}}), "invalid_parameter_combination", "stream_options"),
    ];
    refuses(CHAT, &cases).await;
    refuses(COMPLETION, &cases).await;
    refuses(
        CHAT,
        &[
            (json!({"messages": [{"role": "wizard", "content": "a"}]}), "invalid_value", "messages[0].role"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "smell", "text": "a"}]}]}),
                "invalid_value",
                "messages[0].content[0].type",
            ),
            (json!({"top_logprobs": 1}), "invalid_parameter_combination", "top_logprobs"),
            (json!({"max_tokens": 1, "max_completion_tokens": 1}), "invalid_parameter_combination", "max_tokens"),
        ],
    )
    .await;
    refuses(
        COMPLETION,
        &[
            (json!({"prompt": [258]}), "integer_above_max_value", "prompt[0]"),
            (json!({"prompt": [-1]}), "integer_below_min_value", "prompt[0]"),
            (json!({"prompt": [[1], [258]]}), "integer_above_max_value", "prompt[1][0]"),
            (json!({"prompt": vec!["a"; 129]}), "too_many_sequences", "prompt"),
            (json!({"prompt": ["a", "b"], "n": 65}), "too_many_sequences", "prompt"),
        ],
    )
    .await;
}

#[tokio::test]
async fn what_is_not_served_yet_says_so() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let parts = |kind: &str| json!([{"role": "user", "content": [{"type": kind, "image_url": {"url": "data:,"}}]}]);
    let chat = [
        (json!({ "tools": tools }), "tools"),
        (json!({"tool_choice": "auto"}), "tool_choice"),
        (json!({"functions": []}), "functions"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"response_format": {"type": "json_schema", "json_schema": {}}}), "response_format"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"messages": parts("image_url")}), "messages[0].content[0].type"),
        (json!({"messages": [{"role": "tool", "content": "a"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "c"}]}]}),
            "messages[0].tool_calls",
        ),
        (json!({"reasoning_effort": "low"}), "reasoning_effort"),
        (json!({"prompt_cache_retention": "24h"}), "prompt_cache_retention"),
    ];
    let cases: Vec<_> = chat.into_iter().map(|(more, param)| (more, "unsupported_parameter", param)).collect();
    refuses(CHAT, &cases).await;
    refuses(
        COMPLETION,
        &[
            (json!({"best_of": 2}), "unsupported_parameter", "best_of"),
            (json!({"suffix": "a"}), "unsupported_parameter", "suffix"),
        ],
    )
    .await;
    let reply = world().await.chat(json!({"response_format": {"type": "json_object"}})).await;
    assert!(reply.message().contains("not yet"), "{}", reply.message());
}

#[tokio::test]
async fn every_field_is_accepted_at_both_its_bounds() {
    let both = [
        json!({"model": MODEL}),
        json!({"model": ALIAS}),
        json!({"temperature": 0, "top_p": 0, "top_k": -1, "min_p": 0, "seed": i64::MIN, "n": 1}),
        json!({"temperature": 2, "top_p": 1, "top_k": 1 << 20, "min_p": 1, "seed": i64::MAX, "n": 8}),
        json!({"frequency_penalty": -2, "presence_penalty": -2, "repetition_penalty": 0.01}),
        json!({"frequency_penalty": 2, "presence_penalty": 2, "repetition_penalty": 10}),
        json!({"logit_bias": {}, "stop": "a", "max_tokens": 1}),
        json!({"logit_bias": {"0": -100, "257": 100}, "stop": ["a", "b", "c", "d"]}),
        json!({"ignore_eos": true, "return_tokens_as_token_ids": true, "user": "me"}),
        json!({"metadata": {"a": "b"}, "store": true, "service_tier": "auto"}),
        json!({"service_tier": "fast"}),
        json!({"safety_identifier": "a", "prompt_cache_key": "b"}),
        json!({"stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false}}),
    ];
    accepts(CHAT, &both).await;
    accepts(COMPLETION, &both).await;
    accepts(
        CHAT,
        &[
            json!({"max_completion_tokens": 1}),
            json!({"logprobs": true, "top_logprobs": 20}),
            json!({"logprobs": true, "top_logprobs": 0}),
            json!({"logprobs": true}),
            json!({"logprobs": false}),
            json!({"response_format": {"type": "text"}, "tool_choice": "none", "modalities": ["text"]}),
            json!({"parallel_tool_calls": true}),
            json!({"tools": [], "reasoning_effort": "none", "prompt_cache_retention": "in_memory"}),
            json!({"messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "refusal": null, "annotations": [], "tool_calls": [],
                 "audio": null, "function_call": null},
                {"role": "user", "content": "c"},
            ]}),
            json!({"messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
                {"role": "assistant", "content": ""},
                {"role": "system", "content": "c"},
            ]}),
        ],
    )
    .await;
    accepts(
        COMPLETION,
        &[
            json!({"max_tokens": 0}),
            json!({"max_tokens": 0, "echo": true}),
            json!({"logprobs": 0}),
            json!({"logprobs": 5, "echo": true}),
            json!({"prompt": ""}),
            json!({"prompt": ["a", "b"]}),
            json!({"prompt": [0, 257]}),
            json!({"prompt": [[1], [2]]}),
            json!({"best_of": 1, "suffix": ""}),
        ],
    )
    .await;
}

#[tokio::test]
async fn null_is_the_same_as_absence() {
    let world = world().await;
    let own = world.get("/openapi.json").await.json();
    for (path, schema) in [(CHAT, "CreateChatCompletionRequest"), (COMPLETION, "CreateCompletionRequest")] {
        let fields = own["components"]["schemas"][schema]["properties"].as_object().unwrap();
        for name in fields.keys().filter(|name| *name != "messages" && *name != "prompt") {
            let body =
                if path == CHAT { chat_body(json!({ name: null })) } else { completion_body(json!({ name: null })) };
            let reply = world.post(path, &body).await;
            assert_eq!(reply.status, 200, "{body} {reply:?}");
        }
    }
}

#[tokio::test]
async fn what_is_no_json_object_is_refused() {
    let world = world().await;
    let deep = "[".repeat(100_000);
    for body in ["", "{", "[]", "1", "null", "\"a\"", "{\"messages\": ", "{} {}", "{\"a\": 1e999}", "\u{0}", &deep] {
        let reply = world.post(CHAT, body).await;
        assert_eq!(reply.error(), (400, "invalid_json".to_owned(), None), "{body:.40}");
    }
}

#[tokio::test]
async fn the_context_must_hold_prompt_and_answer() {
    let world = world().await;
    let fits = json!({"prompt": "a".repeat(MAX_CONTEXT - 10), "max_tokens": 10});
    assert_eq!(world.complete(fits).await.status, 200);
    let over = |param: &str| (400, "context_length_exceeded".to_owned(), Some(param.to_owned()));
    let one_more = json!({"prompt": "a".repeat(MAX_CONTEXT - 10), "max_tokens": 11});
    let reply = world.complete(one_more).await;
    assert_eq!(reply.error(), over("prompt"));
    assert!(reply.message().contains("257") && reply.message().contains("256"), "{}", reply.message());
    assert_eq!(world.complete(json!({"prompt": "a".repeat(MAX_CONTEXT)})).await.error(), over("prompt"));
    assert_eq!(world.complete(json!({"prompt": "a".repeat(MAX_CONTEXT - 1)})).await.status, 200);
    let long = json!({"messages": [{"role": "user", "content": "a".repeat(MAX_CONTEXT)}]});
    assert_eq!(world.chat(long).await.error(), over("messages"));
    assert_eq!(world.chat(json!({"max_tokens": MAX_CONTEXT})).await.error(), over("messages"));
    let echo_all = json!({"prompt": "a".repeat(MAX_CONTEXT), "max_tokens": 0, "echo": true, "logprobs": 1});
    assert_eq!(world.complete(echo_all).await.status, 200);
}

#[tokio::test]
async fn a_text_far_too_long_is_refused_before_it_is_tokenised() {
    let world = world().await;
    let reply = world.complete(json!({"prompt": "a".repeat(3 << 20)})).await;
    assert_eq!(reply.error(), (400, "context_length_exceeded".to_owned(), Some("prompt".to_owned())));
    let message = json!({"messages": [{"role": "user", "content": "a".repeat(3 << 20)}]});
    assert_eq!(world.chat(message).await.error().1, "context_length_exceeded");
}

#[tokio::test]
async fn a_conversation_that_the_template_refuses_is_the_callers_fault() {
    let world = world().await;
    let reply = world.chat(json!({"messages": [{"role": "user", "content": "refuse me"}]})).await;
    assert_eq!(reply.error(), (400, "invalid_messages".to_owned(), Some("messages".to_owned())));
    assert!(reply.message().contains("no such words"), "{}", reply.message());
}

#[tokio::test]
async fn a_model_without_a_tokenizer_takes_and_gives_token_ids_only() {
    let world = World::wordless(|request| says(request, "ok")).await;
    assert_eq!(world.chat(json!({})).await.error(), (400, "no_tokenizer".to_owned(), Some("messages".to_owned())));
    for more in [json!({}), json!({"prompt": ["a"]}), json!({"prompt": [1], "stop": "a"})] {
        let reply = world.complete(more).await;
        assert_eq!((reply.status.as_u16(), &*reply.error().1), (400, "no_tokenizer"));
        assert!(reply.message().contains("token ids only"));
    }
    let body = world.complete(json!({"prompt": [1, 2], "logprobs": 0})).await.json();
    assert_eq!(body["choices"][0]["text"], "");
    assert_eq!(body["choices"][0]["logprobs"]["tokens"], json!(["token_id:111", "token_id:107"]));
}

#[tokio::test]
async fn another_model_is_not_found() {
    let world = world().await;
    let missing = (404, "model_not_found".to_owned(), Some("model".to_owned()));
    for path in [CHAT, COMPLETION, "/tokenize", "/detokenize"] {
        let body = json!({"model": "gpt-4", "messages": [{"role": "user", "content": "a"}]});
        let body = match path {
            COMPLETION => completion_body(json!({"model": "gpt-4"})),
            "/detokenize" => json!({"model": "gpt-4", "tokens": [1]}),
            _ => body,
        };
        assert_eq!(world.post(path, &body).await.error(), missing, "{path}");
    }
    assert_eq!(world.get("/v1/models/gpt-4").await.error(), missing);
}

#[tokio::test]
async fn models_are_listed_and_found_by_every_name() {
    let world = world().await;
    let list = world.get("/v1/models").await.json();
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, [MODEL, ALIAS]);
    for path in ["byte-model", "relevo/byte-model", "relevo%2Fbyte-model"] {
        let reply = world.get(&format!("/v1/models/{path}")).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.json()["max_model_len"], MAX_CONTEXT);
    }
}

#[tokio::test]
async fn texts_become_tokens_and_tokens_texts() {
    let world = world().await;
    let tokens = world.post("/tokenize", json!({"prompt": "hé", "return_token_strs": true})).await.json();
    assert_eq!(tokens["tokens"], json!([104, 0xc3, 0xa9]));
    assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(3), &json!(MAX_CONTEXT)));
    assert_eq!(tokens["token_strs"], json!(["h", "bytes:\\xc3", "bytes:\\xa9"]));
    let without = world.post("/tokenize", json!({"prompt": ""})).await.json();
    assert_eq!(without["count"], 0);
    assert_eq!(without.get("token_strs"), None);
    let chat = world.post("/tokenize", json!({"messages": [{"role": "user", "content": "a"}]})).await.json();
    let bare = json!({"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": false});
    let bare = world.post("/tokenize", bare).await.json();
    assert!(chat["count"].as_u64() > bare["count"].as_u64());
    let text = world.post("/detokenize", json!({"tokens": [104, 0xc3, 0xa9]})).await.json();
    assert_eq!(text, json!({"prompt": "hé"}));
    assert_eq!(world.post("/detokenize", json!({"tokens": []})).await.json(), json!({"prompt": ""}));
    let both = json!({"prompt": "a", "messages": []});
    assert_eq!(world.post("/tokenize", both).await.error().1, "invalid_parameter_combination");
    let beyond = world.post("/detokenize", json!({"tokens": [END + 2]})).await;
    assert_eq!(beyond.error(), (400, "integer_above_max_value".to_owned(), Some("tokens[0]".to_owned())));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_number_is_accepted_exactly_within_its_bounds(
        field in prop::sample::select(vec![
            ("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0), ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0), ("repetition_penalty", 0.01, 10.0),
        ]),
        value in prop_oneof![-12.0..12.0f64, any::<f64>().prop_filter("JSON has no others", |value| value.is_finite())],
    ) {
        let (name, min, max) = field;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let reply = world().await.chat(json!({ name: value })).await;
            assert_eq!(reply.status == 200, (min..=max).contains(&value), "{name} {value} {reply:?}");
        });
    }

    #[test]
    fn no_body_panics_or_goes_without_an_answer(
        name in prop::sample::select(vec![
            "messages", "model", "temperature", "top_k", "seed", "max_tokens", "n", "stop", "logit_bias", "stream",
            "stream_options", "logprobs", "top_logprobs", "metadata", "tools", "response_format", "prompt", "x",
        ]),
        value in json_value(),
        chat in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = world().await;
            let more = json!({ name: value });
            let reply = if chat { world.chat(more).await } else { world.complete(more).await };
            assert!(reply.status == 200 || (400..500).contains(&reply.status.as_u16()), "{reply:?}");
        });
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec(
                (prop_oneof![Just("role".to_owned()), Just("content".to_owned()), ".{0,6}"], inner),
                0..6
            )
            .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}
