//! Messages of the control plane: what nodes say to each other beside heartbeats, tokens and KV blocks.
//!
//! **Invariant:** nothing that comes from a peer is believed because it has the right structure: numbers are bounded by [`ControlMessage::check`],
//! and who may say what is decided by the receiver.

use std::fmt;

use crate::sent_request::SentRequest;
use crate::{
    ClusterMap, DeviceId, DeviceRole, Epoch, GrantedLease, HandOver, KvLayout, LeaseId, NodeEntry, NodeId, PrefixBatch,
    RequestId, SequenceId, StreamEvent,
};

/// Longest control message that is sent or accepted, archived: a prompt of a million tokens and the same again.
pub const MAX_CONTROL_BYTES: usize = 8 << 20;

/// Longest certificate request that is sent or accepted: ours have about 210 bytes.
pub const MAX_CERTIFICATE_REQUEST_BYTES: usize = 4096;

/// Sequences that one message may name.
const MAX_SEQUENCES: usize = 4096;

/// Nodes that one message may name: more than a node has links.
const MAX_ACQUAINTANCES: usize = 4096;

/// One message to a peer.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ControlMessage {
    /// To a device's prefill role.
    Prefill(DeviceId, ToPrefill),
    /// To a device's decode role.
    Decode(DeviceId, ToDecode),
    /// From a gateway: stop it wherever it is on this device.
    Abort(DeviceId, SequenceId),
    /// To the gateway that keeps a sequence.
    Gateway(ToGateway),
    /// From the coordinator: the map in force.
    Map(ClusterMap),
    /// To the coordinator: a device is given up, as it was in this epoch.
    Left(DeviceId, Epoch),
    /// From an operator, through the gateway that let it in, to the coordinator.
    Order(Order),
    /// From the coordinator: the devices of this node play these roles from here on.
    SetRoles(Vec<DeviceRole>),
    /// From the coordinator: the devices of this node take nothing new, or do so again.
    SetDraining(bool),
    /// From a gateway that has missed some of it, or has just begun: what does this device hold in its prefix cache?
    TellPrefixes(DeviceId),
    /// What do you say of yourself?
    AskStatus,
    /// To the coordinator, which has the authority at hand: the next certificate of the sender, for the key of this request (PKCS#10, DER).
    Renew(Vec<u8>),
    /// From the node of a prefill role: let a link of shared memory in, if we are of one host.
    AskMemoryLink,
    /// From the gateway that minted it: what has been done for this request where you are?
    AskTrace(RequestId),
    /// From a gateway or an operator, to a node that may prefill: what does your KV path to this node carry?
    MeasureLink(NodeId, LinkBench),
    /// From the node that measures: a step of that, at the other end of the path.
    Probe(ToProbe),
    /// To a coordinator whose link is new: who is in the last map that this node has, for one that has just begun knows nobody.
    Acquaintances(Vec<NodeEntry>),
}

/// How a link is to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct LinkBench {
    /// The size of a layer's block in KiB, instead of the model's own: at most [`MAX_BLOCK_KIB`].
    pub block_kib: Option<u32>,
    /// Rounds of each kind, at most [`MAX_ROUNDS`].
    pub rounds: u32,
}

/// The largest block that a link is measured with.
pub const MAX_BLOCK_KIB: u32 = 1024;

/// Most rounds of a measurement.
pub const MAX_ROUNDS: u32 = 60;

/// What the far end of a measurement is asked for. All are answered by [`ControlReply::Probed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ToProbe {
    /// Set memory aside for so many blocks of this layout, and let writers in.
    Open(KvLayout, u32),
    /// The same memory under a lease of its own.
    Again,
    /// Nothing but how much processor time has gone by.
    Read,
    /// It is over.
    Close,
}

/// Most layers and blocks that it keeps account of.
const MAX_PROBE_LAYERS: u32 = 1024;
const MAX_PROBE_BLOCKS: u32 = 1 << 16;

/// Most bytes that the far end of a measurement sets aside, for blocks and the same again for bare copies.
pub const MAX_PROBE_BYTES: usize = 256 << 20;

/// What a prefill role is told from outside.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ToPrefill {
    /// From the gateway: compute it, for this decode device.
    Admit(SentRequest, DeviceId),
    /// From the gateway: ask this decode device instead.
    Redirect(SequenceId, DeviceId),
    /// From a decode role: blocks are reserved.
    Granted(SequenceId, DeviceId, GrantedLease),
    /// From a decode role: they are not.
    Refused(SequenceId, DeviceId),
}

/// What a decode role is told from outside, by a prefill role.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ToDecode {
    /// Reserve blocks, for this prefill device.
    LeaseAsked(SentRequest, DeviceId),
    /// A lease is not needed (any more).
    Returned(LeaseId),
    /// Everything is pushed or under way.
    HandedOver(HandOver),
    /// The prefill role of this device is gone, with the blocks that it had yet to push.
    WriterLost(DeviceId),
}

