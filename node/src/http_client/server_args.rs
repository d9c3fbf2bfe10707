//! Which server a command talks to.

use std::path::PathBuf;

use super::{ApiClient, ClientError};

/// A server, by its flags.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A file whose first line is an API key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

impl ServerArgs {
    /// A client of it.
    ///
    /// # Errors
    /// The user's fault: see [`ApiClient::new`].
    pub fn client(&self) -> Result<ApiClient, ClientError> {
        ApiClient::new(&self.url, self.api_key_file.as_deref())
    }
}
