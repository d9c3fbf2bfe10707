//! Weights as files hold them: GGUF and safetensors, memory-mapped, parsed by code that assumes a hostile file.

mod tensor;

pub use tensor::{TensorType, TensorView};
