//! What a request leaves in a trace: a span for each hop, below the one that it came with, all closed when it is over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helper fails as its test does")]

mod world;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use relevo_actors::cluster::{Cluster, ClusterOptions};
use relevo_actors::device::CoreLimits;
use relevo_actors::policy::prefix::PrefixIdentity;
use relevo_actors::policy::routing::Disaggregate;
use relevo_wire::GenerateRequest;
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Subscriber, info_span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use world::{LAYOUTS, Layout, PATIENCE, options, read, request, serve, start};

/// A span that was made.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: String,
    /// Names and fields of those above it, the outermost first.
    above: Vec<(String, Fields)>,
    fields: Fields,
    /// Its place among all closings, once it has closed.
    closed: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

/// Every span of this process, in the order of their making.
#[derive(Default)]
struct Book {
    seen: Vec<Seen>,
    num_closed: usize,
}

static BOOK: Mutex<Book> = Mutex::new(Book { seen: Vec::new(), num_closed: 0 });

struct Recorder;

/// In a span's extensions: its place in the book.
struct Place(usize);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let mut book = BOOK.lock().unwrap();
        let above = span.scope().from_root().filter(|other| other.id() != *id).filter_map(|other| {
            let Place(place) = *other.extensions().get::<Place>()?;
            Some((book.seen[place].name.clone(), book.seen[place].fields.clone()))
        });
        let mut seen = Seen { name: span.name().to_owned(), above: above.collect(), ..Seen::default() };
        attributes.record(&mut seen.fields);
        span.extensions_mut().insert(Place(book.seen.len()));
        book.seen.push(seen);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        if let Some(Place(place)) = span.extensions().get::<Place>() {
            values.record(&mut BOOK.lock().unwrap().seen[*place].fields);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        if let Some(Place(place)) = span.extensions().get::<Place>() {
            let mut book = BOOK.lock().unwrap();
            book.num_closed += 1;
            book.seen[*place].closed = Some(book.num_closed);
        }
    }
}

/// From here on every span is in the book.
fn record() {
    static RECORDING: OnceLock<()> = OnceLock::new();
    RECORDING.get_or_init(|| {
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Recorder)).unwrap();
    });
}

/// The spans of one request's sequences, once all of them have closed.
///
/// # Panics
/// If one stays open.
async fn closed_spans(id: u64) -> Vec<Seen> {
    let prefix = format!("request-{id}/");
    let is_its = |seen: &&Seen| seen.fields.0.get("sequence").is_some_and(|sequence| sequence.starts_with(&prefix));
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    let all_closed = async {
        loop {
            ticks.tick().await;
            let seen: Vec<_> = BOOK.lock().unwrap().seen.iter().filter(is_its).cloned().collect();
            if !seen.is_empty() && seen.iter().all(|span| span.closed.is_some()) {
                return seen;
            }
        }
    };
    match timeout(PATIENCE, all_closed).await {
        Ok(seen) => seen,
        Err(_) => panic!("open: {:#?}", BOOK.lock().unwrap().seen.iter().filter(is_its).collect::<Vec<_>>()),
    }
}

