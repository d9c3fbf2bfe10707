//! `relevo up`: gateway, router, coordinator and devices in one process, until Ctrl-C.

mod banner;
mod context;
mod epoch_file;
mod facade;
mod free_ports;
mod identity_keeper;
mod loading;
mod local_cluster;
mod machine;
mod node;
mod scripts;
mod server;
mod settings;
mod spawned;

use std::path::PathBuf;

use relevo_wire::NodeId;
use tokio_util::sync::CancellationToken;

use banner::Banner;
use facade::Source;
use local_cluster::LocalCluster;
pub(crate) use local_cluster::Shape;
pub(crate) use machine::Machine;
pub use node::{NodeArgs, run as run_node};
pub(crate) use scripts::Scripts;
use server::Door;
pub use settings::UpArgs;

use crate::cli::{Common, Failure};
use crate::config::Config;
use crate::model_command::pull_with_progress;
use crate::model_store::{self, ModelStore, Resolved, Source as PullSource};
use crate::signals::StopSignals;
use crate::terminal::{self, Style};
use crate::traces::{self, Exporter, Exporting};

/// Serves until it is told to stop.
///
/// # Errors
/// The user's fault (flags, configuration, model, address) or the machine's (memory).
pub async fn run(args: &UpArgs, common: &Common) -> Result<(), Failure> {
    let config = args.settings()?;
    common.start_log(Some(&config.log))?;
    let store = common.store()?;
    if let Some(shape) = &args.local_cluster {
        let (config, store) = (&config, &store);
        let cluster = LocalCluster { shape, config, allow_faults: args.allow_faults, store, common };
        return local_cluster::run(&cluster).await;
    }
    let stop = CancellationToken::new();
    let signals =
        StopSignals::listen().map_err(|source| Failure::System { doing: "cannot handle signals".into(), source })?;
    tokio::select! {
        result = serve(&config, &store, stop.clone()) => result,
        () = signals.obey(stop) => Ok(()),
    }
}

/// A server of one's own, for `relevo chat`: on a free port of the loopback, without keys.
pub struct LocalServer {
    door: Door,
    stop: CancellationToken,
}

impl LocalServer {
    /// Starts one with this model, else the default, fetched first if it is not there.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn start(model: Option<&str>, store: &ModelStore) -> Result<Self, Failure> {
        let mut config = Config::default();
        config.server.listen.set_port(0);
        // Whoever asked has the answer by the time the server stops.
        config.server.drain_timeout_ms = 0;
        if let Some(model) = model {
            model.clone_into(&mut config.model.name);
        }
        let stop = CancellationToken::new();
        let mut door = Door::open(&config, NodeId::ALONE, stop.clone())?;
        furnish(&mut door, &config, store).await?;
        Ok(Self { door, stop })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.door.address())
    }

    /// Stops it.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn stop(self) -> Result<(), Failure> {
        self.stop.cancel();
        self.door.closed().await
    }
}

async fn serve(config: &Config, store: &ModelStore, stop: CancellationToken) -> Result<(), Failure> {
    let mut door = Door::open(config, NodeId::ALONE, stop.clone())?;
    let exporting =
        Exporting { node: "relevo".to_owned(), server: Some(door.address()), ids: traces::ids_alone().clone() };
    let exporter = Exporter::start(&config.traces, exporting)?;
    let furnished = tokio::select! {
        furnished = furnish(&mut door, config, store) => Some(furnished?),
        () = stop.cancelled() => None,
    };
    if let Some(screen) = furnished {
        terminal::print(screen)?;
    }
    let closed = door.closed().await;
    if let Some(exporter) = exporter {
        exporter.stop().await;
    }
    closed
}

/// Finds or fetches the model (or reads the scripts), loads it, starts the cluster; what it returns is to be shown.
async fn furnish(door: &mut Door, config: &Config, store: &ModelStore) -> Result<String, Failure> {
    let (names, source) = match Scripts::load(config)? {
        Some(scripts) => (Vec::new(), Source::Scripts(scripts)),
        None => {
            let (names, path) = find_or_fetch(store, &config.model.name).await?;
            (names, Source::open(&path)?)
        }
    };
    let mut facade = source.facade(names)?;
    let title = facade.names.last().cloned().unwrap_or_default();
    facade.names.extend(config.model.aliases.iter().cloned());
    let (names, kind, model_context) = (facade.names.clone(), facade.kind.clone(), facade.max_context);
    let has_chat = facade.text.chat_template.is_some();
    let devices = loading::plan(config, &source, &Machine::facts())?;
    let cluster = door.furnish(config, facade, &devices).await?;
    let banner = Banner {
        address: door.address(),
        needs_key: config.server.api_key_file.is_some(),
        title: &title,
        names: &names,
        kind: &kind,
        model_context,
        has_chat,
        devices: &devices,
        status: &cluster.status(),
    };
    Ok(banner.text(Style::of_stdout()))
}

async fn find_or_fetch(store: &ModelStore, name: &str) -> Result<(Vec<String>, PathBuf), Failure> {
    let model = match store.resolve(name)? {
        Resolved::Found { names, path } => return Ok((names, path)),
        Resolved::Missing(model) => model,
    };
    terminal::say(format!("{name} is not in {} yet, fetching it once", store.folder().display()));
    pull_with_progress(store, &PullSource::Catalogue(model)).await?;
    match store.resolve(name)? {
        Resolved::Found { names, path } => Ok((names, path)),
        Resolved::Missing(model) => {
            Err(model_store::StoreError::NotPulled { name: model.name, folder: store.folder().to_owned() }.into())
        }
    }
}
