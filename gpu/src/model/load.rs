//! A model's weights on a device.

use relevo_wire::Numerics;

use crate::compute::{Compute, ComputeError, Rope};
use crate::description::{ModelDescription, Role};
use crate::weights::{DequantizeError, ModelFiles, TensorView, WeightsError, dequantize};

/// How a model is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    /// How exactly it computes.
    pub numerics: Numerics,
    /// Rows of a step, which activations are reserved for.
    pub max_rows: usize,
    /// Output rows of a step, which logits are reserved for.
    pub max_outputs: usize,
    /// Positions of a sequence, at most what the model was made for.
    pub max_context: usize,
    /// Blocks of the KV pool.
    pub kv_blocks: usize,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file's fault: a tensor that is not where or what it should be.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Our bug: the description lacks a part that its architecture has.
    #[error("the model has no {role:?}")]
    MissingPart {
        /// The part.
        role: Role,
    },
    /// The file's fault: a vector that cannot be widened to f32.
    #[error("tensor {name}")]
    Vector {
        /// Its name in the file.
        name: String,
        /// Why.
        source: DequantizeError,
    },
    /// The device refuses a tensor, or has no room.
    #[error(transparent)]
    Device(#[from] ComputeError),
    /// The caller's fault: an option out of range.
    #[error("{option} is {value}, expected 1 to {most}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: usize,
        /// The most that can be served.
        most: usize,
    },
}

/// Everything of a model but its activations and its KV cache.
pub(super) struct Weights<C: Compute> {
    /// `[vocab, hidden]`.
    pub(super) embedding: C::Matrix,
    /// `[vocab, hidden]`; the embedding where the model ties them.
    pub(super) head: Option<C::Matrix>,
    /// `[hidden]`.
    pub(super) output_norm: C::Vector,
    pub(super) rope: Rope<C::Vector>,
    pub(super) layers: Vec<LayerWeights<C>>,
}

/// The weights of one layer.
pub(super) struct LayerWeights<C: Compute> {
    /// `[hidden]`.
    pub(super) attention_norm: C::Vector,
    /// q, k and v stacked: `[(num_heads + 2 * num_kv_heads) * head_dim, hidden]`.
    pub(super) qkv: C::Matrix,
    /// As `qkv`'s outputs; zeros for those without.
    pub(super) qkv_bias: Option<C::Vector>,
    /// Of each q head and each k head: `[head_dim]`.
    pub(super) qk_norm: Option<(C::Vector, C::Vector)>,
    /// `[hidden, num_heads * head_dim]`.
    pub(super) attention_output: C::Matrix,
    /// `[hidden]`.
    pub(super) attention_output_bias: Option<C::Vector>,
    /// `[hidden]`.
    pub(super) feed_forward_norm: C::Vector,
    /// Gate and up joined: `[2 * ffn, hidden]`.
    pub(super) gate_up: C::Matrix,
    /// `[hidden, ffn]`.
    pub(super) down: C::Matrix,
}

impl ModelOptions {
    /// Refuses what cannot be served.
    pub(super) fn check(&self, description: &ModelDescription) -> Result<(), LoadError> {
        let ranges = [
            ("max_rows", self.max_rows, usize::MAX),
            ("max_outputs", self.max_outputs, self.max_rows),
            ("max_context", self.max_context, description.max_context),
            ("kv_blocks", self.kv_blocks, u32::MAX as usize),
        ];
        match ranges.into_iter().find(|(_, value, most)| *value == 0 || value > most) {
            Some((option, value, most)) => Err(LoadError::Option { option, value, most }),
            None => Ok(()),
        }
    }
}

/// Reads tensors by role and hands them to the device.
pub(super) struct Loader<'a, C: Compute> {
    pub(super) files: &'a ModelFiles,
    pub(super) device: &'a mut C,
    pub(super) numerics: Numerics,
}

