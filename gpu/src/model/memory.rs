//! How much memory a model will take, known before any of it is loaded.

use std::fmt;

use relevo_wire::BLOCK_TOKENS;

use super::forward::Model;
use super::load::{LoadError, ModelOptions};
use crate::cost::{CostDevice, MemoryUse};
use crate::weights::ModelFiles;

/// What a model will take with given options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    memory: MemoryUse,
    kv_tokens: u64,
}

/// A plan that does not fit. The user's to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{plan}; {available} are available: {remedy}", available = Size(*.available_bytes), remedy = Remedy(self))]
pub struct TooLittleMemory {
    /// What was planned.
    pub plan: MemoryPlan,
    /// What is there.
    pub available_bytes: u64,
}

impl MemoryPlan {
    /// Loads the model on a device that only counts: a matter of milliseconds, no weight is read.
    ///
    /// # Errors
    /// As [`Model::load`]; memory is never short.
    pub fn new(files: &ModelFiles, options: ModelOptions) -> Result<Self, LoadError> {
        let memory = Model::load(CostDevice::new(), files, options)?.device().memory();
        Ok(Self { memory, kv_tokens: (options.kv_blocks * BLOCK_TOKENS) as u64 })
    }

    /// A plan of these figures; `kv_tokens`: what the KV cache holds.
    pub(super) const fn of(memory: MemoryUse, kv_tokens: u64) -> Self {
        Self { memory, kv_tokens }
    }

    /// By purpose.
    pub const fn memory(&self) -> MemoryUse {
        self.memory
    }

    /// In all.
    pub const fn total_bytes(&self) -> u64 {
        self.memory.weights + self.memory.kv + self.memory.activations
    }

    /// Holds the plan against what there is.
    ///
    /// # Errors
    /// [`TooLittleMemory`], with the figures.
    pub const fn check(self, available_bytes: u64) -> Result<(), TooLittleMemory> {
        if self.total_bytes() > available_bytes {
            return Err(TooLittleMemory { plan: self, available_bytes });
        }
        Ok(())
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryUse { weights, kv, activations } = self.memory;
        write!(
            f,
            "the model needs {}: weights {}, KV cache {} for {} tokens, activations {}",
            Size(self.total_bytes()),
            Size(weights),
            Size(kv),
            self.kv_tokens,
            Size(activations)
        )
    }
}

/// Bytes as people read them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = 1024.0 * 1024.0;
        let mib = self.0 as f64 / MIB;
        if mib < 1000.0 { write!(f, "{mib:.1} MiB") } else { write!(f, "{:.1} GiB", mib / 1024.0) }
    }
}

/// What to do about it.
struct Remedy<'a>(&'a TooLittleMemory);

impl fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TooLittleMemory { plan, available_bytes } = self.0;
        let fixed = plan.memory.weights + plan.memory.activations;
        match available_bytes.checked_sub(fixed) {
            Some(room) if room > 0 => write!(f, "give the KV cache at most {}", Size(room)),
            _ => write!(f, "take a smaller model"),
        }
    }
}
