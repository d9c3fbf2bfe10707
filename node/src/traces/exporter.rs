//! Sends spans to a collector: OTLP over HTTP, in protobuf.
//!
//! **Invariant:** serving never waits for it. Spans wait in a bounded queue; what finds it full, or is refused, is dropped and counted.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use prost::Message;
use relevo_actors::traces::{ClosedSpan, SpanIds};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::otlp_messages::{ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans};
use super::otlp_span::Speaker;
use super::recorder::recent;
use crate::config::Traces;
use crate::http_client::{ApiClient, ClientError};

/// Spans that wait to be sent: a second's of a thousand requests.
const QUEUE_CAPACITY: usize = 8192;

/// Spans of one message; its SDKs send as many.
const MAX_BATCH: usize = 512;

/// How long a span waits for others to go with it.
const LINGER: Duration = Duration::from_millis(500);

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long one that does not take spans is left alone, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long the last spans may take when the process ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Where OTLP over HTTP takes spans.
const PATH: &str = "/v1/traces";

/// Where closed spans go to be sent, if anywhere.
static QUEUE: OnceLock<mpsc::Sender<ClosedSpan>> = OnceLock::new();

/// The task that sends.
#[derive(Debug)]
pub struct Exporter {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// A collector, or why one cannot be spoken to. The user's fault.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// Its address is none.
    #[error("traces.otlp_endpoint")]
    Endpoint(#[from] ClientError),
    /// What it is to be shown cannot be read.
    #[error("cannot read headers from {}: {reason}", path.display())]
    Headers {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Who exports.
#[derive(Clone, Debug)]
pub struct Exporting {
    /// The node's name.
    pub node: String,
    /// Where its API listens, if it has one.
    pub server: Option<SocketAddr>,
    /// What gives spans their ids.
    pub ids: SpanIds,
}

/// Hands a span to the exporter, if there is one.
pub(super) fn offer(span: &ClosedSpan) {
    if let Some(queue) = QUEUE.get() {
        offer_to(queue, span);
    }
}

fn offer_to(queue: &mpsc::Sender<ClosedSpan>, span: &ClosedSpan) {
    if queue.try_send(span.clone()).is_err() {
        dropped("queue_full", 1);
    }
}

fn dropped(reason: &'static str, num_spans: usize) {
    metrics::counter!("relevo_spans_dropped_total", "reason" => reason).increment(num_spans as u64);
}

fn report(queue: &mpsc::Receiver<ClosedSpan>) {
    metrics::gauge!("relevo_queue_depth", "queue" => "spans").set(queue.len() as f64);
    metrics::gauge!("relevo_queue_capacity", "queue" => "spans").set(QUEUE_CAPACITY as f64);
}

impl Exporter {
    /// Begins to send, if the configuration names a collector. There is one in a process.
    ///
    /// # Errors
    /// See [`ExporterError`].
    pub fn start(config: &Traces, exporting: Exporting) -> Result<Option<Self>, ExporterError> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        let Exporting { node, server, ids } = exporting;
        let resource = [
            ("service.name", config.service_name.clone()),
            ("service.instance.id", node.clone()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let collector = Collector {
            client: ApiClient::new(endpoint, None)?,
            headers: config.otlp_headers_file.as_deref().map(read_headers).transpose()?.unwrap_or_default(),
            resource: Resource { attributes: resource.map(|(key, text)| KeyValue::text(key, text)).to_vec() },
            speaker: Speaker { node, server, ids },
            pause: None,
        };
        let (sender, queue) = mpsc::channel(QUEUE_CAPACITY);
        // A second one in a process would be a test's: the first goes on.
        if QUEUE.set(sender).is_err() {
            return Ok(None);
        }
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(collector.serve(queue, stop.clone()));
        Ok(Some(Self { stop, tasks }))
    }

    /// Sends what there is, for a moment, and ends.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Lines of `name: value`; `#` begins a comment.
fn read_headers(path: &Path) -> Result<Vec<(HeaderName, HeaderValue)>, ExporterError> {
    let refused = |reason: String| ExporterError::Headers { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, line)| header(line).ok_or_else(|| refused(format!("line {number} is no `name: value`"))))
        .collect()
}

/// The value may be a secret: it is in no message.
fn header(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

struct Collector {
    client: ApiClient,
    headers: Vec<(HeaderName, HeaderValue)>,
    resource: Resource,
    speaker: Speaker,
    /// While it does not take spans: how long it is left alone next.
    pause: Option<Duration>,
}

/// Why spans were not taken.
enum Untaken {
    /// It may take them later.
    Later(String),
    /// It never will.
    Never(String),
}

impl Collector {
    async fn serve(mut self, mut queue: mpsc::Receiver<ClosedSpan>, stop: CancellationToken) {
        let mut batch = Vec::new();
        while let Some(()) = stop.run_until_cancelled(gather(&mut queue, &mut batch)).await {
            self.deliver(&mut batch, &queue, &stop).await;
        }
        let last_words = async {
            loop {
                while batch.len() < MAX_BATCH
                    && let Ok(span) = queue.try_recv()
                {
                    batch.push(span);
                }
                if batch.is_empty() || self.send(&batch).await.is_err() {
                    return;
                }
                batch.clear();
            }
        };
        // Whoever asks for the count is gone with the process.
        let _ = timeout(LAST_WORDS, last_words).await;
    }

    /// Sends a batch and empties it; waits for a collector that is away, until the process ends.
    async fn deliver(
        &mut self,
        batch: &mut Vec<ClosedSpan>,
        queue: &mpsc::Receiver<ClosedSpan>,
        stop: &CancellationToken,
    ) {
        loop {
            report(queue);
            // What is on its way when the process stops is sent once more with its last words: it has the same ids then.
            let Some(sent) = stop.run_until_cancelled(self.send(batch)).await else { return };
            match sent {
                Ok(num_rejected) => {
                    metrics::counter!("relevo_spans_exported_total").increment((batch.len() - num_rejected) as u64);
                    dropped("refused", num_rejected);
                    if self.pause.take().is_some() {
                        tracing::info!(collector = self.client.base(), "takes spans again");
                    }
                    return batch.clear();
                }
                Err(Untaken::Never(reason)) => {
                    self.complain(&reason);
                    dropped("refused", batch.len());
                    return batch.clear();
                }
                Err(Untaken::Later(reason)) => {
                    let pause = self.complain(&reason);
                    if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Says so, once for each time that it is away; and for how long to leave it alone.
    fn complain(&mut self, reason: &str) -> Duration {
        if self.pause.is_none() {
            let collector = self.client.base();
            tracing::warn!(collector, reason, "a collector does not take spans: they wait, as far as there is room");
        }
        let pause = self.pause.map_or(PAUSES.0, |last| (2 * last).min(PAUSES.1));
        self.pause = Some(pause);
        pause
    }

    /// How many it has rejected, of those that it took.
    async fn send(&self, batch: &[ClosedSpan]) -> Result<usize, Untaken> {
        let Some(body) = self.encode(batch) else { return Ok(0) };
        let post = self.client.post_bytes(PATH, ("application/x-protobuf", body), &self.headers);
        match timeout(PATIENCE, post).await {
            Ok(Ok(answer)) => {
                let rejected = ExportResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
                Ok(rejected
                    .map_or(0, |rejected| usize::try_from(rejected.rejected_spans).unwrap_or(0).min(batch.len())))
            }
            Ok(Err(error)) if is_lasting(&error) => Err(Untaken::Never(error.to_string())),
            Ok(Err(error)) => Err(Untaken::Later(error.to_string())),
            Err(_) => Err(Untaken::Later(format!("no answer within {PATIENCE:?}"))),
        }
    }

    /// Nothing if no client wants to keep any of these.
    fn encode(&self, batch: &[ClosedSpan]) -> Option<Bytes> {
        let spans: Vec<_> = batch
            .iter()
            .filter_map(|span| {
                let context = recent().context(span.sequence.request);
                context.is_none_or(|context| context.is_sampled).then(|| self.speaker.export(span, context))
            })
            .collect();
        let scope = Scope { name: "relevo".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let is_empty = spans.is_empty();
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        let resource_spans = vec![ResourceSpans { resource: Some(self.resource.clone()), scope_spans }];
        (!is_empty).then(|| ExportRequest { resource_spans }.encode_to_vec().into())
    }
}

/// Waits for a span, and a moment for others.
async fn gather(queue: &mut mpsc::Receiver<ClosedSpan>, batch: &mut Vec<ClosedSpan>) {
    match queue.recv().await {
        Some(first) => batch.push(first),
        // The other end is never dropped.
        None => std::future::pending().await,
    }
    let others = async {
        while batch.len() < MAX_BATCH
            && let Some(span) = queue.recv().await
        {
            batch.push(span);
        }
    };
    let _ = timeout(LINGER, others).await;
}

/// What the protocol says not to try again: all but these refusals.
fn is_lasting(error: &ClientError) -> bool {
    let again = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    matches!(error, ClientError::Refused { status, .. } if !again.contains(status))
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use relevo_wire::{RequestId, SequenceId};

    use super::*;

    fn span() -> ClosedSpan {
        let sequence = SequenceId { request: RequestId(1), choice: 0, attempt: 0 };
        ClosedSpan { hop: "decode".into(), sequence, started_unix_ns: 1, duration_ns: 1, fields: Vec::new() }
    }

    #[test]
    fn a_full_queue_costs_the_span_and_no_time() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let (queue, mut waiting) = mpsc::channel(2);
        metrics::with_local_recorder(&recorder, || (0..5).for_each(|_| offer_to(&queue, &span())));
        assert!(recorder.handle().render().contains("relevo_spans_dropped_total{reason=\"queue_full\"} 3"));
        assert_eq!(
            [waiting.try_recv().is_ok(), waiting.try_recv().is_ok(), waiting.try_recv().is_ok()],
            [true, true, false]
        );
    }

    #[test]
    fn headers_are_read_and_what_is_none_is_refused_without_telling_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# a comment\n\nx-key:  a: b \n").unwrap();
        let headers = read_headers(file.path()).unwrap();
        assert_eq!((headers[0].0.as_str(), headers[0].1.as_bytes()), ("x-key", &b"a: b"[..]));
        for wrong in ["secret", "a b: secret", "x: sec\u{1}ret"] {
            std::fs::write(file.path(), format!("x: y\n{wrong}\n")).unwrap();
            let error = read_headers(file.path()).unwrap_err().to_string();
            assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn only_refusals_that_may_pass_are_tried_again() {
        let refused = |status| ClientError::Refused { base: String::new(), status, message: String::new() };
        assert!(is_lasting(&refused(StatusCode::BAD_REQUEST)) && is_lasting(&refused(StatusCode::UNAUTHORIZED)));
        assert!(!is_lasting(&refused(StatusCode::SERVICE_UNAVAILABLE)));
        assert!(!is_lasting(&ClientError::Connect { base: String::new(), reason: String::new() }));
    }
}