impl<C: Compute> Loader<'_, C> {
    pub(super) fn weights(&mut self) -> Result<Weights<C>, LoadError> {
        let description = self.files.description();
        let factors = self.values_if_there(Role::RopeFactors)?;
        let frequencies = description.rope.inverse_frequencies(factors.as_deref());
        let head = if description.tied_embeddings { None } else { Some(self.matrix(&[Role::OutputHead])?) };
        Ok(Weights {
            embedding: self.matrix(&[Role::TokenEmbedding])?,
            head,
            output_norm: self.vector(Role::OutputNorm)?,
            rope: Rope {
                inverse_frequencies: self.device.load_vector(&frequencies)?,
                rotary_dim: description.rope.rotary_dim,
                interleaved: description.rope.interleaved,
                attention_factor: description.rope.attention_factor(),
            },
            layers: (0..description.num_layers).map(|layer| self.layer(layer)).collect::<Result<_, _>>()?,
        })
    }

    fn layer(&mut self, layer: usize) -> Result<LayerWeights<C>, LoadError> {
        let qk_norm = self.vector_if_there(Role::QueryNorm(layer))?.zip(self.vector_if_there(Role::KeyNorm(layer))?);
        let (gate, up) = (self.tensor(Role::Gate(layer))?, self.tensor(Role::Up(layer))?);
        Ok(LayerWeights {
            attention_norm: self.vector(Role::AttentionNorm(layer))?,
            qkv: self.matrix(&[Role::Query(layer), Role::Key(layer), Role::Value(layer)])?,
            qkv_bias: self.qkv_bias(layer)?,
            qk_norm,
            attention_output: self.matrix(&[Role::AttentionOutput(layer)])?,
            attention_output_bias: self.vector_if_there(Role::AttentionOutputBias(layer))?,
            feed_forward_norm: self.vector(Role::FeedForwardNorm(layer))?,
            gate_up: self.device.load_gate_up(&gate, &up, self.numerics)?,
            down: self.matrix(&[Role::Down(layer)])?,
        })
    }

    fn qkv_bias(&mut self, layer: usize) -> Result<Option<C::Vector>, LoadError> {
        let description = self.files.description();
        let (query, key) =
            (description.num_heads * description.head_dim, description.num_kv_heads * description.head_dim);
        let parts = [(Role::QueryBias(layer), query), (Role::KeyBias(layer), key), (Role::ValueBias(layer), key)];
        if parts.iter().all(|(role, _)| description.tensor_name(*role).is_none()) {
            return Ok(None);
        }
        let mut stacked = Vec::with_capacity(query + 2 * key);
        for (role, width) in parts {
            stacked.extend(self.values_if_there(role)?.unwrap_or_else(|| vec![0.0; width]));
        }
        Ok(Some(self.device.load_vector(&stacked)?))
    }

    fn matrix(&mut self, roles: &[Role]) -> Result<C::Matrix, LoadError> {
        let parts: Vec<TensorView<'_>> =
            roles.iter().map(|role| self.tensor(*role)).collect::<Result<_, LoadError>>()?;
        Ok(self.device.load_matrix(&parts, self.numerics)?)
    }

    fn vector(&mut self, role: Role) -> Result<C::Vector, LoadError> {
        self.vector_if_there(role)?.ok_or(LoadError::MissingPart { role })
    }

    fn vector_if_there(&mut self, role: Role) -> Result<Option<C::Vector>, LoadError> {
        let values = self.values_if_there(role)?;
        Ok(values.map(|values| self.device.load_vector(&values)).transpose()?)
    }

    fn values_if_there(&self, role: Role) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(tensor) = self.files.role(role)? else { return Ok(None) };
        let mut values = vec![0.0; tensor.num_elements()];
        dequantize(tensor.ty, tensor.data, &mut values)
            .map_err(|source| LoadError::Vector { name: tensor.name.to_owned(), source })?;
        Ok(Some(values))
    }
}

impl<'a, C: Compute> Loader<'a, C> {
    fn tensor(&self, role: Role) -> Result<TensorView<'a>, LoadError> {
        self.files.role(role)?.ok_or(LoadError::MissingPart { role })
    }
}
