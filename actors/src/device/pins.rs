//! Block bytes on their way out: as long as any of them lives, the engine keeps their blocks from being reused.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

use bytes::Bytes;

use super::core::PinId;

/// Where pins come back to when their bytes are gone, from whatever thread drops them last.
#[derive(Debug)]
pub(super) struct PinReturns {
    /// One entry for each push of a layer, so a lock is cheap enough.
    returned: Mutex<Vec<PinId>>,
    engine: Thread,
}

/// Keeps a pin while bytes under it live.
#[derive(Clone)]
pub(super) struct PinGuard {
    /// Only its end counts.
    _held: Arc<Held>,
}

struct Held {
    pin: PinId,
    returns: Arc<PinReturns>,
}

/// Bytes and what keeps their block.
struct Pinned {
    bytes: Bytes,
    _guard: PinGuard,
}

impl PinReturns {
    pub(super) fn new(engine: Thread) -> Self {
        Self { returned: Mutex::new(Vec::new()), engine }
    }

    pub(super) fn guard(self: &Arc<Self>, pin: PinId) -> PinGuard {
        PinGuard { _held: Arc::new(Held { pin, returns: self.clone() }) }
    }

    /// A pin that has come back.
    pub(super) fn take(&self) -> Option<PinId> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

impl PinGuard {
    /// The same bytes, which keep the pin as long as they, or any slice of them, live.
    pub(super) fn wrap(&self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Pinned { bytes, _guard: self.clone() })
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.returns.returned.lock().unwrap_or_else(PoisonError::into_inner).push(self.pin);
        self.returns.engine.unpark();
    }
}
