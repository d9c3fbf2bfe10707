//! A server in this process: first the door (so that `/ready` can say 503), then the cluster behind it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use relevo_actors::clock;
use relevo_actors::cluster::{Carrier, Cluster, ClusterOptions, DeviceSpec, Limits as ClusterLimits, RemoteCarrier};
use relevo_wire::NodeId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::facade::Facade;
use super::loading::PlannedDevice;
use crate::cli::Failure;
use crate::config::{CarrierChoice, Config, Server as ServerConfig};
use crate::http::{self, ApiKeys, Backend, HttpOptions, Limits, ServeError, ServedModel, Service};
use crate::{metrics_recorder, service_manager, traces, wall_clock};

/// What stopping may take beside the time in which streams may end.
const STOP_TIME: Duration = Duration::from_millis(1800);

/// A listener that answers, with or without a cluster behind it.
pub(super) struct Door {
    address: SocketAddr,
    service: Arc<Service>,
    stop: CancellationToken,
    serving: JoinSet<Result<(), ServeError>>,
    upkeep: JoinSet<()>,
    cluster: Option<Arc<Cluster>>,
    stop_deadline: Duration,
}

impl Door {
    /// Listens, for the gateway of this node. `stop` ends it, see [`Door::closed`].
    pub(super) fn open(config: &Config, gateway: NodeId, stop: CancellationToken) -> Result<Self, Failure> {
        let server = &config.server;
        let api_keys = server.api_key_file.as_deref().map(|path| {
            let refused = |source| Failure::ApiKeys { path: path.to_owned(), source };
            ApiKeys::load(path).map_err(refused)
        });
        let api_keys = api_keys.transpose()?;
        http::check_listen_address(server.listen, api_keys.is_some())?;
        let listener = http::bind(server.listen)?;
        let address =
            listener.local_addr().map_err(|source| Failure::System { doing: "cannot listen".into(), source })?;
        let recorder = metrics_recorder::install().map_err(Failure::Metrics)?;
        let options =
            HttpOptions { api_keys, allowed_hosts: server.allowed_hosts.clone(), limits: limits(server), gateway };
        let render = recorder.clone();
        let service = Arc::new(Service::new(options, move || render.render()));
        let mut serving = JoinSet::new();
        serving.spawn(http::serve(listener, Arc::clone(&service), stop.clone()));
        let mut upkeep = JoinSet::new();
        upkeep.spawn(metrics_recorder::upkeep(recorder));
        Ok(Self { address, service, stop, serving, upkeep, cluster: None, stop_deadline: stop_deadline(server) })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts a cluster with these devices behind the door; when it returns, `/ready` says 200.
    pub(super) async fn furnish(
        &mut self,
        config: &Config,
        facade: Facade,
        devices: &[PlannedDevice],
    ) -> Result<Arc<Cluster>, Failure> {
        let options = cluster_options(config, devices.iter().map(PlannedDevice::spec).collect());
        let cluster = Arc::new(Cluster::start(options).await?);
        self.put_behind(&cluster);
        self.serve(&cluster, facade, devices.first().map_or(0, |device| device.max_context));
        let served = Arc::clone(&cluster);
        self.upkeep.spawn(async move { service_manager::keep_informed(&served).await });
        Ok(cluster)
    }

    /// From here on the door ends when the cluster does.
    pub(super) fn put_behind(&mut self, cluster: &Arc<Cluster>) {
        self.cluster = Some(Arc::clone(cluster));
    }

    /// Lets clients in: `/ready` says 200 from here on.
    pub(super) fn serve(&self, cluster: &Arc<Cluster>, facade: Facade, max_context: usize) {
        let Facade { names, vocab_size, end_ids, start_id, text, .. } = facade;
        let created = wall_clock::unix_seconds();
        let model = ServedModel { names, created, max_context, vocab_size, end_ids, start_id, text };
        let (asked, traced, ordered) = (Arc::clone(cluster), Arc::clone(cluster), Arc::clone(cluster));
        let measured = Arc::clone(cluster);
        self.service.open(Backend {
            gateway: cluster.gateway(),
            model,
            status: Box::new(move || {
                let cluster = Arc::clone(&asked);
                Box::pin(async move { cluster.status_of_all().await })
            }),
            spans: Arc::clone(cluster.spans()),
            trace: Box::new(move |name| {
                let cluster = Arc::clone(&traced);
                Box::pin(async move { cluster.trace(&name).await })
            }),
            order: Box::new(move |order| {
                let cluster = Arc::clone(&ordered);
                Box::pin(async move { cluster.order(order).await })
            }),
            measure_link: Box::new(move |to, from, wish| {
                let cluster = Arc::clone(&measured);
                Box::pin(async move { cluster.measure_link(&to, from.as_deref(), wish).await })
            }),
        });
    }

    /// Waits for the wish to stop, then for open answers (they get `server.drain_timeout_ms`, then an error event) and for the cluster.
    pub(super) async fn closed(mut self) -> Result<(), Failure> {
        let stop = self.stop.clone();
        let failed = async {
            match &self.cluster {
                Some(cluster) => cluster.failed().await,
                None => std::future::pending().await,
            }
        };
        let cluster_failed = tokio::select! {
            () = stop.cancelled() => false,
            () = failed => true,
        };
        let began = clock::now();
        stop.cancel();
        let served = self.serving.join_next().await;
        if let Some(cluster) = self.cluster.take() {
            cluster.shutdown(self.stop_deadline.saturating_sub(clock::now().since(began))).await;
        }
        self.upkeep.shutdown().await;
        if cluster_failed {
            return Err(Failure::ClusterFailed);
        }
        match served {
            Some(Ok(result)) => Ok(result?),
            Some(Err(error)) => {
                Err(Failure::System { doing: "the listener failed".into(), source: std::io::Error::other(error) })
            }
            None => Ok(()),
        }
    }
}

/// From the wish to stop to the end of the process.
pub(super) fn stop_deadline(server: &ServerConfig) -> Duration {
    Duration::from_millis(u64::from(server.drain_timeout_ms)) + STOP_TIME
}

fn limits(server: &ServerConfig) -> Limits {
    let milliseconds = |value: u32| Duration::from_millis(u64::from(value));
    Limits {
        max_connections: server.max_connections as usize,
        max_body_bytes: (server.max_body_kib as usize) << 10,
        body_budget_bytes: (server.body_budget_kib as usize) << 10,
        max_sequences: server.max_sequences as usize,
        header_timeout: milliseconds(server.header_timeout_ms),
        body_timeout: milliseconds(server.body_timeout_ms),
        write_timeout: milliseconds(server.write_timeout_ms),
        request_timeout: milliseconds(server.request_timeout_ms),
        drain_timeout: milliseconds(server.drain_timeout_ms),
        ..Limits::default()
    }
}

/// Between devices of this process. Who insists on memory that processes share wants no copy where there is one process.
fn carrier(choice: CarrierChoice) -> Carrier {
    match choice {
        CarrierChoice::Quic => Carrier::Quic,
        CarrierChoice::Auto | CarrierChoice::InProcess | CarrierChoice::Shm => Carrier::InProcess,
    }
}

/// From this process to others.
pub(super) fn remote_carrier(choice: CarrierChoice) -> RemoteCarrier {
    match choice {
        CarrierChoice::Quic => RemoteCarrier::Quic,
        CarrierChoice::Shm => RemoteCarrier::Shm,
        CarrierChoice::Auto | CarrierChoice::InProcess => RemoteCarrier::Auto,
    }
}

/// A cluster as configured, with these devices.
pub(super) fn cluster_options(config: &Config, devices: Vec<DeviceSpec>) -> ClusterOptions {
    let mut options = ClusterOptions::new(devices);
    options.disaggregate = config.router.disaggregate;
    options.carrier = carrier(config.transport.carrier);
    options.limits = cluster_limits(config);
    options.spans = Arc::clone(traces::recent());
    options.span_ids = traces::ids_alone().clone();
    options.faults = config.testing.any().then(|| config.testing.faults.clone());
    options
}

fn cluster_limits(config: &Config) -> ClusterLimits {
    ClusterLimits {
        max_waiting: config.router.max_waiting_requests as usize,
        max_running: config.router.max_running_requests as usize,
        local_prefill_below_tokens: config.router.local_prefill_below_tokens as usize,
        slow_factor: config.router.slow_factor,
        lease_term: Duration::from_millis(u64::from(config.router.lease_ms)),
        hang_after: Duration::from_millis(u64::from(config.router.hang_after_ms)),
        ..ClusterLimits::default()
    }
}
