//! Which cached block is given up next: the least recently used of the tenant that caches most.
//!
//! A tenant with a small cache keeps it however much another one churns (max-min fairness); among equals the oldest goes. A sequence
//! releases its blocks last to first, and who holds a block holds its predecessors, so within a tenant's list a block always stands before its
//! predecessor: leaves go first and no cached block is ever cut off from its prefix.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use relevo_wire::{BlockIndex, TenantId};

/// The cached blocks that nobody uses, in the order of their eviction.
#[derive(Clone, Debug)]
pub struct EvictionOrder {
    links: Vec<Links>,
    lists: BTreeMap<TenantId, List>,
    /// (length, age of the oldest) of each list: the last entry names the next victim.
    by_length: BTreeSet<(usize, Reverse<u64>, TenantId)>,
    num_pushed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Links {
    previous: Option<BlockIndex>,
    next: Option<BlockIndex>,
    /// When it was pushed, as a count of pushes.
    stamp: u64,
}

#[derive(Clone, Copy, Debug)]
struct List {
    oldest: BlockIndex,
    newest: BlockIndex,
    len: usize,
}

impl EvictionOrder {
    /// For a pool of `num_blocks`.
    pub fn new(num_blocks: usize) -> Self {
        Self {
            links: vec![Links::default(); num_blocks],
            lists: BTreeMap::new(),
            by_length: BTreeSet::new(),
            num_pushed: 0,
        }
    }

    /// Appends a block as its tenant's most recently used. It must not be listed.
    pub fn push(&mut self, block: BlockIndex, tenant: TenantId) {
        self.num_pushed += 1;
        self.links[index(block)] = Links { previous: None, next: None, stamp: self.num_pushed };
        let Some(mut list) = self.unrank(tenant) else {
            return self.rank(tenant, List { oldest: block, newest: block, len: 1 });
        };
        self.links[index(list.newest)].next = Some(block);
        self.links[index(block)].previous = Some(list.newest);
        list.newest = block;
        list.len += 1;
        self.rank(tenant, list);
    }

    /// Takes a listed block out, since somebody uses it again.
    pub fn remove(&mut self, block: BlockIndex, tenant: TenantId) {
        let Some(mut list) = self.unrank(tenant) else { return };
        let Links { previous, next, .. } = std::mem::take(&mut self.links[index(block)]);
        if let Some(previous) = previous {
            self.links[index(previous)].next = next;
        }
        if let Some(next) = next {
            self.links[index(next)].previous = previous;
        }
        list.len -= 1;
        list.oldest = if list.oldest == block { next.unwrap_or(block) } else { list.oldest };
        list.newest = if list.newest == block { previous.unwrap_or(block) } else { list.newest };
        if list.len > 0 {
            self.rank(tenant, list);
        } else {
            self.lists.remove(&tenant);
        }
    }

    /// Takes the next victim out.
    pub fn pop(&mut self) -> Option<BlockIndex> {
        let &(_, _, tenant) = self.by_length.last()?;
        let block = self.lists.get(&tenant)?.oldest;
        self.remove(block, tenant);
        Some(block)
    }

    /// Blocks of one tenant, next victim first.
    pub fn of_tenant(&self, tenant: TenantId) -> impl Iterator<Item = BlockIndex> + '_ {
        let first = self.lists.get(&tenant).map(|list| list.oldest);
        std::iter::successors(first, |&block| self.links[index(block)].next)
    }

    /// Tenants that have blocks here, each with their number.
    pub fn tenants(&self) -> impl Iterator<Item = (TenantId, usize)> + '_ {
        self.lists.iter().map(|(&tenant, list)| (tenant, list.len))
    }

    fn unrank(&mut self, tenant: TenantId) -> Option<List> {
        let list = *self.lists.get(&tenant)?;
        self.by_length.remove(&(list.len, Reverse(self.stamp(list.oldest)), tenant));
        Some(list)
    }

    fn rank(&mut self, tenant: TenantId, list: List) {
        self.by_length.insert((list.len, Reverse(self.stamp(list.oldest)), tenant));
        self.lists.insert(tenant, list);
    }

    fn stamp(&self, block: BlockIndex) -> u64 {
        self.links[index(block)].stamp
    }
}

const fn index(block: BlockIndex) -> usize {
    block.0 as usize
}
