//! A conversation: what was said so far, and the next answer as it comes.

use serde_json::{Map, Value, json};

use crate::cli::Failure;
use crate::http_client::{ApiClient, ClientError};
use crate::terminal;

/// What the user asked for; what is absent is the server's to choose.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) model: Option<String>,
    pub(super) max_tokens: Option<u32>,
    pub(super) temperature: Option<f32>,
    pub(super) seed: Option<u64>,
}

/// A conversation with a server.
pub(super) struct Conversation {
    client: ApiClient,
    settings: Settings,
    messages: Vec<Value>,
}

impl Conversation {
    pub(super) fn new(client: ApiClient, settings: Settings, system: Option<&str>) -> Self {
        let messages = system.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
        Self { client, settings, messages }
    }

    /// Asks, prints the answer as it comes, and remembers both. An answer that is given up half-way is not remembered, nor its question.
    pub(super) async fn ask(&mut self, text: &str) -> Result<(), Failure> {
        let mut messages = self.messages.clone();
        messages.push(json!({"role": "user", "content": text}));
        let mut events = self.client.post_stream("/v1/chat/completions", &self.body(&messages)).await?;
        let mut answer = String::new();
        let malformed = |reason: String| ClientError::Malformed { base: self.client.base().to_owned(), reason };
        while let Some(data) = events.next().await.map_err(|error| malformed(error.to_string()))? {
            if data == "[DONE]" {
                break;
            }
            let event: Value = serde_json::from_str(&data).map_err(|error| malformed(error.to_string()))?;
            if let Some(message) = event["error"]["message"].as_str() {
                terminal::print("")?;
                return Err(malformed(format!("the stream ends with an error: {message}")).into());
            }
            if let Some(piece) = event["choices"][0]["delta"]["content"].as_str() {
                terminal::print_piece(piece)?;
                answer.push_str(piece);
            }
        }
        terminal::print("")?;
        messages.push(json!({"role": "assistant", "content": answer}));
        self.messages = messages;
        Ok(())
    }

    fn body(&self, messages: &[Value]) -> Value {
        let mut body = Map::new();
        body.insert("messages".to_owned(), json!(messages));
        body.insert("stream".to_owned(), json!(true));
        let settings = &self.settings;
        let optional = [
            ("model", settings.model.as_ref().map(|model| json!(model))),
            ("max_tokens", settings.max_tokens.map(|count| json!(count))),
            ("temperature", settings.temperature.map(|temperature| json!(temperature))),
            ("seed", settings.seed.map(|seed| json!(seed))),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                body.insert(name.to_owned(), value);
            }
        }
        Value::Object(body)
    }
}
