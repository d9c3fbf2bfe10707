//! The scripts of a server's scripted devices, and what of them the engine is told.

use std::path::PathBuf;

use relevo_gpu::model::{Script as Rule, ScriptedEdges, ScriptedOptions, ScriptedTimings, ScriptedTokens};

use crate::cli::Failure;
use crate::config::{self, Answer, Config, DeviceKind, Script, TokenRule};
use crate::text::{BYTE_END, BYTE_START};

/// A script for each device, all of one model.
pub(crate) struct Scripts {
    first: DeviceScript,
    others: Vec<DeviceScript>,
}

/// The script of one device.
pub(super) struct DeviceScript {
    /// Where it was read; without a file all is default.
    path: Option<PathBuf>,
    pub(super) script: Script,
}

impl Scripts {
    /// Reads the scripts of a configuration; `None` if its devices compute.
    ///
    /// # Errors
    /// The user's fault: a file that is not there or not right, or two of different models.
    pub(crate) fn load(config: &Config) -> Result<Option<Self>, Failure> {
        let mut scripts = config.devices.iter().filter_map(|device| match &device.kind {
            DeviceKind::Cpu => None,
            DeviceKind::Scripted(path) => Some(DeviceScript::load(path.clone())),
        });
        let Some(first) = scripts.next().transpose()? else { return Ok(None) };
        let others: Vec<DeviceScript> = scripts.collect::<Result<_, _>>()?;
        for other in &others {
            if let Some(key) = other.script.difference(&first.script) {
                return Err(Failure::Usage(format!(
                    "{}: {key} is not as in {}; scripts of one server may differ in their timings only",
                    other.origin(),
                    first.origin()
                )));
            }
        }
        Ok(Some(Self { first, others }))
    }

    /// The script of the device with this index in the configuration.
    pub(super) fn of_device(&self, index: usize) -> &DeviceScript {
        index.checked_sub(1).and_then(|index| self.others.get(index)).unwrap_or(&self.first)
    }
}

impl DeviceScript {
    fn load(path: Option<PathBuf>) -> Result<Self, Failure> {
        let script = match &path {
            Some(path) => config::load_script(path)
                .map_err(|source| Failure::Config { file: path.display().to_string(), source })?,
            None => Script::default(),
        };
        Ok(Self { path, script })
    }

    fn origin(&self) -> String {
        self.path.as_ref().map_or_else(|| "the default script".to_owned(), |path| path.display().to_string())
    }

    /// The shape of the model; rows and blocks are the device's.
    pub(super) fn options(&self) -> ScriptedOptions {
        let script = &self.script;
        ScriptedOptions {
            num_layers: script.num_layers,
            num_kv_heads: script.num_kv_heads,
            key_dim: script.key_dim,
            value_dim: script.value_dim,
            element: script.element,
            vocab_size: script.vocab_size,
            ..ScriptedOptions::default()
        }
    }

    /// What it says.
    pub(super) fn rule(&self) -> Rule {
        let script = &self.script;
        let tokens = match script.tokens {
            TokenRule::Hash => ScriptedTokens::Hash,
            TokenRule::Echo => ScriptedTokens::Echo,
            TokenRule::File => {
                let answers = script.answers.iter().map(Answer::tokens).collect();
                ScriptedTokens::Answers { answers, choice: script.choose }
            }
        };
        let edges = Some(ScriptedEdges { start: BYTE_START, end: BYTE_END });
        Rule { tokens, edges, end_after: script.end_after_tokens }
    }

    /// How long it takes.
    pub(super) fn timings(&self) -> ScriptedTimings {
        let script = &self.script;
        ScriptedTimings {
            fixed_us: script.fixed_us,
            prefill_token_us: script.prefill_token_us,
            decode_token_us: script.decode_token_us,
            context_token_ns: script.context_token_ns,
            jitter_percent: script.jitter_percent,
            jitter_seed: u64::from(script.jitter_seed),
        }
    }
}
