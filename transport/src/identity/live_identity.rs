//! A node's identity while the node runs: its folder may get a new certificate or a longer revocation list, and no endpoint has to be made anew.
//!
//! **Invariant:** a folder that cannot follow the present identity changes nothing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, Error as TlsError, ServerConfig};

use super::moment::Moment;
use super::node_identity::{LoadError, NodeIdentity};
use super::peer::PeerIdentity;
use super::present::Present;
use super::reload::{FolderStamp, ReloadError, Reloaded};
use super::verifier::{Answerers, Callers, Expected};
use crate::crypto::crypto_provider;

/// The protocol that both ends must speak, by its name in TLS (ALPN).
pub const PROTOCOL: &[u8] = b"relevo/1";

/// A node's present identity. A clone is the same one.
#[derive(Clone)]
pub struct LiveIdentity(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    present: Arc<Present>,
    provider: Arc<CryptoProvider>,
    /// The folder as it was when it was last read. Held by whoever reads or writes there.
    seen: Mutex<FolderStamp>,
}

/// Shows whose it is, and never the key.
impl fmt::Debug for LiveIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveIdentity").field("folder", &self.0.folder).field("present", &self.present()).finish()
    }
}

impl LiveIdentity {
    /// Reads a node's folder, as [`NodeIdentity::load`] does.
    ///
    /// # Errors
    /// The user's fault: see [`LoadError`].
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let stamp = FolderStamp::of(folder);
        let present = Arc::new(Present::new(NodeIdentity::load(folder)?));
        let (folder, provider, seen) = (folder.to_owned(), crypto_provider(), Mutex::new(stamp));
        Ok(Self(Arc::new(Inner { folder, present, provider, seen })))
    }

    /// The identity now.
    pub fn present(&self) -> Arc<NodeIdentity> {
        self.0.present.get()
    }

    /// Who this node is, by its present certificate.
    pub fn own(&self) -> PeerIdentity {
        self.present().own().clone()
    }

    /// What this node listens with: TLS 1.3, and a certificate from whoever dials. Good for as long as the node runs: each handshake is by
    /// the identity that is present when it happens.
    ///
    /// * `expected`: who may dial.
    /// * `protocols`: which protocols are spoken here (ALPN), the preferred first, such as [`PROTOCOL`].
    ///
    /// # Errors
    /// Our bug.
    pub fn server_config(
        &self,
        expected: Expected,
        protocols: &[&[u8]],
        clock: Arc<dyn TimeProvider>,
    ) -> Result<ServerConfig, TlsError> {
        let callers = Callers { present: self.0.present.clone(), expected };
        let mut config = ServerConfig::builder_with_details(self.0.provider.clone(), clock)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(callers))
            .with_cert_resolver(self.0.present.clone());
        config.alpn_protocols = owned(protocols);
        // A resumed session skips the certificates, and with them a revocation that has come since.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// What this node dials with: TLS 1.3, showing its certificate. Cheap enough to be made for each dial. The server name given to the
    /// connection is not used for anything.
    ///
    /// * `expected`: who must answer.
    /// * `protocols`: as in [`Self::server_config`].
    ///
    /// # Errors
    /// Our bug.
    pub fn client_config(
        &self,
        expected: Expected,
        protocols: &[&[u8]],
        clock: Arc<dyn TimeProvider>,
    ) -> Result<ClientConfig, TlsError> {
        let answerers = Answerers { present: self.0.present.clone(), expected };
        let mut config = ClientConfig::builder_with_details(self.0.provider.clone(), clock)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(answerers))
            .with_client_cert_resolver(self.0.present.clone());
        config.alpn_protocols = owned(protocols);
        config.resumption = Resumption::disabled();
        // It would tell whoever listens on the wire, and nobody else.
        config.enable_sni = false;
        Ok(config)
    }

    /// Whether the folder is not as it was when it was last read. Costs a look at five files, and reads none.
    pub fn has_changed(&self) -> bool {
        *self.seen() != FolderStamp::of(&self.0.folder)
    }

    /// Reads the folder again. What it holds is good for every handshake from now on; open connections are left alone, see [`Self::admits`].
    ///
    /// A folder that was read and refused counts as seen: [`Self::has_changed`] is false until somebody touches it again.
    ///
    /// # Errors
    /// Transient, or the user's fault: see [`ReloadError`]. The identity stays what it was.
    pub fn reload(&self) -> Result<Reloaded, ReloadError> {
        self.reload_seen(&mut self.seen())
    }

    /// Whether the authority has revoked a peer's certificate, as far as this node knows: its connections are to be closed.
    pub fn is_revoked(&self, peer: &PeerIdentity) -> bool {
        self.present().has_revoked(&peer.serial)
    }

    /// Whether a peer with an open connection would still be let in: its certificate is neither revoked nor over.
    pub fn admits(&self, peer: &PeerIdentity, now: Moment) -> bool {
        now <= peer.not_after && !self.is_revoked(peer)
    }

    /// Lets the folder be changed by ourselves. It is read before, so that the change is made to what it holds, and after, so that what is present is
    /// what it holds.
    pub(super) fn rewrite<E: From<ReloadError>>(
        &self,
        change: impl FnOnce(&Path, &NodeIdentity) -> Result<(), E>,
    ) -> Result<Reloaded, E> {
        let mut seen = self.seen();
        let before = self.reload_seen(&mut seen)?;
        change(&self.0.folder, &self.present())?;
        Ok(before.and(self.reload_seen(&mut seen)?))
    }

    fn seen(&self) -> MutexGuard<'_, FolderStamp> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload_seen(&self, seen: &mut FolderStamp) -> Result<Reloaded, ReloadError> {
        // Taken before the files are read: a change in between is seen the next time.
        let stamp = FolderStamp::of(&self.0.folder);
        let read = NodeIdentity::load(&self.0.folder);
        if !matches!(read, Err(LoadError::Storage(_))) {
            *seen = stamp;
        }
        let next = read?;
        let reloaded = Reloaded::of(&self.present(), &next)?;
        self.0.present.set(next);
        Ok(reloaded)
    }
}

fn owned(protocols: &[&[u8]]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.to_vec()).collect()
}
