//! `relevo.toml` and the scripts of scripted devices: their sections, how it is read and checked, and the example that is made from the types.
//!
//! **Invariant:** configuration is read once, here, and never changes after start. Flags win over the file, the file over the defaults.

mod example;
mod load;
mod script;
mod section;
mod sections;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use example::example;
pub use load::{ConfigError, load, parse};
pub use script::{Answer, Script, TokenRule, load_script, parse_script};
pub use sections::{
    CarrierChoice, Device, DeviceKind, Log, LogFormat, Model, Node, Router, Server, Testing, Traces, Transport,
    UnknownKind,
};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[model]`
    pub model: Model,
    /// `[router]`
    pub router: Router,
    /// `[node]`
    pub node: Node,
    /// `[transport]`
    pub transport: Transport,
    /// `[[device]]`, once for each.
    #[serde(rename = "device")]
    pub devices: Vec<Device>,
    /// `[log]`
    pub log: Log,
    /// `[traces]`
    pub traces: Traces,
    /// `[testing]`
    pub testing: Testing,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: Server::default(),
            model: Model::default(),
            router: Router::default(),
            node: Node::default(),
            transport: Transport::default(),
            devices: vec![Device::default()],
            log: Log::default(),
            traces: Traces::default(),
            testing: Testing::default(),
        }
    }
}
