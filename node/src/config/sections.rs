//! The sections of `relevo.toml`: every key with its unit, default and range.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use relevo_actors::device::DeviceRole;
use relevo_actors::faults::Fault;
use relevo_actors::policy::routing::Disaggregate;
use relevo_wire::{Numerics, Role};
use serde::{Deserialize, Serialize};

use super::section::section;

section! {
    /// Where the HTTP API listens, and what it puts up with.
    Server {
        /// Address and port. Anything but loopback needs `api_key_file`.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        /// A file with one API key a line; `#` begins a comment. Without it no key is asked for.
        api_key_file: Option<PathBuf> = None, example "\"/etc/relevo/api-keys\"";
        /// Names besides localhost that `Host` and `Origin` may carry on a loopback address (a proxy's), without port.
        allowed_hosts: Vec<String> = Vec::new();
        /// Longest request body, in KiB: 1 to 262144.
        max_body_kib: u32 = 4096;
        /// All request bodies that are being read at one time, in KiB: 1 to 16777216.
        body_budget_kib: u32 = 65_536;
        /// Most connections at a time: 1 to 65536.
        max_connections: u32 = 1024;
        /// Prompts times `n` of one request: 1 to 4096.
        max_sequences: u32 = 128;
        /// How long a client may take to send its headers, in milliseconds: 100 to 600000.
        header_timeout_ms: u32 = 30_000;
        /// How long a client may take to send its body, in milliseconds: 100 to 600000.
        body_timeout_ms: u32 = 30_000;
        /// How long a client may leave a stream unread before it is cut, in milliseconds: 100 to 600000.
        write_timeout_ms: u32 = 30_000;
        /// How long a request may take in all, in milliseconds: 1000 to 86400000.
        request_timeout_ms: u32 = 600_000;
        /// How long open streams may go on after Ctrl-C or SIGTERM before they end with an error event, in milliseconds: 0 to 60000.
        drain_timeout_ms: u32 = 3000;
    }
}

section! {
    /// What is served.
    Model {
        /// A name out of `relevo model list`, or the path of a GGUF file or a Hugging Face folder.
        name: String = String::from("smollm2");
        /// Other names that requests may call it by.
        aliases: Vec<String> = Vec::new();
        /// Positions that a request may fill, prompt and answer together: 16 to 1048576. Default: what the model was trained for, if the KV memory holds it.
        max_context_tokens: Option<u32> = None, example "8192";
        /// "default": int8 activations for quantised weights and f16 KV. "exact": f32 for both, slower.
        numerics: Numerics = Numerics::Default;
    }
}

section! {
    /// Which prefill and decode worker serves a request.
    Router {
        /// Prefill on one device and decode on another: "auto" (where a long prompt makes it worth the transfer), "always" or "never".
        disaggregate: Disaggregate = Disaggregate::Auto;
        /// "auto" prefills a prompt where it decodes if fewer tokens than this are not cached there: 0 to 1048576.
        local_prefill_below_tokens: u32 = 64;
        /// Requests that may wait for a worker before further ones get 429: 1 to 65536.
        max_waiting_requests: u32 = 1024;
        /// Requests that a device may have in flight: 1 to 4096.
        max_running_requests: u32 = 256;
        /// How long a lease of KV blocks lives without news from its writer, in milliseconds: 10 to 600000.
        lease_ms: u32 = 10_000;
        /// How long an engine with work may go without computing a layer before it is replaced and its streams go on elsewhere, in milliseconds: 100 to 600000. A layer of a full chunk of a large model takes a CPU about a second.
        hang_after_ms: u32 = 30_000;
        /// Streams leave a device whose pauses between tokens are so many times as long as its peers', with as many streams as it has, for a second: 2 to 1000, or 0 for never, such as where devices differ that much by nature.
        slow_factor: u32 = 3;
    }
}

section! {
    /// This node's place in a cluster of many; `relevo node` reads it, `relevo up` is a cluster of its own.
    Node {
        /// What it plays: "gateway", "coordinator", "prefill", "decode"; its certificate must allow all of them. Required by `relevo node`.
        roles: Vec<Role> = Vec::new(), example "[\"gateway\", \"coordinator\"]";
        /// Address and UDP port where other nodes reach it.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7400));
        /// What others dial instead, where `listen` is all addresses or behind a translation.
        advertise: Option<SocketAddr> = None, example "\"10.0.0.7:7400\"";
        /// Where the coordinator listens, or may listen one day. Of the coordinator: where other nodes listen, of which it looks for one if nobody looks for it.
        seeds: Vec<SocketAddr> = Vec::new(), example "[\"10.0.0.1:7400\"]";
        /// The folder that `relevo ca issue` made for this node. Required by `relevo node`.
        identity: Option<PathBuf> = None, example "\"/etc/relevo/identity\"";
        /// Of the coordinator: the folder of the cluster's authority (`relevo ca init`), which then signs the nodes' next certificates.
        authority: Option<PathBuf> = None, example "\"/var/lib/relevo/ca\"";
        /// Where the node keeps how often it was started. Default: a folder of its name in the data folder.
        state_dir: Option<PathBuf> = None, example "\"/var/lib/relevo/state\"";
        /// Of a gateway: /ready says 503 until that many devices have served, 0 to 65536.
        expected_devices: u32 = 0;
        /// Where a node without a gateway serves /metrics and /health. Anything but loopback needs `server.api_key_file`.
        metrics_listen: Option<SocketAddr> = None, example "\"127.0.0.1:9400\"";
        /// Other nodes run on this machine: threads are not pinned to cores.
        shares_machine: bool = false;
    }
}

