//! Clusters in every layout, over scripted models unless a test brings its own, and readers of their streams.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helper fails as its test does")]

use std::sync::Arc;
use std::time::Duration;

use relevo_actors::cluster::{Carrier, Cluster, ClusterOptions, DeviceSpec, Limits};
use relevo_actors::device::DeviceRole;
use relevo_actors::faults::Fault;
use relevo_actors::gateway::SequenceStream;
use relevo_actors::policy::restarts::RestartIntensity;
use relevo_actors::policy::routing::Disaggregate;
use relevo_gpu::model::{ScriptedModel, ScriptedOptions};
use relevo_wire::{
    FinishReason, GenerateRequest, RequestError, RequestId, SamplingParams, SequenceId, StreamEvent, TenantId,
    TokenLogprobs, Usage,
};
use tokio::time::timeout;

/// Longest wait for anything: long for two busy cores, short for a person.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const BOTH: &[DeviceRole] = &[DeviceRole::Prefill, DeviceRole::Decode];
pub const PREFILL: &[DeviceRole] = &[DeviceRole::Prefill];
pub const DECODE: &[DeviceRole] = &[DeviceRole::Decode];

/// How a cluster is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One worker that does both.
    Combined,
    /// Prefill and decode actors on one device.
    SameDevice,
    /// Prefill on one device, decode on the other.
    TwoDevices,
    /// Two devices that do both, always apart.
    Crossed,
    /// As [`Layout::TwoDevices`], with connections between them.
    OverQuic,
}

pub const LAYOUTS: [Layout; 5] =
    [Layout::Combined, Layout::SameDevice, Layout::TwoDevices, Layout::Crossed, Layout::OverQuic];

pub fn options(layout: Layout) -> ClusterOptions {
    let shape = ScriptedOptions { num_layers: 3, num_blocks: 512, ..ScriptedOptions::default() };
    options_of(layout, shape)
}

pub fn options_of(layout: Layout, shape: ScriptedOptions) -> ClusterOptions {
    options_with(layout, |name, roles| DeviceSpec::new(name, roles, move || Ok(Box::new(ScriptedModel::new(shape)))))
}

/// A layout whose devices `device` makes, by name and roles.
pub fn options_with(layout: Layout, device: impl Fn(&str, &[DeviceRole]) -> DeviceSpec) -> ClusterOptions {
    show_traces();
    let (devices, disaggregate) = match layout {
        Layout::Combined => (vec![device("cpu0", BOTH)], Disaggregate::Never),
        Layout::SameDevice => (vec![device("cpu0", BOTH)], Disaggregate::Always),
        Layout::TwoDevices | Layout::OverQuic => {
            (vec![device("cpu0", PREFILL), device("cpu1", DECODE)], Disaggregate::Always)
        }
        Layout::Crossed => (vec![device("cpu0", BOTH), device("cpu1", BOTH)], Disaggregate::Always),
    };
    let restarts = RestartIntensity { max_restarts: 20, period: Duration::from_secs(10) };
    let carrier = if layout == Layout::OverQuic { Carrier::Quic } else { Carrier::InProcess };
    ClusterOptions {
        disaggregate,
        carrier,
        limits: Limits { restarts, ..Limits::default() },
        faults: Some(Vec::new()),
        ..ClusterOptions::new(devices)
    }
}

/// Shows what the actors say, as `RUST_LOG` wishes, when a test fails.
fn show_traces() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    // The second test of a process finds it done.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

pub async fn start(layout: Layout) -> Cluster {
    Cluster::start(options(layout)).await.unwrap()
}

pub async fn start_with(layout: Layout, faults: Vec<Fault>) -> Cluster {
    Cluster::start(ClusterOptions { faults: Some(faults), ..options(layout) }).await.unwrap()
}

/// The n-th request of a workload: prompts and lengths differ, every third samples.
pub fn request(id: u64) -> GenerateRequest {
    let length = 5 + (id as usize * 37) % 120;
    let prompt: Vec<u32> = (0..length as u64).map(|i| ((i * 31 + id * 17 + i * i * id) % 500) as u32).collect();
    let temperature = if id.is_multiple_of(3) { 1.0 } else { 0.0 };
    GenerateRequest {
        sequence: SequenceId { request: RequestId(id), choice: 0, attempt: 0 },
        tenant: TenantId((id % 2) as u32),
        prompt: Arc::from(prompt),
        generated: Vec::new(),
        sampling: SamplingParams { temperature, seed: id, ..SamplingParams::default() },
        stop_ids: Arc::from([]),
        max_tokens: 10 + (id % 7) as u32 * 10,
        top_logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
    }
}

/// How a stream ended, with its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub tokens: Vec<u32>,
    /// Log-probabilities of the prompt's tokens, then of the answer's, if asked for: ids, ranks and the bits of each float.
    pub logprobs: Vec<u32>,
    pub end: Result<FinishReason, RequestError>,
}

