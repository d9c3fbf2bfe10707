//! What a node holds to prove who it is and to know its peers: the folder that `relevo ca issue` makes, and TLS configurations of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, Error as TlsError, RootCertStore, ServerConfig};

use super::peer::PeerIdentity;
use super::refusal::Refusal;
use super::storage::{self, StorageError};
use super::subject::SubjectError;
use super::verifier::{Answerers, Callers, Door, Expected};
use crate::crypto::crypto_provider;

/// The cluster's authority, in a node's folder.
pub const AUTHORITY_FILE: &str = "ca.pem";
/// The node's certificate.
pub const CERTIFICATE_FILE: &str = "node.pem";
/// Its key.
pub const KEY_FILE: &str = "node.key";
/// What the authority has revoked.
pub const REVOCATIONS_FILE: &str = "revoked.crl.pem";

/// The protocol that both ends must speak, by its name in TLS (ALPN).
pub const PROTOCOL: &[u8] = b"relevo/1";

/// A node's own certificate and key, and what it needs to check those of others.
pub struct NodeIdentity {
    own: PeerIdentity,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    revocations: CertificateRevocationListDer<'static>,
}

/// Why a node's folder cannot be used: the user's fault.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file holds something else.
    #[error("{} holds no {expected} in PEM", path.display())]
    NotPem {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// A key that is no secret.
    #[error("{} can be read by everybody on this machine: chmod 600 it, and if others have seen it, revoke and issue anew", path.display())]
    OpenKey {
        /// Which file.
        path: PathBuf,
    },
    /// The certificate is not a node's.
    #[error("{}", path.display())]
    Subject {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: SubjectError,
    },
    /// The parts do not belong together: another authority's, or revoked.
    #[error("{} does not go with {AUTHORITY_FILE} and {REVOCATIONS_FILE} beside it: {reason}", path.display())]
    Mismatch {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        reason: Refusal,
    },
    /// rustls cannot use them.
    #[error("{}", folder.display())]
    Tls {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: TlsError,
    },
    /// rustls cannot use the authority's certificate or list.
    #[error("{}", folder.display())]
    Verifier {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
}

/// Shows whose it is, and never the key.
impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").field("own", &self.own).finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// Reads a node's folder and checks that its parts belong together. Whether the certificate's time is over is not asked here, peers ask.
    ///
    /// # Errors
    /// The user's fault: see [`LoadError`].
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let key_path = folder.join(KEY_FILE);
        let key = read_pem::<PrivateKeyDer<'static>>(&key_path, "private key")?;
        if storage::is_open_to_all(&key_path)? {
            return Err(LoadError::OpenKey { path: key_path });
        }
        let path = folder.join(CERTIFICATE_FILE);
        let certificate = read_pem::<CertificateDer<'static>>(&path, "certificate")?;
        let own =
            PeerIdentity::of_der(&certificate).map_err(|source| LoadError::Subject { path: path.clone(), source })?;
        let authority = read_pem::<CertificateDer<'static>>(&folder.join(AUTHORITY_FILE), "certificate")?;
        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(|source| LoadError::Tls { folder: folder.to_owned(), source })?;
        let revocations = read_pem(&folder.join(REVOCATIONS_FILE), "revocation list")?;
        let identity = Self { own, certificate, key, roots: Arc::new(roots), revocations };
        identity.check_itself(folder)?;
        Ok(identity)
    }

    /// Who this node is.
    pub fn own(&self) -> &PeerIdentity {
        &self.own
    }

    /// What this node listens with: TLS 1.3, and a certificate from whoever dials.
    ///
    /// * `expected`: who may dial.
    ///
    /// # Errors
    /// Our bug, or a folder that [`Self::load`] should have refused.
    pub fn server_config(&self, expected: Expected, clock: Arc<dyn TimeProvider>) -> Result<ServerConfig, TlsError> {
        let callers = Callers { door: self.door(expected), chains: self.caller_chains().map_err(builder_error)? };
        let mut config = ServerConfig::builder_with_details(crypto_provider(), clock)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(callers))
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A resumed session skips the certificates, and with them a revocation that has come since.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// What this node dials with: TLS 1.3, showing its certificate. The server name given to the connection is not used for anything.
    ///
    /// * `expected`: who must answer.
    ///
    /// # Errors
    /// As [`Self::server_config`].
    pub fn client_config(&self, expected: Expected, clock: Arc<dyn TimeProvider>) -> Result<ClientConfig, TlsError> {
        let answerers = Answerers { door: self.door(expected), chains: self.answerer_chains().map_err(builder_error)? };
        let mut config = ClientConfig::builder_with_details(crypto_provider(), clock)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(answerers))
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        // It would tell whoever listens on the wire, and nobody else.
        config.enable_sni = false;
        Ok(config)
    }

    fn door(&self, expected: Expected) -> Door {
        Door { cluster: self.own.cluster, expected }
    }

    fn caller_chains(&self) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
        WebPkiClientVerifier::builder_with_provider(self.roots.clone(), crypto_provider())
            .with_crls([self.revocations.clone()])
            .build()
    }

    fn answerer_chains(&self) -> Result<Arc<WebPkiServerVerifier>, VerifierBuilderError> {
        WebPkiServerVerifier::builder_with_provider(self.roots.clone(), crypto_provider())
            .with_crls([self.revocations.clone()])
            .build()
    }

    /// Holds our own certificate to what we hold our peers' to, at the last second of its time: folders get mixed up.
    fn check_itself(&self, folder: &Path) -> Result<(), LoadError> {
        let chains =
            self.caller_chains().map_err(|source| LoadError::Verifier { folder: folder.to_owned(), source })?;
        let tls = |source| LoadError::Tls { folder: folder.to_owned(), source };
        chains.verify_client_cert(&self.certificate, &[], self.own.not_after.into()).map_err(
            |error| match Refusal::of(&error) {
                Some(reason) => LoadError::Mismatch { path: folder.join(CERTIFICATE_FILE), reason },
                None => tls(error),
            },
        )?;
        let signing_key = crypto_provider().key_provider.load_private_key(self.key.clone_key()).map_err(tls)?;
        rustls::sign::CertifiedKey::new(vec![self.certificate.clone()], signing_key).keys_match().map_err(tls)
    }
}

/// A list that cannot be read has been refused when the folder was loaded.
fn builder_error(error: VerifierBuilderError) -> TlsError {
    TlsError::General(error.to_string())
}

fn read_pem<T: PemObject>(path: &Path, expected: &'static str) -> Result<T, LoadError> {
    let text = storage::read(path)?;
    T::from_pem_slice(text.as_bytes()).map_err(|_| LoadError::NotPem { path: path.to_owned(), expected })
}
