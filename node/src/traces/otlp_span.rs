//! A span as a collector wants it: OpenTelemetry's conventions for generative AI where they have a word, `relevo.…` where they have none.
//!
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>, of 1.37; `gen_ai.provider.name` is what replaced `gen_ai.system`.

use std::net::SocketAddr;

use relevo_actors::traces::{ClosedSpan, FieldValue, SpanIds};
use relevo_wire::TraceContext;

use super::otlp_messages::{AnyValue, KeyValue, List, Span, SpanKind, Status, StatusCode, Value};

/// Fields of a request's span, and what the conventions call them.
const CONVENTIONS: [(&str, &str); 8] = [
    ("operation", "gen_ai.operation.name"),
    ("model", "gen_ai.request.model"),
    ("choices", "gen_ai.request.choice.count"),
    ("max_tokens", "gen_ai.request.max_tokens"),
    ("input_tokens", "gen_ai.usage.input_tokens"),
    ("output_tokens", "gen_ai.usage.output_tokens"),
    ("response_id", "gen_ai.response.id"),
    ("error", "error.type"),
];

/// The flags of W3C Trace Context: the trace is kept.
const SAMPLED: u32 = 1;

/// Bits of a span's flags that say that its parent is in another process.
const PARENT_IS_REMOTE: u32 = 0x300;

/// What a span does not say itself.
#[derive(Clone, Debug)]
pub(super) struct Speaker {
    /// The node's name.
    pub(super) node: String,
    /// Where its API listens, if it has one.
    pub(super) server: Option<SocketAddr>,
    pub(super) ids: SpanIds,
}

impl Speaker {
    /// A span of a request that came with `context`.
    pub(super) fn export(&self, span: &ClosedSpan, context: Option<TraceContext>) -> Span {
        let place = self.ids.place(span, context);
        let is_request = span.hop == "generation";
        let parent_is_remote = is_request && place.parent_id.is_some();
        let has_failed = span.field("error").is_some() || span.text("finish") == Some("error");
        Span {
            trace_id: place.trace_id.to_be_bytes().to_vec(),
            span_id: place.span_id.to_be_bytes().to_vec(),
            parent_span_id: place.parent_id.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
            name: name(span),
            kind: if is_request { SpanKind::Server } else { SpanKind::Internal }.into(),
            start_time_unix_nano: span.started_unix_ns,
            end_time_unix_nano: span.started_unix_ns.saturating_add(span.duration_ns),
            attributes: if is_request { self.of_request(span) } else { self.of_hop(span) },
            status: has_failed.then(|| Status { code: StatusCode::Error.into() }),
            flags: SAMPLED | if parent_is_remote { PARENT_IS_REMOTE } else { 0 },
        }
    }

    fn of_request(&self, span: &ClosedSpan) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::text("gen_ai.provider.name", "relevo"),
            KeyValue::text("gen_ai.response.model", span.text("model").unwrap_or_default()),
        ];
        for (name, value) in &span.fields {
            let convention = CONVENTIONS.iter().find(|(field, _)| field == name);
            attributes.push(match (convention, &**name, value) {
                (_, "finish_reasons", FieldValue::Text(reasons)) => {
                    KeyValue::new("gen_ai.response.finish_reasons", list(reasons))
                }
                (Some((_, convention)), _, value) => KeyValue::new(*convention, otlp_value(value)),
                (None, name, value) => KeyValue::new(format!("relevo.{name}"), otlp_value(value)),
            });
        }
        if let Some(server) = self.server {
            attributes.push(KeyValue::text("server.address", server.ip().to_string()));
            attributes.push(KeyValue::new("server.port", Value::Count(server.port().into())));
        }
        attributes.extend(self.of_all(span));
        attributes
    }

    fn of_hop(&self, span: &ClosedSpan) -> Vec<KeyValue> {
        let own = span.fields.iter().map(|(name, value)| KeyValue::new(format!("relevo.{name}"), otlp_value(value)));
        let choice = KeyValue::new("relevo.choice", Value::Count(span.sequence.choice.into()));
        let attempt = KeyValue::new("relevo.attempt", Value::Count(span.sequence.attempt.into()));
        own.chain([choice, attempt]).chain(self.of_all(span)).collect()
    }

    fn of_all(&self, span: &ClosedSpan) -> [KeyValue; 2] {
        let request = span.sequence.request.to_string();
        [KeyValue::text("relevo.request", request), KeyValue::text("relevo.node", self.node.clone())]
    }
}

/// `chat smollm2`, as the conventions have it, or the hop.
fn name(span: &ClosedSpan) -> String {
    match (span.text("operation"), span.text("model")) {
        (Some(operation), Some(model)) => format!("{operation} {model}"),
        _ => span.hop.clone().into_owned(),
    }
}

fn otlp_value(value: &FieldValue) -> Value {
    match value {
        FieldValue::Flag(flag) => Value::Flag(*flag),
        FieldValue::Count(count) => Value::Count(i64::try_from(*count).unwrap_or(i64::MAX)),
        FieldValue::Number(number) => Value::Number(*number),
        FieldValue::Text(text) => Value::Text(text.clone()),
    }
}

fn list(words: &str) -> Value {
    let words = words.split(',').filter(|word| !word.is_empty());
    Value::List(List { values: words.map(|word| AnyValue { value: Some(Value::Text(word.to_owned())) }).collect() })
}
