//! What is put to the test: `relevo up`, as a process with processes below it.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use relevo_actors::clock;
use relevo_actors::status::{ClusterStatus, DeviceStatus, NodeStatus};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ChaosArgs;
use crate::cli::Failure;
use crate::http_client::ApiClient;
use crate::status_command::STATUS_PATH;
use crate::terminal;

/// A script of blocks that are worth carrying, and of steps that a stream can be struck in: 20 ms each, as those of a large model.
const SCRIPT: &str = "num_layers = 4\nkey_dim = 64\nvalue_dim = 64\nelement = \"f16\"\nfixed_us = 20000\n\
                      prefill_token_us = 20\nmax_context_tokens = 4096\n";

const LOG: &str = "relevo.log";

/// How long a start may take: a model may have to be loaded by many processes.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// How long an end may take.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// How long the status may take to show what an operator has ordered.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// How often it is asked whether something holds.
const POLL: Duration = Duration::from_millis(50);

/// A folder of the run's own, removed with it unless it is to be looked into.
pub(super) struct Folder {
    path: PathBuf,
    keep: Cell<bool>,
}

impl Folder {
    pub(super) fn make() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("relevo-chaos-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|source| failed("cannot make a folder for the run", source))?;
        Ok(Self { path, keep: Cell::new(false) })
    }

    fn path(&self) -> &Path {
        &self.path
    }

    /// What all processes log.
    fn log(&self) -> io::Result<File> {
        File::options().create(true).append(true).open(self.path.join(LOG))
    }

    /// Lines of level error in the log.
    pub(super) fn errors(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path.join(LOG)).unwrap_or_default();
        log.lines().filter(|line| line.contains(" ERROR ")).map(str::to_owned).collect()
    }

    /// Why `relevo up` does not come to serve: what it said last.
    fn no_start(&self) -> Failure {
        let log = std::fs::read_to_string(self.path.join(LOG)).unwrap_or_default();
        let reason = log.lines().rfind(|line| !line.is_empty()).unwrap_or("it says nothing");
        Failure::Promise(format!("relevo up does not come to serve: {reason}"))
    }

    /// Leaves the log behind, and says where.
    pub(super) fn keep(&self) {
        self.keep.set(true);
        terminal::say(format!("what the processes logged is in {}", self.path.join(LOG).display()));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep.get() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// What computes: as it was asked for, else a script of ours.
pub(super) fn device(args: &ChaosArgs, folder: &Folder) -> Result<String, Failure> {
    if let Some(device) = &args.device {
        return Ok(String::from(device.clone()));
    }
    let path = folder.path().join("script.toml");
    std::fs::write(&path, SCRIPT).map_err(|source| failed("cannot write the script", source))?;
    Ok(format!("scripted:{}", path.display()))
}

/// A worker as it is now.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) pid: u32,
    /// Its UDP port.
    pub(super) port: u16,
    /// What its devices play.
    pub(super) roles: Vec<String>,
}

/// A running `relevo up`.
pub(super) struct Subject {
    child: Child,
    client: ApiClient,
    num_workers: usize,
    _output: JoinSet<()>,
}

impl Subject {
    /// One process.
    pub(super) async fn alone(args: &ChaosArgs, device: &str, folder: &Folder) -> Result<Self, Failure> {
        Self::start(args, device, &[], folder).await
    }

    /// Many.
    pub(super) async fn cluster(args: &ChaosArgs, device: &str, folder: &Folder) -> Result<Self, Failure> {
        let data = folder.path().display().to_string();
        let shape = args.local_cluster.to_string();
        // A model lies where models lie.
        let data = if args.model.is_some() { vec![] } else { vec!["--data-dir", &data] };
        let flags = [&["--local-cluster", &shape, "--disaggregate", "always"][..], &data].concat();
        Self::start(args, device, &flags, folder).await
    }

