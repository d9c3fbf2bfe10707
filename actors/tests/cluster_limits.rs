//! What a cluster refuses, cuts off and gives up, and how it goes down.
#![allow(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use relevo_actors::clock;
use relevo_actors::cluster::{Cluster, ClusterError, ClusterOptions};
use relevo_gpu::model::ScriptedOptions;
use relevo_wire::{GenerateRequest, RequestError, StreamEvent};
use tokio::time::timeout;
use world::{LAYOUTS, Layout, PATIENCE, at_rest, options, options_of, read, request, serve, start};

const SHUTDOWN: Duration = Duration::from_secs(5);

/// One that would go on for as long as the context lasts.
fn endless(id: u64) -> GenerateRequest {
    let prompt: Arc<[u32]> = (0..20).collect();
    GenerateRequest { max_tokens: 900, prompt, ..request(id) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_leaves_no_block_behind() {
    for layout in LAYOUTS {
        let cluster = start(layout).await;
        for id in 0..8 {
            let mut stream = cluster.gateway().submit(endless(id)).unwrap();
            for _ in 0..id {
                assert!(timeout(PATIENCE, stream.next()).await.unwrap().is_some());
            }
        }
        at_rest(&cluster).await;
        cluster.shutdown(SHUTDOWN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_bounds_requests_are_told_that_the_queue_is_full_and_when_to_come_back() {
    let mut options = options(Layout::SameDevice);
    options.limits.max_waiting = 4;
    options.limits.max_running = 2;
    let cluster = Cluster::start(options).await.unwrap();
    let mut streams: Vec<_> = (0..20).map(|id| cluster.gateway().submit(endless(id)).unwrap()).collect();
    let mut num_refused = 0;
    for stream in &mut streams {
        if let Some(StreamEvent::Failed(error)) = timeout(PATIENCE, stream.next()).await.unwrap() {
            let RequestError::QueueFull { retry_after, .. } = error else { panic!("{error}") };
            assert!(retry_after >= Duration::from_secs(1));
            num_refused += 1;
        }
    }
    assert!(num_refused >= 1, "{num_refused}");
    drop(streams);
    at_rest(&cluster).await;
    cluster.shutdown(SHUTDOWN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_a_stream_and_frees_its_blocks() {
    for layout in LAYOUTS {
        let shape = ScriptedOptions { num_blocks: 512, max_context: 8192, ..ScriptedOptions::default() };
        let cluster = Cluster::start(options_of(layout, shape)).await.unwrap();
        let deadline = Some(clock::now() + Duration::from_millis(30));
        let outcome = serve(&cluster, GenerateRequest { deadline, max_tokens: 8000, ..endless(1) }).await;
        assert_eq!(outcome.end, Err(RequestError::DeadlineExceeded));
        at_rest(&cluster).await;
        cluster.shutdown(SHUTDOWN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_never_fit_is_refused_with_the_figures() {
    let cluster = start(Layout::TwoDevices).await;
    let outcome = serve(&cluster, GenerateRequest { max_tokens: 5000, ..endless(1) }).await;
    assert_eq!(outcome.end, Err(RequestError::ContextTooLong { num_tokens: 5020, max_context: 1024 }));
    cluster.shutdown(SHUTDOWN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_far_too_small_for_all_at_once_serve_all_in_the_end() {
    let expected = world::reference(0..16).await;
    for layout in LAYOUTS {
        let shape = ScriptedOptions { num_layers: 3, num_blocks: 24, max_context: 256, ..ScriptedOptions::default() };
        let cluster = Cluster::start(options_of(layout, shape)).await.unwrap();
        assert_eq!(world::serve_all(&cluster, 0..16).await, expected, "{layout:?}");
        at_rest(&cluster).await;
        cluster.shutdown(SHUTDOWN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_lets_short_streams_end_and_fails_long_ones_at_the_deadline() {
    let shape = ScriptedOptions { num_blocks: 2000, max_context: 30_000, ..ScriptedOptions::default() };
    let cluster = Cluster::start(options_of(Layout::SameDevice, shape)).await.unwrap();
    let mut short = cluster.gateway().submit(request(1)).unwrap();
    let mut long = cluster.gateway().submit(GenerateRequest { max_tokens: 29_000, ..endless(2) }).unwrap();
    assert!(timeout(PATIENCE, long.next()).await.unwrap().is_some());
    let begun = clock::now();
    let reading = async { tokio::join!(read(&mut short), drain(&mut long)) };
    let ((short, long), ()) = tokio::join!(reading, cluster.shutdown(Duration::from_millis(1500)));
    assert!(short.end.is_ok());
    assert_eq!(long, Some(StreamEvent::Failed(RequestError::ShuttingDown)));
    assert!(clock::now().since(begun) < Duration::from_secs(5));
    assert_eq!(cluster.gateway().submit(request(3)).unwrap_err(), RequestError::ShuttingDown);
}

async fn drain(stream: &mut relevo_actors::gateway::SequenceStream) -> Option<StreamEvent> {
    let mut last = None;
    while let Some(event) = timeout(PATIENCE, stream.next()).await.unwrap() {
        last = Some(event);
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_a_decode_worker_does_not_start() {
    let mut options: ClusterOptions = options(Layout::TwoDevices);
    options.devices.truncate(1);
    assert!(matches!(Cluster::start(options).await, Err(ClusterError::RoleMissing("decode"))));
}
