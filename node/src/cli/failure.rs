//! Why a command ended without doing what it was asked, and the exit code that says so.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use metrics_exporter_prometheus::BuildError;
use relevo_actors::cluster::ClusterError;
use relevo_actors::device::StartError;
use relevo_gpu::model::{LoadError, TooLittleMemory};
use relevo_transport::QuicError;
use relevo_transport::identity::{AuthorityError, LoadError as IdentityError, Name};

use crate::config::ConfigError;
use crate::http::{KeyFileError, ServeError};
use crate::http_client::ClientError;
use crate::model_store::StoreError;
use crate::text::TextError;
use crate::traces::ExporterError;

/// A command's failure. Exit codes: 1 it failed, 2 the flags or the configuration are wrong, 130 it was interrupted.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Flags that clap cannot tell to be wrong: the user's fault.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong: the user's fault.
    #[error("{file}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// A model cannot be found or fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Models and caches would not fit: the user's to mend.
    #[error("device {device}")]
    Memory {
        /// Which.
        device: String,
        /// The figures.
        source: TooLittleMemory,
    },
    /// The certificate authority does not do as asked.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A node's identity cannot be used: the user's fault.
    #[error("cannot use this node's identity")]
    Identity(#[from] IdentityError),
    /// A node's address cannot be opened.
    #[error("cannot open {address} for other nodes")]
    Endpoint {
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: QuicError,
    },
    /// A name that no certificate was issued for.
    #[error("no certificate of `{name}` was issued here{}; `relevo ca list` shows them", suggestion(nearest))]
    UnknownNode {
        /// As given.
        name: Name,
        /// A name that is like it.
        nearest: Option<String>,
    },
    /// Its tokenizer or chat template cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The keys that callers must show.
    #[error("{}", path.display())]
    ApiKeys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyFileError,
    },
    /// The address cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Spans cannot be exported as configured: the user's fault.
    #[error(transparent)]
    Exporter(#[from] ExporterError),
    /// The cluster does not start.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The cluster gave itself up while it served.
    #[error("the cluster failed: its actors died too often, or no device can be started again (the log says which)")]
    ClusterFailed,
    /// A process of a local cluster does not start.
    #[error("{name} {how} as it began; its log is above")]
    Spawned {
        /// Its name.
        name: String,
        /// How it ended.
        how: String,
    },
    /// Metrics cannot be recorded.
    #[error("cannot record metrics")]
    Metrics(#[from] BuildError),
    /// A server does not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A model cannot be loaded: the file's fault, or memory is short.
    #[error("cannot load the model")]
    Load(#[from] LoadError),
    /// An engine cannot be started.
    #[error("cannot start the engine")]
    StartEngine(#[from] StartError),
    /// An engine failed at its work: our bug, or the device's.
    #[error("the engine failed: {reason}")]
    Engine {
        /// In its words.
        reason: String,
    },
    /// Something of the operating system's.
    #[error("{doing}")]
    System {
        /// Such as `cannot start the runtime`.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// What was put to the test did not do as is promised.
    #[error("{0}")]
    Promise(String),
    /// The reader of stdout has gone: nobody is left to tell.
    #[error("stdout is closed")]
    OutputClosed(#[from] io::Error),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// The whole of it in one line: each reason after what it is the reason of.
    pub fn one_line(&self) -> String {
        one_line(self)
    }

    /// What the process answers to its caller.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Config { .. } | Self::Identity(_) | Self::Exporter(_) => ExitCode::from(2),
            Self::Interrupted => ExitCode::from(130),
            Self::OutputClosed(_) => ExitCode::SUCCESS,
            Self::ApiKeys { .. } | Self::Serve(ServeError::OpenDoor(_)) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

/// An error in one line: each reason after what it is the reason of.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let reasons = std::iter::successors(error.source(), |error| error.source());
    reasons.fold(error.to_string(), |text, reason| format!("{text}: {reason}"))
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}
