//! A server on a real socket, with a cluster that the test plays.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use relevo::http::{Backend, HttpOptions, ServedModel, Service, bind, serve};
use relevo::text::ModelText;
use relevo_actors::cluster::OrderFailure;
use relevo_actors::gateway::{Submission, gateway_channel};
use relevo_actors::status::ClusterStatus;
use relevo_wire::{FinishReason, GenerateRequest, StreamEvent, TokenId, TokenLogprobs, Usage};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::schema::{Document, OWN, assert_valid};

/// Every wait of a test ends by then.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The token that ends a generation; those below 256 are bytes.
pub(crate) const END: TokenId = 256;

/// Tokens of prompt and answer together.
pub(crate) const MAX_CONTEXT: usize = 256;

/// What the model is called.
pub(crate) const MODEL: &str = "byte-model";
pub(crate) const ALIAS: &str = "relevo/byte-model";

/// A server under test.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) service: Arc<Service>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: JoinSet<()>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl World {
    /// A cluster that answers each sequence with what `script` makes of it.
    pub(crate) async fn scripted(script: impl Fn(&GenerateRequest) -> Vec<StreamEvent> + Send + 'static) -> Self {
        Self::scripted_with(HttpOptions::default(), script).await
    }

    /// The same with options.
    pub(crate) async fn scripted_with(
        options: HttpOptions,
        script: impl Fn(&GenerateRequest) -> Vec<StreamEvent> + Send + 'static,
    ) -> Self {
        let (world, submissions) = Self::manual_with(options).await;
        world.play(submissions, script)
    }

    /// The same, whose model has no tokenizer.
    pub(crate) async fn wordless(script: impl Fn(&GenerateRequest) -> Vec<StreamEvent> + Send + 'static) -> Self {
        let world = Self::unready(HttpOptions::default()).await;
        let submissions = world.open(ServedModel { text: ModelText::default(), ..model() });
        world.play(submissions, script)
    }

    fn play(
        mut self,
        mut submissions: mpsc::Receiver<Submission>,
        script: impl Fn(&GenerateRequest) -> Vec<StreamEvent> + Send + 'static,
    ) -> Self {
        self.tasks.spawn(async move {
            while let Some(submission) = submissions.recv().await {
                for event in script(&submission.request) {
                    // The client may have gone.
                    let _ = submission.events.send(event).await;
                }
            }
        });
        self
    }

    /// A cluster that the test plays by hand.
    pub(crate) async fn manual() -> (Self, mpsc::Receiver<Submission>) {
        Self::manual_with(HttpOptions::default()).await
    }

    /// The same with options.
    pub(crate) async fn manual_with(options: HttpOptions) -> (Self, mpsc::Receiver<Submission>) {
        let world = Self::unready(options).await;
        let submissions = world.open(model());
        (world, submissions)
    }

    fn open(&self, model: ServedModel) -> mpsc::Receiver<Submission> {
        let (gateway, submissions) = gateway_channel(64);
        let status = Box::new(|| Box::pin(async { ClusterStatus::default() }) as _);
        let order =
            Box::new(|_| Box::pin(async { Err(OrderFailure::Unavailable("there is no coordinator".to_owned())) }) as _);
        let trace = Box::new(|_| Box::pin(async { None }) as _);
        let measure_link = Box::new(|_, _, _| Box::pin(async { Err("there is one node".to_owned()) }) as _);
        self.service.open(Backend { gateway, model, status, spans: Arc::default(), trace, order, measure_link });
        submissions
    }

    /// A server that has no model yet.
    pub(crate) async fn unready(options: HttpOptions) -> Self {
        let world = Self::listen(options).await;
        if OWN.get().is_none() {
            // From a server of its own, so that no connection of it counts here.
            let own = Self::listen(HttpOptions::default()).await;
            let answer = own.raw(own.request("GET", "/openapi.json").body(Full::default()).unwrap()).await;
            let _ = OWN.set(Reply::read(answer).await.json());
        }
        world
    }

    async fn listen(options: HttpOptions) -> Self {
        let service = Arc::new(Service::new(options, || "# metrics\n".to_owned()));
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (served, stop) = (Arc::clone(&service), shutdown.clone());
        tasks.spawn(async move { serve(listener, served, stop).await.unwrap() });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { address, service, shutdown, tasks, client }
    }

    /// A request to this server.
    pub(crate) fn request(&self, method: &str, path: &str) -> hyper::http::request::Builder {
        Request::builder().method(method).uri(format!("http://{}{path}", self.address))
    }

    /// Sends a request and gives its answer as it begins.
    pub(crate) async fn raw(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        within(self.client.request(request)).await.unwrap()
    }

    /// Sends a request; the answer is validated.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        let path = request.uri().path().to_owned();
        let reply = Reply::read(self.raw(request).await).await;
        reply.validate(&path);
        reply
    }

    /// `GET path`
    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(self.request("GET", path).body(Full::default()).unwrap()).await
    }

    /// `POST path` with a JSON body.
    pub(crate) async fn post(&self, path: &str, body: impl ToString) -> Reply {
        self.send(self.post_request(path, body)).await
    }

    /// The request of [`World::post`].
    pub(crate) fn post_request(&self, path: &str, body: impl ToString) -> Request<Full<Bytes>> {
        self.request("POST", path)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap()
    }

    /// `POST /v1/chat/completions` with one user message and the fields of `more`.
    pub(crate) async fn chat(&self, more: Value) -> Reply {
        self.post("/v1/chat/completions", chat_body(more)).await
    }

    /// `POST /v1/completions` with the prompt "ab" and the fields of `more`.
    pub(crate) async fn complete(&self, more: Value) -> Reply {
        self.post("/v1/completions", completion_body(more)).await
    }
}

