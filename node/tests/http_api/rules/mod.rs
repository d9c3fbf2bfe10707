//! OpenAI's rules as one numbered list: what a request may hold, what it is answered, and how it is refused.
//!
//! The rules are those of OpenAI's specification and its prose. Every accepted body is held against the specification's request
//! schema, so that the list cannot drift from it; every answer, event and error is held against its schema by the harness.

mod chat_bodies;
mod chat_refusals;
mod completion_bodies;
mod door_rules;
mod stream_rules;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::Full;
use relevo::http::{ApiKeys, HttpOptions};
use relevo_wire::{RequestError, StreamEvent};
use serde_json::{Value, json};

use crate::harness::{MODEL, Reply, World, says};
use crate::schema::{Document, assert_valid};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

/// The key of [`Server::Keyed`].
const KEY: &str = "sk-0123456789abcdef";

/// The least number of rules: the list that other servers are measured by has as many.
const LEAST_RULES: usize = 124;

/// One rule: what is asked, and what must come back.
struct Rule {
    says: &'static str,
    server: Server,
    ask: Ask,
    wants: Wants,
}

/// Whom a rule asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    /// Says `answer 0`, `answer 1`… to the choices of a request.
    Plain,
    /// Wants a key.
    Keyed,
    /// Has no model yet.
    Unready,
    /// Has no room.
    Full,
}

/// A request.
enum Ask {
    /// One user message and these fields.
    Chat(Value),
    /// A prompt and these fields.
    Completion(Value),
    /// Method, path, headers, body.
    Raw(&'static str, &'static str, &'static [(&'static str, &'static str)], Vec<u8>),
}

/// What an answer must be.
enum Wants {
    /// A 200 of which this holds.
    Answer(fn(&Reply) -> bool),
    /// An error with this status, parameter and code; a caller's fault below 500.
    Error(u16, Option<&'static str>, &'static str),
    /// Any answer of which this holds.
    Reply(fn(&Reply) -> bool),
}

impl Rule {
    fn chat(says: &'static str, more: Value, holds: fn(&Reply) -> bool) -> Self {
        Self { says, server: Server::Plain, ask: Ask::Chat(more), wants: Wants::Answer(holds) }
    }

    fn completion(says: &'static str, more: Value, holds: fn(&Reply) -> bool) -> Self {
        Self { says, server: Server::Plain, ask: Ask::Completion(more), wants: Wants::Answer(holds) }
    }

    /// A chat that gets a 400 with this parameter and code.
    fn no_chat(says: &'static str, more: Value, param: &'static str, code: &'static str) -> Self {
        Self { says, server: Server::Plain, ask: Ask::Chat(more), wants: Wants::Error(400, Some(param), code) }
    }

    /// A completion that gets a 400 with this parameter and code.
    fn no_completion(says: &'static str, more: Value, param: &'static str, code: &'static str) -> Self {
        Self { says, server: Server::Plain, ask: Ask::Completion(more), wants: Wants::Error(400, Some(param), code) }
    }

    fn get(says: &'static str, path: &'static str, holds: fn(&Reply) -> bool) -> Self {
        let ask = Ask::Raw("GET", path, &[], Vec::new());
        Self { says, server: Server::Plain, ask, wants: Wants::Reply(holds) }
    }

    async fn check(&self, world: &World) {
        let (request, body) = match &self.ask {
            Ask::Chat(more) => {
                let base = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
                let body = merged(base, more);
                (world.post_request(CHAT, &body), Some(("CreateChatCompletionRequest", body)))
            }
            Ask::Completion(more) => {
                let body = merged(json!({"model": MODEL, "prompt": "ab"}), more);
                (world.post_request(COMPLETION, &body), Some(("CreateCompletionRequest", body)))
            }
            Ask::Raw(method, path, headers, body) => {
                let mut request = world.request(method, path);
                for (name, value) in *headers {
                    request = request.header(*name, *value);
                }
                (request.body(Full::new(Bytes::from(body.clone()))).unwrap(), None)
            }
        };
        let reply = world.send(request).await;
        match self.wants {
            Wants::Answer(holds) => {
                assert_eq!(reply.status, 200, "{reply:?}");
                if let Some((schema, body)) = body {
                    assert_valid(Document::OpenAi, schema, &body);
                }
                assert!(holds(&reply), "{reply:?}");
            }
            Wants::Reply(holds) => assert!(holds(&reply), "{reply:?}"),
            Wants::Error(status, param, code) => {
                assert_eq!(reply.error(), (status, code.to_owned(), param.map(str::to_owned)), "{}", reply.message());
                let kind = &reply.json()["error"]["type"];
                assert_eq!(kind == "invalid_request_error", (400..429).contains(&status), "{kind}");
            }
        }
    }
}

/// `base` with the fields of `more`; null takes a field out.
fn merged(mut base: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(base.as_object_mut().unwrap().remove(name)),
            value => base[name] = value.clone(),
        }
    }
    base
}

async fn world(server: Server) -> World {
    let keys = ApiKeys::parse(KEY).unwrap();
    match server {
        Server::Plain => World::scripted(|request| says(request, format!("answer {}", request.sequence.choice))).await,
        Server::Keyed => {
            let options = HttpOptions { api_keys: Some(keys), ..HttpOptions::default() };
            World::scripted_with(options, |request| says(request, "answer 0")).await
        }
        Server::Unready => World::unready(HttpOptions::default()).await,
        Server::Full => {
            World::scripted(|_| {
                let retry_after = Duration::from_secs(2);
                vec![StreamEvent::Failed(RequestError::QueueFull { num_waiting: 1, limit: 1, retry_after })]
            })
            .await
        }
    }
}

fn all_rules() -> Vec<Rule> {
    [
        chat_bodies::rules(),
        chat_refusals::rules(),
        completion_bodies::rules(),
        stream_rules::rules(),
        door_rules::rules(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[tokio::test]
async fn every_rule_of_openai_is_kept() {
    let rules = all_rules();
    let mut broken = Vec::new();
    for server in [Server::Plain, Server::Keyed, Server::Unready, Server::Full] {
        let world = world(server).await;
        for (number, rule) in (1..).zip(&rules).filter(|(_, rule)| rule.server == server) {
            if AssertUnwindSafe(rule.check(&world)).catch_unwind().await.is_err() {
                broken.push(format!("{number}: {}", rule.says));
            }
        }
    }
    let total = rules.len();
    println!("{}/{total} of OpenAI's rules are kept", total - broken.len());
    assert!(total >= LEAST_RULES, "{total} rules");
    assert!(broken.is_empty(), "broken rules (their reasons are above): {broken:#?}");
}
