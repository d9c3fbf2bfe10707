//! Models: from a file's description to a forward pass that can pause after each layer.

mod forward;
mod limits;
mod load;
mod memory;
mod script;
mod scripted;
mod scripted_kv;
mod scripted_timings;
mod step;

pub use forward::Model;
pub use limits::StepLimits;
pub use load::{LoadError, ModelOptions};
pub use memory::{MemoryPlan, TooLittleMemory};
pub use script::{AnswerChoice, Script, ScriptedEdges, ScriptedTokens};
pub use scripted::{Fault, ScriptedModel, ScriptedOptions, StepHook};
pub use scripted_timings::{Clock, ScriptedTimings};
pub use step::{KvMemory, Progress, StepModel};
