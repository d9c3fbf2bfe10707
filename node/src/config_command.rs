//! `relevo config --example` and `--check FILE`.

use std::path::{Path, PathBuf};

use crate::cli::Failure;
use crate::config::{self, Config};
use crate::terminal;
use crate::up::Scripts;

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
    let is_scripted = Scripts::load(&config)?.is_some();
    let faults =
        if config.testing.any() { "; [testing] asks for faults: `relevo up` needs --allow-faults" } else { "" };
    Ok(terminal::print(format!("{} is right: {}{faults}", path.display(), summary(&config, is_scripted)))?)
}

/// Reads a file, naming it in what goes wrong.
///
/// # Errors
/// The user's fault.
pub fn load(path: &Path) -> Result<Config, Failure> {
    config::load(path).map_err(|source| Failure::Config { file: path.display().to_string(), source })
}

fn summary(config: &Config, is_scripted: bool) -> String {
    let model = if is_scripted { "a script" } else { &config.model.name };
    let devices = config.devices.len();
    let plural = if devices == 1 { "device" } else { "devices" };
    format!("serves {model} on http://{} with {devices} {plural}", config.server.listen)
}
