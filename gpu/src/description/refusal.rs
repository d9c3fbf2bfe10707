//! Why a model cannot be served although its files are sound.

/// Every text names the key or the tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptionError {
    /// An architecture without a forward pass.
    #[error("architecture {found} is not served; served are {known}", known = super::Architecture::KNOWN)]
    UnknownArchitecture {
        /// What the file calls it.
        found: String,
    },
    /// A key that is needed is not there.
    #[error("key {key} is missing; convert the model again with a converter that writes it")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key has a value of the wrong type.
    #[error("key {key} is {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A value that is impossible, or contradicts another.
    #[error("key {key} is {value}, expected {expected}")]
    OutOfRange {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// Something that the model asks for and the forward pass does not have.
    #[error("{what} is not served: {reason}")]
    NotServed {
        /// The key and its value, or the tensor.
        what: String,
        /// What is known instead.
        reason: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error("tensor {name} is missing; the file is incomplete, fetch or convert it again")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor whose shape contradicts the description.
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// By the description.
        expected: Vec<usize>,
    },
    /// A tensor in a type that cannot be used where it stands.
    #[error("tensor {name} is stored as {found}, expected {expected}: convert or requantise the model")]
    TensorType {
        /// Its name.
        name: String,
        /// In the file.
        found: &'static str,
        /// What can be used.
        expected: &'static str,
    },
}
