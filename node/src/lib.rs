//! The modules of the `relevo` binary, as a library so that integration tests reach them.

pub mod bench;
pub mod ca_command;
pub mod chat;
pub mod cli;
pub mod completions;
pub mod config;
pub mod config_command;
pub mod devices_command;
pub mod environment;
pub mod http;
pub mod http_client;
pub mod logging;
pub mod metrics_recorder;
pub mod model_command;
pub mod model_store;
pub mod order_command;
pub mod service_manager;
pub mod signals;
pub mod status_command;
pub mod terminal;
pub mod text;
pub mod trace_command;
pub mod traces;
pub mod up;
pub mod wall_clock;
