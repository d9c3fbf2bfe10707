//! Reads the JSON body of a request within its limits of type, size, memory and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;

use super::Service;
use super::api_error::ApiError;

/// Bytes that bodies hold at one time, over all requests.
#[derive(Debug, Default)]
pub(super) struct BodyBudget {
    used: AtomicUsize,
}

/// A body, and its share of the budget while it lives.
pub(super) struct JsonBody {
    /// As sent.
    pub(super) bytes: Vec<u8>,
    _share: Share,
}

struct Share {
    budget: Arc<BodyBudget>,
    byte_len: usize,
}

impl Share {
    /// Takes `byte_len` more of `limit`.
    fn grow(&mut self, byte_len: usize, limit: usize) -> Result<(), ApiError> {
        let before = self.budget.used.fetch_add(byte_len, Ordering::Relaxed);
        self.byte_len += byte_len;
        if before.saturating_add(byte_len) > limit {
            let message = "The server is reading too many large requests. Please try again later.";
            return Err(ApiError::unavailable("overloaded", message, Duration::from_secs(1)));
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.byte_len, Ordering::Relaxed);
    }
}

/// Reads the body of a request that must be JSON.
pub(super) async fn read_json(service: &Service, request: Request) -> Result<JsonBody, ApiError> {
    check_content_type(request.headers())?;
    let limits = &service.options.limits;
    let body = request.into_body();
    if body.size_hint().lower() > limits.max_body_bytes as u64 {
        return Err(ApiError::body_too_large(limits.max_body_bytes));
    }
    tokio::time::timeout(limits.body_timeout, collect(service, body)).await.map_err(|_| ApiError::body_timeout())?
}

async fn collect(service: &Service, mut body: Body) -> Result<JsonBody, ApiError> {
    let limits = &service.options.limits;
    let mut share = Share { budget: Arc::clone(&service.body_budget), byte_len: 0 };
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::bad_json("The body of your request broke off."))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limits.max_body_bytes {
            return Err(ApiError::body_too_large(limits.max_body_bytes));
        }
        share.grow(data.len(), limits.body_budget_bytes)?;
        bytes.extend_from_slice(&data);
    }
    Ok(JsonBody { bytes, _share: share })
}

/// `application/json` or `application/…+json`, in UTF-8, not compressed. Anything else a web page could send unasked.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ApiError::content_encoding());
    }
    let value = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let text = value.ok_or_else(|| ApiError::content_type(None))?;
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
    let is_json = kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"));
    let is_utf8 = parts.all(|parameter| match parameter.split_once('=') {
        Some((name, charset)) if name.eq_ignore_ascii_case("charset") => {
            charset.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    });
    if is_json && is_utf8 { Ok(()) } else { Err(ApiError::content_type(Some(text))) }
}
