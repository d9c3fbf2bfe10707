//! `relevo config --example` and `--check FILE`.

use std::path::{Path, PathBuf};

use crate::cli::Failure;
use crate::config::{self, Config};
use crate::terminal;

/// Arguments of `relevo config`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct ConfigArgs {
    /// Print relevo.toml with every key, what it does, and its default
    #[arg(long)]
    example: bool,
    /// Say whether a file is right, and if not, what is wrong with it
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

/// Prints the example, or checks a file.
///
/// # Errors
/// The user's fault: what is wrong with the file.
pub fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let Some(path) = &args.check else {
        return Ok(terminal::print_piece(config::example())?);
    };
    let config = load(path)?;
    let faults =
        if config.testing.any() { "; [testing] asks for faults: `relevo up` needs --allow-faults" } else { "" };
    Ok(terminal::print(format!("{} is right: {}{faults}", path.display(), summary(&config)))?)
}

/// Reads a file, naming it in what goes wrong.
///
/// # Errors
/// The user's fault.
pub fn load(path: &Path) -> Result<Config, Failure> {
    config::load(path).map_err(|source| Failure::Config { file: path.display().to_string(), source })
}

fn summary(config: &Config) -> String {
    let devices = config.devices.len();
    let plural = if devices == 1 { "device" } else { "devices" };
    format!("serves {} on http://{} with {devices} {plural}", config.model.name, config.server.listen)
}
