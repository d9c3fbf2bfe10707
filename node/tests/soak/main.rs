//! A long mixed load on the real binary: streams, aborts, disconnects, stops, prompts that are too long, bodies that are no JSON, 64 at a
//! time. At its end no block is active or leased, memory is flat, every accepted request was answered, and nothing has panicked.
//!
//! `make test` runs a short form; `make soak` sends 2,000 requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../program/mod.rs"]
mod program;
mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use relevo::http_client::ApiClient;
use relevo_actors::status::ClusterStatus;
use tokio::task::JoinSet;

use program::{Server, default_model};
use requests::{Caller, Kind};

/// Requests open at a time.
const CONCURRENCY: usize = 64;

/// Requests of the short form: three of each kind for each place in the load.
const SHORT: usize = 192;

/// What memory may grow between the first third and the end: the allocator's own unrest.
const GROWTH_KIB: u64 = 48 << 10;

/// How long after the last answer aborted sequences may hold their blocks.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);

fn num_requests() -> usize {
    std::env::var_os("RELEVO_SOAK_REQUESTS").map_or(SHORT, |count| count.to_str().unwrap().parse().unwrap())
}

#[test]
fn a_mixed_load_leaves_nothing_behind() {
    default_model();
    let num_requests = num_requests();
    let server = Server::start(&["--max-context", "1024", "--log", "warn"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let third = runtime.block_on(send(&server.url, 0..num_requests / 3));
    let early_kib = server.resident_kib();
    let rest = runtime.block_on(send(&server.url, num_requests / 3..num_requests));
    let late_kib = server.resident_kib();

    let mut seen: BTreeMap<(Kind, bool), usize> = BTreeMap::new();
    let mut complaints = Vec::new();
    for (kind, outcome) in third.into_iter().chain(rest) {
        *seen.entry((kind, outcome.is_ok())).or_default() += 1;
        complaints.extend(outcome.err().map(|complaint| format!("{kind:?}: {complaint}")));
    }
    println!("{seen:?}; resident {early_kib} KiB after a third, {late_kib} KiB at the end");
    assert_eq!(seen.values().sum::<usize>(), num_requests);
    assert!(complaints.is_empty(), "{} of {num_requests} went wrong, such as {:?}", complaints.len(), &complaints[0]);
    assert!(late_kib <= early_kib + GROWTH_KIB, "memory grew from {early_kib} to {late_kib} KiB");

    runtime.block_on(settle(&server.url));
    let end = server.stop("TERM");
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    assert!(!end.stderr.contains("panicked"), "{}", end.stderr);
    let unexpected: Vec<&str> = end.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

/// Sends the requests of these numbers, [`CONCURRENCY`] at a time.
async fn send(url: &str, numbers: std::ops::Range<usize>) -> Vec<(Kind, Result<(), String>)> {
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let mut workers = JoinSet::new();
    for _ in 0..CONCURRENCY {
        let (next, caller, end) = (Arc::clone(&next), Caller::new(url), numbers.end);
        workers.spawn(async move {
            let mut outcomes = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return outcomes;
                }
                let kind = Kind::of(number);
                outcomes.push((kind, caller.send(kind, number).await));
            }
        });
    }
    workers.join_all().await.into_iter().flatten().collect()
}

/// Waits until nothing runs and no block is held, and fails if that does not come to pass.
async fn settle(url: &str) {
    let client = ApiClient::new(url, None).unwrap();
    let settled = async {
        loop {
            let status: ClusterStatus = client.get("/relevo/status").await.unwrap();
            let device = &status.nodes[0].devices[0];
            let blocks = device.kv_blocks;
            let idle = device.running_requests + device.waiting_requests + device.leases == 0;
            if idle && blocks.active + blocks.leased == 0 {
                return;
            }
        }
    };
    if tokio::time::timeout(SETTLES_WITHIN, settled).await.is_err() {
        let status: serde_json::Value = client.get("/relevo/status").await.unwrap();
        panic!("still busy after {SETTLES_WITHIN:?}: {status}");
    }
}