/// What a gateway is told, by workers.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ToGateway {
    /// The first token of it is out.
    Started(SequenceId),
    /// Its decode role has no room for it.
    Refused(SequenceId),
    /// Nobody was there to take it.
    Undelivered(SequenceId),
    /// It does not go on here.
    Lost(SequenceId),
    /// A device's pool is gone with everything on it.
    DeviceLost(DeviceId, Stepping),
    /// A role's actor is gone, and the engine has let go of what it owned.
    RoleLost(DeviceId, DeviceRole),
    /// A device's prefix cache has changed.
    PrefixChanged(DeviceId, Epoch, PrefixBatch),
}

/// Which sequences an engine was stepping when it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Stepping {
    /// None: it was not its step that killed it.
    #[default]
    Nothing,
    /// These.
    These(Vec<SequenceId>),
    /// It hangs, and which one it hangs in is its secret.
    AllThatRun,
}

/// What an operator wants of the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Order {
    /// Let the devices of this node finish and send nothing new there.
    Drain(String),
    /// The end of that.
    Undrain(String),
    /// Let the devices of this node play this role, and no other.
    SetRole(String, DeviceRole),
}

/// The answer to a message.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ControlReply {
    /// It is taken.
    Taken,
    /// It could not be read, or the sender may not say so: the session ends.
    Forbidden,
    /// It is not done, for this reason.
    Refused(String),
    /// What the node says of itself, as JSON.
    Status(String),
    /// The next certificate.
    Renewed(Renewed),
    /// A link of shared memory is let in.
    Invited(MemoryInvitation),
    /// The spans of a request that it keeps, as JSON.
    Trace(String),
    /// What a path carries, as JSON.
    Measured(String),
    /// The lease that blocks may be pushed under, and the processor time that this process has used so far.
    Probed {
        /// Zero once it is over.
        lease: LeaseId,
        /// In nanoseconds.
        processor_ns: u64,
    },
}

/// What lets one link of shared memory in.
#[derive(Clone, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct MemoryInvitation {
    /// Where it is to dial, on the host of the one that invites.
    pub address: String,
    /// A secret, good once and soon.
    pub ticket: [u8; 32],
}

impl fmt::Debug for MemoryInvitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryInvitation").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What a node gets that has asked for its next certificate, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Renewed {
    /// The certificate.
    pub certificate_pem: String,
    /// The authority's own.
    pub authority_pem: String,
    /// What is revoked by now.
    pub revocations_pem: String,
}

/// What is wrong with a message that has the right structure. The peer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is no message of this version.
    #[error("the message is malformed: {0}")]
    Malformed(String),
    /// It is longer than allowed.
    #[error("a message of {byte_len} bytes, at most {MAX_CONTROL_BYTES} are sent and accepted")]
    TooLong {
        /// Archived.
        byte_len: usize,
    },
    /// A number is out of its range.
    #[error("{what} is out of its range")]
    OutOfRange {
        /// Which.
        what: &'static str,
    },
}

impl ControlMessage {
    /// Whether every number in it is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), MessageError> {
        match self {
            Self::Prefill(_, ToPrefill::Admit(request, _)) | Self::Decode(_, ToDecode::LeaseAsked(request, _)) => {
                request.check()
            }
            Self::Gateway(ToGateway::DeviceLost(_, Stepping::These(sequences))) => {
                within("the number of sequences", sequences.len() <= MAX_SEQUENCES)
            }
            Self::Acquaintances(nodes) => within("the number of nodes", nodes.len() <= MAX_ACQUAINTANCES),
            Self::SetRoles(roles) => within("the number of roles", (1..=2).contains(&roles.len())),
            Self::Renew(request) => {
                within("the length of a certificate request", request.len() <= MAX_CERTIFICATE_REQUEST_BYTES)
            }
            Self::MeasureLink(_, LinkBench { block_kib, rounds }) => {
                within(
                    "the size of a block",
                    block_kib.is_none_or(|block_kib| (1..=MAX_BLOCK_KIB).contains(&block_kib)),
                )?;
                within("the number of rounds", (1..=MAX_ROUNDS).contains(rounds))
            }
            Self::Probe(ToProbe::Open(layout, num_blocks)) => {
                let is_countable = layout.num_layers <= MAX_PROBE_LAYERS && *num_blocks <= MAX_PROBE_BLOCKS;
                within("the number of blocks for a measurement", is_countable)?;
                let block = layout.checked_layer_block_bytes();
                let bytes = block
                    .and_then(|block| block.checked_mul(layout.num_layers as usize)?.checked_mul(*num_blocks as usize));
                within(
                    "the memory for a measurement",
                    bytes.is_some_and(|bytes| (1..=MAX_PROBE_BYTES).contains(&bytes)),
                )
            }
            _ => Ok(()),
        }
    }
}

pub(crate) fn within(what: &'static str, is_within: bool) -> Result<(), MessageError> {
    if is_within { Ok(()) } else { Err(MessageError::OutOfRange { what }) }
}

/// What one step produced for one gateway: one message, however many sequences.
#[derive(Clone, Debug, Default, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct TokenBatch {
    /// In the order of the step's rows; several for one sequence stay in order.
    pub events: Vec<(SequenceId, StreamEvent)>,
}

/// Longest archived [`TokenBatch`] that is accepted: a step's outputs with twenty alternatives each stay below it, and prompts'
/// log-probabilities are sent a chunk at a time.
pub const MAX_TOKEN_BYTES: usize = 64 << 20;