fn names(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|span| span.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_leaves_a_span_for_each_hop_in_order_below_its_own() {
    record();
    let hops: [(u64, Layout, &[&str]); 2] = [
        (1, Layout::SameDevice, &["gateway", "route", "queue", "prefill", "decode"]),
        (2, Layout::TwoDevices, &["gateway", "route", "queue", "land", "push", "prefill", "decode"]),
    ];
    for (id, layout, expected) in hops {
        let cluster = start(layout).await;
        let root = info_span!("request", request_id = format!("req-{id}"));
        let mut stream = root.in_scope(|| cluster.gateway().submit(request(id)).unwrap());
        drop(root);
        let outcome = read(&mut stream).await;
        let seen = closed_spans(id).await;
        assert_eq!(names(&seen), expected);
        for span in &seen {
            let (top, fields) = &span.above[0];
            assert_eq!((top.as_str(), fields.0["request_id"].as_str()), ("request", format!("req-{id}").as_str()));
            assert_eq!(span.fields.0["sequence"], format!("request-{id}/0/0"));
        }
        let mut in_order: Vec<_> = seen.iter().filter(|span| !["land", "push"].contains(&&*span.name)).collect();
        in_order.sort_by_key(|span| span.closed);
        let closings: Vec<_> = in_order.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(closings, ["route", "queue", "prefill", "decode", "gateway"]);
        let closed = |name: &str| seen.iter().find(|span| span.name == name).map(|span| span.closed.unwrap());
        for side in ["land", "push"] {
            assert!(
                closed(side).is_none_or(|closed_at| Some(closed_at) > closed("prefill")),
                "{side} goes on to the end"
            );
        }
        let (gateway, route) = (&seen[0].fields.0, &seen[1].fields.0);
        assert_eq!((gateway["finish"].as_str(), &gateway["tokens"]), ("length", &outcome.tokens.len().to_string()));
        let decode = if layout == Layout::SameDevice { "device-0" } else { "device-1" };
        assert_eq!((route["prefill"].as_str(), route["decode"].as_str()), ("device-0", decode));
        cluster.shutdown(Duration::from_secs(5)).await;
    }
}

/// Serves some requests, of which the last is read no further than its first token, and kills `actor` meanwhile.
async fn disturb(cluster: &Cluster, ids: std::ops::Range<u64>, actor: &str) {
    let last = ids.end - 1;
    let mut streams: Vec<_> = ids.map(|id| cluster.gateway().submit(request(id)).unwrap()).collect();
    let endless = GenerateRequest { max_tokens: 900, ..request(last + 1) };
    let mut left = cluster.gateway().submit(endless).unwrap();
    assert!(timeout(PATIENCE, left.next()).await.unwrap().is_some());
    cluster.kill(actor).unwrap();
    drop(left);
    for stream in &mut streams {
        assert!(read(stream).await.end.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_span_stays_open_whatever_ends_a_request() {
    record();
    let mut first = 100;
    for layout in LAYOUTS {
        let cluster = start(layout).await;
        let is_apart = matches!(layout, Layout::TwoDevices | Layout::OverQuic);
        let decode = if is_apart { "device-1/decode" } else { "device-0/decode" };
        for actor in ["device-0/engine", "device-0/prefill", decode, "router", "gateway"] {
            disturb(&cluster, first..first + 6, actor).await;
            for id in first..first + 7 {
                let seen = closed_spans(id).await;
                assert_eq!(names(&seen)[..2], ["gateway", "route"], "{seen:?}");
            }
            first += 10;
        }
        cluster.shutdown(Duration::from_secs(5)).await;
    }
}

/// Whether a request was prefilled and decoded on one device.
async fn stayed_together(cluster: &Cluster, request: GenerateRequest) -> bool {
    let id = request.sequence.request.0;
    assert!(serve(cluster, request).await.end.is_ok());
    let seen = closed_spans(id).await;
    let route = &seen.iter().find(|span| span.name == "route").unwrap().fields.0;
    route["prefill"] == route["decode"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_was_served_before_is_sent_to_where_its_blocks_lie() {
    record();
    let mut options = ClusterOptions { disaggregate: Disaggregate::Auto, ..options(Layout::Crossed) };
    for device in &mut options.devices {
        let identity = PrefixIdentity { secret: [1; 32], content: "scripted".into() };
        device.tune = Arc::new(move |limits| CoreLimits { prefix_identity: Some(identity.clone()), ..limits });
    }
    let cluster = Cluster::start(options).await.unwrap();
    let long = |id| GenerateRequest { prompt: (0..160).collect(), max_tokens: 3, ..request(id) };
    assert!(!stayed_together(&cluster, long(1000)).await, "a long prompt that nobody holds is prefilled elsewhere");
    // The news is on its way.
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let learned = async {
        for id in 1001.. {
            ticks.tick().await;
            if stayed_together(&cluster, long(id)).await {
                return;
            }
        }
    };
    timeout(PATIENCE, learned).await.expect("the router never learns of it");
    cluster.shutdown(Duration::from_secs(5)).await;
}
