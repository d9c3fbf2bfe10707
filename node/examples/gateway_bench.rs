//! What the gateway costs, against scripted devices in processes of their own: requests a second, its processor time for a request and for a streamed
//! token, the pauses between tokens beside those of a bare SSE server on hyper, what becomes of three times the load that the workers bear, and how soon
//! after its prompt's last layer a sequence decodes elsewhere.
//! `make bench-gateway` builds both and runs this; with the argument `hand-overs`, the last part alone.
//!
//! Client, gateway, prefill and decode share the machine's cores; the gateway's processor time is its process's own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "figures are what it is for"
)]
#![allow(dead_code, unused_imports, reason = "the tests' helpers are more than this needs")]

#[path = "../tests/program/mod.rs"]
mod program;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::response::sse::{Event, Sse};
use axum::routing::post;
use futures_util::stream;
use relevo_actors::clock;
use relevo_wire::Instant64;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use program::Server;
use program::local_cluster::{World, status};

/// Requests open at a time.
const CONCURRENCY: usize = 16;

const NUM_SHORT: usize = 30_000;
const NUM_LONG: usize = 1500;
const LONG_BYTES: usize = 220_000;

/// Requests that show the peak, and how long three times that many come.
const NUM_PEAK: usize = 500;
const OVERLOADED: Duration = Duration::from_secs(10);

/// Streams whose hand-over is timed, the tokens of their prompts, and the time of each in microseconds.
const NUM_HAND_OVERS: usize = 40;
const HAND_OVER_TOKENS: usize = 1024;
const PREFILL_TOKEN_US: usize = 400;

/// What a layer of a chunk of 512 tokens has: 32 blocks of 64 KiB.
const LAYER_BYTES: f64 = 2_097_152.0;

/// Tokens of a stream, and how far they are apart.
const STREAM_TOKENS: usize = 3000;
const PACE: Duration = Duration::from_millis(2);

/// What a streamed token's event is like.
const EVENT: &str = r#"{"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1764000000,"model":"scripted","choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}"#;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match std::env::args().nth(1).as_deref() {
        Some("echo") => runtime.block_on(echo()),
        Some("hand-overs") => runtime.block_on(hand_overs(&World::new())),
        _ => runtime.block_on(measure()),
    }
}

async fn measure() {
    let world = World::new();
    let script = |text: &str| std::fs::write(world.script(), text).unwrap();
    script("tokens = \"echo\"\n");
    let cluster = start_cluster(&world, "128MiB", "");
    let address: SocketAddr = cluster.url.strip_prefix("http://").unwrap().parse().unwrap();
    let gateway = status(&cluster.url)["nodes"][0]["pid"].as_u64().unwrap();

    let short = json!({"prompt": "a short prompt", "max_tokens": 1, "temperature": 0});
    let tokenize = json!({"prompt": "a short prompt"});
    // Warm, and then in turns.
    load(address, "/v1/completions", &short, NUM_SHORT / 10).await;
    for round in 1..=3 {
        let (rate, cpu) = measured(gateway, load(address, "/v1/completions", &short, NUM_SHORT), NUM_SHORT).await;
        let (read_rate, read_cpu) =
            measured(gateway, load(address, "/tokenize", &tokenize, NUM_SHORT), NUM_SHORT).await;
        println!(
            "{round}. short requests: {rate:.0} a second, {cpu:.0} us of the gateway each; the same text through /tokenize: \
             {read_rate:.0} a second, {read_cpu:.0} us; between them {:.0} us",
            cpu - read_cpu
        );
    }
    drop(cluster);

    script(&format!("tokens = \"echo\"\nfixed_us = {}\n", PACE.as_micros()));
    let cluster = start_cluster(&world, "128MiB", "");
    let address: SocketAddr = cluster.url.strip_prefix("http://").unwrap().parse().unwrap();
    let gateway = status(&cluster.url)["nodes"][0]["pid"].as_u64().unwrap();
    let body = json!({"prompt": "a short prompt", "max_tokens": STREAM_TOKENS, "temperature": 0, "stream": true});
    let mut echo = start_echo();
    let echo_address = echo_address(&mut echo);
    for round in 1..=3 {
        let before = processor_us(gateway);
        let gaps = streams(address, "/v1/completions", &body).await;
        let cpu = (processor_us(gateway) - before) / (gaps.len() as f64);
        let before = processor_us(u64::from(echo.id()));
        let echoed = streams(echo_address, "/", &body).await;
        let echo_cpu = (processor_us(u64::from(echo.id())) - before) / (echoed.len() as f64);
        println!(
            "{round}. {CONCURRENCY} streams, a token every {PACE:?}: {cpu:.1} us of the gateway a token, gaps {}; bare SSE on hyper: \
             {echo_cpu:.1} us, gaps {}",
            told(gaps),
            told(echoed)
        );
    }
    echo.kill().unwrap();
    echo.wait().unwrap();
    drop(cluster);

    script("tokens = \"echo\"\nmax_context_tokens = 1048576\n");
    let cluster = start_cluster(&world, "512MiB", "");
    let address: SocketAddr = cluster.url.strip_prefix("http://").unwrap().parse().unwrap();
    let gateway = status(&cluster.url)["nodes"][0]["pid"].as_u64().unwrap();
    let long = json!({"prompt": "a prompt of many bytes. ".repeat(LONG_BYTES / 24), "max_tokens": 1, "temperature": 0});
    load(address, "/v1/completions", &long, CONCURRENCY).await;
    let (rate, cpu) = measured(gateway, load(address, "/v1/completions", &long, NUM_LONG), NUM_LONG).await;
    println!("prompts of {LONG_BYTES} bytes, a token each: {rate:.0} a second, {cpu:.0} us of the gateway each");
    drop(cluster);

    script("tokens = \"echo\"\nfixed_us = 3000\ndecode_token_us = 200\nprefill_token_us = 20\n");
    let config = format!("[router]\nmax_running_requests = {CONCURRENCY}\nmax_waiting_requests = {CONCURRENCY}\n");
    let cluster = start_cluster(&world, "128MiB", &config);
    let address: SocketAddr = cluster.url.strip_prefix("http://").unwrap().parse().unwrap();
    for round in 1..=3 {
        overload(round, address).await;
    }
    drop(cluster);
    hand_overs(&world).await;
}

