//! Blocks on their way to another device: which are final, which were sent, which are pinned by bytes in flight.

use relevo_wire::{BLOCK_TOKENS, BlockIndex, LayerIndex, blocks_for_tokens};

use super::{DeviceCore, Effect};

/// Blocks that must not be reused while bytes of theirs are in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinId(pub u64);

impl DeviceCore {
    /// A layer of the step in flight is in the pool: the blocks of each chunk that decodes elsewhere are final there.
    pub(super) fn push_layer(&mut self, layer: LayerIndex, effects: &mut Vec<Effect>) {
        for piece_index in 0..self.step.pieces.len() {
            let piece = self.step.pieces[piece_index];
            let (from, to) = (piece.start / BLOCK_TOKENS, blocks_for_tokens(piece.start + piece.rows));
            self.push_blocks(piece.slot, layer, (from, to), effects);
        }
    }

    /// Blocks out of the prefix cache are final in every layer before the first chunk is computed.
    pub(super) fn push_cached(&mut self, slot: usize, effects: &mut Vec<Effect>) {
        let Some(sequence) = &self.slots[slot] else { return };
        let num_held = sequence.num_computed / BLOCK_TOKENS;
        for layer in 0..self.limits.num_layers {
            self.push_blocks(slot, LayerIndex(layer), (0, num_held), effects);
        }
        self.mark_sent(slot, num_held);
    }

    /// The blocks up to `num_held` were sent in every layer.
    pub(super) fn mark_sent(&mut self, slot: usize, num_held: usize) {
        if let Some(push) = self.slots[slot].as_mut().and_then(|sequence| sequence.push.as_mut()) {
            push.num_sent = push.num_sent.max(num_held);
        }
    }

    fn push_blocks(&mut self, slot: usize, layer: LayerIndex, (from, to): (usize, usize), effects: &mut Vec<Effect>) {
        let Some(sequence) = &self.slots[slot] else { return };
        let Some((lease, num_sent)) = sequence.push.and_then(|push| Some((push.lease?, push.num_sent))) else { return };
        let from = from.max(num_sent);
        if sequence.doom.is_some() || from >= to {
            return;
        }
        let blocks = sequence.table[from..to].to_vec();
        // Pinned with all their predecessors, so that these do not become idle, and are not evicted, before them.
        let pinned = sequence.table[..to].to_vec();
        let pin = self.next_pin;
        self.next_pin.0 += 1;
        effects.push(Effect::Push {
            pin,
            sequence: sequence.id(),
            lease,
            layer,
            first_block: u32::try_from(from).unwrap_or(u32::MAX),
            blocks,
        });
        self.pin(pin, pinned);
    }

    fn pin(&mut self, pin: PinId, blocks: Vec<BlockIndex>) {
        for &block in &blocks {
            self.pool.retain(block);
        }
        self.pins.insert(pin, blocks);
    }

    pub(super) fn unpin(&mut self, pin: PinId) {
        if let Some(mut blocks) = self.pins.remove(&pin) {
            self.pool.release_table(&mut blocks);
        }
    }
}
