//! `relevo bench`: how fast the bare engine is, how fast a server, what a link carries, and what a cluster bears.

mod chaos;
mod engine;
mod link;
mod percentiles;
mod random;
mod serve;

use crate::cli::{Common, Failure};

/// The commands under `relevo bench`.
#[derive(Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// Measure the bare engine: prefill and decode without a server
    Engine(engine::EngineArgs),
    /// Load an OpenAI-compatible server and measure its latencies
    Serve(serve::ServeArgs),
    /// Measure what the KV path to a node of a cluster carries, beside a bare copy on the same link
    Link(link::LinkArgs),
    /// Kill, stop, cut off, drain and flip workers of a cluster under load, renew their certificates, and hold it to its promises
    Chaos(chaos::ChaosArgs),
}

/// Runs one of them.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: BenchCommand, common: &Common) -> Result<(), Failure> {
    match command {
        BenchCommand::Engine(args) => engine::run(args, common).await,
        BenchCommand::Serve(args) => serve::run(args).await,
        BenchCommand::Link(args) => link::run(&args).await,
        BenchCommand::Chaos(args) => chaos::run(&args).await,
    }
}
