//! From numbers and a tensor list to a checked description.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::roles::{Naming, RoleNames};
use super::{
    Architecture, AttentionBiases, DescriptionError, ModelDescription, Role, RopeDescription, RopeScaling, TypeShare,
};
use crate::weights::{StoredType, TensorEntry, TensorType};

/// Far above any model; keeps every product of two of them within 63 bits.
const MAX_DIMENSION: usize = 1 << 24;
/// Far above any model; a description has a dozen names for each layer.
pub(super) const MAX_LAYERS: usize = 4096;

/// What a file says of a model, before it is held against the tensors.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) architecture: Architecture,
    pub(super) hidden_size: usize,
    pub(super) num_layers: usize,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) ffn_size: usize,
    pub(super) norm_epsilon: f64,
    pub(super) max_context: usize,
    pub(super) rope: RopeDescription,
    /// `None`: tied if there is no output head.
    pub(super) tied_embeddings: Option<bool>,
    pub(super) sliding_windows: Windows,
}

/// Which layers see how far.
pub(super) enum Windows {
    Same(Option<usize>),
    PerLayer(Vec<Option<usize>>),
}

/// Where a number was read, for messages: the file's own name of it.
pub(super) struct KeyNames {
    pub(super) hidden_size: String,
    pub(super) num_layers: String,
    pub(super) num_heads: String,
    pub(super) num_kv_heads: String,
    pub(super) head_dim: String,
    pub(super) ffn_size: String,
    pub(super) norm_epsilon: String,
    pub(super) max_context: String,
    pub(super) rotary_dim: String,
    pub(super) rope_theta: String,
    pub(super) rope_scaling: String,
}

/// Holds the facts against each other and against the tensors.
pub(super) fn assemble(
    facts: Facts,
    keys: &KeyNames,
    naming: Naming,
    tensors: &[&TensorEntry],
) -> Result<ModelDescription, DescriptionError> {
    check_ranges(&facts, keys)?;
    let mut found = Found::new(naming, tensors);
    let embedding = found.entry(Role::TokenEmbedding)?;
    let vocab_size = embedding.shape.first().copied().unwrap_or(0);
    let tied_embeddings = facts.tied_embeddings.unwrap_or_else(|| !found.has(Role::OutputHead));
    found.take(Role::TokenEmbedding, &[vocab_size, facts.hidden_size])?;
    found.take(Role::OutputNorm, &[facts.hidden_size])?;
    if !tied_embeddings {
        found.take(Role::OutputHead, &[vocab_size, facts.hidden_size])?;
    }
    found.take_if_there(Role::RopeFactors, &[facts.rope.rotary_dim / 2])?;
    let biases = AttentionBiases {
        query: found.has(Role::QueryBias(0)),
        key: found.has(Role::KeyBias(0)),
        value: found.has(Role::ValueBias(0)),
        output: found.has(Role::AttentionOutputBias(0)),
    };
    let qk_norm = found.has(Role::QueryNorm(0));
    for layer in 0..facts.num_layers {
        found.take_layer(layer, &facts, biases, qk_norm)?;
    }
    found.refuse_leftovers(tied_embeddings)?;
    let (names, quantisation) = found.finish();
    let weight_bytes = quantisation.iter().map(|share| share.byte_len).sum();
    let sliding_windows = match facts.sliding_windows {
        Windows::Same(window) => vec![window; facts.num_layers],
        Windows::PerLayer(windows) => windows,
    };
    Ok(ModelDescription {
        name: facts.name,
        architecture: facts.architecture,
        vocab_size,
        hidden_size: facts.hidden_size,
        num_layers: facts.num_layers,
        num_heads: facts.num_heads,
        num_kv_heads: facts.num_kv_heads,
        head_dim: facts.head_dim,
        ffn_size: facts.ffn_size,
        norm_epsilon: facts.norm_epsilon as f32,
        max_context: facts.max_context,
        rope: facts.rope,
        attention_scale: (1.0 / (facts.head_dim as f64).sqrt()) as f32,
        tied_embeddings,
        biases,
        qk_norm,
        sliding_windows,
        quantisation,
        weight_bytes,
        names,
    })
}

