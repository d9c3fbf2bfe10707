//! The KV pool of a [`super::ScriptedModel`]: real block bytes that are handed out without a copy and never change under a reader.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use relevo_wire::{BLOCK_TOKENS, BlockIndex, KvLayout, LayerIndex};

use super::step::KvMemory;
use crate::compute::ComputeError;

/// Blocks of one key and one value word for each token.
///
/// **Invariant:** bytes that were handed out stay as they are. Who writes to a block while somebody reads it gets an error, where a real
/// pool would send torn bytes.
pub(super) struct ScriptedKv {
    layout: KvLayout,
    num_blocks: usize,
    blocks: Vec<Mutex<Bytes>>,
}

impl ScriptedKv {
    pub(super) fn new(layout: KvLayout, num_blocks: usize) -> Self {
        let byte_len = layout.layer_block_bytes();
        let num_slots = num_blocks * layout.num_layers as usize;
        let blocks = (0..num_slots).map(|_| Mutex::new(BytesMut::zeroed(byte_len).freeze())).collect();
        Self { layout, num_blocks, blocks }
    }

    /// Keeps a token's word: the low half as its key, the high half as its value.
    pub(super) fn store(
        &self,
        layer: LayerIndex,
        block: BlockIndex,
        slot: usize,
        word: u64,
    ) -> Result<(), ComputeError> {
        let word = word.to_le_bytes();
        self.edit(layer, block, |bytes| {
            bytes[key_offset(slot)..][..4].copy_from_slice(&word[..4]);
            bytes[value_offset(slot)..][..4].copy_from_slice(&word[4..]);
        })
    }

    /// The words of a block's tokens.
    pub(super) fn load(&self, layer: LayerIndex, block: BlockIndex) -> [u64; BLOCK_TOKENS] {
        let bytes = self.lock(layer, block);
        std::array::from_fn(|slot| {
            let mut word = [0; 8];
            word[..4].copy_from_slice(&bytes[key_offset(slot)..][..4]);
            word[4..].copy_from_slice(&bytes[value_offset(slot)..][..4]);
            u64::from_le_bytes(word)
        })
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

    fn write(&self, layer: LayerIndex, block: BlockIndex, bytes: &[u8]) -> Result<(), ComputeError> {
        let (num_layers, byte_len) = (self.layout.num_layers, self.layout.layer_block_bytes());
        if layer.0 >= num_layers || block.0 as usize >= self.num_blocks || bytes.len() != byte_len {
            return Err(ComputeError::Plan(format!(
                "{} bytes for layer {} block {}, the pool has {num_layers} layers of {} blocks of {byte_len} bytes",
                bytes.len(),
                layer.0,
                block.0,
                self.num_blocks
            )));
        }
        self.edit(layer, block, |own| own.copy_from_slice(bytes))
    }
}

const fn key_offset(slot: usize) -> usize {
    slot * 4
}

const fn value_offset(slot: usize) -> usize {
    (BLOCK_TOKENS + slot) * 4
}
