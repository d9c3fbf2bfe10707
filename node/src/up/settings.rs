//! What `relevo up` runs with: flags over the file over the defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use relevo_actors::policy::routing::Disaggregate;
use relevo_wire::Numerics;

use super::local_cluster::Shape;
use crate::cli::{ByteSize, Failure, variant};
use crate::config::{CarrierChoice, Config, ConfigError, DeviceKind};
use crate::config_command;

/// Arguments of `relevo up`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct UpArgs {
    /// A name out of `relevo model list`, or the path of a GGUF file or a Hugging Face folder [default: smollm2]
    #[arg(long, value_name = "NAME|PATH")]
    pub(super) model: Option<String>,
    /// What to run it on: this machine's cores, or scripted:FILE, which serves tokens and timings by a formula without any model [default: cpu]
    #[arg(long, value_name = "cpu|scripted:FILE", value_parser = DeviceKind::from_str)]
    pub(super) device: Option<DeviceKind>,
    /// Where the API listens [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = listen_address)]
    pub(super) listen: Option<SocketAddr>,
    /// Compute threads [default: the physical cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) threads: Option<u32>,
    /// Memory for KV blocks, such as 2GiB [default: 2GiB, less where the machine has less]
    #[arg(long, value_name = "SIZE")]
    pub(super) kv_memory: Option<ByteSize>,
    /// Positions that a request may fill, prompt and answer together [default: what the model was trained for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub(super) max_context: Option<u32>,
    /// default: int8 activations and f16 KV; exact: f32 for both, slower
    #[arg(long, value_name = "default|exact", value_parser = variant::<Numerics>)]
    pub(super) numerics: Option<Numerics>,
    /// Whether prefill and decode of a request may be on two devices
    #[arg(long, value_name = "auto|always|never", value_parser = variant::<Disaggregate>)]
    pub(super) disaggregate: Option<Disaggregate>,
    /// What carries KV blocks from one device to another: in-process in one process, shm between processes of a host [default: auto]
    #[arg(long, value_name = "auto|in-process|quic|shm", value_parser = variant::<CarrierChoice>)]
    pub(super) carrier: Option<CarrierChoice>,
    /// A file with one API key a line; needed to listen on other addresses than loopback
    #[arg(long, value_name = "FILE")]
    pub(super) api_key_file: Option<PathBuf>,
    /// Read these settings first; flags win over them
    #[arg(long, value_name = "relevo.toml")]
    pub(super) config: Option<PathBuf>,
    /// A whole cluster of processes on this machine: 2p2d is two that prefill and two that decode, 2pd two that do both
    #[arg(long, value_name = "SHAPE", value_parser = Shape::from_str)]
    pub(super) local_cluster: Option<Shape>,
    /// Allow the [testing] section, which breaks things on purpose
    #[arg(long)]
    pub(super) allow_faults: bool,
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let expected = || "expected ADDRESS:PORT such as 127.0.0.1:8080 or [::1]:8080".to_owned();
    match text.rsplit_once(':') {
        Some(("localhost", port)) => {
            let port = port.parse().map_err(|_| expected())?;
            Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        }
        _ => text.parse().map_err(|_| expected()),
    }
}