fn out_of_range(key: &str, value: impl ToString, expected: impl Into<String>) -> DescriptionError {
    DescriptionError::OutOfRange { key: key.to_owned(), value: value.to_string(), expected: expected.into() }
}

fn check_ranges(facts: &Facts, keys: &KeyNames) -> Result<(), DescriptionError> {
    let counts = [
        (&keys.hidden_size, facts.hidden_size, MAX_DIMENSION),
        (&keys.num_layers, facts.num_layers, MAX_LAYERS),
        (&keys.num_heads, facts.num_heads, MAX_DIMENSION),
        (&keys.num_kv_heads, facts.num_kv_heads, MAX_DIMENSION),
        (&keys.head_dim, facts.head_dim, MAX_DIMENSION),
        (&keys.ffn_size, facts.ffn_size, MAX_DIMENSION),
        (&keys.max_context, facts.max_context, u32::MAX as usize),
    ];
    for (key, value, most) in counts {
        if value == 0 || value > most {
            return Err(out_of_range(key, value, format!("1 to {most}")));
        }
    }
    if !facts.num_heads.is_multiple_of(facts.num_kv_heads) {
        return Err(out_of_range(&keys.num_kv_heads, facts.num_kv_heads, format!("a divisor of {}", facts.num_heads)));
    }
    if !(facts.norm_epsilon >= 0.0 && facts.norm_epsilon < 1.0) {
        return Err(out_of_range(&keys.norm_epsilon, facts.norm_epsilon, "0 to 1"));
    }
    check_rope(facts, keys)
}

fn check_rope(facts: &Facts, keys: &KeyNames) -> Result<(), DescriptionError> {
    let rope = &facts.rope;
    if rope.rotary_dim == 0 || rope.rotary_dim > facts.head_dim || !rope.rotary_dim.is_multiple_of(2) {
        let expected = format!("an even number up to {}, the width of a head", facts.head_dim);
        return Err(out_of_range(&keys.rotary_dim, rope.rotary_dim, expected));
    }
    if !(rope.theta > 1.0 && rope.theta.is_finite()) {
        return Err(out_of_range(&keys.rope_theta, rope.theta, "above 1"));
    }
    let positive = |value: f64| value > 0.0 && value.is_finite();
    let sound = match &rope.scaling {
        RopeScaling::None => true,
        RopeScaling::Linear { factor } => positive(*factor),
        &RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => {
            [factor, low_frequency_factor, original_context].into_iter().all(positive)
                && high_frequency_factor > low_frequency_factor
                && high_frequency_factor.is_finite()
        }
        RopeScaling::Yarn(yarn) => {
            [yarn.factor, yarn.original_context, yarn.beta_fast, yarn.beta_slow, yarn.attention_factor]
                .into_iter()
                .all(positive)
        }
    };
    if sound {
        Ok(())
    } else {
        Err(out_of_range(&keys.rope_scaling, format!("{:?}", rope.scaling), "positive factors"))
    }
}

/// The tensors of a model while roles are given out.
struct Found<'a> {
    naming: Naming,
    tensors: &'a [&'a TensorEntry],
    by_name: HashMap<&'a str, &'a TensorEntry>,
    taken: HashSet<&'a str>,
    names: RoleNames,
    shares: BTreeMap<&'static str, TypeShare>,
}

