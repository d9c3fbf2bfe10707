//! The prompts that a worker was sent and is not done with: what it holds already, or is about to.
//!
//! A key stands for all blocks before it, so two prompts agree up to some block and nowhere after it. Sorted by their keys, the prompts that
//! agree longest with a new one are its neighbours: neither to send a prompt nor to look one up touches each of its blocks.

use std::cmp::Ordering;
use std::sync::Arc;

use super::hint_keys::HintKey;
use super::hints::boundary;

/// The prompts of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptsInHand(Vec<Arc<[HintKey]>>);

impl PromptsInHand {
    /// A prompt with these keys is sent there.
    pub fn sent(&mut self, keys: &Arc<[HintKey]>) {
        if !keys.is_empty() {
            let (place, _) = self.place(keys);
            self.0.insert(place, Arc::clone(keys));
        }
    }

    /// A prompt that was sent there is over. What it has left behind the worker says.
    pub fn over(&mut self, keys: &Arc<[HintKey]>) {
        let (place, _) = self.place(keys);
        if self.0.get(place).is_some_and(|found| found == keys) {
            self.0.remove(place);
        }
    }

    /// Leading blocks of a prompt with these keys that one of the prompts in hand has too.
    pub fn leading_blocks(&self, keys: &[HintKey]) -> usize {
        self.place(keys).1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The place of the first prompt that is not less than this one, and with how many blocks a neighbour of that place begins alike.
    fn place(&self, keys: &[HintKey]) -> (usize, usize) {
        let (mut low, mut high) = (0, self.0.len());
        // How many blocks those before and those at the bounds of the search begin alike, which all between them do too.
        let (mut low_common, mut high_common) = (0, 0);
        while low < high {
            let middle = low.midpoint(high);
            let found = &self.0[middle];
            let common = common(found, keys, low_common.min(high_common));
            if compare(found, keys, common) == Ordering::Less {
                (low, low_common) = (middle + 1, common);
            } else {
                (high, high_common) = (middle, common);
            }
        }
        (low, low_common.max(high_common))
    }
}

/// Leading blocks that two prompts have in common: at least `least`.
fn common(one: &[HintKey], other: &[HintKey], least: usize) -> usize {
    let len = one.len().min(other.len());
    boundary(len, least, |index| one[index] == other[index])
}

fn compare(one: &[HintKey], other: &[HintKey], common: usize) -> Ordering {
    one.get(common).cmp(&other.get(common))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use relevo_wire::{TenantId, TokenId};

    use super::*;
    use crate::policy::hint_keys::HintKeyer;

    fn keys(tokens: &[TokenId]) -> Arc<[HintKey]> {
        HintKeyer::default().keys(TenantId(1), tokens).into()
    }

    /// `common` blocks that all have, then those of its kind.
    fn prompt(common: usize, kind: u32, len: usize) -> Arc<[HintKey]> {
        keys(&(0..len).map(|place| if place < 16 * common { 0 } else { kind }).collect::<Vec<_>>())
    }

    #[test]
    fn a_prompt_hits_as_far_as_it_agrees_with_one_that_is_in_hand() {
        let mut prompts = PromptsInHand::default();
        let sent: Vec<u32> = (0..100).collect();
        prompts.sent(&keys(&sent));
        let mut other = sent.clone();
        other[50] = 7;
        assert_eq!(prompts.leading_blocks(&keys(&sent)), 6);
        assert_eq!(prompts.leading_blocks(&keys(&other)), 3);
        assert_eq!(prompts.leading_blocks(&keys(&other[1..])), 0);
    }

    proptest! {
        #[test]
        fn it_is_as_if_each_prompt_were_compared(
            steps in prop::collection::vec((any::<bool>(), 0..6_usize, 0..4_u32, 0..200_usize), 1..80),
        ) {
            let mut prompts = PromptsInHand::default();
            let mut model: Vec<Arc<[HintKey]>> = Vec::new();
            for (is_sent, common, kind, len) in steps {
                let keys = prompt(common, kind, len);
                if is_sent {
                    prompts.sent(&keys);
                    model.push(Arc::clone(&keys));
                } else {
                    prompts.over(&keys);
                    if let Some(place) = model.iter().position(|other| *other == keys) {
                        model.swap_remove(place);
                    }
                }
                let alike = |other: &Arc<[HintKey]>| other.iter().zip(&*keys).take_while(|(one, other)| one == other).count();
                prop_assert_eq!(prompts.leading_blocks(&keys), model.iter().map(alike).max().unwrap_or(0));
                prop_assert!(prompts.0.is_sorted());
                prop_assert_eq!(prompts.0.len(), model.iter().filter(|keys| !keys.is_empty()).count());
            }
        }
    }
}
