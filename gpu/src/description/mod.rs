//! What a model is, whatever file it came from: checked numbers, and which tensor plays which part.
//!
//! **Invariant:** a [`ModelDescription`] that exists is consistent with its files: every tensor that it names is there, in a type
//! that is served and in the shape that the numbers ask for.

mod assemble;
mod from_config;
mod from_gguf;
mod keys;
mod refusal;
mod roles;
mod rope;

use relevo_wire::{BLOCK_TOKENS, ElementType, KvLayout, Numerics};

pub(crate) use from_config::describe_config;
pub(crate) use from_gguf::describe_gguf;
pub(crate) use keys::Keys;
pub use refusal::DescriptionError;
pub use roles::Role;
pub use rope::{RopeDescription, RopeScaling, Yarn};

use crate::weights::TensorType;

/// The families that are served by the one dense forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Llama and those built like it: SmolLM2, TinyLlama, Yi…
    Llama,
    /// Llama with a sliding window in its first version.
    Mistral,
    /// Llama with biases on q, k and v.
    Qwen2,
    /// Qwen2 without biases, with RMSNorm on each head of q and k.
    Qwen3,
}

impl Architecture {
    /// All of them, for messages.
    pub const KNOWN: &'static str = "llama, mistral, qwen2 and qwen3";

    /// As GGUF's `general.architecture` and Hugging Face's `model_type` spell it.
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            _ => return None,
        })
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// A model's shape, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDescription {
    /// The name that the file gives itself, or that of the file or folder.
    pub name: String,
    /// Its family.
    pub architecture: Architecture,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Query heads of a layer.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head, for keys and values alike.
    pub head_dim: usize,
    /// Width between the two feed-forward products.
    pub ffn_size: usize,
    /// RMSNorm's epsilon.
    pub norm_epsilon: f32,
    /// Positions that the model was made for.
    pub max_context: usize,
    /// Rotation of q and k.
    pub rope: RopeDescription,
    /// What multiplies q·k: `1 / sqrt(head_dim)`.
    pub attention_scale: f32,
    /// The output head is the embedding.
    pub tied_embeddings: bool,
    /// Which attention projections have a bias, in every layer.
    pub biases: AttentionBiases,
    /// Each head of q and k is normalised before it is rotated.
    pub qk_norm: bool,
    /// For each layer: a token sees itself and the `window - 1` before it; all before it if `None`.
    pub sliding_windows: Vec<Option<usize>>,
    /// What the served tensors are stored as, most bytes first.
    pub quantisation: Vec<TypeShare>,
    /// Bytes of the tensors that the forward pass reads; a tied embedding counts once.
    pub weight_bytes: usize,
    names: roles::RoleNames,
}

/// Which attention projections have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionBiases {
    /// On queries.
    pub query: bool,
    /// On keys.
    pub key: bool,
    /// On values.
    pub value: bool,
    /// On the output projection.
    pub output: bool,
}

/// How much of a model is stored as one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeShare {
    /// The type.
    pub ty: TensorType,
    /// Tensors of it.
    pub num_tensors: usize,
    /// Their bytes.
    pub byte_len: usize,
}

impl ModelDescription {
    /// The name of the tensor that plays `role`, if the model has it. A tied output head is the embedding.
    pub fn tensor_name(&self, role: Role) -> Option<&str> {
        let role = if role == Role::OutputHead && self.tied_embeddings { Role::TokenEmbedding } else { role };
        self.names.get(&role).map(String::as_str)
    }

    /// The shape of its KV blocks.
    pub const fn kv_layout(&self, numerics: Numerics) -> KvLayout {
        let element = match numerics {
            Numerics::Default => ElementType::F16,
            Numerics::Exact => ElementType::F32,
        };
        // Checked when the description was made: all below 2^32.
        KvLayout {
            num_layers: self.num_layers as u32,
            num_kv_heads: self.num_kv_heads as u32,
            key_dim: self.head_dim as u32,
            value_dim: self.head_dim as u32,
            element,
        }
    }

    /// KV memory that one token takes over all layers.
    pub const fn kv_bytes_per_token(&self, numerics: Numerics) -> usize {
        self.kv_layout(numerics).block_bytes() / BLOCK_TOKENS
    }
}
