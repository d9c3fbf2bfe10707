//! What a node holds to prove who it is and to know its peers: the folder that `relevo ca issue` makes, read and found to be of one piece.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::name::{ClusterId, Serial};
use super::peer::PeerIdentity;
use super::refusal::Refusal;
use super::revocation::Revocations;
use super::secret::ClusterSecret;
use super::storage::{self, StorageError};
use super::subject::{Subject, SubjectError};
use crate::crypto::crypto_provider;

/// The cluster's authority, in a node's folder.
pub const AUTHORITY_FILE: &str = "ca.pem";
/// The node's certificate.
pub const CERTIFICATE_FILE: &str = "node.pem";
/// Its key.
pub const KEY_FILE: &str = "node.key";
/// What the authority has revoked.
pub const REVOCATIONS_FILE: &str = "revoked.crl.pem";
/// What all nodes of the cluster know and nobody else does.
pub const SECRET_FILE: &str = "cluster.secret";

/// A node's own certificate and key, and what it needs to check those of others. [`super::LiveIdentity`] makes TLS configurations of it.
pub struct NodeIdentity {
    own: PeerIdentity,
    shown: Arc<CertifiedKey>,
    /// Of the authority, as it stands in its certificate.
    authority_key: Vec<u8>,
    revocations: Revocations,
    callers: Arc<dyn ClientCertVerifier>,
    answerers: Arc<WebPkiServerVerifier>,
    secret: ClusterSecret,
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
    /// A folder from before clusters had a secret, or one that was copied in part.
    #[error("{} is missing: copy it from the authority's folder, as its owner's only (0600), or issue anew", path.display())]
    NoSecret {
        /// Where it should be.
        path: PathBuf,
    },
    /// Something else where the cluster's secret belongs.
    #[error("{} holds no secret, expected 64 hexadecimal digits: copy it from the authority's folder", path.display())]
    BadSecret {
        /// Which file.
        path: PathBuf,
    },
    /// A secret that is none.
    #[error("{} can be read by everybody on this machine: chmod 600 it, and if others have seen it, give all nodes another", path.display())]
    OpenSecret {
        /// Which file.
        path: PathBuf,
    },
    /// The certificate is not a node's, or the authority's not an authority's.
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
        let provider = crypto_provider();
        let shown = read_shown(folder, &provider)?;
        let path = folder.join(CERTIFICATE_FILE);
        let own = PeerIdentity::of_chain(&shown.cert).map_err(|source| LoadError::Subject { path, source })?;
        let (authority, cluster, authority_key) = read_authority(folder)?;
        if own.cluster != cluster {
            let reason = Refusal::WrongCluster { found: own.cluster, expected: cluster };
            return Err(LoadError::Mismatch { path: folder.join(CERTIFICATE_FILE), reason });
        }
        let list = read_pem::<CertificateRevocationListDer<'static>>(&folder.join(REVOCATIONS_FILE), REVOCATION_LIST)?;
        let revocations = Revocations::of_der(&list)
            .ok_or_else(|| LoadError::NotPem { path: folder.join(REVOCATIONS_FILE), expected: REVOCATION_LIST })?;
        let secret = read_secret(folder)?;

        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(|source| LoadError::Tls { folder: folder.to_owned(), source })?;
        let (callers, answerers) = chains(Arc::new(roots), list, &provider)
            .map_err(|source| LoadError::Verifier { folder: folder.to_owned(), source })?;
        let identity = Self { own, shown, authority_key, revocations, callers, answerers, secret };
        identity.check_itself(folder)?;
        Ok(identity)
    }

    /// Who this node is.
    pub fn own(&self) -> &PeerIdentity {
        &self.own
    }

    /// What all nodes of the cluster know and nobody else does: derive keys from it, and never show it.
    pub fn cluster_secret(&self) -> [u8; 32] {
        self.secret.octets()
    }

    pub(super) fn shown(&self) -> Arc<CertifiedKey> {
        self.shown.clone()
    }

    /// What checks the chains of those who dial.
    pub(super) fn callers(&self) -> &dyn ClientCertVerifier {
        &*self.callers
    }

    /// What checks the chains of those who answer.
    pub(super) fn answerers(&self) -> &WebPkiServerVerifier {
        &self.answerers
    }

    pub(super) fn authority_key(&self) -> &[u8] {
        &self.authority_key
    }

    pub(super) fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    pub(super) fn has_revoked(&self, serial: &Serial) -> bool {
        self.revocations.since.contains_key(serial)
    }

    /// Holds our own certificate to what we hold our peers' to, at the last second of its time: folders get mixed up.
    fn check_itself(&self, folder: &Path) -> Result<(), LoadError> {
        let certificate = self.shown.end_entity_cert();
        let verified = certificate
            .and_then(|certificate| self.callers.verify_client_cert(certificate, &[], self.own.not_after.into()));
        verified.map(|_| ()).map_err(|error| match Refusal::of(&error) {
            Some(reason) => LoadError::Mismatch { path: folder.join(CERTIFICATE_FILE), reason },
            None => LoadError::Tls { folder: folder.to_owned(), source: error },
        })
    }
}

