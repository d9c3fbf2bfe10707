//! What the two ends of a hand-over of KV blocks say to each other.

use crate::{BlockIndex, Epoch, LeaseId, SequenceId, TokenId};

/// A lease as the decode side granted it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct GrantedLease {
    /// Its id.
    pub lease: LeaseId,
    /// The granting device's epoch.
    pub epoch: Epoch,
    /// The granting device's blocks for the whole context, in order.
    pub blocks: Vec<BlockIndex>,
    /// Leading blocks that it holds already: not to be pushed.
    pub num_present: u32,
}

/// What the decode side needs to go on, beside the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct HandOver {
    /// The sequence.
    pub sequence: SequenceId,
    /// The lease that its blocks were pushed under.
    pub lease: LeaseId,
    /// The token that prefill has drawn and emitted.
    pub first_token: TokenId,
    /// Prompt tokens that prefill took from its prefix cache.
    pub cached_tokens: u32,
}
