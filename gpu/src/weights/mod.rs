//! Weights as files hold them: GGUF and safetensors, memory-mapped, parsed by code that assumes a hostile file.
//!
//! [`ModelFiles::open`] is the door: it maps the files, checks every header entry against them, and describes the model
//! ([`crate::description`]). The parsers behind it are pure functions of bytes, so that tests can feed them anything.

mod bytes;
mod dequantize;
mod digest;
mod end_of_generation;
mod error;
mod files;
mod gguf;
mod hugging_face;
mod mapped;
mod metadata;
mod safetensors;
mod tensor;
mod vocabulary;

pub use dequantize::{DequantizeError, dequantize};
pub use digest::WeightsDigest;
pub use error::{FormatError, WeightsError};
pub use files::{ModelFiles, TensorInfo};
pub use gguf::GgufHeader;
pub use metadata::{Array, Metadata, MetadataIndex, Value, ValueType};
pub use safetensors::parse_safetensors;
pub use tensor::{StoredType, TensorEntry, TensorType, TensorView};
pub use vocabulary::{GgufVocabulary, HuggingFaceTokenizer, TokenKind, TokenizerSource};
