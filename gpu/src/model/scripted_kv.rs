//! The KV pool of a [`super::ScriptedModel`]: real block bytes that are handed out without a copy and never change under a reader.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use relevo_wire::{BLOCK_TOKENS, BlockIndex, KvLayout, LayerIndex};

use super::scripted::mix;
use super::step::KvMemory;
use crate::compute::ComputeError;

/// Blocks that keep one word for each token, spread over all its key and value elements: as far as they hold more than eight bytes, by further
/// words that the first one makes up.
///
/// **Invariant:** bytes that were handed out stay as they are. Who writes to a block while somebody reads it gets an error, where a real
/// pool would send torn bytes.
pub(super) struct ScriptedKv {
    layout: KvLayout,
    num_blocks: usize,
    blocks: Vec<Mutex<Bytes>>,
}

impl ScriptedKv {
    /// What a (layer, block) takes beside its bytes: a lock, a handle, and what the allocator needs for two allocations.
    pub(super) const SLOT_OVERHEAD_BYTES: u64 = 128;

    pub(super) fn new(layout: KvLayout, num_blocks: usize) -> Self {
        let byte_len = layout.layer_block_bytes();
        let num_slots = num_blocks * layout.num_layers as usize;
        let blocks = (0..num_slots).map(|_| Mutex::new(BytesMut::zeroed(byte_len).freeze())).collect();
        Self { layout, num_blocks, blocks }
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
        self.edit(layer, block, |bytes| {
            let mut written = 0;
            let mut current = [0; 8];
            for offset in elements(self.layout, slot) {
                if written % 8 == 0 {
                    current = nth_word(word, written / 8).to_le_bytes();
                }
                bytes[offset..][..element_bytes].copy_from_slice(&current[written % 8..][..element_bytes]);
                written += element_bytes;
            }
        })
    }

    /// The words of a block's tokens, out of every byte of theirs.
    pub(super) fn load(&self, layer: LayerIndex, block: BlockIndex) -> [u64; BLOCK_TOKENS] {
        let bytes = self.lock(layer, block);
        std::array::from_fn(|slot| self.read_word(&bytes, slot))
    }

    /// The word of one token.
    pub(super) fn load_slot(&self, layer: LayerIndex, block: BlockIndex, slot: usize) -> u64 {
        self.read_word(&self.lock(layer, block), slot)
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

    fn edit(&self, layer: LayerIndex, block: BlockIndex, write: impl FnOnce(&mut [u8])) -> Result<(), ComputeError> {
        let mut bytes = self.lock(layer, block);
        match std::mem::take(&mut *bytes).try_into_mut() {
            Ok(mut own) => {
                write(&mut own);
                *bytes = own.freeze();
                Ok(())
            }
            Err(shared) => {
                *bytes = shared;
                Err(ComputeError::Plan(format!(
                    "block {} of layer {} is written while it is still read",
                    block.0, layer.0
                )))
            }
        }
    }

    fn lock(&self, layer: LayerIndex, block: BlockIndex) -> MutexGuard<'_, Bytes> {
        let index = layer.0 as usize * self.num_blocks + block.0 as usize;
        self.blocks[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KvMemory for ScriptedKv {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    fn read(&self, layer: LayerIndex, block: BlockIndex) -> Bytes {
        self.lock(layer, block).clone()
    }

    fn write_at(&self, layer: LayerIndex, block: BlockIndex, offset: usize, bytes: &[u8]) -> Result<(), ComputeError> {
        let (num_layers, byte_len) = (self.layout.num_layers, self.layout.layer_block_bytes());
        let end = offset.checked_add(bytes.len()).filter(|end| *end <= byte_len);
        let is_inside = layer.0 < num_layers && (block.0 as usize) < self.num_blocks;
        let Some(end) = end.filter(|_| is_inside) else {
            return Err(ComputeError::Plan(format!(
                "{} bytes at {offset} for layer {} block {}, the pool has {num_layers} layers of {} blocks of {byte_len} bytes",
                bytes.len(),
                layer.0,
                block.0,
                self.num_blocks
            )));
        };
        self.edit(layer, block, |own| own[offset..end].copy_from_slice(bytes))
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

    fn shapes() -> [ScriptedKv; 5] {
        [
            pool(1, 1, 1, ElementType::F32),
            pool(1, 1, 1, ElementType::F16),
            pool(2, 3, 5, ElementType::F16),
            pool(3, 7, 1, ElementType::F32),
            pool(8, 64, 64, ElementType::Bf16),
        ]
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
