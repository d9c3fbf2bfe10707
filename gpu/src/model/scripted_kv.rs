//! The KV pool of a [`super::ScriptedModel`]: real block bytes that are handed out without a copy and never change under a reader.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use relevo_wire::{BLOCK_TOKENS, BlockIndex, ElementType, KvLayout, LayerIndex, SharedRegion};

use super::scripted::mix;
use super::step::KvMemory;
use crate::compute::ComputeError;
use crate::cpu::KvPool;

/// Blocks that keep one word for each token, spread over all its key and value elements: as far as they hold more than eight bytes, by further
/// words that the first one makes up.
///
/// **Invariant:** bytes that were handed out stay as they are. Who writes to a block while somebody reads it gets an error, where a real
/// pool would send torn bytes.
pub(super) struct ScriptedKv {
    layout: KvLayout,
    num_blocks: usize,
    blocks: Blocks,
}

/// Where the bytes of the (layer, block)s lie.
enum Blocks {
    /// Each by itself, in memory that is this process's alone.
    Apart(Vec<Mutex<Bytes>>),
    /// In memory that other processes of the host can be let into. Each reader of a (layer, block) holds a clone of its pin.
    Shareable { pool: KvPool, pins: Vec<Mutex<Arc<()>>> },
}

/// A (layer, block) as readers hold it.
struct Pinned {
    bytes: Bytes,
    _pin: Arc<()>,
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl ScriptedKv {
    /// What a (layer, block) takes beside its bytes: a lock, a handle, and what the allocator needs for two allocations.
    pub(super) const SLOT_OVERHEAD_BYTES: u64 = 128;

    pub(super) fn new(layout: KvLayout, num_blocks: usize) -> Self {
        let byte_len = layout.layer_block_bytes();
        let num_slots = num_blocks * layout.num_layers as usize;
        let blocks = (0..num_slots).map(|_| Mutex::new(BytesMut::zeroed(byte_len).freeze())).collect();
        Self { layout, num_blocks, blocks: Blocks::Apart(blocks) }
    }

    /// [`ScriptedKv::new`] in memory that other processes of the host can be let into.
    pub(super) fn shareable(layout: KvLayout, num_blocks: usize) -> Result<Self, ComputeError> {
        // Nobody computes with these elements: what counts is how long they are.
        let element = if layout.element == ElementType::Bf16 { ElementType::F16 } else { layout.element };
        let pool = KvPool::shareable(KvLayout { element, ..layout }, num_blocks)?;
        let pins = (0..num_blocks * layout.num_layers as usize).map(|_| Mutex::default()).collect();
        Ok(Self { layout, num_blocks, blocks: Blocks::Shareable { pool, pins } })
    }

    /// Keeps a token's word.
    pub(super) fn store(
        &self,
        layer: LayerIndex,
        block: BlockIndex,
        slot: usize,
        word: u64,
    ) -> Result<(), ComputeError> {
        let element_bytes = self.layout.element.byte_len();
        self.edit(layer, block, |put| {
            let mut written = 0;
            let mut current = [0; 8];
            for offset in elements(self.layout, slot) {
                if written % 8 == 0 {
                    current = nth_word(word, written / 8).to_le_bytes();
                }
                put(offset, &current[written % 8..][..element_bytes])?;
                written += element_bytes;
            }
            Ok(())
        })
    }

    /// The words of a block's tokens, out of every byte of theirs.
    pub(super) fn load(&self, layer: LayerIndex, block: BlockIndex) -> [u64; BLOCK_TOKENS] {
        self.look(layer, block, |bytes| std::array::from_fn(|slot| self.read_word(bytes, slot)))
    }

    /// The word of one token.
    pub(super) fn load_slot(&self, layer: LayerIndex, block: BlockIndex, slot: usize) -> u64 {
        self.look(layer, block, |bytes| self.read_word(bytes, slot))
    }

    /// What a word reads as once it has been stored.
    pub(super) fn kept(&self, word: u64) -> u64 {
        let num_bytes =
            (self.layout.key_elements() + self.layout.value_elements()) / BLOCK_TOKENS * self.layout.element.byte_len();
        (0..num_bytes.div_ceil(8)).fold(0, |folded, index| {
            let unused_bits = 64 - 8 * (num_bytes - index * 8).min(8);
            fold(folded, nth_word(word, index) & (u64::MAX >> unused_bits), index)
        })
    }

    fn read_word(&self, bytes: &[u8], slot: usize) -> u64 {
        let element_bytes = self.layout.element.byte_len();
        let (mut folded, mut read, mut current) = (0, 0, [0; 8]);
        for offset in elements(self.layout, slot) {
            current[read % 8..][..element_bytes].copy_from_slice(&bytes[offset..][..element_bytes]);
            read += element_bytes;
            if read % 8 == 0 {
                folded = fold(folded, u64::from_le_bytes(current), read / 8 - 1);
                current = [0; 8];
            }
        }
        if read % 8 == 0 { folded } else { fold(folded, u64::from_le_bytes(current), read / 8) }
    }

    /// Lets `write` put bytes into a (layer, block), each piece to its offset, which must be inside.
    fn edit(
        &self,
        layer: LayerIndex,
        block: BlockIndex,
        write: impl FnOnce(&mut dyn FnMut(usize, &[u8]) -> Result<(), ComputeError>) -> Result<(), ComputeError>,
    ) -> Result<(), ComputeError> {
        let slot = self.slot(layer, block);
        let is_read = || {
            let (block, layer) = (block.0, layer.0);
            ComputeError::Plan(format!("block {block} of layer {layer} is written while it is still read"))
        };
        match &self.blocks {
            Blocks::Apart(blocks) => {
                let mut bytes = lock(&blocks[slot]);
                let mut own = match std::mem::take(&mut *bytes).try_into_mut() {
                    Ok(own) => own,
                    Err(shared) => {
                        *bytes = shared;
                        return Err(is_read());
                    }
                };
                let written = write(&mut |offset, piece| {
                    own[offset..][..piece.len()].copy_from_slice(piece);
                    Ok(())
                });
                *bytes = own.freeze();
                written
            }
            Blocks::Shareable { pool, pins } => {
                let mut pin = lock(&pins[slot]);
                Arc::get_mut(&mut pin).ok_or_else(is_read)?;
                write(&mut |offset, piece| pool.write_at(layer, block, offset, piece))
            }
        }
    }

    /// Lets `read` see a (layer, block) as it is now.
    fn look<R>(&self, layer: LayerIndex, block: BlockIndex, read: impl FnOnce(&[u8]) -> R) -> R {
        let slot = self.slot(layer, block);
        match &self.blocks {
            Blocks::Apart(blocks) => read(&lock(&blocks[slot])),
            Blocks::Shareable { pool, pins } => {
                let _alone = lock(&pins[slot]);
                read(&pool.read(layer, block))
            }
        }
    }

    fn slot(&self, layer: LayerIndex, block: BlockIndex) -> usize {
        layer.0 as usize * self.num_blocks + block.0 as usize
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KvMemory for ScriptedKv {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    fn read(&self, layer: LayerIndex, block: BlockIndex) -> Bytes {
        let slot = self.slot(layer, block);
        match &self.blocks {
            Blocks::Apart(blocks) => lock(&blocks[slot]).clone(),
            Blocks::Shareable { pool, pins } => {
                let pin = Arc::clone(&lock(&pins[slot]));
                Bytes::from_owner(Pinned { bytes: pool.read(layer, block), _pin: pin })
            }
        }
    }

    fn write_at(&self, layer: LayerIndex, block: BlockIndex, offset: usize, bytes: &[u8]) -> Result<(), ComputeError> {
        let (num_layers, byte_len) = (self.layout.num_layers, self.layout.layer_block_bytes());
        let end = offset.checked_add(bytes.len()).filter(|end| *end <= byte_len);
        let is_inside = layer.0 < num_layers && (block.0 as usize) < self.num_blocks;
        if end.is_none() || !is_inside {
            return Err(ComputeError::Plan(format!(
                "{} bytes at {offset} for layer {} block {}, the pool has {num_layers} layers of {} blocks of {byte_len} bytes",
                bytes.len(),
                layer.0,
                block.0,
                self.num_blocks
            )));
        }
        self.edit(layer, block, |put| put(offset, bytes))
    }

    fn shared_region(&self) -> Option<SharedRegion> {
        match &self.blocks {
            Blocks::Apart(_) => None,
            Blocks::Shareable { pool, .. } => pool.shared_region(),
        }
    }
}

/// Offsets of a token's elements in a (layer, block): keys `[num_kv_heads, key_dim, 16 tokens]`, then values
/// `[num_kv_heads, 16 tokens, value_dim]`.
fn elements(layout: KvLayout, slot: usize) -> impl Iterator<Item = usize> {
    let element_bytes = layout.element.byte_len();
    let (num_heads, value_dim) = (layout.num_kv_heads as usize, layout.value_dim as usize);
    let first_value = layout.key_elements();
    let keys = (0..num_heads * layout.key_dim as usize).map(move |index| index * BLOCK_TOKENS + slot);
    let values = (0..num_heads).flat_map(move |head| {
        let start = first_value + (head * BLOCK_TOKENS + slot) * value_dim;
        start..start + value_dim
    });
    keys.chain(values).map(move |index| index * element_bytes)
}

/// The words that one makes up, itself first.
fn nth_word(word: u64, index: usize) -> u64 {
    if index == 0 { word } else { mix(word, index as u64) }
}

/// The inverse of [`nth_word`] for the first word alone; each further one changes the result.
fn fold(folded: u64, word: u64, index: usize) -> u64 {
    if index == 0 { word } else { mix(folded, word) }
}

#[cfg(test)]
mod tests {
    use relevo_wire::ElementType;

    use super::*;

    const LAYER: LayerIndex = LayerIndex(1);
    const BLOCK: BlockIndex = BlockIndex(2);

    fn pool(num_kv_heads: u32, key_dim: u32, value_dim: u32, element: ElementType) -> ScriptedKv {
        ScriptedKv::new(KvLayout { num_layers: 2, num_kv_heads, key_dim, value_dim, element }, 3)
    }

    /// Pools of many shapes, the small ones in both kinds of memory.
    fn shapes() -> Vec<ScriptedKv> {
        let small = [
            pool(1, 1, 1, ElementType::F32),
            pool(1, 1, 1, ElementType::F16),
            pool(2, 3, 5, ElementType::F16),
            pool(3, 7, 1, ElementType::F32),
            pool(1, 4, 2, ElementType::Bf16),
        ];
        let shareable: Vec<_> =
            small.iter().map(|pool| ScriptedKv::shareable(pool.layout, pool.num_blocks).unwrap()).collect();
        let large = pool(8, 64, 64, ElementType::Bf16);
        small.into_iter().chain(shareable).chain([large]).collect()
    }

    #[test]
    fn a_block_is_not_written_while_somebody_reads_it() {
        for kv in shapes() {
            let read = kv.read(LAYER, BLOCK);
            let copy = read.clone();
            drop(read);
            assert!(kv.store(LAYER, BLOCK, 1, 7).is_err(), "{:?}", kv.layout);
            assert!(copy.iter().all(|byte| *byte == 0));
            drop(copy);
            assert!(kv.store(LAYER, BLOCK, 1, 7).is_ok());
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn blocks_that_can_be_shared_lie_in_their_region() {
        let layout = pool(1, 2, 3, ElementType::F16).layout;
        let kv = ScriptedKv::shareable(layout, 3).unwrap();
        let region = kv.shared_region().unwrap();
        assert!(region.offset_of(&kv.read(LAYER, BLOCK)).is_some());
        assert!(pool(1, 2, 3, ElementType::F16).shared_region().is_none());
    }

    #[test]
    fn a_token_fills_all_its_elements_and_none_of_its_neighbours() {
        for kv in shapes() {
            let num_bytes = kv.layout.layer_block_bytes();
            let words: [u64; BLOCK_TOKENS] = std::array::from_fn(|slot| mix(slot as u64, 99));
            let mut touched = vec![0; num_bytes];
            for (slot, word) in words.iter().enumerate() {
                kv.store(LAYER, BLOCK, slot, *word).unwrap();
                for offset in elements(kv.layout, slot) {
                    touched[offset..][..kv.layout.element.byte_len()].iter_mut().for_each(|count| *count += 1);
                }
            }
            assert!(touched.iter().all(|count| *count == 1), "{:?}", kv.layout);
            assert_eq!(kv.load(LAYER, BLOCK), words.map(|word| kv.kept(word)), "{:?}", kv.layout);
            assert_eq!(kv.load_slot(LAYER, BLOCK, 5), kv.kept(words[5]));
            assert!(kv.read(LayerIndex(0), BLOCK).iter().all(|byte| *byte == 0), "the other layer is untouched");
        }
    }

    #[test]
    fn one_wrong_bit_anywhere_in_a_block_changes_the_word_of_its_token() {
        for kv in shapes() {
            (0..BLOCK_TOKENS).for_each(|slot| kv.store(LAYER, BLOCK, slot, mix(slot as u64, 99)).unwrap());
            let whole = kv.load(LAYER, BLOCK);
            let bytes = kv.read(LAYER, BLOCK).to_vec();
            for index in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[index] ^= 0x10;
                kv.write(LAYER, BLOCK, &damaged).unwrap();
                let changed = kv.load(LAYER, BLOCK).iter().zip(&whole).filter(|(now, then)| now != then).count();
                assert_eq!(changed, 1, "byte {index} of {:?}", kv.layout);
            }
        }
    }
}
