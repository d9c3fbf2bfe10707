//! The identity that a node has at the moment, and the certificate that it shows in each handshake.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::node_identity::NodeIdentity;

/// Where TLS configurations look up the identity, so that they outlive it.
#[derive(Debug)]
pub(super) struct Present(RwLock<Arc<NodeIdentity>>);

impl Present {
    pub(super) fn new(identity: NodeIdentity) -> Self {
        Self(RwLock::new(Arc::new(identity)))
    }

    /// The identity now. Whoever decides something asks once, so that all of the decision is by one identity.
    pub(super) fn get(&self) -> Arc<NodeIdentity> {
        // Nothing panics while it holds the lock, and an `Arc` is whole in any case.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From the next handshake on it is this one.
    pub(super) fn set(&self, identity: NodeIdentity) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
    }
}

impl ResolvesServerCert for Present {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get().shown())
    }
}

impl ResolvesClientCert for Present {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get().shown())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