/// Reads a stream to its end.
///
/// # Panics
/// If it breaks the rules: a gap, a repeat, an event after the last, no last event.
pub async fn read(stream: &mut SequenceStream) -> Outcome {
    read_on(None, stream).await
}

/// As [`read`], with what the answer took.
///
/// # Panics
/// As [`read`], and if it failed.
pub async fn read_with_usage(stream: &mut SequenceStream) -> (Outcome, Usage) {
    let (outcome, usage) = read_all(None, stream).await;
    let usage = usage.unwrap_or_else(|| panic!("the stream failed: {outcome:?}"));
    (outcome, usage)
}

/// As [`read`], of a stream whose first event was taken.
///
/// # Panics
/// As [`read`].
pub async fn read_on(first: Option<StreamEvent>, stream: &mut SequenceStream) -> Outcome {
    read_all(first, stream).await.0
}

async fn read_all(mut first: Option<StreamEvent>, stream: &mut SequenceStream) -> (Outcome, Option<Usage>) {
    let (mut tokens, mut bits) = (Vec::new(), Vec::new());
    loop {
        let event = match first.take() {
            None => timeout(PATIENCE, stream.next()).await.expect("a stream stands still"),
            first => first,
        };
        match event {
            Some(StreamEvent::Token { index, token, logprobs }) => {
                assert_eq!(index as usize, tokens.len(), "tokens come one by one");
                tokens.push(token);
                add_bits(&mut bits, logprobs);
            }
            Some(StreamEvent::PromptLogprobs { logprobs, .. }) => add_bits(&mut bits, logprobs),
            Some(StreamEvent::Prefilled { .. }) => {}
            Some(StreamEvent::Finished { reason, usage }) => {
                assert_eq!(usage.completion_tokens as usize, tokens.len());
                assert_eq!(timeout(PATIENCE, stream.next()).await.unwrap(), None, "nothing follows the last event");
                return (Outcome { tokens, logprobs: bits, end: Ok(reason) }, Some(usage));
            }
            Some(StreamEvent::Failed(error)) => return (Outcome { tokens, logprobs: bits, end: Err(error) }, None),
            None => panic!("a stream was cut"),
        }
    }
}

/// Floats compare by their bits: NaN and -0.0 would show.
fn add_bits(bits: &mut Vec<u32>, logprobs: impl IntoIterator<Item = TokenLogprobs>) {
    for entry in logprobs {
        bits.extend([entry.token, entry.rank, entry.logprob.to_bits()]);
        bits.extend(entry.top.iter().flat_map(|&(token, logprob)| [token, logprob.to_bits()]));
    }
}

/// Reads a stream to its end or to where it was cut.
///
/// # Panics
/// If it does neither.
pub async fn read_until_cut(stream: &mut SequenceStream) {
    while timeout(PATIENCE, stream.next()).await.expect("a stream stands still").is_some() {}
}

pub async fn serve(cluster: &Cluster, request: GenerateRequest) -> Outcome {
    read(&mut cluster.gateway().submit(request).unwrap()).await
}

/// Serves these at once; outcomes in the order of the ids.
pub async fn serve_all(cluster: &Cluster, ids: impl IntoIterator<Item = u64>) -> Vec<Outcome> {
    let mut streams: Vec<_> = ids.into_iter().map(|id| cluster.gateway().submit(request(id)).unwrap()).collect();
    let mut outcomes = Vec::new();
    for stream in &mut streams {
        outcomes.push(read(stream).await);
    }
    outcomes
}

/// What an undisturbed combined worker says, one request after the other.
pub async fn reference(ids: impl IntoIterator<Item = u64>) -> Vec<Outcome> {
    let cluster = start(Layout::Combined).await;
    let mut outcomes = Vec::new();
    for id in ids {
        outcomes.push(serve(&cluster, request(id)).await);
    }
    cluster.shutdown(Duration::from_secs(5)).await;
    outcomes
}

/// Waits until no block is active or leased on any device, and no stream is left.
///
/// # Panics
/// If some are for ever.
pub async fn at_rest(cluster: &Cluster) {
    let at_rest = || {
        let status = cluster.status();
        let idle = |device: &relevo_actors::status::DeviceStatus| {
            device.kv_blocks.active == 0
                && device.kv_blocks.leased == 0
                && device.leases == 0
                && device.kv_blocks.free > 0
        };
        let streams = status.queues.iter().find(|queue| queue.name == "streams").unwrap();
        status.nodes.iter().flat_map(|node| &node.devices).all(idle) && streams.depth == 0
    };
    until("every block is back", &|| at_rest(), cluster).await;
}

/// Polls a condition that has no event of its own.
///
/// # Panics
/// If it does not come about.
pub async fn until(what: &str, condition: &dyn Fn() -> bool, cluster: &Cluster) {
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    let wait = async {
        while !condition() {
            ticks.tick().await;
        }
    };
    if timeout(PATIENCE, wait).await.is_err() {
        panic!("{what}: not within {PATIENCE:?}: {:#?}", cluster.status());
    }
}
