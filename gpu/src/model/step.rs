//! What an engine drives: one step of a model at a time, resumable, over one KV pool.

use std::sync::Arc;

use bytes::Bytes;
use relevo_wire::{BlockIndex, KvLayout, LayerIndex, SharedRegion};

use crate::compute::{ComputeError, RowOutput, StepPlan};

/// A model with its weights and its KV pool on one device.
///
/// A step is begun with a plan, advanced until it is [`Progress::Done`], and finished. One step is in flight at a time; what pauses it
/// (blocks to push after a layer, experts elsewhere to await) is the caller's to handle before it advances again.
/// Implemented by [`crate::model`]'s real models and by scripted ones.
pub trait StepModel: Send {
    /// Shape of its KV blocks.
    fn kv_layout(&self) -> KvLayout;

    /// Most rows that a step may have.
    fn max_rows(&self) -> usize;

    /// Most output rows that a step may have.
    fn max_outputs(&self) -> usize;

    /// Positions that it can hold at most.
    fn max_context(&self) -> usize;

    /// Its KV pool, for those who move blocks between devices.
    fn kv_memory(&self) -> Arc<dyn KvMemory>;

    /// The calling thread drives the model from here on. A device with threads of its own counts it among them, and pins it if it pins them.
    fn adopt_thread(&mut self) {}

    /// Begins a step.
    ///
    /// # Errors
    /// Our bug: a plan that contradicts itself or exceeds the limits, or a step that is still in flight.
    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<(), ComputeError>;

    /// Computes up to the next point where others may want to act.
    ///
    /// # Errors
    /// The device failed; the step is lost.
    fn advance(&mut self) -> Result<Progress, ComputeError>;

    /// Ends a step that is done: one output for each output row, in the plan's order.
    ///
    /// # Errors
    /// The device failed, or the step is not done.
    fn finish_step(&mut self) -> Result<Vec<RowOutput>, ComputeError>;

    /// Gives up a step in flight, if there is one. Blocks it wrote to hold garbage beyond what was final before.
    fn abandon_step(&mut self);

    /// After a fault: gives up the step in flight and puts a fresh KV pool of the same size in the place of the old one, whose memory
    /// lives on as long as somebody holds [`StepModel::kv_memory`] or bytes of it. The weights stay. An engine calls it at the end of an
    /// epoch; who begins the next one asks for [`StepModel::kv_memory`] again.
    ///
    /// # Errors
    /// The device failed for good, or memory is short.
    fn reset(&mut self) -> Result<(), ComputeError>;
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// This layer's keys and values of every row are in the pool.
    LayerDone(LayerIndex),
    /// All layers are done and the outputs can be fetched.
    Done,
}

/// The KV pool's memory as those see it who move blocks: (layer, block) by (layer, block), bytes as [`KvLayout`] lays them out.
///
/// Which blocks may be read or written when is the block accounting's promise (`DeviceCore`): a block is read only when it is final,
/// written only while it is leased to the writer, and never both.
pub trait KvMemory: Send + Sync {
    /// Shape of the blocks.
    fn layout(&self) -> KvLayout;

    /// Number of blocks.
    fn num_blocks(&self) -> usize;

    /// The block's bytes, without a copy where the memory is the host's. The block is not reused while the `Bytes` live.
    fn read(&self, layer: LayerIndex, block: BlockIndex) -> Bytes;

    /// Replaces the block's bytes.
    ///
    /// # Errors
    /// The caller's fault: an index out of range, or a length that is not [`KvLayout::layer_block_bytes`].
    fn write(&self, layer: LayerIndex, block: BlockIndex, bytes: &[u8]) -> Result<(), ComputeError> {
        let byte_len = self.layout().layer_block_bytes();
        if bytes.len() != byte_len {
            return Err(ComputeError::Plan(format!("{} bytes for a KV block of {byte_len}", bytes.len())));
        }
        self.write_at(layer, block, 0, bytes)
    }

    /// Replaces those of the block's bytes that begin at `offset`: for a block that comes in pieces.
    ///
    /// # Errors
    /// The caller's fault: an index out of range, or bytes that go beyond the block's end.
    fn write_at(&self, layer: LayerIndex, block: BlockIndex, offset: usize, bytes: &[u8]) -> Result<(), ComputeError>;

    /// What lets other processes of the host read the blocks where they lie; nothing if the memory is this process's alone.
    fn shared_region(&self) -> Option<SharedRegion> {
        None
    }
}
