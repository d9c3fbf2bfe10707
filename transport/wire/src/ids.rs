//! Typed ids, so that no two of them can be mistaken for each other.

use std::fmt;

/// A token of the model's vocabulary.
pub type TokenId = u32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize, serde::Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// What a client asked for in one call; unique for ever within a cluster, minted by the gateway.
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
    /// A device of the cluster: a GPU or a NUMA node.
    DeviceId(u32), "device-"
);
id!(
    /// Whose request it is; prefix caches and fairness are apart by tenant.
    TenantId(u32), "tenant-"
);
id!(
    /// A version of the cluster map that the coordinator publishes; only grows.
    MapVersion(u64), "map-"
);

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
