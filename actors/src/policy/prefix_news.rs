//! What a worker says of its prefix cache to routers: what has changed, and, to one that has missed something, all that it holds.
//!
//! Everything is said in numbered batches of bounded size, one stream for all routers. A snapshot is a part of that stream: it walks over the
//! pool's blocks, a part at a time, changes in between. Before each part the changes up to then are said.
//!
//! **Invariant:** whoever has taken in all changes up to a batch, or all batches from a snapshot's first part up to its last and on to this
//! one, knows exactly what the pool held at some instant before the batch was made: a change is cut off after an event of the pool, never
//! within one, and in a block whose turn is over only changes happen that are said.

use super::hint_keys::HintKey;
/// Keys of a batch at most, unless told otherwise: 32 KiB.
pub const MAX_BATCH_KEYS: usize = 4096;

/// Blocks that a part of a snapshot looks at, for each key that it may have: a large pool that holds little is walked over in pieces too.
const BLOCKS_PER_KEY: usize = 16;

pub use relevo_wire::{PrefixBatch, PrefixChange, PrefixWords};

/// What a worker has said, and what it has yet to say.
#[derive(Clone, Debug, Default)]
pub struct PrefixNews {
    /// The last batch.
    seq: u64,
    /// What has happened since, in order: whether the block is held from then on.
    events: Vec<(HintKey, bool)>,
    /// The snapshot under way: the block that is next.
    next_block: Option<usize>,
    /// Somebody has asked for one after it had begun.
    again: bool,
}

impl PrefixNews {
    /// A block is held from now on, or no more.
    pub fn note(&mut self, key: HintKey, is_held: bool) {
        self.events.push((key, is_held));
    }

    /// Things that have happened and were not said.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The number of the last batch.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Somebody has missed something, or is new: all that is held is to be said from the beginning. Many who ask at once get one answer.
    pub fn begin_snapshot(&mut self) {
        self.again = self.next_block.is_some_and(|next| next > 0);
        self.next_block.get_or_insert(0);
    }

    /// Whether [`PrefixNews::snapshot_part`] has something to say.
    pub fn is_in_snapshot(&self) -> bool {
        self.next_block.is_some()
    }

    /// Says what has happened, in batches of at most `max_keys` blocks: of each the last that happened to it.
    pub fn changes(&mut self, max_keys: usize, batches: &mut Vec<PrefixBatch>) {
        let mut events = std::mem::take(&mut self.events);
        for events in events.chunks_mut(max_keys.max(1)) {
            // Stable: of one block the last event stays the last.
            events.sort_by_key(|&(key, _)| key);
            let mut change = PrefixChange::default();
            for of_one_block in events.chunk_by(|(one, _), (other, _)| one == other) {
                if let Some(&(key, is_held)) = of_one_block.last() {
                    if is_held { &mut change.added } else { &mut change.removed }.push(key);
                }
            }
            batches.push(self.next_batch(PrefixWords::Changed(change)));
        }
        events.clear();
        self.events = events;
    }

    /// Says the next part of the snapshot under way, of at most `max_keys` blocks; `blocks` are all blocks of the pool, with the keys of
    /// those that have one. What has happened must have been said.
    pub fn snapshot_part<B>(
        &mut self,
        max_keys: usize,
        blocks: &[B],
        key_of: impl Fn(&B) -> Option<HintKey>,
    ) -> Option<PrefixBatch> {
        debug_assert!(self.is_empty(), "what is said of a block would be followed by what happened to it before");
        let first = self.next_block?;
        let (max_keys, rest) = (max_keys.max(1), blocks.get(first..).unwrap_or_default());
        let (mut keys, mut num_seen) = (Vec::new(), 0);
        for block in rest.iter().take(max_keys.saturating_mul(BLOCKS_PER_KEY)) {
            num_seen += 1;
            keys.extend(key_of(block));
            if keys.len() == max_keys {
                break;
            }
        }
        let is_last = num_seen == rest.len();
        self.next_block = if is_last { std::mem::take(&mut self.again).then_some(0) } else { Some(first + num_seen) };
        Some(self.next_batch(PrefixWords::Snapshot { keys, is_first: first == 0, is_last }))
    }

    /// Says nothing but how much was said.
    pub fn mark(&self) -> PrefixBatch {
        PrefixBatch { from_seq: self.seq, seq: self.seq, words: PrefixWords::Changed(PrefixChange::default()) }
    }

    fn next_batch(&mut self, words: PrefixWords) -> PrefixBatch {
        self.seq += 1;
        PrefixBatch { from_seq: self.seq - 1, seq: self.seq, words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(from_seq: u64, added: &[u64], removed: &[u64]) -> PrefixBatch {
        let keys = |keys: &[u64]| keys.iter().copied().map(HintKey).collect();
        let change = PrefixChange { added: keys(added), removed: keys(removed) };
        PrefixBatch { from_seq, seq: from_seq + 1, words: PrefixWords::Changed(change) }
    }

    #[test]
    fn of_a_block_that_comes_and_goes_the_last_is_said() {
        let mut news = PrefixNews::default();
        for (key, is_held) in [(1, true), (2, false), (1, false), (2, true)] {
            news.note(HintKey(key), is_held);
        }
        let mut batches = Vec::new();
        news.changes(MAX_BATCH_KEYS, &mut batches);
        assert_eq!(batches, [changed(0, &[2], &[1])]);
        assert!(news.is_empty());
        assert!(news.mark().is_mark() && news.mark().seq == 1);
    }

    #[test]
    fn batches_are_bounded_and_numbered_and_cut_where_something_happened() {
        let mut news = PrefixNews::default();
        for (key, is_held) in [(5, true), (3, true), (3, false), (5, false), (4, true)] {
            news.note(HintKey(key), is_held);
        }
        let mut batches = Vec::new();
        news.changes(2, &mut batches);
        assert_eq!(batches, [changed(0, &[3, 5], &[]), changed(1, &[], &[3, 5]), changed(2, &[4], &[])]);
    }

    /// First and last, and the keys.
    fn part(news: &mut PrefixNews, blocks: &[Option<u64>]) -> Option<(bool, bool, Vec<u64>)> {
        match news.snapshot_part(2, blocks, |block| block.map(HintKey))?.words {
            PrefixWords::Snapshot { keys, is_first, is_last } => {
                Some((is_first, is_last, keys.into_iter().map(|key| key.0).collect()))
            }
            PrefixWords::Changed(change) => panic!("{change:?}"),
        }
    }

    #[test]
    fn a_snapshot_goes_over_all_blocks_and_once_more_for_who_asked_meanwhile() {
        let blocks = [Some(1), None, Some(2), Some(3), None];
        let mut news = PrefixNews::default();
        assert_eq!(part(&mut news, &blocks), None);
        news.begin_snapshot();
        news.begin_snapshot();
        for _ in 0..2 {
            assert_eq!(part(&mut news, &blocks), Some((true, false, vec![1, 2])));
            news.begin_snapshot();
            assert_eq!(part(&mut news, &blocks), Some((false, true, vec![3])));
        }
        assert_eq!(part(&mut news, &[]), Some((true, true, vec![])), "an empty pool is said to be empty");
        assert!(!news.is_in_snapshot());
    }

    #[test]
    fn a_part_looks_at_so_many_blocks_at_most() {
        let mut news = PrefixNews::default();
        news.begin_snapshot();
        let blocks = vec![None; 2 * 2 * BLOCKS_PER_KEY];
        assert_eq!(part(&mut news, &blocks), Some((true, false, vec![])));
        assert_eq!(part(&mut news, &blocks), Some((false, true, vec![])));
    }
}
