//! The command line: the tree of commands, what is common to all of them, and how they end.

mod byte_size;
mod failure;
mod nearest;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use serde::de::DeserializeOwned;
use serde::de::value::{Error as ValueError, StrDeserializer};

pub use byte_size::{ByteSize, ByteSizeError};
pub use failure::{Failure, one_line};
pub use nearest::nearest;

use crate::config::LogFormat;
use crate::model_store::ModelStore;
use crate::{
    bench, ca_command, chat, completions, config_command, devices_command, environment, logging, model_command,
    order_command, status_command, terminal, trace_command, up,
};

/// Serves large language models on one's own machines.
#[derive(Debug, Parser)]
#[command(name = "relevo", version, about, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command has.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// Where models lie [default: $XDG_DATA_HOME/relevo, else ~/.local/share/relevo]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    data_dir: Option<PathBuf>,
    /// What is logged on stderr, by module, such as info,relevo_actors=debug [default: warn]
    #[arg(long = "log", global = true, value_name = "FILTER", value_parser = log_filter, help_heading = "Global options")]
    log_filter: Option<String>,
    /// Log one JSON object a line
    #[arg(long, global = true, help_heading = "Global options")]
    log_json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model: gateway, router, coordinator and devices in one process, until Ctrl-C
    Up(up::UpArgs),
    /// Serve as one process of a cluster: gateway, coordinator, prefill, decode, as its configuration says
    Node(up::NodeArgs),
    /// Fetch, list and inspect models
    #[command(subcommand)]
    Model(model_command::ModelCommand),
    /// Talk to a model: one question, or a conversation without text
    Chat(chat::ChatArgs),
    /// Show what this machine could compute on: CPU features, CUDA and HIP devices
    Devices(devices_command::DevicesArgs),
    /// Show what a running server does: supervision tree, devices, queues, KV blocks
    Status(status_command::StatusArgs),
    /// Show where the time of a request went: its hops over all nodes
    Trace(trace_command::TraceArgs),
    /// Let a node finish what it has, and send nothing new there
    Drain(order_command::DrainArgs),
    /// Let a drained node take work again
    Undrain(order_command::DrainArgs),
    /// Change what a node's devices do, while they serve
    Role(order_command::RoleArgs),
    /// Make the cluster's certificate authority, issue, revoke and list nodes' certificates
    #[command(subcommand)]
    Ca(ca_command::CaCommand),
    /// Print an example of relevo.toml, or check one
    Config(config_command::ConfigArgs),
    /// Measure the engine, or a server
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::OutputClosed(_)) {
                terminal::say(format!("relevo: {}", failure.one_line()));
            }
            failure.exit_code()
        }
    }
}

/// The tree itself, for completions and for the test that keeps the README true.
pub fn command_tree() -> clap::Command {
    Cli::command()
}

fn run(cli: Cli) -> Result<(), Failure> {
    let common = cli.common;
    match cli.command {
        Command::Ca(command) => return ca_command::run(command, &common),
        Command::Completions(args) => return completions::run(&args),
        Command::Config(args) => return config_command::run(&args),
        Command::Devices(args) => return devices_command::run(&args),
        _ => {}
    }
    let runtime = runtime()?;
    // These start the log themselves, by their configuration.
    match &cli.command {
        Command::Up(args) => return end(runtime, |runtime| runtime.block_on(up::run(args, &common))),
        Command::Node(args) => return end(runtime, |runtime| runtime.block_on(up::run_node(args, &common))),
        _ => {}
    }
    common.start_log(None)?;
    end(runtime, |runtime| match cli.command {
        Command::Model(command) => runtime.block_on(interruptible(model_command::run(command, &common.store()?))),
        Command::Chat(args) => runtime.block_on(chat::run(args, &common)),
        Command::Status(args) => runtime.block_on(interruptible(status_command::run(&args))),
        Command::Trace(args) => runtime.block_on(interruptible(trace_command::run(&args))),
        Command::Drain(args) => runtime.block_on(interruptible(order_command::drain(&args, true))),
        Command::Undrain(args) => runtime.block_on(interruptible(order_command::drain(&args, false))),
        Command::Role(args) => runtime.block_on(interruptible(order_command::role(&args))),
        Command::Bench(command) => runtime.block_on(interruptible(bench::run(command, &common))),
        Command::Ca(_)
        | Command::Completions(_)
        | Command::Config(_)
        | Command::Devices(_)
        | Command::Node(_)
        | Command::Up(_) => Ok(()),
    })
}

/// Runs a command and lets go of the runtime, without waiting for a thread that still reads stdin.
fn end(
    runtime: tokio::runtime::Runtime,
    command: impl FnOnce(&tokio::runtime::Runtime) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let result = command(&runtime);
    runtime.shutdown_background();
    result
}

/// Cores for each thread of the runtime.
///
/// The cores belong to the engines: carrying tokens to sockets is little work, and fewer threads do it with fewer wake-ups of each other. On two cores
/// one thread instead of two took 107 µs of processor time for a token instead of 153, and p90 of the time between tokens fell from 4.5 ms to 2.9.
const CORES_PER_WORKER: usize = 4;

/// The runtime of a command.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let num_cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads((num_cores / CORES_PER_WORKER).max(1))
        .enable_all()
        .build()
        .map_err(|source| Failure::System { doing: "cannot start the runtime".to_owned(), source })
}

/// Runs a command until it is done or Ctrl-C comes; what it has begun is dropped, which cleans up after it.
async fn interruptible(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        result = command => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    }
}

impl Common {
    /// The data folder.
    ///
    /// # Errors
    /// The user's fault: no flag, and no home to take a default from.
    pub fn store(&self) -> Result<ModelStore, Failure> {
        let folder = self.data_dir.clone().or_else(environment::default_data_dir);
        folder.map(ModelStore::new).ok_or_else(|| {
            Failure::Usage("neither HOME nor XDG_DATA_HOME is set: say where data lies with --data-dir DIR".to_owned())
        })
    }

    /// These flags, for another process of this program.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        if let Some(folder) = &self.data_dir {
            arguments.extend(["--data-dir".into(), folder.into()]);
        }
        if let Some(filter) = &self.log_filter {
            arguments.extend(["--log".into(), filter.into()]);
        }
        arguments.extend(self.log_json.then(|| "--log-json".into()));
        arguments
    }

    /// Starts the log by the flags, else by the configuration.
    ///
    /// # Errors
    /// The user's fault: a filter that is none.
    pub fn start_log(&self, config: Option<&crate::config::Log>) -> Result<(), Failure> {
        let filter = self.log_filter.as_deref().or(config.map(|log| log.filter.as_str())).unwrap_or("warn");
        let format = if self.log_json { LogFormat::Json } else { config.map_or(LogFormat::Text, |log| log.format) };
        logging::start(filter, format).map_err(|reason| Failure::Usage(format!("--log {filter}: expected {reason}")))
    }
}

/// A variant by its name in the configuration, with serde's own list of what there is.
///
/// # Errors
/// The user's fault: no such variant.
pub fn variant<T: DeserializeOwned>(name: &str) -> Result<T, ValueError> {
    T::deserialize(StrDeserializer::new(name))
}

fn log_filter(text: &str) -> Result<String, String> {
    logging::check_filter(text).map(|()| text.to_owned()).map_err(|reason| format!("expected {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_consistent() {
        command_tree().debug_assert();
    }
}
