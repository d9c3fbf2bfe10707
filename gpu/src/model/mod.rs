//! Models: from a file's description to a forward pass that can pause after each layer.

mod forward;
mod limits;
mod load;
mod memory;
mod scripted;
mod scripted_kv;
mod step;

pub use forward::Model;
pub use limits::StepLimits;
pub use load::{LoadError, ModelOptions};
pub use memory::{MemoryPlan, TooLittleMemory};
pub use scripted::{Fault, ScriptedModel, ScriptedOptions, StepHook};
pub use step::{KvMemory, Progress, StepModel};
