//! Takes down the spans that tell of a sequence.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use relevo_actors::clock;
use relevo_actors::traces::{ClosedSpan, FieldValue, RecentSpans};
use relevo_wire::{Instant64, SequenceId};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterFn, LevelFilter, filter_fn};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::exporter;
use crate::wall_clock;

/// The field that makes a span one of a request.
const SEQUENCE: &str = "sequence";

/// Where the spans of this process are kept.
pub fn recent() -> &'static Arc<RecentSpans> {
    static RECENT: OnceLock<Arc<RecentSpans>> = OnceLock::new();
    RECENT.get_or_init(|| Arc::new(RecentSpans::new(wall_clock::unix_nanoseconds)))
}

/// What the recorder wants to see: our own spans that name a sequence. Nothing else is made for its sake, so that a quiet log stays cheap.
pub fn filter() -> FilterFn<fn(&Metadata<'_>) -> bool> {
    filter_fn(is_of_a_request as fn(&Metadata<'_>) -> bool).with_max_level_hint(LevelFilter::DEBUG)
}

fn is_of_a_request(metadata: &Metadata<'_>) -> bool {
    let is_ours = metadata.target().starts_with("relevo") && *metadata.level() <= Level::DEBUG;
    is_ours && metadata.is_span() && metadata.fields().field(SEQUENCE).is_some()
}

/// The layer.
#[derive(Clone, Copy, Debug)]
pub struct SpanRecorder;

/// A span that is open, in its extensions.
struct OpenSpan {
    sequence: Option<SequenceId>,
    started: Instant64,
    started_unix_ns: u64,
    fields: Vec<(Cow<'static, str>, FieldValue)>,
}

impl OpenSpan {
    fn new() -> Self {
        let (started, started_unix_ns) = (clock::now(), wall_clock::unix_nanoseconds());
        Self { sequence: None, started, started_unix_ns, fields: Vec::new() }
    }

    /// What is left of it; nothing if it never came to be of a sequence.
    fn close(self, hop: &'static str) -> Option<ClosedSpan> {
        let open_for = clock::now().since(self.started);
        Some(ClosedSpan {
            hop: Cow::Borrowed(hop),
            sequence: self.sequence?,
            started_unix_ns: self.started_unix_ns,
            duration_ns: u64::try_from(open_for.as_nanos()).unwrap_or(u64::MAX),
            fields: self.fields,
        })
    }
}

impl Visit for OpenSpan {
    fn record_bool(&mut self, field: &Field, value: bool) {
        ClosedSpan::say(&mut self.fields, field.name(), FieldValue::Flag(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        ClosedSpan::say(&mut self.fields, field.name(), FieldValue::Count(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        let count = u64::try_from(value).map_or(FieldValue::Number(value as f64), FieldValue::Count);
        ClosedSpan::say(&mut self.fields, field.name(), count);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        ClosedSpan::say(&mut self.fields, field.name(), FieldValue::Number(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        ClosedSpan::say(&mut self.fields, field.name(), FieldValue::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        match field.name() {
            SEQUENCE => self.sequence = text.parse().ok(),
            name => ClosedSpan::say(&mut self.fields, name, FieldValue::Text(text)),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanRecorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut open = OpenSpan::new();
        attributes.record(&mut open);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(open);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<OpenSpan>()
        {
            values.record(open);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let open = span.extensions_mut().remove::<OpenSpan>();
        if let Some(closed) = open.and_then(|open| open.close(span.name())) {
            exporter::offer(&closed);
            recent().keep(closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use relevo_wire::RequestId;
    use tracing::field::Empty;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Everything but the recorder is off, as with the quietest log.
    fn recorded(act: impl FnOnce()) {
        let quiet = tracing_subscriber::fmt::layer().with_writer(std::io::sink).with_filter(LevelFilter::OFF);
        let subscriber = tracing_subscriber::registry().with(quiet).with(SpanRecorder.with_filter(filter()));
        tracing::subscriber::with_default(subscriber, act);
    }

    #[test]
    fn a_span_of_a_sequence_is_kept_whatever_the_log_shows() {
        let sequence = SequenceId { request: RequestId(u64::MAX), choice: 2, attempt: 1 };
        recorded(|| {
            let span =
                tracing::debug_span!("decode", %sequence, device = "device-0", tokens = Empty, late = true, x = 0.5);
            span.record("tokens", 7);
            assert!(recent().of(sequence.request).is_empty(), "it is open");
        });
        let [span] = &recent().of(sequence.request)[..] else { panic!("one span") };
        assert_eq!((span.hop.as_ref(), span.sequence), ("decode", sequence));
        assert!(span.started_unix_ns > 0);
        let expected = [("device", FieldValue::Text("device-0".to_owned())), ("late", FieldValue::Flag(true))];
        for (name, value) in
            expected.into_iter().chain([("tokens", FieldValue::Count(7)), ("x", FieldValue::Number(0.5))])
        {
            assert_eq!(span.field(name), Some(&value));
        }
    }

    #[test]
    fn nothing_else_is_made_for_its_sake() {
        recorded(|| {
            assert!(tracing::info_span!("request", request_id = "x").is_disabled());
            assert!(tracing::trace_span!("step", sequence = "x").is_disabled());
            assert!(tracing::debug_span!(target: "quinn", "drive", sequence = 1).is_disabled());
            assert!(!tracing::enabled!(Level::DEBUG) && !tracing::enabled!(Level::ERROR));
            assert!(tracing::span_enabled!(Level::DEBUG, sequence));
        });
    }
}
