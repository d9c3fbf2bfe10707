//! A small client of OpenAI-compatible servers, for `chat`, `status` and `bench serve`, and of trace collectors.

mod event_stream;
mod server_args;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

pub use event_stream::{EventParser, EventStream, EventStreamError};
pub use server_args::ServerArgs;

/// How long a connection may take to come about.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a server may take to begin its answer: a long prompt waits for its turn.
const ANSWER_DEADLINE: Duration = Duration::from_secs(300);

/// Longest body that is read whole.
const MAX_BODY_BYTES: usize = 16 << 20;

/// A server, by its address.
#[derive(Clone, Debug)]
pub struct ApiClient {
    base: String,
    authorization: Option<String>,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// Why a server's answer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address of the kind we can talk to: the user's fault.
    #[error("`{url}` is no URL of a server, expected one such as http://127.0.0.1:8080 ({reason})")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The key cannot be read: the user's fault.
    #[error("cannot read an API key from {}: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Nobody is there.
    #[error("no server answers at {base}: {reason}")]
    Connect {
        /// Its address.
        base: String,
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("{base} did not answer within {} s", deadline.as_secs())]
    Late {
        /// Its address.
        base: String,
        /// What it was given.
        deadline: Duration,
    },
    /// It refused.
    #[error("{base} answers {status}: {message}")]
    Refused {
        /// Its address.
        base: String,
        /// HTTP status.
        status: StatusCode,
        /// OpenAI's `error.message`, else the body.
        message: String,
    },
    /// It does not answer as its API says.
    #[error("{base} gives an answer that cannot be read: {reason}")]
    Malformed {
        /// Its address.
        base: String,
        /// What is wrong.
        reason: String,
    },
}

impl ApiClient {
    /// A client of the server at `url`, a trailing `/v1` being the same address.
    ///
    /// # Errors
    /// The user's fault: [`ClientError::Url`], [`ClientError::Key`].
    pub fn new(url: &str, api_key_file: Option<&Path>) -> Result<Self, ClientError> {
        let refused = |reason: &str| ClientError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|error: hyper::http::uri::InvalidUri| refused(&error.to_string()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(refused(
                    "https is not spoken yet: give the http:// address of a proxy or tunnel on this machine that adds TLS",
                ));
            }
            _ => return Err(refused("it does not begin with http://")),
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(refused("it names no host"));
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_DEADLINE));
        let base = url.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/').to_owned();
        let authorization = api_key_file.map(read_key).transpose()?.map(|key| format!("Bearer {key}"));
        Ok(Self { base, authorization, http: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// The server's address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What `GET path` answers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(Request::get(self.base.clone() + path), Bytes::new()).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.malformed(error))
    }

    /// What `GET path` answers, as text.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.send(Request::get(self.base.clone() + path), Bytes::new()).await?;
        let body = self.body(response).await?;
        String::from_utf8(body.into()).map_err(|error| self.malformed(error))
    }

    /// What `POST path` with a JSON body answers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &serde_json::Value) -> Result<T, ClientError> {
        let body = Bytes::from(serde_json::to_vec(body).map_err(|error| self.malformed(error))?);
        let request = Request::post(self.base.clone() + path).header(header::CONTENT_TYPE, "application/json");
        let body = self.body(self.send(request, body).await?).await?;
        serde_json::from_slice(&body).map_err(|error| self.malformed(error))
    }

    /// What `POST path` with a body of this type and these further headers answers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post_bytes(
        &self,
        path: &str,
        (content_type, body): (&'static str, Bytes),
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Bytes, ClientError> {
        let request = Request::post(self.base.clone() + path).header(header::CONTENT_TYPE, content_type);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        self.body(self.send(request, body).await?).await
    }

    /// What `POST path` with a JSON body answers, as a stream of server-sent events.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post_stream(&self, path: &str, body: &serde_json::Value) -> Result<EventStream, ClientError> {
        let body = Bytes::from(serde_json::to_vec(body).map_err(|error| self.malformed(error))?);
        let request = Request::post(self.base.clone() + path).header(header::CONTENT_TYPE, "application/json");
        Ok(EventStream::new(self.send(request, body).await?.into_body()))
    }

    async fn send(
        &self,
        mut request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).map_err(|error| self.malformed(error))?;
        let answer = tokio::time::timeout(ANSWER_DEADLINE, self.http.request(request)).await;
        let late = ClientError::Late { base: self.base.clone(), deadline: ANSWER_DEADLINE };
        let response = answer.map_err(|_| late)?.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let message = error_message(&self.body(response).await?);
        Err(ClientError::Refused { base: self.base.clone(), status, message })
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let collected = Limited::new(response.into_body(), MAX_BODY_BYTES).collect();
        match tokio::time::timeout(ANSWER_DEADLINE, collected).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(self.malformed(error)),
            Err(_) => Err(ClientError::Late { base: self.base.clone(), deadline: ANSWER_DEADLINE }),
        }
    }

    fn unreachable(&self, error: &hyper_util::client::legacy::Error) -> ClientError {
        ClientError::Connect { base: self.base.clone(), reason: root_cause(error) }
    }

    fn malformed(&self, error: impl ToString) -> ClientError {
        ClientError::Malformed { base: self.base.clone(), reason: error.to_string() }
    }
}

/// The innermost reason: the outer ones say no more than "error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The first key of an API key file.
fn read_key(path: &Path) -> Result<String, ClientError> {
    let refused = |reason: String| ClientError::Key { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let key = keys.map(str::to_owned).next().ok_or_else(|| refused("it holds none".to_owned()))?;
    HeaderValue::from_str(&key).map_err(|error| refused(error.to_string()))?;
    Ok(key)
}

/// OpenAI's `error.message`, else the body's beginning.
fn error_message(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    match json["error"]["message"].as_str() {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(body).trim().chars().take(200).collect(),
    }
}
