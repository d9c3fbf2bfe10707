//! The KV blocks of a CPU device: one allocation, a (layer, block) after the other, at cache-line alignment.
//!
//! The engine's thread and its workers compute on some blocks while movers read or write others, so that the memory is shared without a lock.
//! Who may touch which block when is the block accounting's promise (`DeviceCore`, see [`KvMemory`]): a block is read by others only when it is
//! final, written by others only while it is leased to them, and never both.
//!
//! **Invariant:** no reference is ever made to more than one (layer, block) of the memory.

#![allow(unsafe_code, reason = "memory that threads share without a lock, block by block")]

use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use half::f16;
use relevo_wire::{BLOCK_TOKENS, BlockIndex, ElementType, KvLayout, LayerIndex, SharedRegion};

use super::pages::Pages;
use super::simd::Element;
use crate::compute::ComputeError;
use crate::model::KvMemory;

/// Alignment of each (layer, block), of the sixteen keys of a head's element, and a cache line.
const ALIGN: usize = 64;

/// The KV memory of a CPU device.
#[derive(Clone)]
pub struct KvPool {
    memory: Arc<Pages>,
    layout: KvLayout,
    num_blocks: usize,
    /// Bytes from one (layer, block) to the next: its size, rounded up to [`ALIGN`].
    stride: usize,
}

/// An element that keys and values are stored as.
pub(super) trait KvElement: Element {
    /// Its name in a layout.
    const TYPE: ElementType;
}

impl KvElement for f32 {
    const TYPE: ElementType = ElementType::F32;
}

impl KvElement for f16 {
    const TYPE: ElementType = ElementType::F16;
}

impl KvPool {
    /// A pool of `num_blocks` blocks of `layout`, in memory that is this process's alone.
    ///
    /// # Errors
    /// Our bug: an element type that the kernels do not read. Transient: memory is short.
    pub fn new(layout: KvLayout, num_blocks: usize) -> Result<Self, ComputeError> {
        Self::over(layout, num_blocks, Pages::private)
    }

    /// [`KvPool::new`] in memory that other processes of the host can be let into, to read: see [`KvMemory::shared_region`]. Where the system has no
    /// such memory, it is this process's alone.
    ///
    /// # Errors
    /// As there.
    pub fn shareable(layout: KvLayout, num_blocks: usize) -> Result<Self, ComputeError> {
        Self::over(layout, num_blocks, Pages::shareable)
    }

    fn over(
        layout: KvLayout,
        num_blocks: usize,
        allocate: impl FnOnce(usize) -> std::io::Result<Pages>,
    ) -> Result<Self, ComputeError> {
        if layout.element == ElementType::Bf16 {
            return Err(ComputeError::Device("a CPU's KV pool holds f16 or f32, not bf16".into()));
        }
        let stride = layout.layer_block_bytes().next_multiple_of(ALIGN);
        let wanted_bytes = stride.saturating_mul(layout.num_layers as usize).saturating_mul(num_blocks).max(ALIGN);
        let short = || ComputeError::OutOfMemory { wanted_bytes, what: "the KV pool" };
        let memory = Arc::new(allocate(wanted_bytes).map_err(|_| short())?);
        Pages::populate_in_background(&memory, layout.num_layers.max(1) as usize);
        Ok(Self { memory, layout, num_blocks, stride })
    }

    /// The bytes of a (layer, block), if there is such a one.
    fn block(&self, layer: LayerIndex, block: BlockIndex) -> Option<NonNull<u8>> {
        let (layer, block) = (layer.0 as usize, block.0 as usize);
        if layer >= self.layout.num_layers as usize || block >= self.num_blocks {
            return None;
        }
        // SAFETY: within the allocation, which holds num_layers × num_blocks strides.
        NonNull::new(unsafe { self.memory.start().add((layer * self.num_blocks + block) * self.stride) })
    }

    fn checked_block<E: KvElement>(&self, layer: LayerIndex, block: BlockIndex) -> NonNull<E> {
        assert!(self.layout.element == E::TYPE, "a pool of {:?}, read as {:?}", self.layout.element, E::TYPE);
        let found = self.block(layer, block);
        let Some(found) = found else { out_of_range(layer, block, self) };
        found.cast()
    }