/// One user message and the fields of `more`.
pub(crate) fn chat_body(more: Value) -> Value {
    merged(serde_json::json!({"messages": [{"role": "user", "content": "hi"}]}), more)
}

/// The prompt "ab" and the fields of `more`.
pub(crate) fn completion_body(more: Value) -> Value {
    merged(serde_json::json!({"prompt": "ab"}), more)
}

fn merged(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// Waits, but not for ever.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the deadline of the test went by")
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A server-sent event.
#[derive(Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: Option<String>,
    pub(crate) data: String,
}

impl Reply {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = within(body.collect()).await.unwrap().to_bytes();
        Self { status: head.status, headers: head.headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Status, code and parameter of an error.
    pub(crate) fn error(&self) -> (u16, String, Option<String>) {
        let error = &self.json()["error"];
        let code = error["code"].as_str().unwrap_or_else(|| panic!("no error: {self:?}")).to_owned();
        (self.status.as_u16(), code, error["param"].as_str().map(str::to_owned))
    }

    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }

    /// The events of a stream, as a client that knows the standard reads them.
    pub(crate) fn events(&self) -> Vec<Event> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"), "{self:?}");
        let text = std::str::from_utf8(&self.body).unwrap();
        assert!(text.is_empty() || text.ends_with("\n\n"), "the last event is cut: {text:?}");
        text.split("\n\n")
            .filter(|event| !event.is_empty())
            .map(|event| {
                let mut parsed = Event { name: None, data: String::new() };
                for line in event.lines() {
                    match line.split_once(": ").unwrap() {
                        ("data", data) => parsed.data.push_str(data),
                        ("event", name) => parsed.name = Some(name.to_owned()),
                        other => panic!("unknown line {other:?}"),
                    }
                }
                parsed
            })
            .collect()
    }

    /// The chunks of a stream that ends well.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        let done = events.pop().expect("a stream has events");
        assert_eq!(done, Event { name: None, data: "[DONE]".to_owned() }, "{events:?}");
        events
            .iter()
            .map(|event| {
                assert_eq!(event.name, None);
                serde_json::from_str(&event.data).unwrap()
            })
            .collect()
    }

    /// Text and finish reason of answer `index` of a stream.
    pub(crate) fn streamed(&self, index: u64) -> (String, String) {
        let (mut text, mut finish) = (String::new(), None);
        for chunk in self.chunks() {
            for choice in chunk["choices"].as_array().unwrap().iter().filter(|choice| choice["index"] == index) {
                assert_eq!(finish, None, "a piece after the end");
                text += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
                finish = choice["finish_reason"].as_str().map(str::to_owned);
            }
        }
        (text, finish.expect("every answer ends"))
    }

    /// Checks what holds for every answer.
    pub(crate) fn validate(&self, path: &str) {
        assert!(self.headers.contains_key("x-request-id"), "{self:?}");
        if !self.status.is_success() {
            return self.validate_error();
        }
        let (whole, chunk) = match path {
            "/v1/chat/completions" => ("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
            "/v1/completions" => ("CreateCompletionResponse", "CreateCompletionStreamResponse"),
            "/v1/models" => ("ListModelsResponse", ""),
            "/tokenize" => ("TokenizeResponse", ""),
            "/detokenize" => ("DetokenizeResponse", ""),
            "/health" | "/ready" => ("Condition", ""),
            path if path.starts_with("/v1/models/") => ("Model", ""),
            _ => return,
        };
        if self.header("content-type") == Some("application/json") {
            if path.starts_with("/v1") {
                assert_valid(Document::OpenAi, whole, &self.json());
            }
            return assert_valid(Document::Own, whole, &self.json());
        }
        for event in self.events() {
            match event.name.as_deref() {
                Some("error") => {
                    let error = serde_json::from_str(&event.data).unwrap();
                    assert_valid(Document::OpenAi, "ErrorResponse", &error);
                    assert_valid(Document::Own, "ErrorResponse", &error);
                }
                None if event.data == "[DONE]" => {}
                other => {
                    assert_eq!(other, None);
                    let data = serde_json::from_str(&event.data).unwrap();
                    assert_valid(Document::OpenAi, chunk, &data);
                    assert_valid(Document::Own, chunk, &data);
                }
            }
        }
    }

    fn validate_error(&self) {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        assert_valid(Document::OpenAi, "ErrorResponse", &self.json());
        if OWN.get().is_some() {
            assert_valid(Document::Own, "ErrorResponse", &self.json());
        }
        let message = self.message();
        assert!(!message.contains("0x") && !message.contains(".rs:"), "an error betrays internals: {message}");
    }
}

