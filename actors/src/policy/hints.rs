//! What a router knows of each worker's prefix cache: what the worker says that it holds, and the prompts that it has in hand.
//!
//! A hint, never a promise: the worker looks for itself, and a wrong guess costs a recompute. Keys are chained over whole blocks, so that a
//! key stands for everything before it; a collision of two 64-bit keys costs no more than a wrong guess.
//!
//! **Invariant:** once everything that a worker has said is heard, no block is believed to be held there that is not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hasher;

use relevo_wire::{BLOCK_TOKENS, PrefixBatch, TenantId, TokenId};

/// Names a full block together with all blocks before it, to routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HintKey(pub u64);

/// Appends to `keys` those of the full blocks of `tokens` that it lacks. `keys` holds the leading ones already.
pub fn extend_keys(keys: &mut Vec<HintKey>, tenant: TenantId, tokens: &[TokenId]) {
    for block in tokens.chunks_exact(BLOCK_TOKENS).skip(keys.len()) {
        // The standard hasher with its fixed keys: equal on every run, so that a replayed trace routes the same.
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write_u64(keys.last().map_or(u64::from(tenant.0), |key| key.0));
        block.iter().for_each(|&token| hasher.write_u32(token));
        keys.push(HintKey(hasher.finish()));
    }
}

/// What has changed in a worker's prefix cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixChange {
    /// Blocks that it holds now.
    pub added: Vec<HintKey>,
    /// Blocks that it holds no more.
    pub removed: Vec<HintKey>,
}

impl From<&PrefixChange> for PrefixBatch {
    fn from(change: &PrefixChange) -> Self {
        let numbers = |keys: &[HintKey]| keys.iter().map(|key| key.0).collect();
        Self { added: numbers(&change.added), removed: numbers(&change.removed) }
    }
}

impl From<PrefixBatch> for PrefixChange {
    fn from(batch: PrefixBatch) -> Self {
        let keys = |numbers: Vec<u64>| numbers.into_iter().map(HintKey).collect();
        Self { added: keys(batch.added), removed: keys(batch.removed) }
    }
}

/// What a worker has yet to say of its prefix cache: of each block the last thing that happened to it.
#[derive(Clone, Debug, Default)]
pub struct PrefixNews(BTreeMap<HintKey, bool>);

impl PrefixNews {
    /// A block is held from now on, or no more.
    pub fn note(&mut self, key: HintKey, is_held: bool) {
        self.0.insert(key, is_held);
    }

    /// Blocks that something happened to.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it, to be said.
    pub fn take(&mut self) -> PrefixChange {
        let mut change = PrefixChange::default();
        for (key, is_held) in std::mem::take(&mut self.0) {
            if is_held { &mut change.added } else { &mut change.removed }.push(key);
        }
        change
    }
}

/// The blocks that one worker probably holds.
#[derive(Clone, Debug, Default)]
pub struct PrefixHints {
    /// It has said so.
    held: HashSet<HintKey>,
    /// Of the prompts that it was sent and is not done with, with their number: held already, or about to be.
    in_hand: HashMap<HintKey, u32>,
}

impl PrefixHints {
    /// Leading tokens of the prompt with these keys that are probably held.
    pub fn cached_tokens(&self, keys: &[HintKey]) -> usize {
        let is_there = |key: &&HintKey| self.held.contains(*key) || self.in_hand.contains_key(*key);
        keys.iter().take_while(is_there).count() * BLOCK_TOKENS
    }

    /// A prompt with these keys is sent there.
    pub fn sent(&mut self, keys: &[HintKey]) {
        for &key in keys {
            *self.in_hand.entry(key).or_default() += 1;
        }
    }

    /// A prompt that was sent there is over. What it has left behind the worker says.
    pub fn over(&mut self, keys: &[HintKey]) {
        for key in keys {
            if let Some(count) = self.in_hand.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.in_hand.remove(key);
                }
            }
        }
    }

    /// The worker speaks.
    pub fn heard(&mut self, change: &PrefixChange) {
        self.held.extend(&change.added);
        for key in &change.removed {
            self.held.remove(key);
        }
    }

    /// The worker's pool was made anew.
    pub fn clear(&mut self) {
        self.held.clear();
    }

    /// Whether it has said that it holds this block.
    pub fn holds(&self, key: HintKey) -> bool {
        self.held.contains(&key)
    }

    /// How many blocks it has said that it holds.
    pub fn num_held(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(tenant: u32, tokens: &[TokenId]) -> Vec<HintKey> {
        let mut keys = Vec::new();
        extend_keys(&mut keys, TenantId(tenant), tokens);
        keys
    }

    #[test]
    fn a_prompt_hits_as_far_as_it_agrees_with_one_that_is_in_hand() {
        let mut hints = PrefixHints::default();
        let sent: Vec<u32> = (0..100).collect();
        hints.sent(&keys(1, &sent));
        let mut other = sent.clone();
        other[50] = 7;
        assert_eq!(hints.cached_tokens(&keys(1, &sent)), 96);
        assert_eq!(hints.cached_tokens(&keys(1, &other)), 48);
        assert_eq!(hints.cached_tokens(&keys(2, &sent)), 0);
    }

    #[test]
    fn what_is_over_leaves_what_the_worker_says() {
        let mut hints = PrefixHints::default();
        let prompt: Vec<u32> = (0..64).collect();
        let keys = keys(0, &prompt);
        hints.sent(&keys);
        hints.sent(&keys);
        hints.over(&keys);
        assert_eq!(hints.cached_tokens(&keys), 64, "the other one is still in hand");
        hints.heard(&PrefixChange { added: keys[..3].to_vec(), removed: Vec::new() });
        hints.over(&keys);
        assert_eq!(hints.cached_tokens(&keys), 48);
        hints.heard(&PrefixChange { added: Vec::new(), removed: vec![keys[1]] });
        assert_eq!(hints.cached_tokens(&keys), 16);
        hints.clear();
        assert_eq!(hints.cached_tokens(&keys), 0);
    }

    #[test]
    fn of_a_block_that_comes_and_goes_the_last_is_said() {
        let mut news = PrefixNews::default();
        news.note(HintKey(1), true);
        news.note(HintKey(2), false);
        news.note(HintKey(1), false);
        news.note(HintKey(2), true);
        assert_eq!(news.take(), PrefixChange { added: vec![HintKey(2)], removed: vec![HintKey(1)] });
        assert!(news.is_empty());
    }
}
