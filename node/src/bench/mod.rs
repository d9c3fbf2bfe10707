//! `relevo bench`: how fast the bare engine is, and how fast a server.

mod percentiles;
mod serve;

use crate::cli::{Common, Failure};

/// The commands under `relevo bench`.
#[derive(Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// Load an OpenAI-compatible server and measure its latencies
    Serve(serve::ServeArgs),
}

/// Runs one of them.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: BenchCommand, _common: &Common) -> Result<(), Failure> {
    match command {
        BenchCommand::Serve(args) => serve::run(args).await,
    }
}