section! {
    /// How KV blocks travel from one device to another.
    Transport {
        /// "auto" (the cheapest that reaches), "quic" (connections with mutual TLS), between devices of one process "in-process" (buffers change hands), between processes of one host "shm" (memory that they share).
        carrier: CarrierChoice = CarrierChoice::Auto;
    }
}

section! {
    /// A device: an engine with its threads and its KV memory. Give several to split a machine; the default is one for all of it.
    Device {
        /// What kind: "cpu", or "scripted:FILE" (tokens and timings by a formula, no model: docs/scripted-device.md). All are of one kind.
        kind: DeviceKind = DeviceKind::Cpu;
        /// What it does: "prefill", "decode" or both. Some device must do each.
        roles: Vec<DeviceRole> = vec![DeviceRole::Prefill, DeviceRole::Decode];
        /// Compute threads: 1 to 1024. Default: the physical cores, shared out among the devices.
        threads: Option<u32> = None, example "2";
        /// Memory for KV blocks, in MiB: 1 to 16777216. Default: 2048, less where the machine has less.
        kv_memory_mib: Option<u32> = None, example "2048";
        /// Most rows of one step, decode rows and prefill chunk together: 16 to 8192.
        max_step_tokens: u32 = 512;
        /// Reuse the KV blocks of prompts that begin alike.
        prefix_cache: bool = true;
    }
}

section! {
    /// What is logged, on stderr.
    Log {
        /// Levels by module, such as "info,relevo_actors=debug" (syntax: tracing-subscriber's `EnvFilter`).
        filter: String = String::from("warn");
        /// "text" or "json".
        format: LogFormat = LogFormat::Text;
    }
}

section! {
    /// Where the spans of requests go, beside the memory that `relevo trace` reads: to a collector of OpenTelemetry.
    Traces {
        /// A collector that takes OTLP over HTTP, without the `/v1/traces` of its path. Default: none.
        otlp_endpoint: Option<String> = None, example "\"http://127.0.0.1:4318\"";
        /// A file with one header a line, `name: value`, that the collector wants to see; `#` begins a comment.
        otlp_headers_file: Option<PathBuf> = None, example "\"/etc/relevo/otlp-headers\"";
        /// What this cluster is called there.
        service_name: String = String::from("relevo");
    }
}

section! {
    /// Faults to be injected, for tests only: refused without `--allow-faults`.
    Testing {
        /// What goes wrong, and when.
        faults: Vec<Fault> = Vec::new(), example "[{ kind = \"panic-engine\", device = \"cpu0\", step = 100 }]";
    }
}

/// What carries KV blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CarrierChoice {
    /// The cheapest that reaches: within a process its memory, within a host shared memory, else connections.
    #[default]
    Auto,
    /// Buffers change hands.
    InProcess,
    /// Connections with mutual TLS.
    Quic,
    /// Memory that processes of a host share.
    Shm,
}

/// A kind of device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceKind {
    /// Cores of this machine.
    #[default]
    Cpu,
    /// A formula, with the file that sets it; without one all is default.
    Scripted(Option<PathBuf>),
}

impl DeviceKind {
    /// Whether it serves a formula.
    pub const fn is_scripted(&self) -> bool {
        matches!(self, Self::Scripted(_))
    }
}

/// A word that is no kind of device. The user's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind of device, expected cpu, scripted:FILE, or scripted for a script of defaults")]
pub struct UnknownKind(String);

impl FromStr for DeviceKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        match (text, text.strip_prefix("scripted:")) {
            ("cpu", _) => Ok(Self::Cpu),
            ("scripted", _) => Ok(Self::Scripted(None)),
            (_, Some(file)) if !file.is_empty() => Ok(Self::Scripted(Some(file.into()))),
            _ => Err(UnknownKind(text.to_owned())),
        }
    }
}

impl TryFrom<String> for DeviceKind {
    type Error = UnknownKind;

    fn try_from(text: String) -> Result<Self, UnknownKind> {
        text.parse()
    }
}

impl From<DeviceKind> for String {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Cpu => "cpu".to_owned(),
            DeviceKind::Scripted(None) => "scripted".to_owned(),
            DeviceKind::Scripted(Some(file)) => format!("scripted:{}", file.display()),
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object a line.
    Json,
}

impl Testing {
    /// Whether any fault is asked for.
    pub fn any(&self) -> bool {
        !self.faults.is_empty()
    }
}
