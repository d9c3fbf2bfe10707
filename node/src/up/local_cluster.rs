//! `relevo up --local-cluster 2p2d`: a certificate authority, a gateway with the coordinator, and a process for each worker, all on loopback. Whatever of
//! them dies is started again.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use relevo_transport::identity::{Authority, Host, Moment, Name, NodeRequest};
use relevo_wire::Role;
use tokio_util::sync::CancellationToken;

use super::free_ports::FreePorts;
use super::spawned::{Spawned, Worker};
use super::{find_or_fetch, machine::Machine, scripts::Scripts};
use crate::cli::{Common, Failure};
use crate::config::{Config, DeviceKind};
use crate::http_client::ApiClient;
use crate::model_store::ModelStore;
use crate::service_manager;
use crate::signals::StopSignals;
use crate::terminal::{self, Style};
use crate::wall_clock;

/// Most processes of a local cluster.
const MAX_WORKERS: usize = 64;

/// KV memory of all workers together where nothing is said, in MiB, and the least of one.
const KV_MEMORY_MIB: (u32, u32) = (2048, 128);

/// How often the gateway is asked whether it serves.
const READY_POLL: Duration = Duration::from_millis(50);

/// The gateway's name; it is the coordinator, too.
const GATEWAY: &str = "gateway";

/// Which workers a local cluster has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape(Vec<Group>);

/// So many workers of the same roles.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    num_workers: usize,
    roles: Vec<Role>,
}

/// A text that is no shape. The user's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no shape of a cluster ({reason}), expected counts with roles such as 2p2d (2 prefill, 2 decode) or 2pd (2 that do both)"
)]
pub(crate) struct BadShape {
    text: String,
    reason: String,
}

impl FromStr for Shape {
    type Err = BadShape;

    fn from_str(text: &str) -> Result<Self, BadShape> {
        let refused = |reason: &str| BadShape { text: text.to_owned(), reason: reason.to_owned() };
        let mut groups = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (count, after) = rest.split_at(digits);
            let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
            let (roles, after) = after.split_at(letters);
            let num_workers: usize = count.parse().map_err(|_| refused("a count is missing"))?;
            if num_workers == 0 || roles.is_empty() {
                return Err(refused("a count has no roles, or roles have no count"));
            }
            let roles = roles.chars().map(role).collect::<Option<Vec<_>>>();
            let mut roles = roles.ok_or_else(|| refused("p is prefill, d is decode, there are no others yet"))?;
            roles.sort_unstable();
            roles.dedup();
            groups.push(Group { num_workers, roles });
            rest = after;
        }
        let shape = Self(groups);
        if shape.num_workers() > MAX_WORKERS {
            return Err(refused("it has more than 64 workers"));
        }
        for role in [Role::Prefill, Role::Decode] {
            if !shape.0.iter().any(|group| group.roles.contains(&role)) {
                return Err(refused(&format!("nobody plays {role}")));
            }
        }
        Ok(shape)
    }
}

fn role(letter: char) -> Option<Role> {
    match letter {
        'p' => Some(Role::Prefill),
        'd' => Some(Role::Decode),
        _ => None,
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Group { num_workers, roles } in &self.0 {
            write!(f, "{num_workers}")?;
            roles.iter().try_for_each(|role| f.write_str(role.name().get(..1).unwrap_or_default()))?;
        }
        Ok(())
    }
}

impl Shape {
    /// How many there are.
    pub(crate) fn num_workers(&self) -> usize {
        self.0.iter().map(|group| group.num_workers).sum()
    }

    /// Each worker's name and roles: `prefill-0`, `decode-0`, `worker-0`.
    fn workers(&self) -> Vec<(String, Vec<Role>)> {
        let mut workers: Vec<(String, Vec<Role>)> = Vec::new();
        for Group { num_workers, roles } in &self.0 {
            let kind = match roles[..] {
                [one] => one.name(),
                _ => "worker",
            };
            for _ in 0..*num_workers {
                let index = workers.iter().filter(|(name, _)| name.starts_with(kind)).count();
                workers.push((format!("{kind}-{index}"), roles.clone()));
            }
        }
        workers
    }
}

/// What a local cluster is started with.
pub(super) struct LocalCluster<'a> {
    pub(super) shape: &'a Shape,
    pub(super) config: &'a Config,
    pub(super) allow_faults: bool,
    pub(super) store: &'a ModelStore,
    pub(super) common: &'a Common,
}