    /// Keys and values of a (layer, block): `[num_kv_heads, key_dim, 16]` and `[num_kv_heads, 16, value_dim]`.
    ///
    /// # Panics
    /// Our bug: no such block, or elements of another type.
    ///
    /// # Safety
    /// Nobody writes to this (layer, block) while the references live.
    pub(super) unsafe fn keys_and_values<E: KvElement>(
        &self,
        layer: LayerIndex,
        block: BlockIndex,
    ) -> (&[[E; BLOCK_TOKENS]], &[E]) {
        let start = self.checked_block::<E>(layer, block).as_ptr().cast_const();
        let num_keys = self.layout.key_elements();
        // SAFETY: inside the (layer, block), which is aligned and zeroed at first, so that any bits are elements; alone by the caller's promise.
        unsafe {
            let keys = std::slice::from_raw_parts(start.cast(), num_keys / BLOCK_TOKENS);
            (keys, std::slice::from_raw_parts(start.add(num_keys), self.layout.value_elements()))
        }
    }

    /// [`KvPool::keys_and_values`], to write.
    ///
    /// # Panics
    /// As there.
    ///
    /// # Safety
    /// Nobody else reads or writes this (layer, block) while the references live.
    #[expect(clippy::mut_from_ref, reason = "shared memory; the caller promises to be alone in this block")]
    pub(super) unsafe fn keys_and_values_mut<E: KvElement>(
        &self,
        layer: LayerIndex,
        block: BlockIndex,
    ) -> (&mut [[E; BLOCK_TOKENS]], &mut [E]) {
        let start = self.checked_block::<E>(layer, block).as_ptr();
        let num_keys = self.layout.key_elements();
        // SAFETY: as in `keys_and_values`; keys and values do not overlap.
        unsafe {
            let keys = std::slice::from_raw_parts_mut(start.cast(), num_keys / BLOCK_TOKENS);
            (keys, std::slice::from_raw_parts_mut(start.add(num_keys), self.layout.value_elements()))
        }
    }
}

#[cold]
#[expect(clippy::panic, reason = "our bug: plans are checked against the pool before a step begins")]
fn out_of_range(layer: LayerIndex, block: BlockIndex, pool: &KvPool) -> ! {
    panic!(
        "layer {}, block {} of a pool of {} layers, {} blocks",
        layer.0, block.0, pool.layout.num_layers, pool.num_blocks
    )
}

impl KvMemory for KvPool {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    fn read(&self, layer: LayerIndex, block: BlockIndex) -> Bytes {
        let Some(start) = self.block(layer, block) else { out_of_range(layer, block, self) };
        let byte_len = self.layout.layer_block_bytes();
        Bytes::from_owner(BlockBytes { start, byte_len, _memory: Arc::clone(&self.memory) })
    }

    fn write_at(&self, layer: LayerIndex, block: BlockIndex, offset: usize, bytes: &[u8]) -> Result<(), ComputeError> {
        let byte_len = self.layout.layer_block_bytes();
        if offset.checked_add(bytes.len()).is_none_or(|end| end > byte_len) {
            let num_bytes = bytes.len();
            return Err(ComputeError::Plan(format!("{num_bytes} bytes at {offset} of a KV block of {byte_len}")));
        }
        let start = self.block(layer, block).ok_or_else(|| {
            let (layers, blocks) = (self.layout.num_layers, self.num_blocks);
            ComputeError::Plan(format!(
                "layer {}, block {} of a pool of {layers} layers, {blocks} blocks",
                layer.0, block.0
            ))
        })?;
        // SAFETY: `offset` and the end were checked against the bytes of this (layer, block), which is leased to the caller, so that nobody else
        // touches it; the source cannot overlap for the same reason.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr().add(offset), bytes.len()) };
        Ok(())
    }

    fn shared_region(&self) -> Option<SharedRegion> {
        Pages::shared_region(&self.memory)
    }
}

/// A block as `Bytes` own it.
struct BlockBytes {
    start: NonNull<u8>,
    byte_len: usize,
    _memory: Arc<Pages>,
}

// SAFETY: as `Pages`, which it keeps alive; it only reads, and the block is final.
unsafe impl Send for BlockBytes {}

impl AsRef<[u8]> for BlockBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: inside the memory that `_memory` keeps alive; nobody writes to a block while its `Bytes` live (the promise at the top).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.byte_len) }
    }
}
