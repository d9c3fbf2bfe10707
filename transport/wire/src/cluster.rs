//! Who is in a cluster: what devices and nodes say of themselves, and the map that the coordinator makes of it.

use std::net::SocketAddr;

use crate::{DeviceId, Epoch, KvLayout, MapVersion, NodeId, Role, Roles};

/// What a device does for a sequence; its actor of that role owns it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum DeviceRole {
    /// It computes the context and the first token.
    Prefill,
    /// It draws the tokens after the first.
    Decode,
}

impl DeviceRole {
    /// Its word, as in configuration and status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// A node whose devices play it plays it.
impl From<DeviceRole> for Role {
    fn from(role: DeviceRole) -> Self {
        match role {
            DeviceRole::Prefill => Self::Prefill,
            DeviceRole::Decode => Self::Decode,
        }
    }
}

/// What a device is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct DeviceFacts {
    /// Its id.
    pub device: DeviceId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub roles: Vec<DeviceRole>,
    /// What it could do, should nobody else: its actors of these roles run.
    pub able: Vec<DeviceRole>,
    /// Its own counter.
    pub epoch: Epoch,
    /// Blocks of its pool.
    pub num_blocks: usize,
    /// Positions that it can hold.
    pub max_context: usize,
}

/// What a device says every 100 ms: enough for a coordinator that has just begun.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Heartbeat {
    /// What it is.
    pub facts: DeviceFacts,
    /// It takes work: its engine runs.
    pub serving: bool,
    /// Grows with every layer computed.
    pub progress: u64,
    /// Progress must be seen.
    pub busy: bool,
    /// It was told to take nothing new.
    pub draining: bool,
    /// The highest (term, version) of a map that it has seen.
    pub map: (u64, MapVersion),
}

/// What a node says to each of its peers every 100 ms, in one datagram.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Beat {
    /// The highest (term, version) of a map that it has seen.
    pub map: (u64, MapVersion),
    /// Its devices, those whose supervisor has spoken lately.
    pub devices: Vec<Heartbeat>,
}

/// The first thing that both ends of a control connection say.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Hello {
    /// The newest version of the protocol that it speaks; it speaks the one before, too.
    pub protocol: u16,
    /// How often this node was started: a higher one has taken the place of all lower ones.
    pub incarnation: u64,
    /// What it plays, not more than its certificate allows.
    pub roles: Roles,
    /// Where it is dialled.
    pub listen: SocketAddr,
    /// What it computes, or serves.
    pub model: ModelFacts,
}

/// What two nodes must agree on to work on one sequence.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ModelFacts {
    /// What decides the bytes of a KV block, and the tokens: model revision, numerics.
    pub content: String,
    /// The shape of a KV block; its element type follows from the numerics.
    pub layout: KvLayout,
}

/// The cluster as everyone acts on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ClusterMap {
    /// Of the coordinator that published it; lower ones are refused.
    pub term: u64,
    /// Grows with each change.
    pub version: MapVersion,
    /// The devices, by id.
    pub devices: Vec<MapEntry>,
    /// The nodes, by number: whom to dial.
    pub nodes: Vec<NodeEntry>,
}

/// A device in the map.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct MapEntry {
    /// What it is.
    pub facts: DeviceFacts,
    /// How it stands.
    pub standing: Standing,
}

/// A node in the map.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct NodeEntry {
    /// Its number.
    pub node: NodeId,
    /// Its name, as in its certificate.
    pub name: String,
    /// What it plays.
    pub roles: Roles,
    /// Where it is dialled. A hint: who answers there must show the certificate of that name.
    pub listen: SocketAddr,
}

/// How a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Standing {
    /// It serves.
    Serving,
    /// It is there and starts.
    Starting,
    /// It is silent, or its engine hangs: nothing new goes there.
    Suspected,
    /// It finishes what it has and gets nothing new, until an operator says otherwise.
    Draining,
}

impl Standing {
    /// Its word, as in status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Starting => "starting",
            Self::Suspected => "suspected",
            Self::Draining => "draining",
        }
    }
}
