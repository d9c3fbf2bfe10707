//! The spans that this process has closed for recent requests, for whoever asks where one's time went.
//!
//! **Invariant:** bounded, whatever clients ask for: in requests, in spans, in what a span says. At its bounds it takes up 24 MiB, with the spans that
//! there are about 4.
//!
//! **Invariant:** numbers, ids and names only; nothing of what a prompt or an answer says comes here.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use relevo_wire::{RequestId, SequenceId, TraceContext};
use serde::{Deserialize, Serialize};

/// Requests whose spans are kept: those of the last minutes of a gateway that answers a few a second.
pub const MAX_REQUESTS: usize = 1024;

/// Spans of all of them; a request of one answer has seven over all nodes.
const MAX_SPANS: usize = 8192;

/// Spans of one request: the hops of 64 answers, and of their replays.
pub(crate) const MAX_SPANS_OF_ONE: usize = 512;

/// Traces of clients that are remembered, until their requests are done: more than any node has in flight.
const MAX_CONTEXTS: usize = 65_536;

/// Fields of a span that are kept, and the bytes of a text among them: a client's request id is as long.
const MAX_FIELDS: usize = 16;
const MAX_TEXT_BYTES: usize = 128;

/// A span that has closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClosedSpan {
    /// What was done: `generation`, `gateway`, `route`, `queue`, `prefill`, `land`, `push`, `decode`.
    pub hop: Cow<'static, str>,
    /// For whom; of `generation`, which is for all answers of a request, the first.
    pub sequence: SequenceId,
    /// When it began, in nanoseconds since 1970 by this machine's clock.
    pub started_unix_ns: u64,
    /// How long it was open, in nanoseconds.
    pub duration_ns: u64,
    /// What else it says.
    pub fields: Vec<(Cow<'static, str>, FieldValue)>,
}

/// What a field of a span says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FieldValue {
    /// A yes or no.
    Flag(bool),
    /// A count.
    Count(u64),
    /// A number.
    Number(f64),
    /// A name or an id.
    Text(String),
}

/// What is kept of recent requests, the one longest without news given up first.
#[derive(Debug)]
pub struct RecentSpans {
    /// Nanoseconds since 1970: the wall clock is the node's to read.
    wall_clock: fn() -> u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    requests: HashMap<RequestId, Request>,
    /// Requests by their last news.
    by_news: BTreeMap<u64, RequestId>,
    last_news: u64,
    num_spans: usize,
    /// What clients call them.
    names: HashMap<String, RequestId>,
    contexts: HashMap<RequestId, TraceContext>,
    /// The order in which they came.
    contexts_by_age: VecDeque<RequestId>,
}

#[derive(Debug, Default)]
struct Request {
    news: u64,
    names: Vec<String>,
    spans: Vec<ClosedSpan>,
}

impl Default for RecentSpans {
    /// Without a wall clock, for those who look at durations only.
    fn default() -> Self {
        Self::new(|| 0)
    }
}

impl RecentSpans {
    /// Nothing yet, by this clock.
    pub fn new(wall_clock: fn() -> u64) -> Self {
        Self { wall_clock, kept: Mutex::default() }
    }

    /// Nanoseconds since 1970 by the clock that its spans are by.
    pub fn unix_ns(&self) -> u64 {
        (self.wall_clock)()
    }

    /// A request begins that clients know under these names, the latest of a name being the one that is meant by it.
    pub fn begin(&self, request: RequestId, names: impl IntoIterator<Item = String>) {
        let mut kept = self.kept();
        kept.touch(request);
        let names: Vec<String> = names.into_iter().filter(|name| name.len() <= MAX_TEXT_BYTES).collect();
        kept.names.extend(names.iter().map(|name| (name.clone(), request)));
        if let Some(known) = kept.requests.get_mut(&request) {
            known.names = names;
        }
        kept.shrink();
    }

    /// A request goes on with a client's trace.
    pub fn join(&self, request: RequestId, context: TraceContext) {
        let mut kept = self.kept();
        if kept.contexts.insert(request, context).is_none() {
            kept.contexts_by_age.push_back(request);
        }
        if kept.contexts_by_age.len() > MAX_CONTEXTS
            && let Some(oldest) = kept.contexts_by_age.pop_front()
        {
            kept.contexts.remove(&oldest);
        }
    }

    /// The trace that a request came with.
    pub fn context(&self, request: RequestId) -> Option<TraceContext> {
        self.kept().contexts.get(&request).copied()
    }

    /// Keeps a span.
    pub fn keep(&self, span: ClosedSpan) {
        let mut kept = self.kept();
        kept.touch(span.sequence.request);
        if let Some(request) = kept.requests.get_mut(&span.sequence.request)
            && request.spans.len() < MAX_SPANS_OF_ONE
        {
            request.spans.push(span);
            kept.num_spans += 1;
        }
        kept.shrink();
    }

    /// The request of that name.
    pub fn find(&self, name: &str) -> Option<RequestId> {
        self.kept().names.get(name).copied()
    }

