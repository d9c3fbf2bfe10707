//! The kinds of requests of the soak, and what each must be answered.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// How long one request may take, its turn in the queue included.
const DEADLINE: Duration = Duration::from_secs(240);

/// What a request is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A chat, answered whole.
    Chat,
    /// A chat as a stream, read to its end.
    Stream,
    /// A stream whose reader leaves in its middle.
    Disconnect,
    /// A caller that hangs up before any answer.
    Abort,
    /// A completion of token ids that ends at a stop string or its length.
    Stop,
    /// Two choices with log-probabilities and an echo.
    Choices,
    /// A prompt beyond the context.
    TooLong,
    /// A body that is no JSON.
    NoJson,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Chat,
        Self::Stream,
        Self::Disconnect,
        Self::Abort,
        Self::Stop,
        Self::Choices,
        Self::TooLong,
        Self::NoJson,
    ];

    /// The kind of the n-th request.
    pub(crate) fn of(number: usize) -> Self {
        Self::ALL[number % Self::ALL.len()]
    }
}

/// A client with a connection of its own.
pub(crate) struct Caller {
    url: String,
    http: Client<HttpConnector, Full<Bytes>>,
}

impl Caller {
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), http: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// Sends one and checks the answer.
    pub(crate) async fn send(&self, kind: Kind, number: usize) -> Result<(), String> {
        let checked = tokio::time::timeout(DEADLINE, self.send_and_check(kind, number));
        checked.await.map_err(|_| format!("no answer within {DEADLINE:?}"))?
    }

    async fn send_and_check(&self, kind: Kind, number: usize) -> Result<(), String> {
        match kind {
            Kind::Chat => {
                let answer = self.json("/v1/chat/completions", chat(number, false), StatusCode::OK).await?;
                finished(&answer, 1)
            }
            Kind::Stream => {
                let stream = self.post("/v1/chat/completions", chat(number, true).to_string()).await?;
                ends_well(&whole_text(stream).await?)
            }
            Kind::Disconnect => {
                let mut body = chat(number, true);
                body["max_tokens"] = json!(400);
                let mut stream = self.post("/v1/chat/completions", body.to_string()).await?;
                for _ in 0..1 + number % 5 {
                    stream
                        .body_mut()
                        .frame()
                        .await
                        .ok_or("the stream ended early")?
                        .map_err(|error| error.to_string())?;
                }
                Ok(())
            }
            Kind::Abort => {
                let waiting = self.post("/v1/chat/completions", chat(number, false).to_string());
                // Whether the answer comes first does not matter: the caller leaves.
                let _ = tokio::time::timeout(Duration::from_millis((number % 97) as u64), waiting).await;
                Ok(())
            }
            Kind::Stop => {
                let ids: Vec<usize> =
                    (0..100 + number % 60).map(|index| 1000 + (number * 31 + index * 7) % 20_000).collect();
                let body = json!({"prompt": ids, "max_tokens": 24, "stop": [" the", "\n"], "seed": number});
                finished(&self.json("/v1/completions", body, StatusCode::OK).await?, 1)
            }
            Kind::Choices => {
                let body = json!({"prompt": "The sea is", "max_tokens": 8, "n": 2, "logprobs": 2, "echo": true, "seed": number});
                finished(&self.json("/v1/completions", body, StatusCode::OK).await?, 2)
            }
            Kind::TooLong => {
                let body = json!({"prompt": vec![1000 + number % 100; 2000], "max_tokens": 8});
                let answer = self.json("/v1/completions", body, StatusCode::BAD_REQUEST).await?;
                let code = &answer["error"]["code"];
                if code == "context_length_exceeded" { Ok(()) } else { Err(format!("the code is {code}")) }
            }
            Kind::NoJson => {
                let response = self.try_post("/v1/chat/completions", "{\"messages\": [".to_owned()).await?;
                if response.status() == StatusCode::BAD_REQUEST { Ok(()) } else { Err(response.status().to_string()) }
            }
        }
    }

    async fn json(&self, path: &str, body: Value, expected: StatusCode) -> Result<Value, String> {
        let response = self.try_post(path, body.to_string()).await?;
        let status = response.status();
        let text = whole_text(response).await?;
        if status != expected {
            return Err(format!("{status}: {text}"));
        }
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    async fn post(&self, path: &str, body: String) -> Result<Response<Incoming>, String> {
        let response = self.try_post(path, body).await?;
        if response.status() == StatusCode::OK { Ok(response) } else { Err(response.status().to_string()) }
    }

    async fn try_post(&self, path: &str, body: String) -> Result<Response<Incoming>, String> {
        let request = Request::post(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        self.http.request(request).await.map_err(|error| format!("{error:?}"))
    }
}

fn chat(number: usize, stream: bool) -> Value {
    let words = ["rivers", "bread", "the moon", "old maps", "a lighthouse"];
    let system = "You are a brief assistant who answers in one sentence. ".repeat(1 + number % 4);
    json!({
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": format!("Tell me something about {}, number {number}.", words[number % words.len()])},
        ],
        "max_tokens": 8 + number % 24, "seed": number, "stream": stream,
    })
}

/// One reason to end, then the end.
fn ends_well(events: &str) -> Result<(), String> {
    let data: Vec<&str> = events.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    let reasons = data.iter().filter(|data| data.contains("\"finish_reason\":\"")).count();
    let whole = data.len() == events.matches("\n\n").count() && data.last() == Some(&"[DONE]");
    if whole && reasons == 1 { Ok(()) } else { Err(format!("an odd stream: {events:?}")) }
}

fn finished(answer: &Value, num_choices: usize) -> Result<(), String> {
    let choices = answer["choices"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    let all_ended = choices.iter().all(|choice| matches!(choice["finish_reason"].as_str(), Some("stop" | "length")));
    if choices.len() == num_choices && all_ended { Ok(()) } else { Err(format!("an odd answer: {answer}")) }
}

async fn whole_text(response: Response<Incoming>) -> Result<String, String> {
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    String::from_utf8(body.to_bytes().to_vec()).map_err(|error| error.to_string())
}
