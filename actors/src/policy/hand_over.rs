//! The way of a sequence from its prefill to its decode worker, as steps that can be named: where a fault strikes, and where it is to strike.
//!
//! They are those of `ARCHITECTURE.md`, "The way of a request", points 5 to 8, in the order in which one that meets with no fault comes to
//! them. The first token leaves as soon as it is drawn, while the last layers are still on their way, so it may come to its client before
//! or after the steps around it.

use std::fmt;

use relevo_wire::SequenceId;
use serde::{Deserialize, Serialize};

use crate::decode::DecodeEvent;
use crate::prefill::PrefillEvent;

/// A step of a hand-over that has just been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandOverStep {
    /// The prefill role has the sequence.
    Admitted,
    /// Its first chunk is about to be scheduled: the engine wants a lease.
    LeaseWanted,
    /// The decode role was asked for one.
    LeaseAsked,
    /// The prefill role has it.
    LeaseGranted,
    /// The first frame of blocks lies in the leased blocks.
    FirstLayerPushed,
    /// Half of the blocks do.
    HalfPushed,
    /// All of them do.
    AllPushed,
    /// The client has the first token.
    FirstToken,
    /// The decode role was told that prefill is done.
    HandedOver,
    /// The lease has ended well: the sequence is in the running batch of the decode device.
    Committed,
    /// The client has half of the tokens.
    MidDecode,
}

impl HandOverStep {
    /// All of them, in order.
    pub const ALL: [Self; 11] = [
        Self::Admitted,
        Self::LeaseWanted,
        Self::LeaseAsked,
        Self::LeaseGranted,
        Self::FirstLayerPushed,
        Self::HalfPushed,
        Self::AllPushed,
        Self::FirstToken,
        Self::HandedOver,
        Self::Committed,
        Self::MidDecode,
    ];

    /// The step that the prefill role takes with this event, and whose it is.
    pub fn of_prefill(event: &PrefillEvent) -> Option<(SequenceId, Self)> {
        match event {
            PrefillEvent::Admit { request, .. } => Some((request.sequence, Self::Admitted)),
            PrefillEvent::LeaseWanted(sequence) => Some((*sequence, Self::LeaseWanted)),
            PrefillEvent::Granted { sequence, .. } => Some((*sequence, Self::LeaseGranted)),
            _ => None,
        }
    }

    /// The step that the decode role takes with this event, and whose it is.
    pub fn of_decode(event: &DecodeEvent) -> Option<(SequenceId, Self)> {
        match event {
            DecodeEvent::LeaseAsked { request, .. } => Some((request.sequence, Self::LeaseAsked)),
            DecodeEvent::HandedOver(hand_over) => Some((hand_over.sequence, Self::HandedOver)),
            _ => None,
        }
    }

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::LeaseWanted => "lease-wanted",
            Self::LeaseAsked => "lease-asked",
            Self::LeaseGranted => "lease-granted",
            Self::FirstLayerPushed => "first-layer-pushed",
            Self::HalfPushed => "half-pushed",
            Self::AllPushed => "all-pushed",
            Self::FirstToken => "first-token",
            Self::HandedOver => "handed-over",
            Self::Committed => "committed",
            Self::MidDecode => "mid-decode",
        }
    }
}

impl fmt::Display for HandOverStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