/// Serves until it is told to stop.
///
/// # Errors
/// The user's fault (flags, model, address) or the machine's.
pub(super) async fn run(cluster: &LocalCluster<'_>) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    let signals =
        StopSignals::listen().map_err(|source| Failure::System { doing: "cannot handle signals".into(), source })?;
    let folder = Folder::make(cluster.store.folder())?;
    let served = serve(cluster, &folder.0, stop.clone());
    tokio::select! {
        result = served => result,
        () = signals.obey(stop.clone()) => Ok(()),
    }
}

/// Where a local cluster keeps its certificates and settings; removed with it.
struct Folder(PathBuf);

impl Folder {
    fn make(data: &Path) -> Result<Self, Failure> {
        let path = data.join("local-clusters").join(std::process::id().to_string());
        // Of a process of this number that was killed.
        let _ = fs::remove_dir_all(&path);
        let failed = |source| Failure::System { doing: format!("cannot make {}", path.display()), source };
        fs::create_dir_all(&path).map_err(failed)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn serve(cluster: &LocalCluster<'_>, folder: &Path, stop: CancellationToken) -> Result<(), Failure> {
    let LocalCluster { shape, config, allow_faults, store, common } = *cluster;
    // Once, before many processes look for it.
    let title = match Scripts::load(config)? {
        Some(_) => "a script".to_owned(),
        None => find_or_fetch(store, &config.model.name).await?.0.pop().unwrap_or_default(),
    };
    let plan = Plan::new(shape, config, folder)?;
    plan.write()?;
    let api = format!("http://{}", plan.api);
    let mut spawned = Spawned::new(common.clone(), allow_faults, stop.clone());
    for worker in plan.workers() {
        spawned.add(worker);
    }
    let (workers, pids) = (spawned.workers().to_vec(), spawned.pids());
    let readiness = async {
        wait_until_ready(&api, config).await?;
        let title = title_of(&title, shape);
        terminal::print(screen(&api, &title, &workers, &pids.now(), Style::of_stdout()))?;
        service_manager::keep_alive().await;
        Ok::<(), Failure>(())
    };
    tokio::select! {
        result = readiness => result?,
        result = spawned.watch() => result?,
        () = stop.cancelled() => {}
    }
    spawned.stop(Duration::from_millis(u64::from(config.server.drain_timeout_ms))).await;
    Ok(())
}

/// What each process is started with.
struct Plan {
    folder: PathBuf,
    api: SocketAddr,
    nodes: Vec<(String, Config)>,
}

impl Plan {
    fn new(shape: &Shape, base: &Config, folder: &Path) -> Result<Self, Failure> {
        let workers = shape.workers();
        let mut ports = FreePorts::new();
        let api = match base.server.listen {
            address if address.port() == 0 => ports.tcp()?,
            address => address,
        };
        let coordinator = ports.udp()?;
        let mut plan = Self { folder: folder.to_owned(), api, nodes: Vec::new() };
        let mut gateway = plan.node(base, GATEWAY, &[Role::Gateway, Role::Coordinator], coordinator, coordinator);
        gateway.server.listen = api;
        gateway.node.authority = Some(folder.join("ca"));
        gateway.node.expected_devices = u32::try_from(workers.len()).unwrap_or(u32::MAX);
        plan.nodes.push((GATEWAY.to_owned(), gateway));
        let machine = Machine::facts();
        for (name, roles) in &workers {
            let mut worker = plan.node(base, name, roles, ports.udp()?, coordinator);
            worker.node.metrics_listen = Some(ports.tcp()?);
            share(&mut worker, workers.len(), machine);
            plan.nodes.push((name.clone(), worker));
        }
        Ok(plan)
    }

    fn node(&self, base: &Config, name: &str, roles: &[Role], listen: SocketAddr, seed: SocketAddr) -> Config {
        let mut config = base.clone();
        config.node.roles = roles.to_vec();
        config.node.listen = listen;
        config.node.seeds = vec![seed];
        config.node.identity = Some(self.folder.join(name));
        config.node.state_dir = Some(self.folder.join("state").join(name));
        config.node.shares_machine = true;
        config
    }

    /// The authority, each node's folder and settings. A worker's certificate allows both roles, so that it can take the other one.
    fn write(&self) -> Result<(), Failure> {
        let now = Moment(wall_clock::unix_seconds());
        let name = |text: &str| text.parse::<Name>().map_err(|error| Failure::Usage(error.to_string()));
        let authority = Authority::create(&self.folder.join("ca"), &name("local")?, now)?;
        for (node, config) in &self.nodes {
            let roles = match node.as_str() {
                GATEWAY => [Role::Gateway, Role::Coordinator],
                _ => [Role::Prefill, Role::Decode],
            };
            let hosts = vec![Host::Address(Ipv4Addr::LOCALHOST.into())];
            let request = NodeRequest { name: name(node)?, roles: roles.into_iter().collect(), hosts };
            authority.issue(&request, &self.folder.join(node), now)?;
            let path = self.settings(node);
            let text = toml::to_string(config).map_err(|error| Failure::Usage(error.to_string()))?;
            let failed = |source| Failure::System { doing: format!("cannot write {}", path.display()), source };
            fs::write(&path, text).map_err(failed)?;
        }
        Ok(())
    }

    fn settings(&self, node: &str) -> PathBuf {
        self.folder.join(format!("{node}.toml"))
    }

    fn workers(&self) -> Vec<Worker> {
        let worker = |(name, config): &(String, Config)| Worker {
            name: name.clone(),
            roles: config.node.roles.clone(),
            settings: self.settings(name),
            metrics: config.node.metrics_listen,
        };
        self.nodes.iter().map(worker).collect()
    }
}

/// Shares the cores and the memory of the machine among the workers, as far as nothing else is said.
fn share(config: &mut Config, num_workers: usize, machine: Machine) {
    let threads = u32::try_from(machine.threads_for(num_workers)).unwrap_or(1);
    let kv_memory_mib = (KV_MEMORY_MIB.0 / u32::try_from(num_workers).unwrap_or(u32::MAX)).max(KV_MEMORY_MIB.1);
    for device in &mut config.devices {
        match &mut device.kind {
            DeviceKind::Cpu => device.threads = device.threads.or(Some(threads)),
            // The processes need not run in this folder.
            DeviceKind::Scripted(Some(path)) => *path = fs::canonicalize(&*path).unwrap_or_else(|_| path.clone()),
            DeviceKind::Scripted(None) => {}
        }
        if device.kind == DeviceKind::Cpu {
            device.kv_memory_mib = device.kv_memory_mib.or(Some(kv_memory_mib));
        }
    }
}

async fn wait_until_ready(api: &str, config: &Config) -> Result<(), Failure> {
    let client = ApiClient::new(api, config.server.api_key_file.as_deref())?;
    let mut ticks = tokio::time::interval(READY_POLL);
    loop {
        ticks.tick().await;
        if client.get::<serde_json::Value>("/ready").await.is_ok() {
            return Ok(());
        }
    }
}

fn title_of(title: &str, shape: &Shape) -> String {
    format!("Relevo {} serves {title} as a local cluster, {shape}", env!("CARGO_PKG_VERSION"))
}

fn screen(api: &str, title: &str, workers: &[Worker], pids: &BTreeMap<String, u32>, style: Style) -> String {
    let mut lines = vec![style.strong(title), String::new()];
    let mut row = |name: &str, text: String| lines.push(format!("  {} {text}", style.faint(format!("{name:10}"))));
    for worker in workers {
        let roles: Vec<&str> = worker.roles.iter().map(|role| role.name()).collect();
        let pid = pids.get(&worker.name).copied().unwrap_or_default();
        let metrics = worker.metrics.map(|address| format!(", http://{address}/metrics")).unwrap_or_default();
        row(&worker.name, format!("pid {pid}, {}{metrics}", roles.join(" + ")));
    }
    row("API", format!("{api}/v1 (OpenAI), {api}/openapi.json, {api}/metrics"));
    let last = workers.last().and_then(|worker| pids.get(&worker.name)).copied().unwrap_or_default();
    lines.push(String::new());
    lines.push("Let something stream, kill a worker under it, and see it go on:".to_owned());
    lines.push(String::new());
    lines.push(style.strong(format!("  relevo chat --url {api} \"Tell me a long story.\"")));
    lines.push(style.strong(format!("  kill -9 {last}")));
    lines.push(String::new());
    lines.push(format!("`relevo status --url {api}` shows what goes on. Ctrl-C stops."));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let shape: Shape = text.parse().unwrap();
        assert_eq!(shape.to_string(), text);
        shape.workers().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_shape_names_its_workers() {
        assert_eq!(names("2p2d"), ["prefill-0", "prefill-1", "decode-0", "decode-1"]);
        assert_eq!(names("2pd"), ["worker-0", "worker-1"]);
        assert_eq!(names("1p1pd"), ["prefill-0", "worker-0"]);
    }

    #[test]
    fn a_shape_that_cannot_serve_is_refused_with_the_reason() {
        let cases = [
            ("", "nobody plays prefill"),
            ("2p", "nobody plays decode"),
            ("p2d", "a count is missing"),
            ("2", "a count has no roles"),
            ("0p1d", "a count has no roles"),
            ("1p1d2x", "there are no others yet"),
            ("40p40d", "more than 64"),
        ];
        for (text, reason) in cases {
            let refusal = text.parse::<Shape>().unwrap_err().to_string();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }
}