/// A model whose tokens are bytes.
pub(crate) fn model() -> ServedModel {
    ServedModel {
        names: vec![MODEL.to_owned(), ALIAS.to_owned()],
        created: 1_700_000_000,
        max_context: MAX_CONTEXT,
        vocab_size: 258,
        end_ids: Arc::from([END]),
        start_id: Some(257),
        text: crate::byte_text::byte_text(),
    }
}

/// The events of an answer of these tokens that the model ends by itself.
pub(crate) fn says(request: &GenerateRequest, text: impl AsRef<[u8]>) -> Vec<StreamEvent> {
    let mut tokens: Vec<TokenId> = text.as_ref().iter().map(|&byte| TokenId::from(byte)).collect();
    tokens.push(END);
    generates(request, &tokens, FinishReason::Stop)
}

/// The events of these tokens, cut at `max_tokens`.
pub(crate) fn generates(request: &GenerateRequest, tokens: &[TokenId], reason: FinishReason) -> Vec<StreamEvent> {
    let max_tokens = request.max_tokens as usize;
    let reason = if tokens.len() > max_tokens { FinishReason::Length } else { reason };
    let tokens = &tokens[..tokens.len().min(max_tokens)];
    let mut events = Vec::new();
    if let Some(num_top) = request.prompt_logprobs {
        let logprobs = request.prompt.iter().skip(1).map(|&token| logprobs(token, num_top)).collect();
        events.push(StreamEvent::PromptLogprobs { first: 1, logprobs });
    }
    for (index, &token) in (0..).zip(tokens) {
        events.push(StreamEvent::Token {
            index,
            token,
            logprobs: request.top_logprobs.map(|top| logprobs(token, top)),
        });
    }
    let usage = Usage {
        prompt_tokens: u32::try_from(request.prompt.len()).unwrap(),
        cached_tokens: 1,
        completion_tokens: u32::try_from(tokens.len()).unwrap(),
    };
    events.push(StreamEvent::Finished { reason, usage });
    events
}

/// A token that was the likeliest, and those after it by their ids.
pub(crate) fn logprobs(token: TokenId, num_top: u8) -> TokenLogprobs {
    let top = (0..TokenId::from(num_top)).map(|nth| (token + nth, -0.25 - nth as f32)).collect();
    TokenLogprobs { token, logprob: -0.25, rank: 0, top }
}
