//! OpenAI's error object, the one shape in which every failure leaves.
//!
//! **Invariant:** a message says what the caller did wrong or that it is not his fault; never a path, an address, or
//! anything of another tenant.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use relevo_actors::cluster::OrderFailure;
use relevo_wire::RequestError;
use serde::Serialize;

/// A failure as the client sees it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: &'static str,
    #[serde(skip)]
    retry_after: Option<Duration>,
}

/// `{"error": {…}}`
#[derive(Serialize)]
pub(super) struct ErrorBody<'a> {
    error: &'a ApiError,
}

/// The caller's fault.
const INVALID_REQUEST: &str = "invalid_request_error";
/// Not the caller's fault.
const SERVER_ERROR: &str = "server_error";
/// Too much at a time.
const RATE_LIMIT: &str = "rate_limit_error";

impl ApiError {
    fn new(status: StatusCode, r#type: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), r#type, param: None, code, retry_after: None }
    }

    /// 400: the field `param` is wrong.
    pub(super) fn invalid(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, code, message) }
    }

    /// 400: a field that is known but not served yet.
    pub(super) fn not_yet(param: impl Into<String>, what: &str) -> Self {
        let param = param.into();
        let message = format!("Unsupported parameter: '{param}': {what} not yet supported by this server.");
        Self::invalid(param, "unsupported_parameter", message)
    }

    /// 400: the body is no JSON object.
    pub(super) fn bad_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, "invalid_json", message)
    }

    /// 400: prompt and answer do not fit into the context.
    pub(super) fn context_length(max_context: usize, num_prompt: usize, num_answer: usize, param: &str) -> Self {
        let requested = num_prompt.saturating_add(num_answer);
        Self::invalid(
            param,
            "context_length_exceeded",
            format!(
                "This model's maximum context length is {max_context} tokens. However, you requested {requested} tokens \
                 ({num_prompt} in the prompt, {num_answer} in the completion). Please reduce the length of either one."
            ),
        )
    }

    /// 401
    pub(super) fn missing_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            INVALID_REQUEST,
            "missing_api_key",
            "You didn't provide an API key. Send it in an Authorization header with bearer scheme \
             (i.e. Authorization: Bearer YOUR_KEY).",
        )
    }

    /// 401
    pub(super) fn wrong_key() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, "invalid_api_key", "Incorrect API key provided.")
    }

    /// 403: a browser was led here under a foreign name.
    pub(super) fn foreign_name(header: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            INVALID_REQUEST,
            "foreign_host",
            format!("The {header} header names a host that this loopback address is not known under."),
        )
    }

    /// 403: orders are taken on a loopback address only.
    pub(super) fn not_from_here() -> Self {
        let message = "The cluster is administered on a loopback address of its gateway only.";
        Self::new(StatusCode::FORBIDDEN, INVALID_REQUEST, "not_from_here", message)
    }

    /// 409: the cluster does not do as an operator wants.
    pub(super) fn order_refused(reason: String) -> Self {
        Self::new(StatusCode::CONFLICT, INVALID_REQUEST, "order_refused", reason)
    }

    /// 409, or 503 while there is nobody who decides.
    pub(super) fn order_failed(failure: OrderFailure) -> Self {
        match failure {
            OrderFailure::Refused(reason) => Self::order_refused(reason),
            OrderFailure::Unavailable(reason) => {
                Self::unavailable("coordinator_unavailable", &reason, Duration::from_secs(1))
            }
        }
    }

    /// 404
    pub(super) fn unknown_url(method: &Method, path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "unknown_url", format!("Invalid URL ({method} {path})"))
    }

    /// 404
    pub(super) fn unknown_request(name: &str, num_kept: usize) -> Self {
        let name: String = name.chars().take(200).collect();
        let message = format!(
            "No request '{name}' is known here: a gateway knows the last {num_kept} that it has answered itself, by the id of their answer, \
             their x-request-id, or their id within the cluster."
        );
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, "request_not_found", message)
    }

    /// 404
    pub(super) fn unknown_model(name: &str) -> Self {
        let name: String = name.chars().take(200).collect();
        Self {
            status: StatusCode::NOT_FOUND,
            ..Self::invalid("model", "model_not_found", format!("The model '{name}' does not exist."))
        }
    }

    /// 405
    pub(super) fn wrong_method(method: &Method, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            INVALID_REQUEST,
            "method_not_allowed",
            format!("Not allowed to {method} on {path} (HINT: perhaps you meant to use a different HTTP method?)"),
        )
    }

    /// 408
    pub(super) fn body_timeout() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            INVALID_REQUEST,
            "request_timeout",
            "The body of the request did not arrive in time.",
        )
    }

    /// 413
    pub(super) fn body_too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            INVALID_REQUEST,
            "request_too_large",
            format!("The body of the request is too large: at most {limit} bytes are accepted."),
        )
    }

    /// 415
    pub(super) fn content_type(found: Option<&str>) -> Self {
        let found: String = found.unwrap_or("none").chars().take(100).collect();
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            "unsupported_content_type",
            format!(
                "Unsupported content type: '{found}'. This API method only accepts 'application/json' requests, \
                 but you specified the header 'Content-Type: {found}'."
            ),
        )
    }

    /// 415
    pub(super) fn content_encoding() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            INVALID_REQUEST,
            "unsupported_content_encoding",
            "Request bodies must not be compressed: send them without a Content-Encoding header.",
        )
    }

    /// 431
    pub(super) fn headers_too_large(max_headers: usize, max_bytes: usize) -> Self {
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            INVALID_REQUEST,
            "headers_too_large",
            format!("At most {max_headers} request headers of {max_bytes} bytes together are accepted."),
        )
    }

    /// 500
    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER_ERROR,
            "internal_error",
            "The server had an error while processing your request. Sorry about that!",
        )
    }

    /// 503 with Retry-After.
    pub(super) fn unavailable(code: &'static str, message: &str, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER_ERROR, code, message)
        }
    }

    /// 503: the model is not there yet.
    pub(super) fn not_ready() -> Self {
        Self::unavailable(
            "not_ready",
            "The model is being loaded. Please try again in a moment.",
            Duration::from_secs(1),
        )
    }

    /// 503: no new work is taken.
    pub(super) fn shutting_down() -> Self {
        Self::unavailable("shutting_down", "The server is shutting down.", Duration::from_secs(5))
    }

    /// Its HTTP status.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What kind of failure it is, in a word.
    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// The object as it stands in a body or an event.
    pub(super) fn body(&self) -> ErrorBody<'_> {
        ErrorBody { error: self }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = match &error {
            RequestError::QueueFull { .. } => "The server has too many requests waiting. Please try again later.",
            RequestError::ContextTooLong { num_tokens, max_context } => {
                return Self::context_length(*max_context, *num_tokens, 0, "messages");
            }
            RequestError::KvPoolTooSmall { num_blocks, pool_blocks } => {
                return Self::invalid(
                    "max_tokens",
                    "context_length_exceeded",
                    format!(
                        "The request needs {num_blocks} KV blocks of 16 tokens, but the server has {pool_blocks}. \
                         Please shorten the prompt or lower max_tokens."
                    ),
                );
            }
            RequestError::DeadlineExceeded => "The request took longer than it may.",
            RequestError::Poisoned { .. } => "The workers that ran this request failed repeatedly.",
            RequestError::NoWorker { .. } => "No worker can take the request now. Please try again later.",
            RequestError::ShuttingDown => return Self::shutting_down(),
        };
        match error {
            RequestError::QueueFull { retry_after, .. } => Self {
                retry_after: Some(retry_after),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, RATE_LIMIT, "rate_limit_exceeded", message)
            },
            RequestError::NoWorker { retry_after } => Self::unavailable("no_worker", message, retry_after),
            RequestError::DeadlineExceeded => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER_ERROR, "deadline_exceeded", message)
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER_ERROR, "worker_failure", message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry_after) = self.retry_after {
            // Whole seconds, at least one: 0 would invite a busy loop.
            let seconds = retry_after.as_millis().div_ceil(1000).clamp(1, 3600);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(u16::try_from(seconds).unwrap_or(3600)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(ErrorCode(Cow::Borrowed(self.code)));
        response
    }
}

/// Left in a response's extensions, for the log.
#[derive(Clone, Debug)]
pub(super) struct ErrorCode(pub(super) Cow<'static, str>);
