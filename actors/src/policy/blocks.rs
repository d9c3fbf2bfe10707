//! Who holds which KV block: reference counts, leases, and the prefixes that idle blocks still hold.
//!
//! **Invariant:** free + cached + active + leased = all. A block is active while somebody refers to it (a sequence's table, or bytes in flight),
//! and becomes cached (if it has a key) or free when the last reference goes, which is the only way back.

use std::collections::HashMap;

use relevo_wire::{BLOCK_TOKENS, BlockIndex, TenantId, TokenId};

use super::eviction::EvictionOrder;
use super::hint_keys::HintKey;
use super::prefix::{BuildPrefixKeyHasher, PrefixKey};
use super::prefix_news::{PrefixBatch, PrefixNews};
use crate::status::KvBlocks;

/// The accounting of one pool.
#[derive(Clone, Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<BlockIndex>,
    by_key: HashMap<PrefixKey, BlockIndex, BuildPrefixKeyHasher>,
    eviction: EvictionOrder,
    counts: KvBlocks,
    news: PrefixNews,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    /// Tables and pins that refer to it.
    num_refs: u32,
    leased: bool,
    prefix: Option<Prefix>,
}

impl Block {
    fn hint(&self) -> Option<HintKey> {
        Some(self.prefix.as_ref()?.name.hint)
    }
}

/// What a block is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockName {
    /// By sequences.
    pub key: PrefixKey,
    /// By routers.
    pub hint: HintKey,
}

/// What a block with a name holds.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    name: BlockName,
    tenant: TenantId,
    tokens: [TokenId; BLOCK_TOKENS],
}

/// What [`BlockPool::register`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The block bears the key from now on.
    New,
    /// This other block holds the same prefix already.
    Duplicate(BlockIndex),
    /// Another prefix has the same 128 bits: the block stays without a name.
    Clash,
}

/// The accounting contradicts itself. Our bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block accounting: {0}")]
pub struct AuditError(pub String);

impl BlockPool {
    /// A pool of free blocks.
    pub fn new(num_blocks: u32) -> Self {
        let empty = Block { num_refs: 0, leased: false, prefix: None };
        Self {
            blocks: vec![empty; num_blocks as usize],
            // Popped from the end: low indices are used first, so that a pool that is never full touches less memory.
            free: (0..num_blocks).rev().map(BlockIndex).collect(),
            by_key: HashMap::default(),
            eviction: EvictionOrder::new(num_blocks as usize),
            counts: KvBlocks { free: u64::from(num_blocks), ..KvBlocks::default() },
            news: PrefixNews::default(),
        }
    }

    /// Blocks by state.
    pub fn counts(&self) -> KvBlocks {
        self.counts
    }

    /// All blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Blocks that can be had, those of idle prefixes included.
    pub fn num_available(&self) -> usize {
        self.free.len() + usize::try_from(self.counts.cached).unwrap_or(usize::MAX)
    }

    /// A block of one's own, with one reference; an idle prefix is given up for it if need be.
    pub fn allocate(&mut self) -> Option<BlockIndex> {
        let block = self.take()?;
        self.counts.active += 1;
        Some(block)
    }

    /// A block that somebody elsewhere will write to, with one reference. [`BlockPool::activate`] or [`BlockPool::release`] ends the lease.
    pub fn lease(&mut self) -> Option<BlockIndex> {
        let block = self.take()?;
        self.blocks[index(block)].leased = true;
        self.counts.leased += 1;
        Some(block)
    }

    /// A leased block holds its data now: its one reference is a sequence's.
    pub fn activate(&mut self, block: BlockIndex) {
        if std::mem::take(&mut self.blocks[index(block)].leased) {
            self.counts.leased -= 1;
            self.counts.active += 1;
        }
    }

    /// One more reference to a block that is active or cached.
    pub fn retain(&mut self, block: BlockIndex) {
        let entry = &mut self.blocks[index(block)];
        entry.num_refs += 1;
        if entry.num_refs == 1
            && let Some(prefix) = entry.prefix
        {
            self.eviction.remove(block, prefix.tenant);
            self.counts.cached -= 1;
            self.counts.active += 1;
        }
    }

    /// One reference less; the last one frees the block, or leaves it cached.
    pub fn release(&mut self, block: BlockIndex) {
        let entry = &mut self.blocks[index(block)];
        debug_assert!(entry.num_refs > 0, "{block:?} is freed twice");
        entry.num_refs -= 1;
        if entry.num_refs > 0 {
            return;
        }
        match entry.leased {
            true => self.counts.leased -= 1,
            false => self.counts.active -= 1,
        }
        entry.leased = false;
        if let Some(prefix) = entry.prefix {
            self.eviction.push(block, prefix.tenant);
            self.counts.cached += 1;
        } else {
            self.free.push(block);
            self.counts.free += 1;
        }
    }

    /// Releases a block table, last block first, so that the leaves of the prefix tree are evicted before their predecessors.
    pub fn release_table(&mut self, table: &mut Vec<BlockIndex>) {
        for block in table.drain(..).rev() {
            self.release(block);
        }
    }

