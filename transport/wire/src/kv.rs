//! The shape of the KV cache: blocks of 16 tokens, per layer keys then values.

/// Tokens of a KV block.
///
/// 16 is what vLLM and the AVX-512 lane count share: a row of keys for one `head_dim` index is one register.
pub const BLOCK_TOKENS: usize = 16;

/// Index of a block in a device's pool.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
)]
pub struct BlockIndex(pub u32);

/// Index of a transformer layer, from 0.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
)]
pub struct LayerIndex(pub u32);

/// How one number lies in memory.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
}

impl ElementType {
    /// Bytes of one element.
    pub const fn byte_len(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// What a KV block of one layer holds, so that two pools can tell whether they fit each other.
///
/// A (layer, block) is contiguous: keys `[num_kv_heads, key_dim, 16 tokens]`, then values
/// `[num_kv_heads, 16 tokens, value_dim]`, both of `element`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
pub struct KvLayout {
    /// Transformer layers.
    pub num_layers: u32,
    /// Key/value heads of a layer.
    pub num_kv_heads: u32,
    /// Elements of one key head.
    pub key_dim: u32,
    /// Elements of one value head.
    pub value_dim: u32,
    /// Type of every element.
    pub element: ElementType,
}

impl KvLayout {
    /// Elements of the keys of one (layer, block).
    pub const fn key_elements(&self) -> usize {
        self.num_kv_heads as usize * self.key_dim as usize * BLOCK_TOKENS
    }

    /// Elements of the values of one (layer, block).
    pub const fn value_elements(&self) -> usize {
        self.num_kv_heads as usize * self.value_dim as usize * BLOCK_TOKENS
    }

    /// Bytes of one (layer, block): keys, then values.
    pub const fn layer_block_bytes(&self) -> usize {
        (self.key_elements() + self.value_elements()) * self.element.byte_len()
    }

    /// The same of a layout that a peer has sent, which may be anything.
    pub fn checked_layer_block_bytes(&self) -> Option<usize> {
        let elements = (self.key_dim as usize).checked_add(self.value_dim as usize)?;
        let elements = elements.checked_mul(self.num_kv_heads as usize)?.checked_mul(BLOCK_TOKENS)?;
        elements.checked_mul(self.element.byte_len())
    }

    /// Bytes of one block over all layers.
    pub const fn block_bytes(&self) -> usize {
        self.layer_block_bytes() * self.num_layers as usize
    }
}

/// Blocks that `num_tokens` tokens need.
pub const fn blocks_for_tokens(num_tokens: usize) -> usize {
    num_tokens.div_ceil(BLOCK_TOKENS)
}
