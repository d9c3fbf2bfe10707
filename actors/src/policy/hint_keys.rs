//! Short names of prefixes, for routers: 64 bits for each full block and all blocks before it.
//!
//! A router names every block of every prompt, so its names must be quick to make: NH (UMAC, RFC 4418; here over 64-bit words, by which two
//! different blocks meet with a probability of 2^-64) makes 128 bits of a block's 64 bytes, and SipHash-1-3 of the tenant and these digests so
//! far is the key. Both are keyed by the cluster's secret: who does not know it can neither guess a key nor make two prompts collide, and a
//! collision costs a wrong guess of the router, no more. SipHash's state goes on from block to block, so a prompt is hashed once, not once
//! for each of its blocks. Of 32,768 tokens the keys take 25 us (`examples/router_bench.rs`), by SipHash-1-3 alone 41 us, by the 128-bit
//! BLAKE3 chain of [`super::prefix`] 341 us.

use relevo_wire::{BLOCK_TOKENS, TenantId, TokenId};

pub use relevo_wire::HintKey;

/// Makes the keys of one cluster: equal on all its nodes, and on no other cluster's.
#[derive(Clone, Copy)]
pub struct HintKeyer {
    /// NH's key, a word for each word of a block.
    block_key: [u64; BLOCK_WORDS],
    sip_key: [u64; 2],
}

/// The keys of one sequence, which grows.
#[derive(Clone, Debug)]
pub struct HintChain {
    keyer: HintKeyer,
    state: SipState,
    keys: Vec<HintKey>,
}

/// Says that what is derived from one secret for two uses never meets.
const PURPOSE: &[u8] = b"relevo hint keys v1\0";

/// A block's tokens in words of two.
const BLOCK_WORDS: usize = BLOCK_TOKENS / 2;

impl HintKeyer {
    /// The keyer of the cluster with this secret.
    pub fn new(secret: [u8; 32]) -> Self {
        let mut bytes = [0; 8 * (BLOCK_WORDS + 2)];
        blake3::Hasher::new_keyed(&secret).update(PURPOSE).finalize_xof().fill(&mut bytes);
        let (words, _) = bytes.as_chunks::<8>();
        let word = |index: usize| u64::from_le_bytes(words[index]);
        Self { block_key: std::array::from_fn(word), sip_key: [word(BLOCK_WORDS), word(BLOCK_WORDS + 1)] }
    }

    /// The chain of a tenant's sequence, before its first block.
    pub fn chain(&self, tenant: TenantId) -> HintChain {
        let mut state = SipState::new(self.sip_key);
        state.absorb(u64::from(tenant.0));
        HintChain { keyer: *self, state, keys: Vec::new() }
    }

    /// The keys of the full blocks of `tokens`.
    pub fn keys(&self, tenant: TenantId, tokens: &[TokenId]) -> Vec<HintKey> {
        let mut chain = self.chain(tenant);
        chain.extend(tokens);
        chain.keys
    }

    /// NH of a block: the sum of the products of its words, two by two, each plus its word of the key.
    fn digest(&self, block: &[TokenId; BLOCK_TOKENS]) -> u128 {
        let word = |index: usize| {
            let word = u64::from(block[2 * index]) | u64::from(block[2 * index + 1]) << 32;
            u128::from(word.wrapping_add(self.block_key[index]))
        };
        (0..BLOCK_WORDS / 2).fold(0, |sum: u128, pair| sum.wrapping_add(word(2 * pair) * word(2 * pair + 1)))
    }
}

impl Default for HintKeyer {
    /// That of a cluster without a secret.
    fn default() -> Self {
        Self::new([0; 32])
    }
}

impl std::fmt::Debug for HintKeyer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HintKeyer")
    }
}

impl HintChain {
    /// Appends the keys of the full blocks of `tokens` that it lacks. It has those of the leading blocks already.
    pub fn extend(&mut self, tokens: &[TokenId]) {
        let (blocks, _) = tokens.as_chunks::<BLOCK_TOKENS>();
        let missing = blocks.get(self.keys.len()..).unwrap_or_default();
        self.keys.reserve(missing.len());
        for block in missing {
            let digest = self.keyer.digest(block);
            self.state.absorb(low(digest));
            self.state.absorb(low(digest >> 64));
            self.keys.push(HintKey(self.state.finish()));
        }
    }

