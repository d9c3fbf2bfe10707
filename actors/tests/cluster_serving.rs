//! A cluster serves: the same tokens in every layout, at any concurrency, and every block back at the end.
#![allow(clippy::unwrap_used, reason = "a test's helper fails as its test does")]

mod world;

use std::time::Duration;

use world::{LAYOUTS, Layout, at_rest, read, reference, request, serve_all, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_comes_out_of_one_device() {
    let cluster = start(Layout::SameDevice).await;
    let mut stream = cluster.gateway().submit(request(1)).unwrap();
    let outcome = read(&mut stream).await;
    assert_eq!(outcome.tokens.len(), request(1).max_tokens as usize);
    at_rest(&cluster).await;
    cluster.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_layout_says_the_same_at_any_concurrency() {
    let expected = reference(0..24).await;
    for layout in LAYOUTS {
        let cluster = start(layout).await;
        assert_eq!(serve_all(&cluster, 0..24).await, expected, "{layout:?}");
        at_rest(&cluster).await;
        cluster.shutdown(Duration::from_secs(5)).await;
    }
}
