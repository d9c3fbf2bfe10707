//! `relevo completions SHELL`.

use clap_complete::Shell;

use crate::cli::{self, Failure};
use crate::terminal;

/// Arguments of `relevo completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "For bash: relevo completions bash > ~/.local/share/bash-completion/completions/relevo")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// stdout is closed.
pub fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli::command_tree(), "relevo", &mut script);
    Ok(terminal::print_piece(String::from_utf8_lossy(&script))?)
}
