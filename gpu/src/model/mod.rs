//! Models: from a file's description to a forward pass that can pause after each layer.

mod step;

pub use step::{KvMemory, Progress, StepModel};