impl UpArgs {
    /// The configuration that these flags make, checked.
    ///
    /// # Errors
    /// The user's fault: the file, a value, or flags that do not fit the file.
    pub(super) fn settings(&self) -> Result<Config, Failure> {
        let mut config = match &self.config {
            Some(path) => config_command::load(path)?,
            None => Config::default(),
        };
        self.check_devices(&config)?;
        let UpArgs {
            model,
            listen,
            threads,
            kv_memory,
            max_context,
            numerics,
            disaggregate,
            carrier,
            api_key_file,
            ..
        } = self.clone();
        set(&mut config.model.name, model);
        set(&mut config.server.listen, listen);
        set(&mut config.model.numerics, numerics);
        set(&mut config.router.disaggregate, disaggregate);
        set(&mut config.transport.carrier, carrier);
        config.model.max_context_tokens = max_context.or(config.model.max_context_tokens);
        config.server.api_key_file = api_key_file.or(config.server.api_key_file);
        if let Some(device) = config.devices.first_mut() {
            set(&mut device.kind, self.device.clone());
            device.threads = threads.or(device.threads);
            device.kv_memory_mib = match kv_memory {
                Some(size) => Some(mebibytes(size)?),
                None => device.kv_memory_mib,
            };
        }
        self.check_model(&config)?;
        let in_file = |source| Failure::Config { file: self.origin(), source };
        config.check().map_err(in_file)?;
        config.check_carrier(self.local_cluster.is_some()).map_err(in_file)?;
        config.check_faults(self.allow_faults).map_err(in_file)?;
        Ok(config)
    }

    fn check_devices(&self, config: &Config) -> Result<(), Failure> {
        let given = [
            ("--threads", self.threads.is_some()),
            ("--kv-memory", self.kv_memory.is_some()),
            ("--device", self.device.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) if config.devices.len() > 1 => Err(Failure::Usage(format!(
                "{flag} is for one device, {} has {}: set it there, for each",
                self.origin(),
                config.devices.len()
            ))),
            _ => Ok(()),
        }
    }

    /// A scripted device has no model: who names one means another device.
    fn check_model(&self, config: &Config) -> Result<(), Failure> {
        let given = [("--model", self.model.is_some()), ("--numerics", self.numerics.is_some())];
        let is_scripted = config.devices.iter().any(|device| device.kind.is_scripted());
        match given.into_iter().find(|(_, given)| *given && is_scripted) {
            Some((flag, _)) => Err(Failure::Usage(format!(
                "{flag} is for a device that computes: a scripted one has no model, its script says what it passes for"
            ))),
            None => Ok(()),
        }
    }

    fn origin(&self) -> String {
        self.config.as_ref().map_or_else(|| "flags".to_owned(), |path| path.display().to_string())
    }
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn mebibytes(size: ByteSize) -> Result<u32, Failure> {
    let out_of_range = || {
        let source = ConfigError::OutOfRange {
            key: "--kv-memory".to_owned(),
            value: size.to_string(),
            expected: "1 MiB to 16 TiB".to_owned(),
        };
        Failure::Config { file: "flags".to_owned(), source }
    };
    u32::try_from(size.0 >> 20).ok().filter(|mib| (1..=16_777_216).contains(mib)).ok_or_else(out_of_range)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: UpArgs,
    }

    fn settings(words: &[&str]) -> Result<Config, String> {
        let line = ["up"].iter().chain(words);
        let parsed = Line::try_parse_from(line).map_err(|error| error.to_string())?;
        parsed.args.settings().map_err(|failure| failure.one_line())
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relevo.toml");
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let (_folder, path) =
            file("[server]\nlisten = \"127.0.0.1:9\"\n[model]\nname = \"a\"\n[[device]]\nthreads = 7\n");
        let config = settings(&["--config", &path]).unwrap();
        assert_eq!((config.server.listen.port(), config.model.name.as_str()), (9, "a"));
        assert_eq!(config.devices[0].threads, Some(7));
        let flags =
            ["--config", &path, "--listen", "localhost:10", "--model", "b", "--threads", "3", "--kv-memory", "1GiB"];
        let config = settings(&flags).unwrap();
        assert_eq!((config.server.listen.port(), config.model.name.as_str()), (10, "b"));
        assert_eq!((config.devices[0].threads, config.devices[0].kv_memory_mib), (Some(3), Some(1024)));
        assert_eq!(settings(&[]).unwrap(), Config::default());
    }

