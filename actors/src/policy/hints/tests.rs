//! A pool and a router with everything between them that a bad line does: what the router knows is always what the pool held once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use relevo_wire::{BlockIndex, TenantId, TokenId};

use super::*;
use crate::policy::blocks::{BlockName, BlockPool, Registered};
use crate::policy::hint_keys::HintKeyer;
use crate::policy::prefix::{PrefixIdentity, PrefixSalt};
use crate::policy::prefix_news::PrefixChange;

const MAX_KEYS: usize = 3;
const TENANT: TenantId = TenantId(0);

fn batch(from_seq: u64, added: &[u64], removed: &[u64]) -> PrefixBatch {
    let keys = |keys: &[u64]| keys.iter().copied().map(HintKey).collect();
    let change = PrefixChange { added: keys(added), removed: keys(removed) };
    PrefixBatch { from_seq, seq: from_seq + 1, words: PrefixWords::Changed(change) }
}

fn part(from_seq: u64, keys: &[u64], is_first: bool, is_last: bool) -> PrefixBatch {
    let keys = keys.iter().copied().map(HintKey).collect();
    PrefixBatch { from_seq, seq: from_seq + 1, words: PrefixWords::Snapshot { keys, is_first, is_last } }
}

fn mark(seq: u64) -> PrefixBatch {
    PrefixBatch { from_seq: seq, seq, words: PrefixWords::Changed(PrefixChange::default()) }
}

#[test]
fn who_has_heard_everything_knows_everything() {
    let mut hints = PrefixHints::default();
    let keys: Vec<_> = [1, 2, 3].map(HintKey).into();
    assert_eq!(hints.heard(&mark(0)), Heard::Applied, "nothing was said so far");
    assert!(hints.is_current());
    assert_eq!(hints.heard(&batch(0, &[1, 2, 3], &[])), Heard::Applied);
    assert_eq!(hints.heard(&batch(0, &[1, 2, 3], &[])), Heard::Duplicate);
    assert_eq!(hints.cached_tokens(&keys), 48);
    assert_eq!(hints.heard(&batch(1, &[], &[3])), Heard::Applied);
    assert_eq!(hints.cached_tokens(&keys), 32);
    assert_eq!(hints.heard(&mark(2)), Heard::Duplicate);
}

#[test]
fn who_has_missed_something_knows_nothing_until_a_snapshot_is_complete() {
    let mut hints = PrefixHints::default();
    let keys: Vec<_> = [1, 2].map(HintKey).into();
    assert_eq!(hints.heard(&batch(0, &[1, 2], &[])), Heard::Applied);
    assert_eq!(hints.heard(&mark(2)), Heard::Gap, "the last words were lost");
    assert_eq!((hints.cached_tokens(&keys), hints.num_held()), (0, 0));
    assert_eq!(hints.heard(&batch(2, &[7], &[])), Heard::Gap);
    assert_eq!(hints.heard(&part(3, &[8], false, true)), Heard::Gap, "that was said to somebody else");
    assert_eq!(hints.heard(&part(4, &[1], true, false)), Heard::Applied);
    assert_eq!(hints.heard(&batch(5, &[2], &[7])), Heard::Applied);
    assert_eq!(hints.cached_tokens(&keys), 0);
    assert_eq!(hints.heard(&part(6, &[], false, true)), Heard::Applied);
    assert_eq!((hints.cached_tokens(&keys), hints.num_held()), (32, 2));
    assert_eq!(hints.heard(&batch(1, &[9], &[])), Heard::Duplicate, "it comes too late");
}

#[test]
fn a_new_router_waits_for_a_snapshot_unless_it_hears_from_the_beginning() {
    let mut hints = PrefixHints::default();
    assert_eq!(hints.heard(&batch(5, &[1], &[])), Heard::Gap);
    assert_eq!(hints.heard(&batch(0, &[1], &[])), Heard::Duplicate, "old news begin nothing");
    assert_eq!(hints.heard(&part(6, &[1], true, true)), Heard::Applied);
    assert!(hints.is_current());
}

#[test]
fn a_gap_within_a_snapshot_is_noticed() {
    let mut hints = PrefixHints::default();
    assert_eq!(hints.heard(&part(3, &[1], true, false)), Heard::Applied);
    assert_eq!(hints.heard(&part(5, &[3], false, true)), Heard::Gap);
    assert_eq!(hints.num_held(), 0);
    assert_eq!(hints.heard(&part(8, &[1], true, true)), Heard::Applied, "the next one begins after another gap");
    assert!(hints.is_current() && hints.holds(HintKey(1)));
}

proptest! {
    #[test]
    fn the_boundary_is_found_from_any_guess(len in 0..300_usize, end in 0..300_usize, guess in 0..400_usize) {
        let end = end.min(len);
        prop_assert_eq!(boundary(len, guess, |index| { assert!(index < len); index < end }), end);
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A sequence comes, finds what it can and computes the rest.
    Comes {
        branches: Vec<bool>,
    },
    Ends(usize),
    Says,
    SaysMark,
    Arrives,
    IsLost,
    ArrivesTwice,
    IsOvertaken(usize),
    RouterDies,
    /// The router's wish for a snapshot arrives, if it has one.
    Asks,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(any::<bool>(), 1..9).prop_map(|branches| Step::Comes { branches }),
        5 => any::<usize>().prop_map(Step::Ends),
        6 => Just(Step::Says),
        1 => Just(Step::SaysMark),
        8 => Just(Step::Arrives),
        1 => Just(Step::IsLost),
        1 => Just(Step::ArrivesTwice),
        1 => (1..4_usize).prop_map(Step::IsOvertaken),
        1 => Just(Step::RouterDies),
        3 => Just(Step::Asks),
    ]
}

