//! What the metrics say of the queues: each by its name, with its bound, as full as it is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helper fails as its test does")]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use relevo_actors::cluster::Cluster;
use relevo_actors::faults::Fault;
use tokio::time::timeout;
use world::{Layout, PATIENCE, options, request};

/// Gauges by name and labels.
type Gauges = Mutex<BTreeMap<String, Arc<AtomicU64>>>;

static GAUGES: Gauges = Mutex::new(BTreeMap::new());

struct GaugeRecorder;

impl Recorder for GaugeRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{} {}", key.name(), labels.join(" "));
        Gauge::from_arc(Arc::clone(GAUGES.lock().unwrap().entry(name).or_default()))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

fn gauge(name: &str, labels: &str) -> Option<f64> {
    let gauges = GAUGES.lock().unwrap();
    Some(f64::from_bits(gauges.get(&format!("{name} {labels}"))?.load(Ordering::Relaxed)))
}

/// Waits until the metrics say that a queue holds so much.
///
/// # Panics
/// If they never do.
async fn until_depth(queue: &str, depth: f64) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let reached = async {
        while gauge("relevo_queue_depth", &format!("queue={queue}")) != Some(depth) {
            ticks.tick().await;
        }
    };
    if timeout(PATIENCE, reached).await.is_err() {
        panic!("{queue} never holds {depth}: {:?}", GAUGES.lock().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_queue_is_in_the_metrics_with_its_bound_and_as_full_as_it_is() {
    metrics::set_global_recorder(GaugeRecorder).unwrap();
    let mut options = options(Layout::TwoDevices);
    options.limits.max_running = 1;
    options.limits.max_waiting = 7;
    // The first request stands still in the middle of its stream, and those behind it wait.
    options.faults = Some(vec![Fault::HangEngine { device: "cpu1".into(), step: 5, millis: 3000 }]);
    let cluster = Cluster::start(options).await.unwrap();
    let streams = [1, 2, 3].map(|id| cluster.gateway().submit(request(id)).unwrap());
    until_depth("router", 2.0).await;
    until_depth("streams", 3.0).await;
    let bounds = [
        ("queue=submissions", 256.0),
        ("queue=streams", 9.0),
        ("queue=stream_events", 1024.0),
        ("queue=router", 7.0),
        ("queue=tokens", 1024.0),
        ("queue=engine_commands device=0", 72.0),
        ("queue=engine_commands device=1", 72.0),
        ("queue=engine_events device=0", 256.0),
        ("queue=engine_events device=1", 256.0),
        ("queue=push_jobs device=0 to=1", 64.0),
        ("queue=inbound_frames device=0", 32.0),
        ("queue=inbound_frames device=1", 32.0),
    ];
    for (labels, bound) in bounds {
        assert_eq!(gauge("relevo_queue_capacity", labels), Some(bound), "{labels}");
        assert!(gauge("relevo_queue_depth", labels).is_some_and(|depth| depth <= bound), "{labels}");
    }
    let known: BTreeSet<_> = bounds.iter().map(|(labels, _)| format!("relevo_queue_depth {labels}")).collect();
    let found = GAUGES.lock().unwrap().keys().filter(|key| key.starts_with("relevo_queue_depth ")).cloned().collect();
    assert_eq!(known, found, "those that are told of are those that have a bound");
    let named = cluster.status().queues.into_iter().map(|queue| queue.name);
    assert!(named.collect::<Vec<_>>().contains(&"device-0/push_jobs/device-1".to_owned()));
    drop(streams);
    until_depth("router", 0.0).await;
    world::at_rest(&cluster).await;
    cluster.shutdown(Duration::from_secs(5)).await;
}
