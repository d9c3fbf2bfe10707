//! What a tensor is for, whatever its file calls it.

use std::collections::HashMap;

/// The part that a tensor plays in the forward pass. Layers count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `[vocab, hidden]`.
    TokenEmbedding,
    /// `[hidden]`, before the output head.
    OutputNorm,
    /// `[vocab, hidden]`; the embedding itself where the model ties them.
    OutputHead,
    /// `[rotary_dim / 2]`, divides the rope angles; GGUF's `rope_freqs.weight`.
    RopeFactors,
    /// `[hidden]`, before attention.
    AttentionNorm(usize),
    /// `[num_heads * head_dim, hidden]`.
    Query(usize),
    /// `[num_kv_heads * head_dim, hidden]`.
    Key(usize),
    /// `[num_kv_heads * head_dim, hidden]`.
    Value(usize),
    /// `[hidden, num_heads * head_dim]`.
    AttentionOutput(usize),
    /// `[num_heads * head_dim]`.
    QueryBias(usize),
    /// `[num_kv_heads * head_dim]`.
    KeyBias(usize),
    /// `[num_kv_heads * head_dim]`.
    ValueBias(usize),
    /// `[hidden]`.
    AttentionOutputBias(usize),
    /// `[head_dim]`, RMSNorm of each query head.
    QueryNorm(usize),
    /// `[head_dim]`, RMSNorm of each key head.
    KeyNorm(usize),
    /// `[hidden]`, before the feed-forward part.
    FeedForwardNorm(usize),
    /// `[ffn, hidden]`.
    Gate(usize),
    /// `[ffn, hidden]`.
    Up(usize),
    /// `[hidden, ffn]`.
    Down(usize),
}

/// How a kind of file names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// `blk.0.attn_q.weight`.
    Gguf,
    /// `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
}

impl Naming {
    /// The name of the tensor that plays `role`.
    pub(super) fn name(self, role: Role) -> String {
        let layer = |layer: usize, gguf: &str, hugging_face: &str| match self {
            Self::Gguf => format!("blk.{layer}.{gguf}"),
            Self::HuggingFace => format!("model.layers.{layer}.{hugging_face}"),
        };
        let whole = |gguf: &str, hugging_face: &str| match self {
            Self::Gguf => gguf.to_owned(),
            Self::HuggingFace => hugging_face.to_owned(),
        };
        match role {
            Role::TokenEmbedding => whole("token_embd.weight", "model.embed_tokens.weight"),
            Role::OutputNorm => whole("output_norm.weight", "model.norm.weight"),
            Role::OutputHead => whole("output.weight", "lm_head.weight"),
            Role::RopeFactors => whole("rope_freqs.weight", "rope_freqs.weight"),
            Role::AttentionNorm(l) => layer(l, "attn_norm.weight", "input_layernorm.weight"),
            Role::Query(l) => layer(l, "attn_q.weight", "self_attn.q_proj.weight"),
            Role::Key(l) => layer(l, "attn_k.weight", "self_attn.k_proj.weight"),
            Role::Value(l) => layer(l, "attn_v.weight", "self_attn.v_proj.weight"),
            Role::AttentionOutput(l) => layer(l, "attn_output.weight", "self_attn.o_proj.weight"),
            Role::QueryBias(l) => layer(l, "attn_q.bias", "self_attn.q_proj.bias"),
            Role::KeyBias(l) => layer(l, "attn_k.bias", "self_attn.k_proj.bias"),
            Role::ValueBias(l) => layer(l, "attn_v.bias", "self_attn.v_proj.bias"),
            Role::AttentionOutputBias(l) => layer(l, "attn_output.bias", "self_attn.o_proj.bias"),
            Role::QueryNorm(l) => layer(l, "attn_q_norm.weight", "self_attn.q_norm.weight"),
            Role::KeyNorm(l) => layer(l, "attn_k_norm.weight", "self_attn.k_norm.weight"),
            Role::FeedForwardNorm(l) => layer(l, "ffn_norm.weight", "post_attention_layernorm.weight"),
            Role::Gate(l) => layer(l, "ffn_gate.weight", "mlp.gate_proj.weight"),
            Role::Up(l) => layer(l, "ffn_up.weight", "mlp.up_proj.weight"),
            Role::Down(l) => layer(l, "ffn_down.weight", "mlp.down_proj.weight"),
        }
    }
}

/// Names by role; only roles that the model has.
pub(super) type RoleNames = HashMap<Role, String>;
