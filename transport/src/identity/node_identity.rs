//! What a node holds to prove who it is and to know its peers: the folder that `relevo ca issue` makes, read and found to be of one piece.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
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
use super::validity::Validity;
use crate::crypto::crypto_provider;

/// The cluster's authority, in a node's folder.
pub const AUTHORITY_FILE: &str = "ca.pem";
/// The node's certificate.
pub const CERTIFICATE_FILE: &str = "node.pem";
/// Its key.
pub const KEY_FILE: &str = "node.key";
/// Its next key, while a renewal exchanges the two. Where one was cut off, it may be the one that belongs to the certificate.
pub const NEXT_KEY_FILE: &str = "node.key.next";
/// What the authority has revoked.
pub const REVOCATIONS_FILE: &str = "revoked.crl.pem";
/// What all nodes of the cluster know and nobody else does.
pub const SECRET_FILE: &str = "cluster.secret";

/// A node's own certificate and key, and what it needs to check those of others. [`super::LiveIdentity`] makes TLS configurations of it.
pub struct NodeIdentity {
    own: PeerIdentity,
    shown: Arc<CertifiedKey>,
    validity: Validity,
    authority: AuthorityCertificate,
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
        let (shown, _) = read_shown(folder)?;
        let [authority, list] = [AUTHORITY_FILE, REVOCATIONS_FILE].map(|file| storage::read(&folder.join(file)));
        Self::assemble(folder, shown, [&authority?, &list?], read_secret(folder)?)
    }

    /// Whether the key that belongs to the folder's certificate is [`NEXT_KEY_FILE`].
    pub(super) fn has_next_key(folder: &Path) -> Result<bool, LoadError> {
        read_shown(folder).map(|(_, file)| file == NEXT_KEY_FILE)
    }

    /// What [`Self::load`] will find when the folder holds these, in PEM: certificate, key, the authority's certificate, revocation list.
    pub(super) fn renewed(&self, folder: &Path, pems: [&str; 4]) -> Result<Self, LoadError> {
        let [certificate, key, authority, list] = pems;
        let key = parse_pem(&folder.join(NEXT_KEY_FILE), "private key", key)?;
        let shown = shown(folder, certificate, key)?;
        Self::assemble(folder, shown, [authority, list], self.secret.clone())
    }

    /// * `pems`: the authority's certificate, the revocation list.
    fn assemble(folder: &Path, shown: CertifiedKey, pems: [&str; 2], secret: ClusterSecret) -> Result<Self, LoadError> {
        let [authority, list] = pems;
        let path = folder.join(CERTIFICATE_FILE);
        let (own, validity) = read_own(&shown).map_err(|source| LoadError::Subject { path: path.clone(), source })?;
        let (authority, cluster) = AuthorityCertificate::parse(&folder.join(AUTHORITY_FILE), authority)?;
        if own.cluster != cluster {
            return Err(LoadError::Mismatch {
                path,
                reason: Refusal::WrongCluster { found: own.cluster, expected: cluster },
            });
        }
        let path = folder.join(REVOCATIONS_FILE);
        let list = parse_pem::<CertificateRevocationListDer<'static>>(&path, REVOCATION_LIST, list)?;
        let revocations = Revocations::of_der(&list).ok_or(LoadError::NotPem { path, expected: REVOCATION_LIST })?;

        let mut roots = RootCertStore::empty();
        roots.add(authority.der.clone()).map_err(|source| LoadError::Tls { folder: folder.to_owned(), source })?;
        let (callers, answerers) = chains(Arc::new(roots), list)
            .map_err(|source| LoadError::Verifier { folder: folder.to_owned(), source })?;
        let shown = Arc::new(shown);
        let identity = Self { own, validity, shown, authority, revocations, callers, answerers, secret };
        identity.check_itself(folder)?;
        Ok(identity)
    }

    /// Who this node is.
    pub fn own(&self) -> &PeerIdentity {
        &self.own
    }

    /// The time of its certificate.
    pub fn validity(&self) -> Validity {
        self.validity
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

    pub(super) fn authority(&self) -> &AuthorityCertificate {
        &self.authority
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

/// The certificate of the cluster's authority.
#[derive(PartialEq, Eq)]
pub(super) struct AuthorityCertificate {
    der: CertificateDer<'static>,
    /// Its public key with its kind: with another key, it is another authority.
    pub(super) key: Vec<u8>,
}

impl AuthorityCertificate {
    /// It and its cluster.
    fn parse(path: &Path, pem: &str) -> Result<(Self, ClusterId), LoadError> {
        let der = parse_pem::<CertificateDer<'static>>(path, "certificate", pem)?;
        let parsed = X509Certificate::from_der(&der).map_err(|_| SubjectError::NotX509);
        let read = parsed.and_then(|(_, certificate)| match Subject::of(&certificate)? {
            Subject::Authority { cluster, .. } => Ok((cluster, certificate.public_key().raw.to_vec())),
            Subject::Node { .. } => Err(SubjectError::OtherKind),
        });
        let (cluster, key) = read.map_err(|source| LoadError::Subject { path: path.to_owned(), source })?;
        Ok((Self { der, key }, cluster))
    }
}

/// The node's certificate with the key that belongs to it, and the file of that key.
fn read_shown(folder: &Path) -> Result<(CertifiedKey, &'static str), LoadError> {
    let pair = |file| read_pair(folder, file).map(|shown| (shown, file));
    // Once more in the end: another process may be exchanging the two, and have finished between the first look and the second.
    pair(KEY_FILE).or_else(|_| pair(NEXT_KEY_FILE)).or_else(|_| pair(KEY_FILE))
}

fn read_pair(folder: &Path, key_file: &str) -> Result<CertifiedKey, LoadError> {
    let path = folder.join(key_file);
    let key = parse_pem(&path, "private key", &storage::read(&path)?)?;
    if storage::is_open_to_all(&path)? {
        return Err(LoadError::OpenKey { path });
    }
    shown(folder, &storage::read(&folder.join(CERTIFICATE_FILE))?, key)
}

fn shown(folder: &Path, certificate: &str, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, LoadError> {
    let certificate = parse_pem(&folder.join(CERTIFICATE_FILE), "certificate", certificate)?;
    let tls = |source| LoadError::Tls { folder: folder.to_owned(), source };
    let key = crypto_provider().key_provider.load_private_key(key).map_err(tls)?;
    let shown = CertifiedKey::new(vec![certificate], key);
    shown.keys_match().map_err(tls)?;
    Ok(shown)
}

fn read_own(shown: &CertifiedKey) -> Result<(PeerIdentity, Validity), SubjectError> {
    let der = shown.cert.first().ok_or(SubjectError::Missing)?;
    let own = PeerIdentity::of_der(der)?;
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| SubjectError::NotX509)?;
    Ok((own, Validity::of(&certificate)))
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
) -> Result<Chains, VerifierBuilderError> {
    let callers = WebPkiClientVerifier::builder_with_provider(roots.clone(), crypto_provider());
    let answerers = WebPkiServerVerifier::builder_with_provider(roots, crypto_provider());
    Ok((callers.with_crls([list.clone()]).build()?, answerers.with_crls([list]).build()?))
}

fn parse_pem<T: PemObject>(path: &Path, expected: &'static str, text: &str) -> Result<T, LoadError> {
    T::from_pem_slice(text.as_bytes()).map_err(|_| LoadError::NotPem { path: path.to_owned(), expected })
}
