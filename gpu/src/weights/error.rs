//! What can be wrong with a model's files.

use std::path::PathBuf;

use crate::description::DescriptionError;

/// Why a model's files cannot be served. Every text names the file, and the tensor or key.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system refused.
    #[error("cannot read {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nothing here that looks like a model.
    #[error("{path} holds no model: {reason}", path = path.display())]
    NotAModel {
        /// What was given.
        path: PathBuf,
        /// What was looked for, and what to give instead.
        reason: String,
    },
    /// A file breaks its own format.
    #[error("{path} is damaged or no model file; fetch or convert it again", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What breaks it.
        source: FormatError,
    },
    /// A JSON file beside the weights cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The files are sound, but what they describe cannot be served.
    #[error("{path} cannot be served", path = path.display())]
    Description {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: DescriptionError,
    },
    /// Asked for a tensor that the files do not have.
    #[error("tensor {name} is not in the model; `relevo model inspect` lists those that are")]
    NoSuchTensor {
        /// Its name.
        name: String,
    },
    /// The tensor is there, but in a type without kernels.
    #[error("tensor {name} is stored as {found}; served are {served}: requantise the model", served = super::TensorType::SERVED)]
    TypeNotServed {
        /// Its name.
        name: String,
        /// Its type.
        found: &'static str,
    },
}

/// What breaks a GGUF or safetensors file. Always the file's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The first four bytes are not `GGUF`.
    #[error("it begins with {found:02x?}, expected 47 47 55 46 (\"GGUF\")")]
    Magic {
        /// The first bytes, up to four.
        found: Vec<u8>,
    },
    /// The file was written by a big-endian machine.
    #[error("it is big-endian; convert it with `gguf_convert_endian.py FILE little`")]
    BigEndian,
    /// A version without a reader.
    #[error("its version is {found}, expected 2 or 3")]
    Version {
        /// The version.
        found: u32,
    },
    /// It ends too early, or a length lies.
    #[error("{what} needs {byte_len} bytes at offset {offset}, the file has {available} left")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where.
        offset: usize,
        /// How long it claims to be.
        byte_len: u64,
        /// How much there is.
        available: usize,
    },
    /// More entries announced than the file could hold.
    #[error("it announces {count} {what}, but has room for {most} at most")]
    Count {
        /// Of what.
        what: String,
        /// Announced.
        count: u64,
        /// Room for.
        most: u64,
    },
    /// A string that is none.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// Which.
        what: String,
    },
    /// A value type that GGUF does not have, or a boolean other than 0 and 1.
    #[error("key {key}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A key that is there twice.
    #[error("key {key} is there twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor that is there twice.
    #[error("tensor {name} is there twice")]
    DuplicateTensor {
        /// Its name.
        name: String,
    },
    /// An entry of the tensor list that contradicts itself or the file.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The safetensors header is not the JSON it should be.
    #[error("its header is not valid: {reason}")]
    Header {
        /// What the parser says.
        reason: String,
    },
}