async fn hand_overs(world: &World) {
    for carrier in ["quic", "shm"] {
        hand_overs_by(world, carrier).await;
    }
}

/// The first token comes when the prompt's last layer is computed, the second a step after decode has all blocks; the steps after it take as long as
/// that one. So what the first pause is longer than the others is the hand-over.
async fn hand_overs_by(world: &World, carrier: &str) {
    let blocks = "num_layers = 32\nkey_dim = 1024\nvalue_dim = 1024\nelement = \"f16\"\n";
    let times = format!("fixed_us = 5000\nprefill_token_us = {PREFILL_TOKEN_US}\n");
    std::fs::write(world.script(), format!("tokens = \"echo\"\n{blocks}{times}")).unwrap();
    let cluster = start_cluster(world, "1GiB", &format!("[transport]\ncarrier = \"{carrier}\"\n"));
    let address: SocketAddr = cluster.url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut bench =
        program::relevo(["bench", "link", "decode-0", "--block-kib", "64", "--json", "--url", &cluster.url]);
    let link: Value = serde_json::from_slice(&bench.output().unwrap().stdout).unwrap();
    let layer = Duration::from_secs_f64(LAYER_BYTES / link["kv"]["bytes_per_s"].as_f64().unwrap());
    let mut delays = Vec::new();
    for number in 0..NUM_HAND_OVERS {
        let mut prompt = format!("{number}: ");
        prompt.extend(std::iter::repeat_n('a', HAND_OVER_TOKENS - 1 - prompt.len()));
        let body = json!({"prompt": prompt, "max_tokens": 20, "temperature": 0, "stream": true});
        let gaps = Client::connect(address).await.stream(&request("/v1/completions", &body)).await;
        let mut steps = gaps[1..].to_vec();
        steps.sort_unstable();
        delays.push(gaps[0].saturating_sub(steps[steps.len() / 2]));
    }
    println!(
        "hand-over by {carrier}, beside a step: {}; a layer of a chunk takes {:.2} ms",
        told(delays),
        layer.as_secs_f64() * 1e3
    );
}

/// As many as the workers can do, then three times as many as that came to, whether or not they are done.
async fn overload(round: usize, address: SocketAddr) {
    let body = json!({"prompt": "a prompt that takes a while", "max_tokens": 50, "temperature": 0});
    let began = clock::now();
    load(address, "/v1/completions", &body, NUM_PEAK).await;
    let peak = NUM_PEAK as f64 / clock::now().since(began).as_secs_f64();
    let request = request("/v1/completions", &body);
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / (3.0 * peak)));
    let (began, mut asked) = (clock::now(), JoinSet::new());
    while clock::now().since(began) < OVERLOADED {
        ticks.tick().await;
        let request = request.clone();
        asked.spawn(async move {
            let (sent, mut client) = (clock::now(), Client::connect(address).await);
            let status = client.exchange(&request).await;
            (status, clock::now().since(sent), clock::now())
        });
    }
    let num_asked = asked.len();
    let answers = asked.join_all().await;
    let refusals: Vec<_> = answers.iter().filter(|answer| answer.0 == 429).map(|answer| answer.1).collect();
    let done = answers.iter().filter(|answer| answer.0 == 200);
    // Those that were done within the time, as those of the peak were.
    let good =
        done.clone().filter(|answer| answer.2.since(began) < OVERLOADED).count() as f64 / OVERLOADED.as_secs_f64();
    println!(
        "{round}. peak {peak:.1} a second; asked for three times that: {num_asked} requests, {} done, {} refused (429, {}), {good:.1} done a \
         second, {:.0} % of the peak",
        done.count(),
        refusals.len(),
        told(refusals.clone()),
        100.0 * good / peak
    );
    assert!(answers.iter().all(|answer| [200, 429].contains(&answer.0)), "a request has failed");
}

