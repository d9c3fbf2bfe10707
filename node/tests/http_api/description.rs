//! `/openapi.json` is complete and true.

use serde_json::{Value, json};

use crate::harness::{World, chat_body, completion_body, says};
use crate::schema::{Document, is_valid, openai};

async fn document() -> (World, Value) {
    let world = World::scripted(|request| says(request, "ok")).await;
    let document = world.get("/openapi.json").await.json();
    (world, document)
}

#[tokio::test]
async fn every_route_of_the_issue_is_described() {
    let (_world, document) = document().await;
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    for path in [
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/metrics",
        "/openapi.json",
        "/relevo/status",
        "/relevo/order",
        "/relevo/bench/link",
        "/relevo/trace/{request}",
    ] {
        assert!(paths.contains(&path), "{path}");
    }
    assert_eq!(paths.len(), 14, "{paths:?}");
}

#[tokio::test]
async fn every_reference_leads_somewhere() {
    let (_world, document) = document().await;
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn the_server_accepts_what_the_description_accepts() {
    let (world, document) = document().await;
    for (path, schema) in
        [("/v1/chat/completions", "CreateChatCompletionRequest"), ("/v1/completions", "CreateCompletionRequest")]
    {
        let properties = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        for (name, property) in
            properties.iter().filter(|(name, _)| !["messages", "prompt", "model"].contains(&name.as_str()))
        {
            assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{schema} {name}");
            let samples = [
                json!(0),
                json!(-1),
                json!(1),
                json!(0.5),
                json!(3),
                json!(-3),
                json!(129),
                json!("a"),
                json!(""),
                json!([]),
                json!(["a"]),
                json!({}),
                json!({"1": 1}),
                json!({"a": "b"}),
                json!(true),
                json!(null),
                json!("auto"),
            ];
            for sample in samples {
                let more = json!({name: sample});
                let body = if path == "/v1/completions" { completion_body(more) } else { chat_body(more) };
                let reply = world.post(path, &body).await;
                let combination = reply.status == 400 && reply.error().1 == "invalid_parameter_combination";
                if !combination && reply.status != 429 {
                    let described = is_valid(Document::Own, schema, &body);
                    // That a token id is one of the vocabulary, a description cannot say.
                    let beyond = reply.status == 400 && reply.error().1 == "invalid_value";
                    assert!(described == (reply.status == 200) || (described && beyond), "{body} {reply:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn every_field_of_openai_is_served_or_refused_by_name() {
    let world = World::scripted(|request| says(request, "ok")).await;
    let schemas = &openai()["components"]["schemas"];
    let mut names: Vec<(&str, String)> = Vec::new();
    let mut collect = |path: &'static str, schema: &Value| {
        names.extend(schema["properties"].as_object().unwrap().keys().map(|name| (path, name.clone())));
    };
    collect("/v1/completions", &schemas["CreateCompletionRequest"]);
    collect("/v1/chat/completions", &schemas["CreateChatCompletionRequest"]["allOf"][1]);
    collect("/v1/chat/completions", &schemas["ModelResponseProperties"]);
    collect("/v1/chat/completions", &schemas["CreateModelResponseProperties"]["allOf"][1]);
    assert!(names.len() > 50);
    for (path, name) in names {
        // No field takes this, so none passes unseen.
        let more = json!({ &name: {"\u{1}": []} });
        let body = if path == "/v1/completions" { completion_body(more) } else { chat_body(more) };
        let (status, code, param) = world.post(path, &body).await.error();
        assert_eq!(status, 400);
        assert_ne!(code, "unknown_parameter", "{path} {name}");
        assert!(param.unwrap().starts_with(&name), "{path} {name}");
    }
}