    #[test]
    fn a_device_is_chosen_by_flag_and_a_scripted_one_takes_no_model() {
        let (_folder, path) = file("[[device]]\nkind = \"scripted:a.toml\"\n");
        let kind = |words: &[&str]| settings(words).map(|config| config.devices[0].kind.clone());
        assert_eq!(kind(&["--config", &path]), Ok(DeviceKind::Scripted(Some("a.toml".into()))));
        assert_eq!(kind(&["--config", &path, "--device", "cpu"]), Ok(DeviceKind::Cpu));
        assert_eq!(kind(&["--device", "scripted:b.toml"]), Ok(DeviceKind::Scripted(Some("b.toml".into()))));
        assert_eq!(kind(&["--config", &path, "--device", "scripted"]), Ok(DeviceKind::Scripted(None)));
        let cases: [(&[&str], &str); 6] = [
            (&["--device", "scripted:"], "expected cpu, scripted:FILE"),
            (&["--device", "gpu"], "expected cpu, scripted:FILE"),
            (&["--device", "scripted", "--model", "smollm2"], "--model is for a device that computes"),
            (&["--device", "scripted", "--numerics", "exact"], "--numerics is for a device that computes"),
            (
                &["--device", "scripted", "--threads", "2"],
                "device[0].threads is 2, expected none where kind is \"scripted\"",
            ),
            (&["--config", &path, "--model", "x"], "--model is for a device that computes"),
        ];
        for (words, expected) in cases {
            let refusal = settings(words).unwrap_err();
            assert!(refusal.contains(expected), "{words:?}: {refusal}");
        }
    }

    #[test]
    fn words_and_sizes_out_of_range_say_what_would_do() {
        let cases: [(&[&str], &str); 9] = [
            (&["--carrier", "tcp"], "unknown variant `tcp`, expected one of `auto`, `in-process`, `quic`"),
            (
                &["--carrier", "shm"],
                "transport.carrier is \"shm\", expected \"auto\", \"in-process\" or \"quic\" where all devices are in one process",
            ),
            (
                &["--carrier", "in-process", "--local-cluster", "1p1d"],
                "transport.carrier is \"in-process\", expected \"auto\", \"quic\" or \"shm\" in a cluster of many processes",
            ),
            (&["--numerics", "fast"], "unknown variant `fast`, expected `default` or `exact`"),
            (&["--disaggregate", "yes"], "expected one of `auto`, `always`, `never`"),
            (&["--listen", "8080"], "expected ADDRESS:PORT such as 127.0.0.1:8080"),
            (&["--kv-memory", "2048"], "has no unit"),
            (&["--kv-memory", "1KiB"], "--kv-memory is 1.0 KiB, expected 1 MiB to 16 TiB"),
            (&["--threads", "0"], "0 is not in 1..=1024"),
        ];
        for (words, expected) in cases {
            let refusal = settings(words).unwrap_err();
            assert!(refusal.contains(expected), "{words:?}: {refusal}");
        }
    }

    #[test]
    fn every_carrier_is_taken_where_it_goes() {
        for (carrier, shape) in [("auto", None), ("quic", None), ("in-process", None), ("shm", Some("1p1d"))] {
            let shape = shape.map(|shape| ["--local-cluster", shape]);
            let words: Vec<&str> = ["--carrier", carrier].into_iter().chain(shape.into_iter().flatten()).collect();
            let config = settings(&words).unwrap();
            assert_eq!(toml::Value::try_from(config.transport.carrier).unwrap().as_str(), Some(carrier));
        }
    }

    #[test]
    fn with_several_devices_their_flags_are_refused() {
        let (_folder, path) = file("[[device]]\nroles = [\"prefill\"]\n[[device]]\nroles = [\"decode\"]\n");
        for (flag, value) in [("--threads", "2"), ("--device", "scripted")] {
            let refusal = settings(&["--config", &path, flag, value]).unwrap_err();
            assert!(refusal.contains(&format!("{flag} is for one device")) && refusal.contains("has 2"), "{refusal}");
        }
    }
}
