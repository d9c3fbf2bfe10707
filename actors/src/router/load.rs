//! What a device has in flight, added up.

use relevo_wire::DeviceId;

use super::workers::InFlight;
use crate::policy::in_hand::PromptsInHand;

/// The load of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Sequences that decode here, and those that are prefilled here and decode elsewhere.
    pub(super) num_running: usize,
    /// Sequences that are prefilled here and have no token yet.
    pub(super) num_prefilling: usize,
    /// Tokens of their contexts.
    pub(super) pending_prompt_tokens: usize,
    /// Those of them that bear nobody beside them.
    pub(super) num_exclusive: usize,
    /// The prompts of all that have this device for one of their workers.
    pub(super) in_hand: PromptsInHand,
}

impl Load {
    /// A sequence that has this device for one of its workers.
    pub(super) fn enter(&mut self, in_flight: &InFlight, device: DeviceId) {
        let share = Share::of(in_flight, device);
        self.num_running += share.num_running;
        self.num_prefilling += share.num_prefilling;
        self.pending_prompt_tokens += share.pending_prompt_tokens;
        self.num_exclusive += share.num_exclusive;
        self.in_hand.sent(&in_flight.keys);
    }

    /// The same, as it was when it entered, is over or changes.
    pub(super) fn leave(&mut self, in_flight: &InFlight, device: DeviceId) {
        let share = Share::of(in_flight, device);
        self.num_running -= share.num_running;
        self.num_prefilling -= share.num_prefilling;
        self.pending_prompt_tokens -= share.pending_prompt_tokens;
        self.num_exclusive -= share.num_exclusive;
        self.in_hand.over(&in_flight.keys);
    }

    /// Whether nothing is there.
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What one sequence adds to one device.
struct Share {
    num_running: usize,
    num_prefilling: usize,
    pending_prompt_tokens: usize,
    num_exclusive: usize,
}

impl Share {
    fn of(in_flight: &InFlight, device: DeviceId) -> Self {
        let is_prefilling = in_flight.route.prefill == device && !in_flight.started;
        let is_decoding = in_flight.route.decode == device;
        Self {
            num_running: usize::from(is_decoding || is_prefilling),
            num_prefilling: usize::from(is_prefilling),
            pending_prompt_tokens: if is_prefilling { in_flight.request.num_context_tokens() } else { 0 },
            num_exclusive: usize::from(is_prefilling && in_flight.exclusive),
        }
    }
}
