//! Typed ids, so that no two of them can be mistaken for each other.

use std::fmt;
use std::str::FromStr;

/// A token of the model's vocabulary.
pub type TokenId = u32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        id!($(#[$doc])* $name($inner));

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize, serde::Deserialize,
        )]
        pub struct $name(pub $inner);
    };
}

id!(
    /// What a client asked for in one call; minted by the gateway, whose number its upper 24 bits are, and no two live ones of a cluster are equal.
    RequestId(u64), "request-"
);
id!(
    /// A promise of KV blocks under a deadline. Never reused within an epoch of its device.
    LeaseId(u64), "lease-"
);
id!(
    /// How often a device's pool was made anew. Frames of an older epoch are refused everywhere.
    Epoch(u64), "epoch-"
);
id!(
    /// Whose request it is; prefix caches and fairness are apart by tenant.
    TenantId(u32), "tenant-"
);
id!(
    /// A version of the cluster map that the coordinator publishes; only grows.
    MapVersion(u64), "map-"
);

id!(
    /// A node: one process of a cluster, as numbers carry it. Names are what people and certificates use, see [`NodeId::of_name`].
    NodeId(u32)
);

/// Bits of a node's number: what is left of 32 beside 256 devices, and of 64 beside 2^40 requests.
const NODE_BITS: u32 = 24;

impl NodeId {
    /// The process that is a cluster of its own.
    pub const ALONE: Self = Self(0);

    /// The number of the node of this name, never that of [`NodeId::ALONE`].
    ///
    /// Every node computes it from the name in the other's certificate, so that nobody hands out numbers and nobody can claim another's. Two of 100
    /// names meet with a probability of 1 in 3,400; then the second to join is refused.
    pub fn of_name(name: &str) -> Self {
        // Of 32 bits that depend on every bit of the name, the upper ones.
        Self((crc32c::crc32c(name.as_bytes()) >> (32 - NODE_BITS)).max(1))
    }
}

/// `alone`, or six hexadecimal digits.
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALONE { f.write_str("alone") } else { write!(f, "{:06x}", self.0) }
    }
}

id!(
    /// A device of the cluster: a GPU or a NUMA node. The upper 24 bits are its node's number, the lower 8 its place there.
    DeviceId(u32)
);

impl DeviceId {
    /// The device at this place of a node.
    pub const fn of(node: NodeId, index: u8) -> Self {
        Self(node.0 << (32 - NODE_BITS) | index as u32)
    }

    /// Whose it is.
    pub const fn node(self) -> NodeId {
        NodeId(self.0 >> (32 - NODE_BITS))
    }

    /// Its place there.
    pub const fn index(self) -> u32 {
        self.0 & 0xff
    }
}

/// `device-0` where there is one node, else with the node's number, `device-0@01ab2f`.
impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node() {
            NodeId::ALONE => write!(f, "device-{}", self.index()),
            node => write!(f, "device-{}@{node}", self.index()),
        }
    }
}

impl RequestId {
    /// The `counter`-th request of a gateway; what is above 40 bits is cut off.
    pub const fn of(gateway: NodeId, counter: u64) -> Self {
        Self((gateway.0 as u64) << (64 - NODE_BITS) | counter & ((1 << (64 - NODE_BITS)) - 1))
    }

    /// The gateway that minted it, and that keeps its streams.
    pub const fn gateway(self) -> NodeId {
        // It has 24 bits.
        NodeId((self.0 >> (64 - NODE_BITS)) as u32)
    }
}

/// A text that is no id. The fault of whoever wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no id")]
pub struct NotAnId;

/// As it is shown: `request-7`.
impl FromStr for RequestId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        text.strip_prefix("request-").and_then(number).map(Self).ok_or(NotAnId)
    }
}

/// A number as it is shown, without a sign or leading zeros: no two texts are one id.
fn number<T: FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

/// One generation on a worker: a choice of a request, in its n-th attempt.
///
/// A client's `n = 3` makes three sequences; a replay after a worker's death makes the next attempt.
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
pub struct SequenceId {
    /// The client's request.
    pub request: RequestId,
    /// Index into the request's prompts × `n` choices.
    pub choice: u32,
    /// 0 for the first try, one more for each replay.
    pub attempt: u32,
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.request, self.choice, self.attempt)
    }
}

/// As it is shown: `request-7/0/1`.
impl FromStr for SequenceId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let mut parts = text.split('/');
        let request = parts.next().ok_or(NotAnId)?.parse()?;
        let (choice, attempt) = (parts.next().and_then(number), parts.next().and_then(number));
        match (choice, attempt, parts.next()) {
            (Some(choice), Some(attempt), None) => Ok(Self { request, choice, attempt }),
            _ => Err(NotAnId),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_read_as_it_is_shown_and_not_otherwise() {
        let sequence = SequenceId { request: RequestId(u64::MAX), choice: 3, attempt: 1 };
        assert_eq!(sequence.to_string().parse(), Ok(sequence));
        for text in
            ["", "request-1", "request-1/0", "request-1/0/0/0", "request-/0/0", "request-1/-0/0", "request-01/0/0"]
        {
            assert_eq!(text.parse::<SequenceId>(), Err(NotAnId), "{text}");
        }
    }
}