fn start_cluster(world: &World, kv_memory: &str, config: &str) -> Server {
    let path = world.folder.path().join("relevo.toml");
    std::fs::write(&path, config).unwrap();
    let arguments = ["--local-cluster", "1p1d", "--device", &world.device(), "--kv-memory", kv_memory];
    Server::with_config(&path, &[&arguments[..], &["--data-dir", world.folder.path().to_str().unwrap()]].concat())
}

/// How many a second, and what each costs a process in microseconds.
async fn measured(pid: u64, load: impl Future<Output = ()>, count: usize) -> (f64, f64) {
    let (began, before) = (clock::now(), processor_us(pid));
    load.await;
    let took = clock::now().since(began).as_secs_f64();
    (count as f64 / took, (processor_us(pid) - before) / count as f64)
}

/// Processor time of a process, in microseconds; Linux counts a hundred ticks a second for its users.
fn processor_us(pid: u64) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split(' ');
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() * 1e4
}

/// As many requests of one kind, over connections that stay.
async fn load(address: SocketAddr, path: &'static str, body: &Value, count: usize) {
    let request = request(path, body);
    let mut clients = JoinSet::new();
    for lane in 0..CONCURRENCY {
        let (request, count) = (request.clone(), (count + CONCURRENCY - 1 - lane) / CONCURRENCY);
        clients.spawn(async move {
            let mut client = Client::connect(address).await;
            for _ in 0..count {
                assert_eq!(client.exchange(&request).await, 200);
            }
        });
    }
    clients.join_all().await;
}

/// The gaps between the events of streams that run at a time.
async fn streams(address: SocketAddr, path: &'static str, body: &Value) -> Vec<Duration> {
    let request = request(path, body);
    let mut clients = JoinSet::new();
    for _ in 0..CONCURRENCY {
        let request = request.clone();
        clients.spawn(async move { Client::connect(address).await.stream(&request).await });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

fn told(mut gaps: Vec<Duration>) -> String {
    gaps.sort_unstable();
    let at = |share: f64| gaps[(gaps.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    format!("p50 {:.2}, p99 {:.2}, p99.9 {:.2} ms", at(0.5), at(0.99), at(0.999))
}

fn request(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, buffer: Vec::with_capacity(1 << 16) }
    }

    /// A request, and its whole answer, of which the status is told.
    async fn exchange(&mut self, request: &[u8]) -> u16 {
        self.buffer.clear();
        self.socket.write_all(request).await.unwrap();
        loop {
            assert_ne!(
                self.socket.read_buf(&mut self.buffer).await.unwrap(),
                0,
                "{}",
                String::from_utf8_lossy(&self.buffer)
            );
            let Some(end) = find(&self.buffer, b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&self.buffer[..end]).unwrap().to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if self.buffer.len() >= end + 4 + length.parse::<usize>().unwrap() {
                return head.split(' ').nth(1).unwrap().parse().unwrap();
            }
        }
    }

    /// A request, and the gaps between what comes of its stream: several events that come at once are one.
    async fn stream(&mut self, request: &[u8]) -> Vec<Duration> {
        self.socket.write_all(request).await.unwrap();
        let (mut gaps, mut last) = (Vec::with_capacity(STREAM_TOKENS), None::<Instant64>);
        loop {
            self.buffer.clear();
            assert_ne!(self.socket.read_buf(&mut self.buffer).await.unwrap(), 0);
            let now = clock::now();
            if find(&self.buffer, b"\"text\":").is_some() {
                gaps.extend(last.map(|last| now.since(last)));
                last = Some(now);
            }
            if find(&self.buffer, b"[DONE]").is_some() {
                return gaps;
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn start_echo() -> Child {
    let mut echo = Command::new(std::env::current_exe().unwrap());
    echo.arg("echo").stdout(Stdio::piped()).spawn().unwrap()
}

fn echo_address(echo: &mut Child) -> SocketAddr {
    program::wait_for_line(echo.stdout.take().unwrap(), |line| line.contains("127.0.0.1")).trim().parse().unwrap()
}

/// A server that sends as many events as a stream has tokens, at their pace, and does nothing else.
async fn echo() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let events = || async {
        let ticks = tokio::time::interval(PACE);
        let events = stream::unfold((ticks, 0), |(mut ticks, index)| async move {
            ticks.tick().await;
            let text = if index == STREAM_TOKENS { "[DONE]" } else { EVENT };
            (index <= STREAM_TOKENS).then(|| (Ok::<_, Infallible>(Event::default().data(text)), (ticks, index + 1)))
        });
        Sse::new(events)
    };
    axum::serve(listener, Router::new().route("/", post(events))).await.unwrap();
}
