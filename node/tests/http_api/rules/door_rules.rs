//! Models, paths, methods, bodies, keys: what holds before and beside generation.

use serde_json::json;

use super::{Ask, CHAT, KEY, Rule, Server, Wants};
use crate::harness::{MODEL, Reply};

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

/// Says what a wrong key is answered in a header.
fn challenges(reply: &Reply) -> bool {
    reply.status == 401 && reply.header("www-authenticate") == Some("Bearer")
}

fn raw(
    says: &'static str,
    method: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: impl ToString,
) -> Rule {
    let ask = Ask::Raw(method, path, headers, body.to_string().into_bytes());
    Rule { says, server: Server::Plain, ask, wants: Wants::Reply(|reply| reply.status == 200) }
}

impl Rule {
    fn on(self, server: Server) -> Self {
        Self { server, ..self }
    }

    fn error(self, status: u16, code: &'static str) -> Self {
        Self { wants: Wants::Error(status, None, code), ..self }
    }

    fn holds(self, holds: fn(&Reply) -> bool) -> Self {
        Self { wants: Wants::Reply(holds), ..self }
    }
}

pub(super) fn rules() -> Vec<Rule> {
    [models(), paths(), bodies(), keys(), conditions()].into_iter().flatten().collect()
}

fn models() -> Vec<Rule> {
    vec![
        Rule::get("models are a list", "/v1/models", |reply| reply.json()["object"] == "list"),
        Rule::get("a model has id, object, created and owner", "/v1/models", |reply| {
            let model = &reply.json()["data"][0];
            model["id"] == MODEL
                && model["object"] == "model"
                && model["created"].is_u64()
                && model["owned_by"].is_string()
        }),
        Rule::get("a model is found by its name", "/v1/models/byte-model", |reply| reply.json()["id"] == MODEL),
        Rule::get("a model's name may hold a slash", "/v1/models/relevo/byte-model", |reply| reply.status == 200),
        Rule {
            says: "an unknown model is a 404",
            server: Server::Plain,
            ask: Ask::Raw("GET", "/v1/models/gpt-9", &[], Vec::new()),
            wants: Wants::Error(404, Some("model"), "model_not_found"),
        },
    ]
}

fn paths() -> Vec<Rule> {
    vec![
        raw("an unknown path is a 404", "GET", "/v1/nothing", &[], "").error(404, "unknown_url"),
        raw("an unknown path is a 404 for a POST", "POST", "/v1/chat", JSON, "{}").error(404, "unknown_url"),
        raw("a wrong method is a 405", "GET", CHAT, &[], "").error(405, "method_not_allowed"),
        raw("models are not posted", "POST", "/v1/models", JSON, "{}").error(405, "method_not_allowed"),
        raw("models are not deleted", "DELETE", "/v1/models/byte-model", &[], "").error(405, "method_not_allowed"),
        raw("a wrong method is told the right one", "PUT", CHAT, &[], "")
            .holds(|reply| reply.header("allow") == Some("POST")),
        raw("failures carry a request id, too", "GET", "/v1/nothing", &[], "")
            .holds(|reply| reply.header("x-request-id").is_some_and(|id| !id.is_empty())),
        raw("an error object has its four fields and no other", "GET", "/v1/nothing", &[], "").holds(|reply| {
            let error = reply.json();
            let fields: Vec<&String> = error["error"].as_object().unwrap().keys().collect();
            error.as_object().unwrap().len() == 1 && fields == ["message", "type", "param", "code"]
        }),
        raw("a parameter that is not to blame is null", "GET", "/v1/nothing", &[], "")
            .holds(|reply| reply.json()["error"]["param"].is_null()),
    ]
}

fn bodies() -> Vec<Rule> {
    vec![
        raw("a body that is no JSON is a 400", "POST", CHAT, JSON, "{\"messages\": ").error(400, "invalid_json"),
        raw("a body that is no object is a 400", "POST", CHAT, JSON, "[]").error(400, "invalid_json"),
        raw("an empty body is a 400", "POST", CHAT, JSON, "").error(400, "invalid_json"),
        raw("a body of another type is a 415", "POST", CHAT, &[("content-type", "text/plain")], "{}")
            .error(415, "unsupported_content_type"),
        raw("a body without a type is a 415", "POST", CHAT, &[], "{}").error(415, "unsupported_content_type"),
        raw(
            "a charset may be named",
            "POST",
            CHAT,
            &[("content-type", "application/json; charset=utf-8")],
            json!({"messages": [{"role": "user", "content": "a"}]}),
        ),
    ]
}

fn keys() -> Vec<Rule> {
    const WRONG: &[(&str, &str)] = &[("authorization", "Bearer sk-wrong")];
    const RIGHT: &[(&str, &str)] = &[("authorization", "Bearer sk-0123456789abcdef")];
    assert!(RIGHT[0].1.ends_with(KEY));
    let models = |says, headers| raw(says, "GET", "/v1/models", headers, "").on(Server::Keyed);
    vec![
        models("a missing key is a 401", &[]).error(401, "missing_api_key"),
        models("a wrong key is a 401", WRONG).error(401, "invalid_api_key"),
        models("a 401 says how to come in", WRONG).holds(challenges),
        models("a right key comes in", RIGHT),
        raw("a key is asked for before the path is told", "GET", "/v1/nothing", &[], "")
            .on(Server::Keyed)
            .error(401, "missing_api_key"),
        raw("a probe needs no key", "GET", "/health", &[], "").on(Server::Keyed),
    ]
}

fn conditions() -> Vec<Rule> {
    vec![
        raw("a server without a model is not ready", "GET", "/ready", &[], "")
            .on(Server::Unready)
            .error(503, "not_ready"),
        raw("a server without a model lives", "GET", "/health", &[], "").on(Server::Unready),
        raw("a server without a model says when to try again", "GET", "/v1/models", &[], "")
            .on(Server::Unready)
            .holds(|reply| reply.status == 503 && reply.header("retry-after") == Some("1")),
        raw("a server that serves is ready", "GET", "/ready", &[], ""),
    ]
}
