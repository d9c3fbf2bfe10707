//! A request's own span: from its first byte read to the last byte of its answer, over all its sequences, with what OpenTelemetry's conventions for
//! generative AI want to know of it.
//!
//! **Invariant:** counts, ids and names; nothing of what a prompt or an answer says.

use axum::http::HeaderMap;
use relevo_wire::{FinishReason, RequestId, SequenceId, TraceContext};
use tracing::Span;
use tracing::field::{Empty, display};

use super::Backend;
use super::api_error::ApiError;
use super::events::Header;
use super::objects::Usage;
use super::request::{Format, Plan};

/// The header of W3C Trace Context.
const TRACEPARENT: &str = "traceparent";

/// In a request's extensions: the id that its answer carries in a header.
#[derive(Clone, Debug)]
pub(super) struct RequestName(pub(super) String);

/// A request's span; cheap to clone. It closes with the last clone.
#[derive(Clone, Debug)]
pub(super) struct Traced {
    span: Span,
    name: String,
    context: Option<TraceContext>,
}

impl Traced {
    /// A request begins, of which nothing is known yet.
    pub(super) fn begin(headers: &HeaderMap, name: Option<&RequestName>) -> Self {
        let span = tracing::debug_span!(
            "generation",
            sequence = Empty,
            operation = Empty,
            model = Empty,
            response_id = Empty,
            request_id = Empty,
            choices = Empty,
            max_tokens = Empty,
            streams = Empty,
            input_tokens = Empty,
            cached_tokens = Empty,
            output_tokens = Empty,
            finish_reasons = Empty,
            error = Empty,
        );
        let context = headers.get(TRACEPARENT).and_then(|header| TraceContext::parse(header.to_str().ok()?));
        Self { span, name: name.map(|name| name.0.clone()).unwrap_or_default(), context }
    }

    /// It is understood, and goes to the cluster as `request`.
    pub(super) fn submitted(&self, backend: &Backend, header: &Header, request: RequestId, plan: &Plan) {
        backend.spans.begin(request, [header.id.clone(), self.name.clone()]);
        if let Some(context) = self.context {
            backend.spans.join(request, context);
        }
        let operation = match header.format {
            Format::Chat => "chat",
            Format::Completion => "text_completion",
        };
        let choices = plan.prompts.len() as u64 * u64::from(plan.n);
        self.span
            .record("sequence", display(SequenceId { request, choice: 0, attempt: 0 }))
            .record("operation", operation)
            .record("model", backend.model.name())
            .record("response_id", header.id.as_str())
            .record("request_id", self.name.as_str())
            .record("choices", choices)
            .record("max_tokens", plan.prompts.iter().map(|prompt| prompt.max_tokens).max().unwrap_or(0))
            .record("streams", plan.stream.is_some());
    }

    /// It fails.
    pub(super) fn failed(&self, error: &ApiError) {
        self.span.record("error", error.code());
    }

    /// It is over, with these counts and the reasons that its answers ended for, as far as they have.
    pub(super) fn ended(&self, usage: Usage, reasons: impl Iterator<Item = FinishReason>) {
        if self.span.is_disabled() {
            return;
        }
        let reasons = reasons.map(|reason| match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        });
        self.span
            .record("input_tokens", usage.prompt_tokens)
            .record("cached_tokens", usage.prompt_tokens_details.cached_tokens)
            .record("output_tokens", usage.completion_tokens)
            .record("finish_reasons", reasons.collect::<Vec<_>>().join(","));
    }
}