    /// Those of the full blocks so far.
    pub fn keys(&self) -> &[HintKey] {
        &self.keys
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
const fn low(digest: u128) -> u64 {
    digest as u64
}

/// SipHash-1-3 (Aumasson and Bernstein, 2012, with one round for each word and three at the end, as the standard library's maps use it) of
/// whole words.
#[derive(Clone, Copy)]
struct SipState {
    v: [u64; 4],
    num_words: u64,
}

impl SipState {
    const fn new([k0, k1]: [u64; 2]) -> Self {
        let v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        Self { v, num_words: 0 }
    }

    #[inline]
    const fn absorb(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.v[0] ^= word;
        self.num_words += 1;
    }

    /// Of the words so far, of which there may be more later.
    #[inline]
    const fn finish(mut self) -> u64 {
        // The last word has the length in bytes in its highest byte, and the bytes behind the last whole word below: here none.
        self.absorb(self.num_words << 59);
        self.v[2] ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3]
    }

    #[inline]
    const fn round(&mut self) {
        let [v0, v1, v2, v3] = &mut self.v;
        *v0 = v0.wrapping_add(*v1);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v0 = v0.rotate_left(32);
        *v2 = v2.wrapping_add(*v3);
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.wrapping_add(*v3);
        *v3 = v3.rotate_left(21) ^ *v0;
        *v2 = v2.wrapping_add(*v1);
        *v1 = v1.rotate_left(17) ^ *v2;
        *v2 = v2.rotate_left(32);
    }
}

impl std::fmt::Debug for SipState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SipState").field("num_words", &self.num_words).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::hash::{DefaultHasher, Hasher};

    use super::*;

    #[test]
    fn the_state_is_that_of_the_standard_librarys_siphash() {
        let (mut ours, mut theirs) = (SipState::new([0, 0]), DefaultHasher::new());
        for word in (0..70_u64).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            ours.absorb(word);
            theirs.write(&word.to_le_bytes());
            assert_eq!(ours.finish(), theirs.finish());
        }
    }

    #[test]
    fn keys_depend_on_the_secret_the_tenant_and_every_token_so_far() {
        let tokens: Vec<TokenId> = (0..100).collect();
        let keyer = HintKeyer::new([1; 32]);
        let keys = keyer.keys(TenantId(1), &tokens);
        assert_eq!(keys.len(), 6);
        let mut seen: BTreeSet<_> = keys.iter().copied().collect();
        assert_eq!(seen.len(), 6);
        for other in [keyer.keys(TenantId(2), &tokens), HintKeyer::new([2; 32]).keys(TenantId(1), &tokens)] {
            assert!(other.into_iter().all(|key| seen.insert(key)));
        }
        for place in 0..96 {
            let mut changed = tokens.clone();
            changed[place] += 1000;
            let changed = keyer.keys(TenantId(1), &changed);
            assert_eq!(changed[..place / 16], keys[..place / 16]);
            assert!(changed[place / 16..].iter().all(|&key| seen.insert(key)), "token {place}");
        }
    }

    #[test]
    fn a_chain_that_grows_has_the_keys_of_the_whole() {
        let tokens: Vec<TokenId> = (0..200).collect();
        let keyer = HintKeyer::new([1; 32]);
        let mut chain = keyer.chain(TenantId(3));
        for end in [0, 5, 16, 16, 50, 129, 200, 3] {
            chain.extend(&tokens[..end]);
        }
        assert_eq!(chain.keys(), keyer.keys(TenantId(3), &tokens));
    }

    #[test]
    fn keys_stay_what_they_are_so_that_all_nodes_agree() {
        let keys = HintKeyer::new([5; 32]).keys(TenantId(7), &(0..32).collect::<Vec<_>>());
        assert_eq!(keys, [0xc7a2_0d7a_bf41_69d0, 0xd2b6_62c4_ce6c_d691].map(HintKey));
    }
}
