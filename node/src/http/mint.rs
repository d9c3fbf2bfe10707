//! Numbers that nobody can foresee, and ids that never come again.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use relevo_wire::{NodeId, RequestId};

use crate::wall_clock::unix_seconds;

/// Ids are taken from the second of the start, and from as many after it.
const REQUEST_BITS_A_SECOND: u32 = 10;

/// Mints ids and seeds.
#[derive(Debug)]
pub(super) struct Mint {
    gateway: NodeId,
    /// SipHash with a key from the operating system: its values cannot be told in advance from those seen.
    key: RandomState,
    counter: AtomicU64,
    next_request: AtomicU64,
}

impl Mint {
    /// For the gateway of this node.
    pub(super) fn new(gateway: NodeId) -> Self {
        // A process that starts later never mints an id again, unless this one mints more than a thousand a second all its life.
        let first = unix_seconds() << REQUEST_BITS_A_SECOND;
        Self { gateway, key: RandomState::new(), counter: AtomicU64::new(0), next_request: AtomicU64::new(first) }
    }

    /// A random number.
    pub(super) fn random(&self) -> u64 {
        self.key.hash_one(self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// An id for a request within the cluster.
    pub(super) fn request_id(&self) -> RequestId {
        RequestId::of(self.gateway, self.next_request.fetch_add(1, Ordering::Relaxed))
    }

    /// An id for an object that a client sees, such as `chatcmpl-0123456789abcdef0123456789abcdef`.
    pub(super) fn object_id(&self, prefix: &str) -> String {
        format!("{prefix}-{:016x}{:016x}", self.random(), self.random())
    }
}