/// A device, a line, a router.
struct World {
    salt: PrefixSalt,
    pool: BlockPool,
    tables: Vec<Vec<BlockIndex>>,
    line: VecDeque<PrefixBatch>,
    hints: PrefixHints,
    wants_snapshot: bool,
    /// What the pool held when the batch was the last that was made.
    truths: BTreeMap<u64, BTreeSet<HintKey>>,
    /// All sequences that ever came.
    chains: BTreeSet<Vec<HintKey>>,
    num_proofs: usize,
}

impl World {
    fn new() -> Self {
        Self {
            salt: PrefixIdentity { secret: [1; 32], content: String::new() }.salt(TENANT),
            pool: BlockPool::new(20),
            tables: Vec::new(),
            line: VecDeque::new(),
            hints: PrefixHints::default(),
            wants_snapshot: true,
            truths: BTreeMap::from([(0, BTreeSet::new())]),
            chains: BTreeSet::new(),
            num_proofs: 0,
        }
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::Comes { branches } => self.come(branches),
            Step::Ends(index) if !self.tables.is_empty() => {
                let mut table = self.tables.swap_remove(index % self.tables.len());
                self.pool.release_table(&mut table);
            }
            Step::Says => self.say(),
            Step::SaysMark => self.line.push_back(self.pool.news().mark()),
            Step::Arrives => self.arrive(),
            Step::IsLost => _ = self.line.pop_front(),
            Step::ArrivesTwice => {
                self.line.extend(self.line.front().cloned());
                self.arrive();
            }
            Step::IsOvertaken(by) if *by < self.line.len() => self.line.swap(0, *by),
            Step::RouterDies => (self.hints, self.wants_snapshot) = (PrefixHints::default(), true),
            Step::Asks if std::mem::take(&mut self.wants_snapshot) => self.pool.news().begin_snapshot(),
            _ => {}
        }
        self.pool.audit().unwrap();
    }

    fn come(&mut self, branches: &[bool]) {
        let tokens: Vec<TokenId> = branches.iter().flat_map(|&branch| [u32::from(branch); 16]).collect();
        let (mut keys, hints) = (Vec::new(), HintKeyer::default().keys(TENANT, &tokens));
        self.salt.extend(&mut keys, &tokens);
        let mut table = Vec::new();
        for ((&key, &hint), tokens) in keys.iter().zip(&hints).zip(tokens.as_chunks::<BLOCK_TOKENS>().0) {
            if let Some(block) = self.pool.lookup(key, tokens) {
                self.pool.retain(block);
                table.push(block);
            } else if let Some(block) = self.pool.allocate() {
                table.push(block);
                assert_eq!(self.pool.register(block, BlockName { key, hint }, TENANT, tokens), Registered::New);
            }
        }
        self.chains.insert(hints);
        self.tables.push(table);
        if self.tables.len() > 3 {
            self.pool.release_table(&mut self.tables.remove(0));
        }
    }

    fn say(&mut self) {
        let mut batches = Vec::new();
        self.pool.tell(MAX_KEYS, &mut batches);
        for batch in &batches {
            let num_keys = match &batch.words {
                PrefixWords::Changed(change) => change.added.len() + change.removed.len(),
                PrefixWords::Snapshot { keys, .. } => keys.len(),
            };
            assert!(num_keys <= MAX_KEYS);
        }
        self.truths.insert(self.pool.news().seq(), self.pool.hints().collect());
        self.line.extend(batches);
    }

    fn arrive(&mut self) {
        let Some(batch) = self.line.pop_front() else { return };
        self.wants_snapshot |= self.hints.heard(&batch) == Heard::Gap;
        if !self.hints.is_current() {
            assert_eq!(self.hints.leading_blocks(&[HintKey(1)], 0), 0);
            return;
        }
        if let Some(truth) = self.truths.get(&self.hints.seq()) {
            assert_eq!(self.known(), *truth);
            self.num_proofs += 1;
        }
        for chain in &self.chains {
            let held = chain.iter().take_while(|key| self.hints.holds(**key)).count();
            assert!(chain[held..].iter().all(|key| !self.hints.holds(*key)), "a block without those before it");
            assert_eq!(self.hints.leading_blocks(chain, batch.seq as usize % 9), held);
        }
    }

    fn known(&self) -> BTreeSet<HintKey> {
        self.chains.iter().flatten().copied().filter(|key| self.hints.holds(*key)).collect()
    }

    /// The line is good from here on.
    fn come_to_rest(&mut self) {
        for _ in 0..40 {
            self.act(&Step::Says);
            self.act(&Step::SaysMark);
            while !self.line.is_empty() {
                self.arrive();
            }
            self.act(&Step::Asks);
        }
        assert!(self.hints.is_current());
        assert_eq!(self.known(), self.pool.hints().collect());
        assert_eq!(self.hints.num_held(), self.pool.hints().count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_line_does_the_router_knows_what_the_pool_held_or_nothing(
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.act(step);
        }
        world.come_to_rest();
        prop_assert!(world.num_proofs > 0);
    }
}