impl<'a> Found<'a> {
    fn new(naming: Naming, tensors: &'a [&'a TensorEntry]) -> Self {
        let by_name = tensors.iter().map(|&tensor| (tensor.name.as_str(), tensor)).collect();
        let (taken, names, shares) = Default::default();
        Self { naming, tensors, by_name, taken, names, shares }
    }

    fn has(&self, role: Role) -> bool {
        self.by_name.contains_key(self.naming.name(role).as_str())
    }

    fn entry(&self, role: Role) -> Result<&'a TensorEntry, DescriptionError> {
        let name = self.naming.name(role);
        self.by_name.get(name.as_str()).copied().ok_or(DescriptionError::MissingTensor { name })
    }

    /// Gives `role` to its tensor, which must be there and of this shape.
    fn take(&mut self, role: Role, shape: &[usize]) -> Result<(), DescriptionError> {
        let entry = self.entry(role)?;
        if entry.shape != shape {
            let (found, expected) = (entry.shape.clone(), shape.to_vec());
            return Err(DescriptionError::TensorShape { name: entry.name.clone(), found, expected });
        }
        let wrong_type = |found, expected| DescriptionError::TensorType { name: entry.name.clone(), found, expected };
        let StoredType::Served(ty) = entry.ty else {
            return Err(wrong_type(entry.ty.name(), TensorType::SERVED));
        };
        if shape.len() == 1 && !ty.is_float() {
            return Err(wrong_type(ty.name(), "F32, F16 or BF16"));
        }
        self.taken.insert(entry.name.as_str());
        self.names.insert(role, entry.name.clone());
        let share = self.shares.entry(ty.name()).or_insert(TypeShare { ty, num_tensors: 0, byte_len: 0 });
        share.num_tensors += 1;
        share.byte_len += entry.byte_len;
        Ok(())
    }

    fn take_if_there(&mut self, role: Role, shape: &[usize]) -> Result<(), DescriptionError> {
        if self.has(role) { self.take(role, shape) } else { Ok(()) }
    }

    fn take_layer(
        &mut self,
        layer: usize,
        facts: &Facts,
        biases: AttentionBiases,
        qk_norm: bool,
    ) -> Result<(), DescriptionError> {
        let (hidden, ffn) = (facts.hidden_size, facts.ffn_size);
        let query = facts.num_heads * facts.head_dim;
        let key = facts.num_kv_heads * facts.head_dim;
        self.take(Role::AttentionNorm(layer), &[hidden])?;
        self.take(Role::Query(layer), &[query, hidden])?;
        self.take(Role::Key(layer), &[key, hidden])?;
        self.take(Role::Value(layer), &[key, hidden])?;
        self.take(Role::AttentionOutput(layer), &[hidden, query])?;
        self.take(Role::FeedForwardNorm(layer), &[hidden])?;
        self.take(Role::Gate(layer), &[ffn, hidden])?;
        self.take(Role::Up(layer), &[ffn, hidden])?;
        self.take(Role::Down(layer), &[hidden, ffn])?;
        let optional = [
            (biases.query, Role::QueryBias(layer), query),
            (biases.key, Role::KeyBias(layer), key),
            (biases.value, Role::ValueBias(layer), key),
            (biases.output, Role::AttentionOutputBias(layer), hidden),
            (qk_norm, Role::QueryNorm(layer), facts.head_dim),
            (qk_norm, Role::KeyNorm(layer), facts.head_dim),
        ];
        for (there, role, width) in optional {
            if there {
                self.take(role, &[width])?;
            }
        }
        Ok(())
    }

    /// A tensor without a role means that the model computes something that we would leave out.
    fn refuse_leftovers(&self, tied_embeddings: bool) -> Result<(), DescriptionError> {
        // Tables that old converters wrote and that are computed, not read; and a copy of a tied embedding.
        let is_idle = |name: &str| {
            name.ends_with("rotary_emb.inv_freq")
                || name.ends_with("attn_rot_embd")
                || name.ends_with("attn_rot_embd.weight")
                || (tied_embeddings && name == self.naming.name(Role::OutputHead))
        };
        let leftover = self.tensors.iter().find(|tensor| {
            let name = tensor.name.as_str();
            !self.taken.contains(name) && !is_idle(name)
        });
        match leftover {
            None => Ok(()),
            Some(tensor) => Err(DescriptionError::NotServed {
                what: format!("tensor {}", tensor.name),
                reason: "the dense architectures have no use for it, so the model must be of another kind".to_owned(),
            }),
        }
    }

    fn finish(self) -> (RoleNames, Vec<TypeShare>) {
        let mut shares: Vec<TypeShare> = self.shares.into_values().collect();
        shares.sort_by_key(|share| std::cmp::Reverse(share.byte_len));
        (self.names, shares)
    }
}
