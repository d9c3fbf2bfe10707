//! The load, and what must hold at its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use relevo::http_client::ApiClient;
use relevo_actors::status::ClusterStatus;
use tokio::task::JoinSet;

use crate::program::{Scrape, Server, default_model};
use crate::requests::{Caller, Kind};

/// Requests open at a time.
const CONCURRENCY: usize = 64;

/// Parts of the load. After each, when nothing runs, the server's footprint is taken; after the first, all of the KV pool has been in use.
const ROUNDS: usize = 3;

/// What memory may grow between the end of the first round and that of the last: the allocator's own unrest.
const GROWTH_KIB: u64 = 8 << 10;

/// Files that may be open at the end beyond those after the first round: connections of ours whose end the server has yet to see.
const CLOSING_FILES: usize = 2;

/// How long after the last answer aborted sequences may hold their blocks, and clients that have left their connections.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);

/// What the server takes of the machine while nobody wants anything.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    memory_kib: u64,
    open_files: usize,
    threads: usize,
}

/// How many requests of a kind went well.
type Tally = BTreeMap<Kind, usize>;

/// A pool that is far too small for all: requests wait, are preempted and evict each other's prefixes, and all of it is soon in use.
const CONFIGURATION: &str = "\
    [model]\n\
    max_context_tokens = 1024\n\
    [[device]]\n\
    kv_memory_mib = 48\n\
    [log]\n\
    filter = \"warn\"\n";

/// Starts a server, sends it `num_requests` requests, and stops it.
///
/// # Panics
/// If anything is not as it must be.
pub(crate) fn run(num_requests: usize) {
    default_model();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relevo.toml");
    std::fs::write(&path, CONFIGURATION).unwrap();
    let server = Server::with_config(&path, &[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut tally = Tally::new();
    let mut footprints = Vec::new();
    for round in 0..ROUNDS {
        let numbers = num_requests * round / ROUNDS..num_requests * (round + 1) / ROUNDS;
        runtime.block_on(send(&server.url, numbers, &mut tally));
        runtime.block_on(settle(&server.url));
        footprints.push(Footprint::of(&server));
        println!("{tally:?}: {:?}", footprints[round]);
    }
    footprints[ROUNDS - 1].assert_no_larger_than(&footprints[0]);
    assert_all_answered(&tally, num_requests, &Scrape::of(&server.url));
    let end = server.stop("TERM");
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    assert_eq!(end.stderr, "SIGTERM: stopping; once more stops at once\n", "nothing is worth a warning");
}

/// Sends the requests of these numbers, [`CONCURRENCY`] at a time.
async fn send(url: &str, numbers: std::ops::Range<usize>, tally: &mut Tally) {
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
                outcomes.push((number, kind, caller.send(kind, number).await));
            }
        });
    }
    let outcomes: Vec<_> = workers.join_all().await.into_iter().flatten().collect();
    let complaint = |(number, kind, outcome): &(usize, Kind, Result<(), String>)| {
        outcome.as_ref().err().map(|complaint| format!("request {number}, {kind:?}: {complaint}"))
    };
    let complaints: Vec<_> = outcomes.iter().filter_map(complaint).collect();
    assert!(complaints.is_empty(), "{} of {numbers:?} went wrong, such as {}", complaints.len(), complaints[0]);
    for (_, kind, _) in outcomes {
        *tally.entry(kind).or_default() += 1;
    }
}

/// Waits until nothing runs, nothing is queued, no block is held and no client is connected, and fails if that does not come to pass.
async fn settle(url: &str) {
    let settled = async {
        loop {
            let client = ApiClient::new(url, None).unwrap();
            let status: ClusterStatus = client.get("/relevo/status").await.unwrap();
            drop(client);
            // The scrape's own connection is one.
            if is_idle(&status) && Scrape::of(url).sum("relevo_http_connections", "") == Some(1) {
                return;
            }
        }
    };
    if tokio::time::timeout(SETTLES_WITHIN, settled).await.is_err() {
        let status: serde_json::Value = ApiClient::new(url, None).unwrap().get("/relevo/status").await.unwrap();
        panic!("still busy after {SETTLES_WITHIN:?}: {status} {:?}", Scrape::of(url));
    }
}

fn is_idle(status: &ClusterStatus) -> bool {
    let devices = status.nodes.iter().flat_map(|node| &node.devices);
    let held = |device: &relevo_actors::status::DeviceStatus| {
        let blocks = device.kv_blocks;
        device.running_requests + device.waiting_requests + device.leases + blocks.active + blocks.leased
    };
    devices.map(held).sum::<u64>() + status.queues.iter().map(|queue| queue.depth).sum::<u64>() == 0
}

impl Footprint {
    fn of(server: &Server) -> Self {
        Self { memory_kib: server.memory_kib(), open_files: server.entries("fd"), threads: server.entries("task") }
    }

    fn assert_no_larger_than(&self, early: &Self) {
        assert!(self.memory_kib <= early.memory_kib + GROWTH_KIB, "memory grew: {early:?}, then {self:?}");
        assert!(self.open_files <= early.open_files + CLOSING_FILES, "files stay open: {early:?}, then {self:?}");
        assert!(self.threads <= early.threads, "threads stay: {early:?}, then {self:?}");
    }
}

/// Holds the server's books against the callers'.
fn assert_all_answered(tally: &Tally, num_requests: usize, scrape: &Scrape) {
    let of = |kind| tally.get(&kind).copied().unwrap_or(0) as u64;
    assert_eq!(tally.values().sum::<usize>(), num_requests, "{tally:?}");
    let http = |route: &str, status: &str| {
        let routed = scrape.sum("relevo_http_requests_total", &format!("route=\"{route}\",status=\"{status}\""));
        routed.unwrap_or(0)
    };
    let completions = (of(Kind::Stop) + of(Kind::Choices), of(Kind::TooLong));
    assert_eq!((http("/v1/completions", "200"), http("/v1/completions", "400")), completions, "{scrape:?}");
    assert_eq!(http("/v1/chat/completions", "400"), of(Kind::NoJson), "{scrape:?}");
    assert_eq!(scrape.sum("relevo_http_requests_total", "status=\"5"), None, "{scrape:?}");

    // Who hangs up early may not have been heard at all. An answer that a stop string ends counts as aborted by us.
    let ended = |reason: &str| scrape.sum("vllm:request_success_total", reason).unwrap_or(0);
    let wanted = of(Kind::Chat) + of(Kind::Stream) + of(Kind::Stop) + 2 * of(Kind::Choices) + of(Kind::Disconnect);
    let heard = wanted..=wanted + of(Kind::Abort);
    assert!(heard.contains(&ended("")), "{} streams ended, {heard:?} began: {scrape:?}", ended(""));
    assert_eq!(ended("finished_reason=\"error\""), 0, "{scrape:?}");
    let whole = of(Kind::Chat) + of(Kind::Stream) + 2 * of(Kind::Choices);
    let finished = ended("finished_reason=\"stop\"") + ended("finished_reason=\"length\"");
    assert!(finished >= whole, "{finished} streams came to their end, {whole} were read to it: {scrape:?}");
    assert!(ended("finished_reason=\"abort\"") > 0, "nobody left in the middle of an answer: {scrape:?}");
}
