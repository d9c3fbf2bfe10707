//! Numbers that nobody can foresee, and ids that never come again.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use relevo_wire::RequestId;

use crate::wall_clock::unix_seconds;

/// Mints ids and seeds.
#[derive(Debug)]
pub(super) struct Mint {
    /// SipHash with a key from the operating system: its values cannot be told in advance from those seen.
    key: RandomState,
    counter: AtomicU64,
    next_request: AtomicU64,
}

impl Mint {
    pub(super) fn new() -> Self {
        // The second of the start in the upper half: a process that starts later never mints an id again.
        Self { key: RandomState::new(), counter: AtomicU64::new(0), next_request: AtomicU64::new(unix_seconds() << 32) }
    }

    /// A random number.
    pub(super) fn random(&self) -> u64 {
        self.key.hash_one(self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// An id for a request within the cluster.
    pub(super) fn request_id(&self) -> RequestId {
        RequestId(self.next_request.fetch_add(1, Ordering::Relaxed))
    }

    /// An id for an object that a client sees, such as `chatcmpl-0123456789abcdef0123456789abcdef`.
    pub(super) fn object_id(&self, prefix: &str) -> String {
        format!("{prefix}-{:016x}{:016x}", self.random(), self.random())
    }
}
