//! `relevo node`: one process of a cluster of many.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use relevo_actors::cluster::{Cluster, ClusterOptions, Network, Renewer};
use relevo_actors::device::DeviceRole;
use relevo_actors::traces::SpanIds;
use relevo_transport::identity::{LiveIdentity, Name};
use relevo_transport::{NodeEndpoint, Patience};
use relevo_wire::{NodeId, Role, Roles};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::epoch_file::EpochFile;
use super::facade::Source;
use super::identity_keeper;
use super::loading::{self, PlannedDevice};
use super::machine::Machine;
use super::scripts::Scripts;
use super::server::{self, Door};
use crate::cli::{Common, Failure};
use crate::config::{Config, Node};
use crate::config_command;
use crate::service_manager;
use crate::signals::StopSignals;
use crate::traces::{Exporter, Exporting};

/// How often a node that begins looks whether the cluster serves.
const READY_POLL: Duration = Duration::from_millis(20);

/// Arguments of `relevo node`.
#[derive(Clone, Debug, clap::Args)]
pub struct NodeArgs {
    /// This node's settings
    #[arg(long, value_name = "relevo.toml")]
    config: PathBuf,
    /// Allow the [testing] section, which breaks things on purpose
    #[arg(long)]
    allow_faults: bool,
    /// Stop when standard input ends, as it does when whoever started this process is gone
    #[arg(long, hide = true)]
    stop_with_input: bool,
}

/// Serves as a node until it is told to stop.
///
/// # Errors
/// The user's fault (configuration, identity, model, address) or the machine's (memory).
pub async fn run(args: &NodeArgs, common: &Common) -> Result<(), Failure> {
    let config = config_command::load(&args.config)?;
    let in_file = |source| Failure::Config { file: args.config.display().to_string(), source };
    config.check_carrier(true).map_err(in_file)?;
    config.check_faults(args.allow_faults).map_err(in_file)?;
    common.start_log(Some(&config.log))?;
    let stop = CancellationToken::new();
    let signals =
        StopSignals::listen().map_err(|source| Failure::System { doing: "cannot handle signals".into(), source })?;
    let served = serve(&config, args, common, stop.clone());
    tokio::select! {
        result = served => result,
        () = signals.obey(stop.clone()) => Ok(()),
        () = input_ends(args.stop_with_input) => {
            // Whoever started us is gone without a word: so are we.
            Ok(())
        }
    }
}

async fn input_ends(is_watched: bool) {
    if !is_watched {
        return std::future::pending().await;
    }
    let mut input = tokio::io::stdin();
    let mut byte = [0; 1];
    // Nobody writes there; an error is an end, too.
    while input.read(&mut byte).await.is_ok_and(|num_read| num_read > 0) {}
}

/// What a node is made of before it begins.
struct Parts {
    identity: LiveIdentity,
    name: Name,
    roles: Roles,
    endpoint: NodeEndpoint,
    epochs: EpochFile,
    renewer: Option<Renewer>,
}

async fn serve(config: &Config, args: &NodeArgs, common: &Common, stop: CancellationToken) -> Result<(), Failure> {
    let parts = Parts::gather(config, common)?;
    let door = match door_address(config, parts.roles) {
        Some(listen) => {
            let mut config = config.clone();
            config.server.listen = listen;
            Some(Door::open(&config, NodeId::of_name(parts.name.as_str()), stop.clone())?)
        }
        None => None,
    };
    let exporter = Exporter::start(&config.traces, parts.exporting(door.as_ref()))?;
    let source = source(config, common).await?;
    let devices = match parts.roles.contains(Role::Prefill) || parts.roles.contains(Role::Decode) {
        true => loading::plan_of_node(config, &source.1, &Machine::facts(), &parts.identity)?,
        false => Vec::new(),
    };
    let cluster = Arc::new(Cluster::start(parts.options(config, &source.1, &devices)?).await?);
    tracing::info!(name = %parts.name, roles = %parts.roles, config = %args.config.display(), "the node has begun");
    let keeps_identity = identity_keeper::keep(parts.identity.clone(), Arc::clone(&cluster));
    let informed = Arc::clone(&cluster);
    let keeps_informed = service_manager::keep_informed(&informed);
    let lives = live(config, door, source, Arc::clone(&cluster), stop);
    let lived = tokio::select! {
        result = lives => result,
        () = keeps_identity => Ok(()),
        () = keeps_informed => Ok(()),
    };
    if let Some(exporter) = exporter {
        exporter.stop().await;
    }
    lived
}

/// A gateway's API, or another node's metrics.
fn door_address(config: &Config, roles: Roles) -> Option<SocketAddr> {
    if roles.contains(Role::Gateway) { Some(config.server.listen) } else { config.node.metrics_listen }
}

async fn source(config: &Config, common: &Common) -> Result<(Vec<String>, Source), Failure> {
    match Scripts::load(config)? {
        Some(scripts) => Ok((Vec::new(), Source::Scripts(scripts))),
        None => {
            let (names, path) = super::find_or_fetch(&common.store()?, &config.model.name).await?;
            Ok((names, Source::open(&path)?))
        }
    }
}

