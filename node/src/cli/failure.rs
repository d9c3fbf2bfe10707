//! Why a command ended without doing what it was asked, and the exit code that says so.

use std::io;
use std::process::ExitCode;

use crate::config::ConfigError;
use crate::http_client::ClientError;
use crate::model_store::StoreError;

/// A command's failure. Exit codes: 1 it failed, 2 the flags or the configuration are wrong, 130 it was interrupted.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Flags that clap cannot tell to be wrong: the user's fault.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong: the user's fault.
    #[error("{}: {source}", file.as_deref().unwrap_or("flags"))]
    Config {
        /// The file, none if flags are to blame.
        file: Option<String>,
        /// What is wrong.
        source: ConfigError,
    },
    /// A model cannot be found or fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A server does not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Something of the operating system's.
    #[error("{doing}: {source}")]
    System {
        /// Such as `cannot start the runtime`.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// The reader of stdout has gone: nobody is left to tell.
    #[error("stdout is closed: {0}")]
    OutputClosed(#[from] io::Error),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// What the process answers to its caller.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Config { .. } => ExitCode::from(2),
            Self::Interrupted => ExitCode::from(130),
            Self::OutputClosed(_) => ExitCode::SUCCESS,
            Self::Store(_) | Self::Client(_) | Self::System { .. } => ExitCode::FAILURE,
        }
    }
}
