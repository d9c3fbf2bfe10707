//! Facts about this machine's devices: its CPU, and the GPUs that the drivers on it know of.
//!
//! Nothing is set up here that outlives the question, but for what the drivers' own libraries do when they are loaded.

mod cpu_facts;
mod gpu_facts;

pub use cpu_facts::{CacheFacts, CpuFacts};
pub use gpu_facts::{GpuFacts, GpuRuntime, Missing, RuntimeFacts};

/// What there is to compute on.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Devices {
    /// The CPU, and the memory that goes with it.
    pub cpu: CpuFacts,
    /// NVIDIA's GPUs, or what is missing for them.
    pub cuda: RuntimeFacts,
    /// AMD's.
    pub hip: RuntimeFacts,
}

impl Devices {
    /// Looks at this machine. What cannot be found out is absent; nothing fails.
    pub fn probe() -> Self {
        Self {
            cpu: CpuFacts::probe(),
            cuda: RuntimeFacts::probe(GpuRuntime::Cuda),
            hip: RuntimeFacts::probe(GpuRuntime::Hip),
        }
    }
}
