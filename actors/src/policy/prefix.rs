//! Names of prefixes: one key for each full block of 16 tokens and everything before it.
//!
//! Two sequences share a block if and only if they have the same key, which takes the same tenant, the same cluster, the same model and
//! numerics, and the same tokens from the first to the block's last. Keys are equal on all nodes of a cluster.

use std::hash::{BuildHasherDefault, Hasher};

use relevo_wire::{BLOCK_TOKENS, TenantId, TokenId};

/// Names a full block together with all blocks before it.
///
/// 128 bits of a keyed hash: who does not know the cluster's secret can neither guess nor collide another tenant's keys, and by accident
/// two of 2^40 blocks meet with a probability of 2^-49. Tokens are compared on a hit all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixKey(pub u128);

/// What a cluster's keys depend on, beside the tenant and the tokens.
#[derive(Clone)]
pub struct PrefixIdentity {
    /// The cluster's secret.
    pub secret: [u8; 32],
    /// What decides the bytes of a KV block: model revision, numerics, KV element type, adapter.
    pub content: String,
}

/// One tenant's key of the hash.
#[derive(Clone)]
pub struct PrefixSalt([u8; 32]);

/// Says that the salts of two uses of one secret never meet.
const PURPOSE: &[u8] = b"relevo prefix salt v1\0";

impl PrefixIdentity {
    /// The tenant's salt. Keyed BLAKE3 is a pseudo-random function, so it takes the place of HKDF's expand step (RFC 5869).
    pub fn salt(&self, tenant: TenantId) -> PrefixSalt {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(PURPOSE).update(&tenant.0.to_le_bytes()).update(self.content.as_bytes());
        PrefixSalt(*hasher.finalize().as_bytes())
    }
}

impl std::fmt::Debug for PrefixIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrefixIdentity").field("content", &self.content).finish_non_exhaustive()
    }
}

impl PrefixSalt {
    /// Key of a full block, given its predecessor's key (`None` for the first).
    pub fn key(&self, parent: Option<PrefixKey>, tokens: &[TokenId; BLOCK_TOKENS]) -> PrefixKey {
        // Ids of any vocabulary there is fit three bytes: then a block and its parent fill one block of BLAKE3 instead of beginning a second. What is
        // longer is another input.
        match tokens.iter().all(|token| *token < 1 << 24) {
            true => self.hash::<3, { 16 + 3 * BLOCK_TOKENS }>(parent, tokens),
            false => self.hash::<4, { 16 + 4 * BLOCK_TOKENS }>(parent, tokens),
        }
    }

    fn hash<const TOKEN_BYTES: usize, const INPUT_BYTES: usize>(
        &self,
        parent: Option<PrefixKey>,
        tokens: &[TokenId; BLOCK_TOKENS],
    ) -> PrefixKey {
        let mut input = [0_u8; INPUT_BYTES];
        input[..16].copy_from_slice(&parent.map_or(0, |key| key.0).to_le_bytes());
        for (bytes, token) in input[16..].chunks_exact_mut(TOKEN_BYTES).zip(tokens) {
            bytes.copy_from_slice(&token.to_le_bytes()[..TOKEN_BYTES]);
        }
        let mut key = [0_u8; 16];
        key.copy_from_slice(&blake3::keyed_hash(&self.0, &input).as_bytes()[..16]);
        PrefixKey(u128::from_le_bytes(key))
    }

    /// Appends to `keys` those of the full blocks of `tokens` that it lacks. `keys` holds the leading ones already.
    pub fn extend(&self, keys: &mut Vec<PrefixKey>, tokens: &[TokenId]) {
        let (blocks, _) = tokens.as_chunks::<BLOCK_TOKENS>();
        for block in blocks.iter().skip(keys.len()) {
            let key = self.key(keys.last().copied(), block);
            keys.push(key);
        }
    }
}

impl std::fmt::Debug for PrefixSalt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrefixSalt")
    }
}

/// Takes a key, of 128 or 64 bits, for its own hash: it is one already.
#[derive(Default)]
pub struct PrefixKeyHasher(u64);

/// [`PrefixKeyHasher`] for maps.
pub type BuildPrefixKeyHasher = BuildHasherDefault<PrefixKeyHasher>;

impl Hasher for PrefixKeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "64 of the 128 random bits are plenty for a table")]
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_where_a_token_or_what_came_before_does_however_large_ids_are() {
        let salt = PrefixIdentity { secret: [7; 32], content: "a model".to_owned() }.salt(TenantId(1));
        let mut keys = std::collections::BTreeSet::new();
        let blocks = [0, 1, 1 << 23, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, u32::MAX].map(|token| {
            let mut block = [5; BLOCK_TOKENS];
            block[15] = token;
            block
        });
        for parent in [None, Some(PrefixKey(1)), Some(PrefixKey(1 << 127))] {
            keys.extend(blocks.iter().map(|block| salt.key(parent, block)));
        }
        assert_eq!(keys.len(), 3 * blocks.len());
    }
}