impl Parts {
    fn gather(config: &Config, common: &Common) -> Result<Self, Failure> {
        let Node { roles, identity, listen, .. } = &config.node;
        let Some(folder) = identity.as_ref().filter(|_| !roles.is_empty()) else {
            return Err(Failure::Usage(
                "a node needs node.roles and node.identity in its configuration: `relevo config --example` shows them"
                    .into(),
            ));
        };
        let identity = LiveIdentity::load(folder)?;
        let (own, roles) = (identity.own(), roles.iter().copied().collect::<Roles>());
        if let Some(role) = roles.iter().find(|role| !own.roles.contains(*role)) {
            return Err(Failure::Usage(format!(
                "node.roles has \"{role}\", the certificate of {} allows {}: issue one with --role {role}",
                own.name, own.roles
            )));
        }
        let renewer =
            config.node.authority.as_deref().map(|folder| identity_keeper::renewer(folder, &own)).transpose()?;
        let state = match &config.node.state_dir {
            Some(folder) => folder.clone(),
            None => common.store()?.folder().join("nodes").join(own.name.as_str()),
        };
        let epochs = EpochFile::open(&state)?;
        let endpoint = NodeEndpoint::open(*listen, identity.clone(), Patience::default())
            .map_err(|source| Failure::Endpoint { address: *listen, source })?;
        Ok(Self { identity, name: own.name, roles, endpoint, epochs, renewer })
    }

    /// Who exports spans: its API is where requests come in, if it is a gateway's.
    fn exporting(&self, door: Option<&Door>) -> Exporting {
        let server = door.filter(|_| self.roles.contains(Role::Gateway)).map(Door::address);
        Exporting { node: self.name.to_string(), server, ids: self.span_ids() }
    }

    fn span_ids(&self) -> SpanIds {
        SpanIds::of_secret(&self.identity.present().cluster_secret())
    }

    fn options(&self, config: &Config, source: &Source, devices: &[PlannedDevice]) -> Result<ClusterOptions, Failure> {
        let mut specs: Vec<_> = devices.iter().map(PlannedDevice::spec).collect();
        let allowed = self.identity.own().roles;
        for spec in &mut specs {
            spec.roles.retain(|role| self.roles.contains(Role::from(*role)));
            spec.able = [DeviceRole::Prefill, DeviceRole::Decode]
                .into_iter()
                .filter(|role| allowed.contains(Role::from(*role)))
                .collect();
        }
        if let Some(spec) = specs.iter().find(|spec| spec.roles.is_empty()) {
            return Err(Failure::Usage(format!(
                "{} plays none of node.roles: give its `roles` one of them",
                spec.name
            )));
        }
        let begun = |source| Failure::System { doing: "cannot keep how often the node began".into(), source };
        let incarnation = self.epochs.next().map_err(begun)?;
        let mut options = server::cluster_options(config, specs);
        options.node = self.name.to_string();
        options.hint_secret = self.identity.present().cluster_secret();
        options.span_ids = self.span_ids();
        options.epochs = Some(self.epochs.epochs());
        options.network = Some(Network {
            endpoint: self.endpoint.clone(),
            listen: config.node.advertise.unwrap_or(config.node.listen),
            roles: self.roles,
            seeds: config.node.seeds.clone(),
            incarnation,
            model: loading::model_facts(config, source),
            carrier: server::remote_carrier(config.transport.carrier),
            name: self.name.clone(),
            renewer: self.renewer.clone(),
        });
        Ok(options)
    }
}

/// Runs until the node is to stop: a gateway opens its door once the cluster serves.
async fn live(
    config: &Config,
    door: Option<Door>,
    (names, source): (Vec<String>, Source),
    cluster: Arc<Cluster>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let Some(mut door) = door else {
        let failed = tokio::select! {
            () = stop.cancelled() => false,
            () = cluster.failed() => true,
        };
        cluster.shutdown(server::stop_deadline(&config.server)).await;
        return if failed { Err(Failure::ClusterFailed) } else { Ok(()) };
    };
    door.put_behind(&cluster);
    if config.node.roles.contains(&Role::Gateway) {
        let mut facade = source.facade(names)?;
        facade.names.extend(config.model.aliases.iter().cloned());
        let max_context = tokio::select! {
            max_context = wait_until_it_serves(&cluster, config.node.expected_devices as usize) => max_context,
            () = stop.cancelled() => 0,
            // The door is closed by it.
            () = cluster.failed() => 0,
        };
        let max_context =
            config.model.max_context_tokens.map_or(max_context, |tokens| max_context.min(tokens as usize));
        if max_context > 0 {
            door.serve(&cluster, facade, max_context);
        }
    }
    door.closed().await
}

/// The longest context that every device takes, once a prefill and a decode device serve and as many as are expected have been seen.
async fn wait_until_it_serves(cluster: &Cluster, num_expected: usize) -> usize {
    let mut ticks = tokio::time::interval(READY_POLL);
    loop {
        ticks.tick().await;
        let serving = cluster.serving();
        if cluster.is_ready() && serving.len() >= num_expected {
            return serving.iter().map(|facts| facts.max_context).min().unwrap_or(0);
        }
    }
}