const REVOCATION_LIST: &str = "revocation list";

/// The node's certificate with the key that belongs to it.
fn read_shown(folder: &Path, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, LoadError> {
    let tls = |source| LoadError::Tls { folder: folder.to_owned(), source };
    let path = folder.join(KEY_FILE);
    let key = read_pem::<PrivateKeyDer<'static>>(&path, "private key")?;
    if storage::is_open_to_all(&path)? {
        return Err(LoadError::OpenKey { path });
    }
    let certificate = read_pem::<CertificateDer<'static>>(&folder.join(CERTIFICATE_FILE), "certificate")?;
    let key = provider.key_provider.load_private_key(key).map_err(tls)?;
    let shown = CertifiedKey::new(vec![certificate], key);
    shown.keys_match().map_err(tls)?;
    Ok(Arc::new(shown))
}

/// The authority's certificate, its cluster and its key.
fn read_authority(folder: &Path) -> Result<(CertificateDer<'static>, ClusterId, Vec<u8>), LoadError> {
    let path = folder.join(AUTHORITY_FILE);
    let der = read_pem::<CertificateDer<'static>>(&path, "certificate")?;
    let parsed = X509Certificate::from_der(&der).map_err(|_| SubjectError::NotX509);
    let read = parsed.and_then(|(_, certificate)| match Subject::of(&certificate)? {
        Subject::Authority { cluster, .. } => Ok((cluster, certificate.public_key().raw.to_vec())),
        Subject::Node { .. } => Err(SubjectError::OtherKind),
    });
    let (cluster, key) = read.map_err(|source| LoadError::Subject { path, source })?;
    Ok((der, cluster, key))
}

fn read_secret(folder: &Path) -> Result<ClusterSecret, LoadError> {
    let path = folder.join(SECRET_FILE);
    let text = match storage::read(&path) {
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Err(LoadError::NoSecret { path }),
        text => text?,
    };
    if storage::is_open_to_all(&path)? {
        return Err(LoadError::OpenSecret { path });
    }
    ClusterSecret::parse(&text).ok_or(LoadError::BadSecret { path })
}

type Chains = (Arc<dyn ClientCertVerifier>, Arc<WebPkiServerVerifier>);

fn chains(
    roots: Arc<RootCertStore>,
    list: CertificateRevocationListDer<'static>,
    provider: &Arc<CryptoProvider>,
) -> Result<Chains, VerifierBuilderError> {
    let callers = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let answerers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
    Ok((callers.with_crls([list.clone()]).build()?, answerers.with_crls([list]).build()?))
}

fn read_pem<T: PemObject>(path: &Path, expected: &'static str) -> Result<T, LoadError> {
    let text = storage::read(path)?;
    T::from_pem_slice(text.as_bytes()).map_err(|_| LoadError::NotPem { path: path.to_owned(), expected })
}
