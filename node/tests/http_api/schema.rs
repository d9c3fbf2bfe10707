//! Validates answers against OpenAI's specification (a cut of it, see `tests/specs`) and against our own `/openapi.json`.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use jsonschema::Validator;
use serde_json::{Value, json};

/// The document that holds a schema.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Document {
    OpenAi,
    Own,
}

/// Panics unless `instance` keeps the schema called `name`.
pub(crate) fn assert_valid(document: Document, name: &str, instance: &Value) {
    static VALIDATORS: Mutex<Option<HashMap<(Document, String), &'static Validator>>> = Mutex::new(None);
    let validator = {
        let mut cache = VALIDATORS.lock().unwrap();
        *cache
            .get_or_insert_default()
            .entry((document, name.to_owned()))
            .or_insert_with(|| Box::leak(Box::new(compile(document, name))))
    };
    let errors: Vec<String> =
        validator.iter_errors(instance).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{document:?} {name}: {errors:#?}\n{instance:#}");
}

/// Whether `instance` keeps the schema.
pub(crate) fn is_valid(document: Document, name: &str, instance: &Value) -> bool {
    compile(document, name).is_valid(instance)
}

fn compile(document: Document, name: &str) -> Validator {
    let source = match document {
        Document::OpenAi => openai(),
        Document::Own => OWN.get().expect("the harness has read /openapi.json"),
    };
    assert!(source["components"]["schemas"].get(name).is_some(), "{document:?} has no schema {name}");
    let root = json!({"$ref": format!("#/components/schemas/{name}"), "components": source["components"]});
    jsonschema::draft202012::new(&root).unwrap()
}

/// Our own description, as the server gave it.
pub(crate) static OWN: OnceLock<Value> = OnceLock::new();

/// OpenAI's specification, mended where the document says less than the service and its prose.
pub(crate) fn openai() -> &'static Value {
    static SPEC: OnceLock<Value> = OnceLock::new();
    SPEC.get_or_init(|| {
        let mut spec: Value = serde_json::from_str(include_str!("../specs/openai-openapi.json")).unwrap();
        spell_out_nullable(&mut spec);
        // A streamed text completion is declared to be a whole one. The service sends null finish reasons until the
        // last chunk, and null usage likewise.
        let mut chunk = spec["components"]["schemas"]["CreateCompletionResponse"].clone();
        let choice = &mut chunk["properties"]["choices"]["items"]["properties"];
        allow_null(&mut choice["finish_reason"]);
        allow_null(&mut chunk["properties"]["usage"]);
        spec["components"]["schemas"]["CreateCompletionStreamResponse"] = chunk;
        for name in ["CreateCompletionResponse", "CreateCompletionStreamResponse"] {
            let choice = &mut spec["components"]["schemas"][name]["properties"]["choices"]["items"]["properties"];
            // The first token of an echoed prompt has none.
            let logprobs = &mut choice["logprobs"]["anyOf"][0]["properties"];
            allow_null(&mut logprobs["token_logprobs"]["items"]);
            allow_null(&mut logprobs["top_logprobs"]["items"]);
        }
        spec
    })
}

fn allow_null(schema: &mut Value) {
    assert!(schema.is_object());
    *schema = json!({"anyOf": [schema.take(), {"type": "null"}]});
}

/// `nullable: true` is OpenAPI 3.0; the document claims to be 3.1, which has no such word.
fn spell_out_nullable(node: &mut Value) {
    match node {
        Value::Object(map) => {
            map.values_mut().for_each(spell_out_nullable);
            if map.remove("nullable") == Some(Value::Bool(true)) {
                let schema = std::mem::take(map);
                map.insert("anyOf".into(), json!([schema, {"type": "null"}]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(spell_out_nullable),
        _ => {}
    }
}
