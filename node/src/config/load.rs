//! Reads `relevo.toml` and refuses what is wrong with it, by name, value and range.

use std::fmt::Display;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use relevo_actors::device::DeviceRole;
use relevo_wire::Role;
use toml::Value;

use super::Config;
use super::section::{Key, Section};
use super::sections::{CarrierChoice, Device, Log, Model, Node, Router, Server, Testing, Traces, Transport};

/// What is wrong with a configuration. The user's fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no TOML, or a value is of another type.
    #[error("line {line}: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}`{}", suggestion(nearest))]
    UnknownKey {
        /// With its section.
        key: String,
        /// The nearest one that does.
        nearest: Option<String>,
    },
    /// A value out of its range.
    #[error("{key} is {value}, expected {expected}")]
    OutOfRange {
        /// With its section.
        key: String,
        /// As given.
        value: String,
        /// What would do.
        expected: String,
    },
    /// Faults without the flag that allows them.
    #[error("[testing] asks for faults, which need the flag --allow-faults")]
    FaultsNotAllowed,
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!(", did you mean `{key}`?")).unwrap_or_default()
}

/// Reads and checks a file.
///
/// # Errors
/// The user's fault, all of them.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    parse(&read(path)?)
}

pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })
}

/// Reads and checks a file's text.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str) -> Result<Config, ConfigError> {
    let table: toml::Table = toml::from_str(text).map_err(|error| syntax(text, &error))?;
    refuse_unknown_keys(&table)?;
    let config: Config = toml::from_str(text).map_err(|error| syntax(text, &error))?;
    config.check()?;
    Ok(config)
}

pub(super) fn syntax(text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count();
    ConfigError::Syntax { line, message: error.message().trim().replace('\n', ", ") }
}

/// Sections by name, in the file's order.
pub(super) const SECTIONS: [(&str, &[Key]); 9] = [
    ("server", Server::KEYS),
    ("model", Model::KEYS),
    ("router", Router::KEYS),
    ("node", Node::KEYS),
    ("transport", Transport::KEYS),
    ("device", Device::KEYS),
    ("log", Log::KEYS),
    ("traces", Traces::KEYS),
    ("testing", Testing::KEYS),
];

fn refuse_unknown_keys(table: &toml::Table) -> Result<(), ConfigError> {
    for (name, value) in table {
        let Some((_, keys)) = SECTIONS.iter().find(|(section, _)| section == name) else {
            let known = SECTIONS.iter().map(|(section, _)| *section);
            return Err(ConfigError::UnknownKey { key: name.clone(), nearest: nearest_key(name, known) });
        };
        for table in tables_of(value) {
            refuse_keys_beyond(keys, table, &format!("{name}."))?;
        }
    }
    Ok(())
}

/// Refuses a key of `table` that is none of these. `section`: what goes before its name.
pub(super) fn refuse_keys_beyond(keys: &[Key], table: &toml::Table, section: &str) -> Result<(), ConfigError> {
    let Some(given) = table.keys().find(|given| keys.iter().all(|key| key.name != *given)) else { return Ok(()) };
    let nearest = nearest_key(given, keys.iter().map(|key| key.name));
    Err(ConfigError::UnknownKey {
        key: format!("{section}{given}"),
        nearest: nearest.map(|key| format!("{section}{key}")),
    })
}

/// The tables that a section is made of: itself, or each of its array.
fn tables_of(value: &Value) -> impl Iterator<Item = &toml::Table> {
    let elements = value.as_array().map(Vec::as_slice).unwrap_or_default();
    value.as_table().into_iter().chain(elements.iter().filter_map(Value::as_table))
}

/// The known name most like `given`, if any is like it at all.
fn nearest_key<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    crate::cli::nearest(given, known).map(str::to_owned)
}

impl Config {
    /// Checks every range. Called by [`parse`], and again once flags have had their say.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`], the first that is met.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.server.check()?;
        self.model.check()?;
        self.router.check()?;
        self.node.check()?;
        if self.devices.is_empty() {
            return Err(out_of_range("device", "empty", "at least one"));
        }
        for (index, device) in self.devices.iter().enumerate() {
            device.check(index)?;
            let first = &self.devices[0].kind;
            if device.kind.is_scripted() != first.is_scripted() {
                let (kind, first) = (String::from(device.kind.clone()), String::from(first.clone()));
                let expected = format!("one that computes or not as device[0] does, which is \"{first}\"");
                return Err(out_of_range(format!("device[{index}].kind"), format!("\"{kind}\""), expected));
            }
        }
        for role in [DeviceRole::Prefill, DeviceRole::Decode] {
            // What one node of many lacks, another has.
            if self.node.roles.is_empty() && !self.devices.iter().any(|device| device.roles.contains(&role)) {
                let without = format!("without \"{}\"", role.name());
                return Err(out_of_range("device.roles", without, "it on at least one device"));
            }
        }
        self.log.check()?;
        self.traces.check()
    }

    /// Refuses a carrier that does not go where blocks go: from one of many processes to another, or within the one that there is.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`].
    pub fn check_carrier(&self, is_one_of_many: bool) -> Result<(), ConfigError> {
        let key = "transport.carrier";
        match self.transport.carrier {
            CarrierChoice::Shm if !is_one_of_many => {
                let expected = "\"auto\", \"in-process\" or \"quic\" where all devices are in one process";
                Err(out_of_range(key, "\"shm\"", expected))
            }
            CarrierChoice::InProcess if is_one_of_many => {
                let expected = "\"auto\", \"quic\" or \"shm\" in a cluster of many processes";
                Err(out_of_range(key, "\"in-process\"", expected))
            }
            _ => Ok(()),
        }
    }

    /// Refuses `[testing]` unless faults are allowed.
    ///
    /// # Errors
    /// [`ConfigError::FaultsNotAllowed`].
    pub fn check_faults(&self, allowed: bool) -> Result<(), ConfigError> {
        if self.testing.any() && !allowed { Err(ConfigError::FaultsNotAllowed) } else { Ok(()) }
    }
}