    /// Gives an active, full block the name under which others may find it.
    pub fn register(
        &mut self,
        block: BlockIndex,
        name: BlockName,
        tenant: TenantId,
        tokens: &[TokenId; BLOCK_TOKENS],
    ) -> Registered {
        match self.by_key.get(&name.key) {
            Some(&named) if named != block => match self.lookup(name.key, tokens) {
                Some(holder) => Registered::Duplicate(holder),
                None => Registered::Clash,
            },
            _ => {
                self.by_key.insert(name.key, block);
                self.blocks[index(block)].prefix = Some(Prefix { name, tenant, tokens: *tokens });
                self.news.note(name.hint, true);
                Registered::New
            }
        }
    }

    /// The block that holds this prefix, its tokens compared.
    pub fn lookup(&self, key: PrefixKey, tokens: &[TokenId]) -> Option<BlockIndex> {
        let block = *self.by_key.get(&key)?;
        let prefix = self.blocks[index(block)].prefix.as_ref()?;
        (prefix.tokens == tokens).then_some(block)
    }

    /// Whether it is idle, so that using it leaves one block less to be had.
    pub fn is_cached(&self, block: BlockIndex) -> bool {
        let entry = &self.blocks[index(block)];
        entry.num_refs == 0 && entry.prefix.is_some()
    }

    /// What routers have not been told of the prefixes that it holds.
    pub fn news(&mut self) -> &mut PrefixNews {
        &mut self.news
    }

    /// Whether there is more of a snapshot to be told.
    pub fn is_in_snapshot(&self) -> bool {
        self.news.is_in_snapshot()
    }

    /// Tells routers what has happened since the last time, and then the next part of a snapshot if one is under way, in batches of at most
    /// `max_keys` blocks.
    pub fn tell(&mut self, max_keys: usize, batches: &mut Vec<PrefixBatch>) {
        self.news.changes(max_keys, batches);
        batches.extend(self.news.snapshot_part(max_keys, &self.blocks, Block::hint));
    }

    /// The prefixes that it holds, as routers name them.
    pub fn hints(&self) -> impl Iterator<Item = HintKey> + '_ {
        self.blocks.iter().filter_map(Block::hint)
    }

    /// References to a block.
    pub fn num_refs(&self, block: BlockIndex) -> u32 {
        self.blocks[index(block)].num_refs
    }

    fn take(&mut self) -> Option<BlockIndex> {
        let block = if let Some(block) = self.free.pop() {
            self.counts.free -= 1;
            block
        } else {
            let block = self.eviction.pop()?;
            self.counts.cached -= 1;
            if let Some(prefix) = self.blocks[index(block)].prefix.take() {
                self.by_key.remove(&prefix.name.key);
                self.news.note(prefix.name.hint, false);
            }
            block
        };
        self.blocks[index(block)].num_refs = 1;
        Some(block)
    }

    /// Recounts everything; for tests and simulations, which call it after each event.
    ///
    /// # Errors
    /// Our bug, in words.
    pub fn audit(&self) -> Result<(), AuditError> {
        let mut counts = KvBlocks::default();
        for entry in &self.blocks {
            *match (entry.num_refs, entry.leased, entry.prefix) {
                (0, true, _) => return Err(AuditError("a leased block without a reference".into())),
                (0, false, None) => &mut counts.free,
                (0, false, Some(_)) => &mut counts.cached,
                (_, true, _) => &mut counts.leased,
                (_, false, _) => &mut counts.active,
            } += 1;
        }
        let listed: usize = self.eviction.tenants().map(|(tenant, _)| self.eviction.of_tenant(tenant).count()).sum();
        let ranked: usize = self.eviction.tenants().map(|(_, len)| len).sum();
        let named = self.blocks.iter().filter(|entry| entry.prefix.is_some()).count();
        let expect = |what: &str, found: usize, expected: usize| match found == expected {
            true => Ok(()),
            false => Err(AuditError(format!("{what}: found {found}, expected {expected}"))),
        };
        let cached = usize::try_from(counts.cached).unwrap_or(usize::MAX);
        expect("listed for eviction", listed, cached)?;
        expect("lengths of the eviction lists", ranked, cached)?;
        expect("free list", self.free.len(), usize::try_from(counts.free).unwrap_or(usize::MAX))?;
        expect("named prefixes", self.by_key.len(), named)?;
        match counts == self.counts {
            true => Ok(()),
            false => Err(AuditError(format!("counted {counts:?}, kept {:?}", self.counts))),
        }
    }
}

const fn index(block: BlockIndex) -> usize {
    block.0 as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_prefixes_with_one_key_are_not_taken_for_each_other() {
        let mut pool = BlockPool::new(2);
        let name = BlockName { key: PrefixKey(7), hint: HintKey(7) };
        let [first, second] = [1, 2].map(|token| [token; BLOCK_TOKENS]);
        let blocks = [pool.allocate().unwrap(), pool.allocate().unwrap()];
        assert_eq!(pool.register(blocks[0], name, TenantId(0), &first), Registered::New);
        assert_eq!(pool.register(blocks[1], name, TenantId(0), &second), Registered::Clash);
        assert_eq!(pool.register(blocks[1], name, TenantId(0), &first), Registered::Duplicate(blocks[0]));
        assert_eq!((pool.lookup(name.key, &first), pool.lookup(name.key, &second)), (Some(blocks[0]), None));
    }
}