    async fn start(args: &ChaosArgs, device: &str, flags: &[&str], folder: &Folder) -> Result<Self, Failure> {
        let started = |source| failed("cannot start relevo up", source);
        let program = std::env::current_exe().map_err(started)?;
        let mut command = Command::new(program);
        command.args(["up", "--listen", "127.0.0.1:0", "--device", device]).args(flags);
        if let Some(model) = &args.model {
            command.args(["--model", model]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(folder.log().map_err(started)?).kill_on_drop(true);
        let mut child = command.spawn().map_err(started)?;
        let lines = child.stdout.take().map(|output| BufReader::new(output).lines());
        let address = async {
            let mut lines = lines?;
            loop {
                let line = lines.next_line().await.ok()??;
                let word = line.split_whitespace().find(|word| word.starts_with("http://"));
                if let Some(word) = word.filter(|_| line.contains("API ")) {
                    let address = word.to_owned();
                    return Some((address, lines));
                }
            }
        };
        let address = timeout(START_PATIENCE, address).await.ok().flatten();
        let (address, mut lines) = address.ok_or_else(|| folder.no_start())?;
        // Somebody must read on, else it would wait for us.
        let mut output = JoinSet::new();
        output.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self {
            child,
            client: ApiClient::new(&address, None)?,
            num_workers: args.local_cluster.num_workers(),
            _output: output,
        })
    }

    pub(super) fn client(&self) -> &ApiClient {
        &self.client
    }

    /// Ends it, in order.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        match timeout(STOP_PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Failure::Promise(format!("relevo up ended with {status}"))),
            Ok(Err(source)) => Err(failed("cannot wait for relevo up", source)),
            Err(_) => Err(Failure::Promise(format!("relevo up did not end within {STOP_PATIENCE:?}"))),
        }
    }

    /// Its workers, once all of them serve; nothing if that takes too long.
    pub(super) async fn whole(&self, patience: Duration) -> Option<Vec<Worker>> {
        self.wait(patience, |status| {
            let serving = status.nodes.iter().filter(|node| serves(node)).count();
            let workers: Vec<_> = status.nodes.iter().filter_map(|node| worker(status, node)).collect();
            (serving == self.num_workers && workers.len() == serving).then_some(workers)
        })
        .await
    }

    /// Whether nothing is held for anybody by the time that `patience` is over.
    pub(super) async fn comes_to_rest(&self, patience: Duration) -> bool {
        let at_rest = |status: &ClusterStatus| {
            let serving = status.nodes.iter().filter(|node| serves(node)).count();
            (serving == self.num_workers && held(status) == 0).then_some(())
        };
        self.wait(patience, at_rest).await.is_some()
    }

    /// Blocks and leases that are held for somebody.
    pub(super) async fn leftovers(&self) -> u64 {
        self.status().await.map_or(u64::MAX, |status| held(&status))
    }

    /// Tokens of a replay that differed from those sent before; nothing if they cannot be counted.
    pub(super) async fn contradictions(&self) -> Option<u64> {
        self.counter("relevo_contradicted_tokens_total").await
    }

    /// Streams that went on elsewhere; nothing if they cannot be counted.
    pub(super) async fn replays(&self) -> Option<u64> {
        self.counter("relevo_replays_total").await
    }

    /// One of the gateway's that has no labels. A counter that nothing was ever added to is not there.
    async fn counter(&self, name: &str) -> Option<u64> {
        let metrics = self.client.get_text("/metrics").await.ok()?;
        Some(metric(&metrics, name).map_or(0, |value| value as u64))
    }

    /// The gateway's memory of its own, in KiB; 0 if it cannot be told.
    pub(super) async fn gateway_memory_kib(&self) -> u64 {
        self.gateway_pid().await.and_then(memory_kib).unwrap_or(0)
    }

    /// The gateway's process, which is the coordinator's, too.
    pub(super) async fn gateway_pid(&self) -> Option<u32> {
        let status = self.status().await?;
        status.nodes.iter().find(|node| node.devices.is_empty()).map(|node| node.pid)
    }

    async fn status(&self) -> Option<ClusterStatus> {
        self.client.get(STATUS_PATH).await.ok()
    }

    /// Waits until a worker's device is as it is to be, by the status.
    ///
    /// # Errors
    /// It is not in time.
    pub(super) async fn wait_for(
        &self,
        worker: &Worker,
        what: &str,
        holds: impl Fn(&DeviceStatus) -> bool,
    ) -> Result<(), Failure> {
        let is_so = |status: &ClusterStatus| {
            let node = status.nodes.iter().find(|node| node.name == worker.name)?;
            node.devices.iter().all(&holds).then_some(())
        };
        let late = || Failure::Promise(format!("{} {what}, and the status does not show it", worker.name));
        self.wait(SHOWN_WITHIN, is_so).await.ok_or_else(late)
    }

    async fn wait<T>(&self, patience: Duration, holds: impl Fn(&ClusterStatus) -> Option<T>) -> Option<T> {
        let began = clock::now();
        loop {
            if let Some(found) = self.status().await.as_ref().and_then(&holds) {
                return Some(found);
            }
            if clock::now().since(began) > patience {
                return None;
            }
            sleep(POLL).await;
        }
    }
}

fn serves(node: &NodeStatus) -> bool {
    node.state != "lost" && !node.devices.is_empty() && node.devices.iter().all(|device| device.standing == "serving")
}

/// Where a worker is, as others have it.
fn worker(status: &ClusterStatus, node: &NodeStatus) -> Option<Worker> {
    let mut links = status.nodes.iter().flat_map(|other| &other.links);
    let link = links.find(|link| link.peer == node.name)?;
    let port = link.address.rsplit_once(':')?.1.parse().ok()?;
    let mut roles: Vec<_> = node.devices.iter().flat_map(|device| device.roles.iter().cloned()).collect();
    roles.sort_unstable();
    roles.dedup();
    serves(node).then(|| Worker { name: node.name.clone(), pid: node.pid, port, roles })
}

fn held(status: &ClusterStatus) -> u64 {
    let devices = status.nodes.iter().flat_map(|node| &node.devices);
    devices.map(|device| device.kv_blocks.active + device.kv_blocks.leased + device.leases).sum()
}

/// What a metric without labels is at.
pub(super) fn metric(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn memory_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// The machine's fault.
pub(super) fn failed(doing: &str, source: io::Error) -> Failure {
    Failure::System { doing: doing.to_owned(), source }
}
