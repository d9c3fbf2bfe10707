//! What the operator may set about the HTTP gateway.

use std::time::Duration;

use relevo_wire::NodeId;

use super::ApiKeys;

/// Options of [`super::Service`].
#[derive(Debug, Default)]
pub struct HttpOptions {
    /// Who may call; without keys everybody who reaches the (loopback) address.
    pub api_keys: Option<ApiKeys>,
    /// Names that `Host` and `Origin` may carry on a loopback address besides the loopback's own, without port.
    pub allowed_hosts: Vec<String>,
    /// Bounds on what a client may take up.
    pub limits: Limits,
    /// The node whose gateway this is, which request ids carry.
    pub gateway: NodeId,
}

/// Bounds on what clients may take up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; the next one gets a 503.
    pub max_connections: usize,
    /// Bytes of one request body.
    pub max_body_bytes: usize,
    /// Bytes of all request bodies that are being read at one time.
    pub body_budget_bytes: usize,
    /// Bytes of all header names and values of a request.
    pub max_header_bytes: usize,
    /// Header lines of a request.
    pub max_headers: usize,
    /// Prompts × `n` of one request.
    pub max_sequences: usize,
    /// From the opening of a connection, or its last answer, to the end of the next request's headers.
    pub header_timeout: Duration,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
    /// Longest time in which a reader may take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// Longest time that a request may take.
    pub request_timeout: Duration,
    /// How long open answers may go on after the shutdown has begun, before they end with an error event.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            // 128 prompts of 4,096 token ids of 5 digits and a comma are 3 MiB.
            max_body_bytes: 4 << 20,
            body_budget_bytes: 64 << 20,
            max_header_bytes: 32 << 10,
            max_headers: 100,
            // OpenAI's own bound of `n`.
            max_sequences: 128,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(600),
            drain_timeout: Duration::from_secs(3),
        }
    }
}