impl Server {
    fn check(&self) -> Result<(), ConfigError> {
        within("server.max_body_kib", self.max_body_kib, 1..=262_144)?;
        within("server.body_budget_kib", self.body_budget_kib, 1..=16_777_216)?;
        within("server.max_connections", self.max_connections, 1..=65_536)?;
        within("server.max_sequences", self.max_sequences, 1..=4096)?;
        within("server.header_timeout_ms", self.header_timeout_ms, 100..=600_000)?;
        within("server.body_timeout_ms", self.body_timeout_ms, 100..=600_000)?;
        within("server.write_timeout_ms", self.write_timeout_ms, 100..=600_000)?;
        within("server.request_timeout_ms", self.request_timeout_ms, 1000..=86_400_000)?;
        within("server.drain_timeout_ms", self.drain_timeout_ms, 0..=60_000)
    }
}

impl Model {
    fn check(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() {
            return Err(out_of_range("model.name", "empty", "the name or path of a model"));
        }
        self.max_context_tokens.map_or(Ok(()), |tokens| within("model.max_context_tokens", tokens, 16..=1_048_576))
    }
}

impl Router {
    fn check(&self) -> Result<(), ConfigError> {
        within("router.max_waiting_requests", self.max_waiting_requests, 1..=65_536)?;
        within("router.local_prefill_below_tokens", self.local_prefill_below_tokens, 0..=1_048_576)?;
        within("router.max_running_requests", self.max_running_requests, 1..=4096)?;
        within("router.lease_ms", self.lease_ms, 10..=600_000)?;
        within("router.hang_after_ms", self.hang_after_ms, 100..=600_000)?;
        if self.slow_factor == 0 {
            return Ok(());
        }
        within("router.slow_factor", self.slow_factor, 2..=1000)
    }
}

impl Node {
    fn check(&self) -> Result<(), ConfigError> {
        let plays = ["gateway", "coordinator", "prefill", "decode"];
        if let Some(role) = self.roles.iter().find(|role| !plays.contains(&role.name())) {
            let expected = "\"gateway\", \"coordinator\", \"prefill\" or \"decode\"";
            return Err(out_of_range("node.roles", format!("with \"{role}\""), expected));
        }
        if self.listen.port() == 0 {
            return Err(out_of_range("node.listen", self.listen, "a port that others can be told"));
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() && !self.roles.is_empty() {
            return Err(out_of_range("node.listen", self.listen, "one address, or node.advertise beside it"));
        }
        if self.authority.is_some() && !self.roles.contains(&Role::Coordinator) {
            return Err(out_of_range("node.authority", "set", "\"coordinator\" among node.roles, or no authority"));
        }
        within("node.expected_devices", self.expected_devices, 0..=65_536)
    }
}

impl Device {
    fn check(&self, index: usize) -> Result<(), ConfigError> {
        let key = |name: &str| format!("device[{index}].{name}");
        if self.roles.is_empty() {
            return Err(out_of_range(key("roles"), "empty", "\"prefill\", \"decode\" or both"));
        }
        self.threads.map_or(Ok(()), |threads| within(key("threads"), threads, 1..=1024))?;
        self.kv_memory_mib.map_or(Ok(()), |mib| within(key("kv_memory_mib"), mib, 1..=16_777_216))?;
        within(key("max_step_tokens"), self.max_step_tokens, 16..=8192)?;
        match self.threads {
            Some(threads) if self.kind.is_scripted() => {
                Err(out_of_range(key("threads"), threads, "none where kind is \"scripted\": it does not compute"))
            }
            _ => Ok(()),
        }
    }
}

impl Log {
    fn check(&self) -> Result<(), ConfigError> {
        match crate::logging::check_filter(&self.filter) {
            Ok(()) => Ok(()),
            Err(reason) => Err(out_of_range("log.filter", format!("\"{}\"", self.filter), reason)),
        }
    }
}

impl Traces {
    fn check(&self) -> Result<(), ConfigError> {
        if self.service_name.is_empty() {
            return Err(out_of_range("traces.service_name", "empty", "a name"));
        }
        match &self.otlp_endpoint {
            Some(url) if !url.starts_with("http://") => {
                let expected =
                    "a URL that begins with http:// (a collector with TLS is reached through one on this machine)";
                Err(out_of_range("traces.otlp_endpoint", format!("\"{url}\""), expected))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn within<T: PartialOrd + Display>(
    key: impl Into<String>,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(out_of_range(key, value, format!("{} to {}", range.start(), range.end())))
}

pub(super) fn out_of_range(key: impl Into<String>, value: impl Display, expected: impl Display) -> ConfigError {
    ConfigError::OutOfRange { key: key.into(), value: value.to_string(), expected: expected.to_string() }
}
