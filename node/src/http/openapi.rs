//! `GET /openapi.json`: the description of every route and field, made from the tables that the routes and checks read.

use axum::response::Response;
use relevo_wire::{MAX_BLOCK_KIB, MAX_ROUNDS};
use serde_json::{Map, Value, json};

use super::answer;
use super::api_error::ApiError;
use super::request::{CHAT_FIELDS, COMPLETION_FIELDS, DETOKENIZE_FIELDS, Field, Kind, TOKENIZE_FIELDS, all};
use super::routes::{Endpoint, ROUTES, Role, Route};

/// `GET /openapi.json`
pub(super) async fn document() -> Result<Response, ApiError> {
    answer::json(&openapi())
}

/// The document, OpenAPI 3.1.
fn openapi() -> Value {
    let paths: Map<String, Value> = ROUTES.iter().map(|route| (public_path(route), operation(route))).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Relevo",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI-compatible API of a Relevo cluster. Every failure carries an Error object.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"ApiKey": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"ApiKey": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(),
        },
    })
}

/// axum's `{*model}` as OpenAPI writes it.
fn public_path(route: &Route) -> String {
    route.path.replace("{*", "{")
}

fn operation(route: &Route) -> Value {
    let description = describe(route.endpoint);
    let mut operation = json!({
        "operationId": description.id,
        "summary": description.summary,
        "responses": {
            "200": {"description": "Success.", "content": description.content()},
            "default": {
                "description": "Failure.",
                "headers": {"x-request-id": {"schema": {"type": "string"}}},
                "content": {"application/json": {"schema": reference("ErrorResponse")}},
            },
        },
    });
    if route.role == Role::Public {
        operation["security"] = json!([]);
    }
    if let Some((_, parameter)) = route.path.split_once("{*") {
        let name = parameter.trim_end_matches('}');
        operation["parameters"] = json!([{"name": name, "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    let method = match description.request {
        None => "get",
        Some(request) => {
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": reference(request)}}});
            "post"
        }
    };
    json!({ method: operation })
}

struct Description {
    id: &'static str,
    summary: &'static str,
    /// Schema of the body.
    request: Option<&'static str>,
    /// Schema of the answer; empty: plain text.
    answer: &'static str,
    /// Schema of a stream's events.
    event: Option<&'static str>,
}

impl Description {
    const fn get(id: &'static str, summary: &'static str, answer: &'static str) -> Self {
        Self { id, summary, request: None, answer, event: None }
    }

    fn content(&self) -> Value {
        let mut content = Map::new();
        match self.answer {
            "" => content.insert("text/plain".into(), json!({"schema": {"type": "string"}})),
            answer => content.insert("application/json".into(), json!({"schema": reference(answer)})),
        };
        if let Some(event) = self.event {
            content.insert("text/event-stream".into(), json!({"schema": reference(event)}));
        }
        Value::Object(content)
    }
}

fn describe(endpoint: Endpoint) -> Description {
    match endpoint {
        Endpoint::Health => Description::get("health", "Whether the process answers.", "Condition"),
        Endpoint::Ready => Description::get("ready", "Whether the model serves; 503 until then.", "Condition"),
        Endpoint::Metrics => Description::get("metrics", "Metrics in Prometheus' text format.", ""),
        Endpoint::Status => Description::get("status", "The cluster's account of itself.", "ClusterStatus"),
        Endpoint::Order => Description {
            id: "order",
            summary: "Drains a node, ends that, or changes its role; on a loopback address only.",
            request: Some("Order"),
            answer: "Condition",
            event: None,
        },
        Endpoint::BenchLink => Description {
            id: "benchLink",
            summary: "Measures what the KV path to a node carries, for some seconds; on a loopback address only.",
            request: Some("LinkToMeasure"),
            answer: "LinkMeasurement",
            event: None,
        },
        Endpoint::Trace => Description::get(
            "trace",
            "What was done for a request, on all nodes; on a loopback address only.",
            "RequestTrace",
        ),
        Endpoint::Models => {
            Description::get("listModels", "Every name that a model is served under.", "ListModelsResponse")
        }
        Endpoint::Model => Description::get("retrieveModel", "One of them.", "Model"),
        Endpoint::OpenApi => Description::get("openapi", "This document.", "Document"),
        Endpoint::Chat => Description {
            id: "createChatCompletion",
            summary: "Continues a conversation.",
            request: Some("CreateChatCompletionRequest"),
            answer: "CreateChatCompletionResponse",
            event: Some("CreateChatCompletionStreamResponse"),
        },
        Endpoint::Completion => Description {
            id: "createCompletion",
            summary: "Continues texts.",
            request: Some("CreateCompletionRequest"),
            answer: "CreateCompletionResponse",
            event: Some("CreateCompletionStreamResponse"),
        },
        Endpoint::Tokenize => Description {
            id: "tokenize",
            summary: "The tokens of a text or conversation.",
            request: Some("TokenizeRequest"),
            answer: "TokenizeResponse",
            event: None,
        },
        Endpoint::Detokenize => Description {
            id: "detokenize",
            summary: "The text of tokens.",
            request: Some("DetokenizeRequest"),
            answer: "DetokenizeResponse",
            event: None,
        },
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// An object that has exactly these properties, of which those named are required.
fn object(required: &[&str], properties: &Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

fn nullable(schema: &Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

/// The schema of a body, from the table that checks it. `null` is the same as absence.
fn request(required: &[&str], fields: &[&[&'static Field]]) -> Value {
    let properties: Map<String, Value> = all(fields)
        .filter(|field| !matches!(field.kind, Kind::NotYet { .. }))
        .map(|field| {
            let schema = schema_of(&field.kind);
            let schema = if required.contains(&field.name) { schema } else { nullable(&schema) };
            let mut described = schema;
            described["description"] = Value::from(field.doc);
            (field.name.to_owned(), described)
        })
        .collect();
    object(required, &Value::Object(properties))
}

fn schema_of(kind: &Kind) -> Value {
    match kind {
        Kind::Boolean => json!({"type": "boolean"}),
        Kind::Integer { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
        Kind::Number { min, max } => json!({"type": "number", "minimum": min, "maximum": max}),
        Kind::Text { max_chars } => json!({"type": "string", "maxLength": max_chars}),
        Kind::OneOf(values) => json!({"type": "string", "enum": values}),
        Kind::Structured(schema) => schema(),
        Kind::NotYet { .. } => json!(false),
    }
}

fn schemas() -> Value {
    let text = json!({"type": "string"});
    let integer = json!({"type": "integer", "minimum": 0});
    let mut schemas = json!({
        "CreateChatCompletionRequest": request(&["messages"], CHAT_FIELDS),
        "CreateCompletionRequest": request(&["prompt"], COMPLETION_FIELDS),
        "TokenizeRequest": request(&[], TOKENIZE_FIELDS),
        "DetokenizeRequest": request(&["tokens"], DETOKENIZE_FIELDS),
        "Order": {"oneOf": [
            object(&["drain"], &json!({"drain": text})),
            object(&["undrain"], &json!({"undrain": text})),
            object(&["role", "node"], &json!({"role": {"enum": ["prefill", "decode"]}, "node": text})),
        ]},
        "LinkToMeasure": object(&["node"], &json!({
            "node": text, "from": text, "block_kib": {"type": "integer", "minimum": 1, "maximum": MAX_BLOCK_KIB},
            "rounds": {"type": "integer", "minimum": 1, "maximum": MAX_ROUNDS},
        })),
        "LinkMeasurement": {"type": "object", "required": ["from", "to", "carrier", "kv", "bare", "cpu_ratio"], "properties": {
            "from": text, "to": text, "carrier": text, "kv": {"type": "object"}, "bare": {"type": "object"},
            "cpu_ratio": {"type": "object"},
        }},
        "TokenizeResponse": object(&["count", "max_model_len", "tokens"], &json!({
            "count": integer, "max_model_len": integer, "tokens": {"type": "array", "items": integer},
            "token_strs": {"type": "array", "items": text},
        })),
        "DetokenizeResponse": object(&["prompt"], &json!({"prompt": text})),
        "Condition": object(&["status"], &json!({"status": {"type": "string", "enum": ["ok", "ready"]}})),
        "ClusterStatus": {"type": "object", "required": ["nodes", "supervision", "queues"], "properties": {
            "nodes": {"type": "array", "items": {"type": "object"}},
            "supervision": {"type": "array", "items": {"type": "object"}},
            "queues": {"type": "array", "items": {"type": "object"}},
        }},
        "RequestTrace": {"type": "object", "required": ["request", "trace_id", "nodes", "spans"], "properties": {
            "request": text, "trace_id": text,
            "nodes": {"type": "array", "items": {"type": "object"}},
            "spans": {"type": "array", "items": {"type": "object"}},
        }},
        "Document": {"type": "object"},
        "Model": object(&["id", "object", "created", "owned_by", "max_model_len"], &json!({
            "id": text, "object": {"const": "model"}, "created": integer, "owned_by": text, "max_model_len": integer,
        })),
        "ListModelsResponse": object(&["object", "data"], &json!({
            "object": {"const": "list"}, "data": {"type": "array", "items": reference("Model")},
        })),
        "ErrorResponse": object(&["error"], &json!({"error": object(&["message", "type", "param", "code"], &json!({
            "message": text, "type": text, "param": nullable(&text), "code": text,
        }))})),
        "Usage": object(&["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"], &json!({
            "prompt_tokens": integer, "completion_tokens": integer, "total_tokens": integer,
            "prompt_tokens_details": object(&["cached_tokens"], &json!({"cached_tokens": integer})),
        })),
    });
    if let Some(schemas) = schemas.as_object_mut() {
        schemas.extend(chat_answers());
        schemas.extend(completion_answers());
    }
    schemas
}

/// An answer: what all have, and its own choices.
fn answer_of(object_name: &str, required: &[&str], choice: &Value, usage: &Value) -> Value {
    object(
        required,
        &json!({
            "id": {"type": "string"}, "object": {"const": object_name}, "created": {"type": "integer"},
            "model": {"type": "string"}, "choices": {"type": "array", "items": choice}, "usage": usage,
        }),
    )
}

const CHUNK: &[&str] = &["id", "object", "created", "model", "choices"];
const WHOLE: &[&str] = &["id", "object", "created", "model", "choices", "usage"];

fn finish_reason() -> Value {
    json!({"type": "string", "enum": ["stop", "length"]})
}

fn chat_answers() -> Map<String, Value> {
    let (text, index) = (json!({"type": "string"}), json!({"type": "integer", "minimum": 0}));
    let bytes = nullable(&json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}));
    let token = json!({"token": text, "logprob": {"type": "number", "maximum": 0}, "bytes": bytes});
    let mut outer = token.clone();
    outer["top_logprobs"] = json!({"type": "array", "items": object(&["token", "logprob", "bytes"], &token)});
    let logprobs = object(
        &["content", "refusal"],
        &json!({
            "content": {"type": "array", "items": object(&["token", "logprob", "bytes", "top_logprobs"], &outer)},
            "refusal": {"type": "null"},
        }),
    );
    let message = object(
        &["role", "content", "refusal"],
        &json!({
            "role": {"const": "assistant"}, "content": text, "refusal": {"type": "null"},
        }),
    );
    let choice = object(
        &["index", "message", "logprobs", "finish_reason"],
        &json!({
            "index": index, "message": message, "logprobs": nullable(&logprobs), "finish_reason": finish_reason(),
        }),
    );
    let delta = object(&[], &json!({"role": {"const": "assistant"}, "content": text}));
    let chunk_choice = object(
        &["index", "delta", "finish_reason"],
        &json!({
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": nullable(&finish_reason()),
        }),
    );
    let usage = reference("Usage");
    Map::from_iter([
        ("CreateChatCompletionResponse".into(), answer_of("chat.completion", WHOLE, &choice, &usage)),
        (
            "CreateChatCompletionStreamResponse".into(),
            answer_of("chat.completion.chunk", CHUNK, &chunk_choice, &nullable(&usage)),
        ),
    ])
}

fn completion_answers() -> Map<String, Value> {
    let number = json!({"type": "number", "maximum": 0});
    let list = |items: &Value| json!({"type": "array", "items": items});
    let logprobs = object(
        &["text_offset", "token_logprobs", "tokens", "top_logprobs"],
        &json!({
            "text_offset": list(&json!({"type": "integer", "minimum": 0})),
            "token_logprobs": list(&nullable(&number)),
            "tokens": list(&json!({"type": "string"})),
            "top_logprobs": list(&nullable(&json!({"type": "object", "additionalProperties": number}))),
        }),
    );
    let choice = |finish_reason: &Value| {
        object(
            &["index", "text", "logprobs", "finish_reason"],
            &json!({
                "index": {"type": "integer", "minimum": 0}, "text": {"type": "string"},
                "logprobs": nullable(&logprobs), "finish_reason": finish_reason,
            }),
        )
    };
    let (whole, chunk) = (choice(&finish_reason()), choice(&nullable(&finish_reason())));
    let usage = reference("Usage");
    Map::from_iter([
        ("CreateCompletionResponse".into(), answer_of("text_completion", WHOLE, &whole, &usage)),
        ("CreateCompletionStreamResponse".into(), answer_of("text_completion", CHUNK, &chunk, &nullable(&usage))),
    ])
}
