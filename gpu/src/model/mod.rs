//! Models: from a file's description to a forward pass that can pause after each layer.

mod limits;
mod scripted;
mod scripted_kv;
mod step;

pub use limits::StepLimits;
pub use scripted::{Fault, ScriptedModel, ScriptedOptions, StepHook};
pub use step::{KvMemory, Progress, StepModel};
