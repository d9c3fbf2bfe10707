//! Where a stream's attempt is, and whose end would be its own.

use relevo_wire::{DeviceId, NodeId};

use super::core::Phase;
use crate::device::DeviceRole;

/// The workers of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Computes its context.
    pub prefill: DeviceId,
    /// Generates.
    pub decode: DeviceId,
}

impl Placement {
    /// Whether a sequence in this phase is lost with the pool of `device`.
    pub fn needs_pool(self, phase: Phase, device: DeviceId) -> bool {
        match phase {
            Phase::Prefilling | Phase::HandingOver => self.prefill == device || self.decode == device,
            Phase::Decoding => self.decode == device,
            Phase::Queued | Phase::Over => false,
        }
    }

    /// Whether a sequence in this phase is lost with the node.
    pub fn needs_node(self, phase: Phase, node: NodeId) -> bool {
        let is_needed = |device: DeviceId| device.node() == node && self.needs_pool(phase, device);
        is_needed(self.prefill) || is_needed(self.decode)
    }

    /// Whether one of its workers is on this node.
    pub fn is_on(self, node: NodeId) -> bool {
        self.prefill.node() == node || self.decode.node() == node
    }

    /// Whether a sequence in this phase is lost with the actor of a role of `device`.
    pub fn needs_actor(self, phase: Phase, device: DeviceId, role: DeviceRole) -> bool {
        match (role, phase) {
            (DeviceRole::Prefill, Phase::Prefilling) => self.prefill == device,
            (DeviceRole::Decode, Phase::HandingOver | Phase::Decoding) => self.decode == device,
            // Its lease went down with the ledger, and perhaps its hand-over in the mailbox.
            (DeviceRole::Decode, Phase::Prefilling) => self.decode == device && self.prefill != device,
            // The decode side is told that its writer is lost, and knows best whether it has all.
            (_, Phase::Queued | Phase::Over) | (DeviceRole::Prefill, Phase::HandingOver | Phase::Decoding) => false,
        }
    }

    /// Whether the engine of `device` steps a sequence in this phase, or is about to.
    pub fn steps_on(self, phase: Phase, device: DeviceId) -> bool {
        match phase {
            Phase::Prefilling => self.prefill == device,
            Phase::HandingOver | Phase::Decoding => self.decode == device,
            Phase::Queued | Phase::Over => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefill_node_is_needed_until_the_decode_worker_has_drawn_a_token() {
        let (gone, decode) = (NodeId(1), NodeId(2));
        let placement = Placement { prefill: DeviceId::of(gone, 0), decode: DeviceId::of(decode, 0) };
        let phases = [Phase::Queued, Phase::Prefilling, Phase::HandingOver, Phase::Decoding, Phase::Over];
        assert_eq!(phases.map(|phase| placement.needs_node(phase, gone)), [false, true, true, false, false]);
        assert_eq!(phases.map(|phase| placement.needs_node(phase, decode)), [false, true, true, true, false]);
    }
}