    /// The spans of a request in the order in which they closed.
    pub fn of(&self, request: RequestId) -> Vec<ClosedSpan> {
        self.kept().requests.get(&request).map(|request| request.spans.clone()).unwrap_or_default()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// There is news of a request.
    fn touch(&mut self, id: RequestId) {
        self.last_news += 1;
        let request = self.requests.entry(id).or_default();
        self.by_news.remove(&request.news);
        request.news = self.last_news;
        self.by_news.insert(self.last_news, id);
    }

    /// Gives up what is too much.
    fn shrink(&mut self) {
        while self.requests.len() > MAX_REQUESTS || self.num_spans > MAX_SPANS {
            let Some((_, id)) = self.by_news.pop_first() else { return };
            let Some(request) = self.requests.remove(&id) else { continue };
            self.num_spans -= request.spans.len();
            for name in request.names {
                // A later request may have taken the name over.
                if self.names.get(&name) == Some(&id) {
                    self.names.remove(&name);
                }
            }
        }
    }
}

impl ClosedSpan {
    /// A field that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.field(name) {
            Some(FieldValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A field.
    pub fn field(&self, name: &str) -> Option<&FieldValue> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Adds a field or changes it; what is above the bounds is left out.
    pub fn say(fields: &mut Vec<(Cow<'static, str>, FieldValue)>, name: &'static str, value: FieldValue) {
        let value = match value {
            FieldValue::Text(mut text) => {
                text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
                FieldValue::Text(text)
            }
            other => other,
        };
        match fields.iter().position(|(known, _)| known == name) {
            Some(index) => fields[index].1 = value,
            None if fields.len() < MAX_FIELDS => fields.push((Cow::Borrowed(name), value)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(request: u64) -> ClosedSpan {
        ClosedSpan {
            hop: "decode".into(),
            sequence: SequenceId { request: RequestId(request), choice: 0, attempt: 0 },
            started_unix_ns: 1,
            duration_ns: 2,
            fields: Vec::new(),
        }
    }

    /// What is in there: requests, spans, names, contexts.
    fn fill(spans: &RecentSpans) -> [usize; 4] {
        let kept = spans.kept();
        assert_eq!(kept.by_news.len(), kept.requests.len());
        assert_eq!(kept.requests.values().map(|request| request.spans.len()).sum::<usize>(), kept.num_spans);
        [kept.requests.len(), kept.num_spans, kept.names.len(), kept.contexts.len()]
    }

    #[test]
    fn the_request_longest_without_news_is_given_up_first_with_its_names() {
        let spans = RecentSpans::default();
        for request in 0..MAX_REQUESTS as u64 {
            spans.begin(RequestId(request), [format!("chatcmpl-{request}"), "the same name".to_owned()]);
        }
        spans.keep(span(0));
        spans.begin(RequestId(5000), []);
        assert_eq!(fill(&spans)[0], MAX_REQUESTS);
        assert_eq!(spans.find("chatcmpl-0"), Some(RequestId(0)), "there was news of it");
        assert_eq!(spans.find("chatcmpl-1"), None);
        assert_eq!(spans.find("the same name"), Some(RequestId(MAX_REQUESTS as u64 - 1)), "the latest of the name");
    }

    #[test]
    fn no_flood_makes_it_grow_beyond_its_bounds() {
        let spans = RecentSpans::default();
        for _ in 0..2 * MAX_SPANS_OF_ONE {
            spans.keep(span(7));
        }
        assert_eq!(fill(&spans), [1, MAX_SPANS_OF_ONE, 0, 0]);
        let context = TraceContext { trace_id: 1, parent_id: 1, is_sampled: true };
        for request in 0..MAX_CONTEXTS as u64 + 10 {
            spans.begin(RequestId(request), [request.to_string(), "x".repeat(MAX_TEXT_BYTES + 1)]);
            spans.join(RequestId(request), context);
            (0..20).for_each(|_| spans.keep(span(request)));
        }
        let [num_requests, num_spans, num_names, num_contexts] = fill(&spans);
        assert!(num_requests <= MAX_REQUESTS && num_names <= MAX_REQUESTS, "{num_requests}, {num_names}");
        assert!((MAX_SPANS - 20..=MAX_SPANS).contains(&num_spans), "{num_spans}");
        assert_eq!(num_contexts, MAX_CONTEXTS);
        assert_eq!((spans.context(RequestId(9)), spans.context(RequestId(10))), (None, Some(context)));
    }

    #[test]
    fn a_span_says_so_much_and_no_more() {
        let mut fields = Vec::new();
        let names: Vec<&'static str> =
            vec!["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r"];
        for name in names {
            ClosedSpan::say(&mut fields, name, FieldValue::Text("ö".repeat(100)));
        }
        ClosedSpan::say(&mut fields, "a", FieldValue::Text(format!("x{}", "ö".repeat(100))));
        let ClosedSpan { fields, .. } = ClosedSpan { fields, ..span(1) };
        assert_eq!(fields.len(), MAX_FIELDS);
        let lengths: Vec<_> = fields
            .iter()
            .map(|(_, value)| matches!(value, FieldValue::Text(text) if text.len() <= MAX_TEXT_BYTES))
            .collect();
        assert!(lengths.into_iter().all(|short| short));
        let span = ClosedSpan { fields, ..span(1) };
        assert_eq!(span.text("a").map(str::len), Some(MAX_TEXT_BYTES - 1), "whole characters");
        assert_eq!(span.field("q"), None);
    }
}
