//! What a router knows of each worker's prefix cache: what the worker has said that it holds.
//!
//! A hint, never a promise: the worker looks for itself, and a wrong guess costs a recompute.
//!
//! **Invariant:** a router that has missed nothing knows exactly what the worker held when it made the last batch; one that has missed
//! something knows nothing until a snapshot is complete. As a worker never gives up a block before those that follow it (see
//! [`super::eviction`]), whoever knows a block knows all before it, so the end of what is held is found by bisection.

use std::collections::HashSet;

use relevo_wire::BLOCK_TOKENS;

use super::hint_keys::HintKey;
use super::prefix::BuildPrefixKeyHasher;
use super::prefix_news::{PrefixBatch, PrefixWords};

/// What one worker holds in its present epoch.
#[derive(Clone, Debug, Default)]
pub struct PrefixHints {
    held: HashSet<HintKey, BuildPrefixKeyHasher>,
    /// The last batch that was heard, whether or not it could be taken in.
    seq: u64,
    stage: Stage,
}

/// Whether what was heard is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Something is missing: only a snapshot helps.
    #[default]
    Lost,
    /// A part of a snapshot is here, and all that was said since.
    Learning,
    /// Nothing is missing.
    Current,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was taken in.
    Applied,
    /// It was heard before, or says nothing new.
    Duplicate,
    /// Something before it is missing: the worker must be asked for a snapshot.
    Gap,
}

impl PrefixHints {
    /// The worker speaks.
    pub fn heard(&mut self, batch: &PrefixBatch) -> Heard {
        let is_new = batch.seq > self.seq;
        let begins = match &batch.words {
            PrefixWords::Snapshot { is_first, .. } => *is_first && is_new,
            // All that was ever said.
            PrefixWords::Changed(_) => self.seq == 0 && batch.from_seq == 0,
        };
        if self.stage == Stage::Lost && begins || batch.from_seq > self.seq {
            self.forget();
            self.seq = self.seq.max(batch.seq);
            if !begins {
                return Heard::Gap;
            }
            self.stage = if matches!(batch.words, PrefixWords::Changed(_)) { Stage::Current } else { Stage::Learning };
        } else if !is_new {
            return Heard::Duplicate;
        } else {
            self.seq = batch.seq;
            if self.stage == Stage::Lost {
                return Heard::Gap;
            }
        }
        self.take_in(&batch.words);
        Heard::Applied
    }

    fn take_in(&mut self, words: &PrefixWords) {
        match words {
            PrefixWords::Changed(change) => {
                self.held.extend(&change.added);
                for key in &change.removed {
                    self.held.remove(key);
                }
            }
            PrefixWords::Snapshot { keys, is_last, .. } if self.stage == Stage::Learning => {
                self.held.extend(keys);
                if *is_last {
                    self.stage = Stage::Current;
                }
            }
            // Others need it.
            PrefixWords::Snapshot { .. } => {}
        }
    }

    /// What it holds cannot be true, or is not known any more.
    pub fn forget(&mut self) {
        self.held.clear();
        self.stage = Stage::Lost;
    }

    /// Whether nothing is missing.
    pub fn is_current(&self) -> bool {
        self.stage == Stage::Current
    }

    /// The last batch that was heard.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Leading blocks of a prompt with these keys that are held; none while something is missing. It is found the sooner, the nearer it is to
    /// `guess`.
    pub fn leading_blocks(&self, keys: &[HintKey], guess: usize) -> usize {
        if !self.is_current() {
            return 0;
        }
        boundary(keys.len(), guess, |index| self.held.contains(&keys[index]))
    }

    /// The same, in tokens.
    pub fn cached_tokens(&self, keys: &[HintKey]) -> usize {
        self.leading_blocks(keys, 0) * BLOCK_TOKENS
    }

    /// Whether the worker has said that it holds this block.
    pub fn holds(&self, key: HintKey) -> bool {
        self.held.contains(&key)
    }

    /// How many blocks it has said that it holds.
    pub fn num_held(&self) -> usize {
        self.held.len()
    }
}

/// The first of `0..len` for which `holds` is false, if it is true for all before and for none after: looked for around `guess`, in steps
/// that grow, then by bisection.
pub(super) fn boundary(len: usize, guess: usize, holds: impl Fn(usize) -> bool) -> usize {
    let guess = guess.min(len);
    let (mut low, mut high) = (0, len);
    let mut step = 1;
    if guess == 0 || holds(guess - 1) {
        low = guess;
        while low + step <= len {
            let probe = low + step - 1;
            if !holds(probe) {
                high = probe;
                break;
            }
            (low, step) = (probe + 1, step * STRIDE);
        }
    } else {
        high = guess - 1;
        while high > 0 {
            let probe = high.saturating_sub(step);
            if holds(probe) {
                low = probe + 1;
                break;
            }
            (high, step) = (probe, step * STRIDE);
        }
    }
    while low < high {
        let middle = low.midpoint(high);
        if holds(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// By how much the steps of [`boundary`] grow: a prompt of 2,048 blocks takes six of them.
const STRIDE: usize = 4;

#[cfg(test)]
#[path = "hints/tests.rs"]
mod tests;
