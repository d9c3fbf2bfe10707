//! What a router believes that each worker's prefix cache holds: the prompts that it sent there lately.
//!
//! A hint, never a promise: the worker looks for itself, and a wrong guess costs a recompute. Keys are chained over whole blocks, so that a
//! key stands for everything before it; a collision of two 64-bit keys costs no more than a wrong guess.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;

use relevo_wire::{BLOCK_TOKENS, TenantId, TokenId};

/// The chained key of each whole block of `prompt`.
pub fn block_keys(tenant: TenantId, prompt: &[TokenId]) -> Vec<u64> {
    let mut key = u64::from(tenant.0);
    prompt
        .chunks_exact(BLOCK_TOKENS)
        .map(|block| {
            // The standard hasher with its fixed keys: equal on every run, so that a replayed trace routes the same.
            let mut hasher = std::hash::DefaultHasher::new();
            hasher.write_u64(key);
            block.iter().for_each(|&token| hasher.write_u32(token));
            key = hasher.finish();
            key
        })
        .collect()
}

/// The blocks that one worker probably holds, the least recently sent forgotten first.
#[derive(Clone, Debug)]
pub struct PrefixHints {
    capacity: usize,
    tick: u64,
    last_sent: HashMap<u64, u64>,
    by_age: BTreeMap<u64, u64>,
}

impl PrefixHints {
    /// Remembers at most `capacity` blocks.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, tick: 0, last_sent: HashMap::new(), by_age: BTreeMap::new() }
    }

    /// Leading tokens of the prompt with these keys that are probably held.
    pub fn cached_tokens(&self, keys: &[u64]) -> usize {
        keys.iter().take_while(|key| self.last_sent.contains_key(key)).count() * BLOCK_TOKENS
    }

    /// A prompt with these keys was sent there.
    pub fn sent(&mut self, keys: &[u64]) {
        // Last block first, so that a chain is forgotten from its end.
        for &key in keys.iter().rev() {
            self.tick += 1;
            if let Some(age) = self.last_sent.insert(key, self.tick) {
                self.by_age.remove(&age);
            }
            self.by_age.insert(self.tick, key);
        }
        while self.last_sent.len() > self.capacity {
            let Some((_, key)) = self.by_age.pop_first() else { return };
            self.last_sent.remove(&key);
        }
    }

    /// The worker's pool was made anew.
    pub fn clear(&mut self) {
        self.last_sent.clear();
        self.by_age.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_hits_as_far_as_it_agrees_with_one_sent_before() {
        let mut hints = PrefixHints::new(100);
        let sent: Vec<u32> = (0..100).collect();
        hints.sent(&block_keys(TenantId(1), &sent));
        let mut other = sent.clone();
        other[50] = 7;
        assert_eq!(hints.cached_tokens(&block_keys(TenantId(1), &sent)), 96);
        assert_eq!(hints.cached_tokens(&block_keys(TenantId(1), &other)), 48);
        assert_eq!(hints.cached_tokens(&block_keys(TenantId(2), &sent)), 0);
    }

    #[test]
    fn beyond_its_bound_it_forgets_the_oldest_prompt_from_its_end() {
        let mut hints = PrefixHints::new(6);
        let (first, second) = ((0..64).collect::<Vec<u32>>(), (100..164).collect::<Vec<u32>>());
        hints.sent(&block_keys(TenantId(0), &first));
        hints.sent(&block_keys(TenantId(0), &second));
        assert_eq!(hints.cached_tokens(&block_keys(TenantId(0), &second)), 64);
        assert_eq!(hints.cached_tokens(&block_keys(TenantId(0), &first)), 32);
        hints.clear();
        assert_eq!(hints.cached_tokens(&block_keys(TenantId(0), &second)), 0);
    }
}
