//! What every request passes before its handler, and every answer after it.
//!
//! **Invariant:** it fails closed: a path that no route declares needs the role of a client.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use relevo_wire::TenantId;
use tracing::Instrument;

use super::Service;
use super::access::check_names;
use super::api_error::{ApiError, ErrorCode};
use super::routes::{Role, role_of};
use super::traced::RequestName;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id of a client that is taken over.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// What the guard knows at start.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) service: Arc<Service>,
    /// The address is a loopback's: only its own names may lead here.
    pub(super) check_names: bool,
}

/// In a request's extensions: who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) tenant: TenantId,
}

/// Admits a request, runs its handler, and turns a panic of it into a 500.
pub(super) async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let request_id = request_id(request.headers(), &guard.service);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", request_id = request_id.to_str().unwrap_or_default(), %method, route);

    let mut response = async {
        let admitted = admit(&guard, &request);
        match admitted {
            Err(error) => error.into_response(),
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                request.extensions_mut().insert(RequestName(request_id.to_str().unwrap_or_default().to_owned()));
                match AssertUnwindSafe(next.run(request)).catch_unwind().await {
                    Ok(response) => response,
                    Err(panic) => report_panic(panic.as_ref()).into_response(),
                }
            }
        }
    }
    .instrument(span.clone())
    .await;

    let status = response.status();
    let code = response.extensions().get::<ErrorCode>().map_or("", |code| &code.0);
    span.in_scope(|| tracing::debug!(status = status.as_u16(), code, "answered"));
    metrics::counter!("relevo_http_requests_total", "route" => route, "status" => status.as_str().to_owned())
        .increment(1);
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    response
}

/// Logs a panic, once, and gives the error that its request gets.
pub(super) fn report_panic(panic: &(dyn Any + Send)) -> ApiError {
    let message = panic.downcast_ref::<&str>().copied();
    let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown");
    tracing::error!(message, "a handler panicked");
    ApiError::internal()
}

fn admit(guard: &Guard, request: &Request) -> Result<Caller, ApiError> {
    let options = &guard.service.options;
    check_headers(request.headers(), options.limits.max_headers, options.limits.max_header_bytes)?;
    if guard.check_names {
        check_names(request.uri(), request.headers(), &options.allowed_hosts)?;
    }
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    match (role_of(path), &options.api_keys) {
        (Role::Operator, _) if !guard.check_names => Err(ApiError::not_from_here()),
        (Role::Client | Role::Operator, Some(keys)) => Ok(Caller { tenant: keys.tenant(request.headers())? }),
        (Role::Public, _) | (_, None) => Ok(Caller { tenant: TenantId(0) }),
    }
}

fn check_headers(headers: &HeaderMap, max_headers: usize, max_bytes: usize) -> Result<(), ApiError> {
    let byte_len: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > max_headers || byte_len > max_bytes {
        return Err(ApiError::headers_too_large(max_headers, max_bytes));
    }
    Ok(())
}

/// The client's own request id if it is sane, else a new one.
fn request_id(headers: &HeaderMap, service: &Service) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&value.len())
            && value.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/".contains(byte))
    };
    headers.get(X_REQUEST_ID).filter(sane).cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&service.mint.object_id("req")).unwrap_or(HeaderValue::from_static("req"))
    })
}
