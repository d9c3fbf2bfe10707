//! The cluster's own certificate authority, kept in a folder.
//!
//! ```text
//! ca.pem             its certificate, which every node holds
//! ca.key             its key, which stays here
//! revoked.crl.pem    what it has revoked, which every node holds
//! cluster.secret     32 random bytes, which every node holds and nobody else
//! issued/*.pem       a copy of each certificate
//! .lock              held while one is issued or revoked
//! ```
//!
//! Keys are ECDSA on P-256: Ed25519 would do for rustls, too, but P-256 is what every other tool, hardware token and FIPS mode takes.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::moment::Moment;
use super::name::{ClusterId, Host, Name, Serial};
use super::node_identity::{AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, REVOCATIONS_FILE, SECRET_FILE};
use super::peer::{PeerIdentity, node_dns_name};
use super::record::{Record, State};
use super::revocation::Revocations;
use super::secret::ClusterSecret;
use super::storage::{self, Access, StorageError, at};
use super::subject::{Subject, SubjectError};
use relevo_wire::Roles;

/// How long a node's certificate is good.
///
/// A month: a stolen one that nobody has missed ends by itself, and a node has many days to fetch the next.
pub const NODE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long the authority's own is good: ten years, longer than the machines that it serves.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3653 * 24 * 3600);

/// Certificates begin that much before they are made, for peers whose clocks are behind.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

const AUTHORITY_KEY_FILE: &str = "ca.key";
const ISSUED_FOLDER: &str = "issued";
const LOCK_FILE: &str = ".lock";

/// A cluster's certificate authority.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    pem: String,
    cluster: ClusterId,
    name: Name,
    not_after: Moment,
    issuer: Issuer<'static, KeyPair>,
    secret: ClusterSecret,
}

/// A node that wants a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRequest {
    /// Its name, unique in the cluster.
    pub name: Name,
    /// What it may do, at least one thing.
    pub roles: Roles,
    /// Where it can be reached.
    pub hosts: Vec<Host>,
}

/// A certificate that was just issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Whom it is about.
    pub node: PeerIdentity,
    /// Certificates of the same name that are good as well, until they end or are revoked.
    pub still_valid: Vec<Serial>,
}

/// A certificate that was just signed.
pub(super) struct Signed {
    pub(super) pem: String,
    pub(super) node: PeerIdentity,
}

/// Why the authority did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file or folder does not do as asked.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Something is there already: the user's fault.
    #[error("{} is there already and is not overwritten", path.display())]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// No authority in that folder: the user's fault.
    #[error("no certificate authority in {}: `relevo ca init` makes one", folder.display())]
    Missing {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// Somebody else is at it.
    #[error("another command is issuing or revoking in {}: try again", folder.display())]
    Busy {
        /// The authority's folder.
        folder: PathBuf,
    },
    /// A file of the authority's is not what it should be.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A key or secret that is none: the user's fault.
    #[error("{} can be read by everybody on this machine: chmod 600 it, and if others have seen it, replace it", path.display())]
    Open {
        /// Which.
        path: PathBuf,
    },
    /// An authority from before clusters had a secret: the user's fault.
    #[error("{0} is missing: `(umask 077; openssl rand -hex 32 > {0})` makes it; each node needs a copy in its folder", path.display())]
    NoSecret {
        /// Where it should be.
        path: PathBuf,
    },
    /// A copy of a certificate is not one of a node.
    #[error("{}", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// Why.
        source: SubjectError,
    },
    /// The authority's own time is over.
    #[error("the certificate authority in {} expired at {not_after}: make a new one with `relevo ca init --dir` and issue anew", folder.display())]
    Expired {
        /// Its folder.
        folder: PathBuf,
        /// Its last second.
        not_after: Moment,
    },
    /// A node without a role could do nothing: the user's fault.
    #[error("node {0} has no role, expected at least one")]
    NoRole(Name),
    /// No certificate of that name: the user's fault.
    #[error("no certificate of `{0}` was issued here")]
    NotIssued(Name),
    /// None that could still be revoked.
    #[error("all certificates of `{0}` are revoked or expired already")]
    NothingToRevoke(Name),
    /// Our bug, or a clock far off.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random(#[from] getrandom::Error),
}

impl Authority {
    /// Makes the authority of a new cluster.
    ///
    /// # Errors
    /// The user's fault: there is one already, or the folder cannot be made.
    pub fn create(folder: &Path, name: &Name, now: Moment) -> Result<Self, AuthorityError> {
        if storage::is_taken(folder) {
            return Err(AuthorityError::Exists { path: folder.to_owned() });
        }
        let (cluster, secret) = (ClusterId(random()?), ClusterSecret::draw()?);
        let not_after = now.plus(AUTHORITY_LIFETIME);
        let key = KeyPair::generate()?;
        let params = authority_params(cluster, name, now, not_after)?;
        let pem = params.self_signed(&key)?.pem();
        let key_pem = key.serialize_pem();
        let issuer = Issuer::new(params, key);
        let revocations = Revocations { number: 1, ..Revocations::default() }.sign(&issuer, now, not_after)?;
        storage::write_folder(
            folder,
            &[
                (AUTHORITY_KEY_FILE, &key_pem, Access::Secret),
                (SECRET_FILE, &secret.to_text(), Access::Secret),
                (REVOCATIONS_FILE, &revocations, Access::Open),
                (AUTHORITY_FILE, &pem, Access::Open),
            ],
        )?;
        Ok(Self { folder: folder.to_owned(), pem, cluster, name: name.clone(), not_after, issuer, secret })
    }

    /// Opens the authority in a folder.
    ///
    /// # Errors
    /// The user's fault: there is none, or its files are damaged.
    pub fn load(folder: &Path) -> Result<Self, AuthorityError> {
        let path = folder.join(AUTHORITY_FILE);
        if !path.exists() {
            return Err(AuthorityError::Missing { folder: folder.to_owned() });
        }
        let damaged = |file: &str, reason| AuthorityError::Damaged { path: folder.join(file), reason };
        let pem = storage::read(&path)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| damaged(AUTHORITY_FILE, "no certificate in PEM"))?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|_| damaged(AUTHORITY_FILE, "not an X.509 certificate"))?;
        let Ok(Subject::Authority { cluster, name }) = Subject::of(&certificate) else {
            return Err(damaged(AUTHORITY_FILE, "not the certificate of an authority of ours"));
        };
        let key = KeyPair::from_pem(&read_private(folder, AUTHORITY_KEY_FILE)?)
            .map_err(|_| damaged(AUTHORITY_KEY_FILE, "no private key in PEM"))?;
        if key.public_key_raw() != &*certificate.public_key().subject_public_key.data {
            return Err(damaged(AUTHORITY_KEY_FILE, "the key of another certificate than ca.pem"));
        }
        let secret_path = folder.join(SECRET_FILE);
        if !secret_path.exists() {
            return Err(AuthorityError::NoSecret { path: secret_path });
        }
        let secret = ClusterSecret::parse(&read_private(folder, SECRET_FILE)?)
            .ok_or_else(|| damaged(SECRET_FILE, "expected 64 hexadecimal digits"))?;
        let not_after = Moment::of_certificate(certificate.validity().not_after);
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { folder: folder.to_owned(), pem, cluster, name, not_after, issuer, secret })
    }

    /// The cluster's id, which stands in each certificate.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The cluster's name, for people.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The last second in which the authority's certificate is valid.
    pub fn not_after(&self) -> Moment {
        self.not_after
    }

    /// The list that nodes hold a copy of.
    pub fn revocations_path(&self) -> PathBuf {
        self.folder.join(REVOCATIONS_FILE)
    }

    /// Makes a key and a certificate for a node, and a folder `out` with all that the node needs. The key is nowhere else.
    ///
    /// # Errors
    /// The user's fault: `out` is taken or cannot be made, or the node has no role. Transient: another command is at work.
    pub fn issue(&self, request: &NodeRequest, out: &Path, now: Moment) -> Result<Issued, AuthorityError> {
        if request.roles.is_empty() {
            return Err(AuthorityError::NoRole(request.name.clone()));
        }
        if storage::is_taken(out) {
            return Err(AuthorityError::Exists { path: out.to_owned() });
        }
        let _lock = self.lock(now)?;
        let same_name = |record: &Record| record.node.name == request.name && record.state == State::Valid;
        let still_valid = self.list(now)?.into_iter().filter(same_name).map(|record| record.node.serial).collect();

        let key = KeyPair::generate()?;
        let signed = self.sign(request, &key, now)?;
        let revocations = self.revocations_pem()?;
        storage::write_folder(
            out,
            &[
                (AUTHORITY_FILE, &self.pem, Access::Open),
                (CERTIFICATE_FILE, &signed.pem, Access::Open),
                (KEY_FILE, &key.serialize_pem(), Access::Secret),
                (SECRET_FILE, &self.secret.to_text(), Access::Secret),
                (REVOCATIONS_FILE, &revocations, Access::Open),
            ],
        )?;
        Ok(Issued { node: signed.node, still_valid })
    }

    /// Signs a certificate for a node's key, and keeps a copy. The lock is held.
    pub(super) fn sign(
        &self,
        request: &NodeRequest,
        key: &impl PublicKeyData,
        now: Moment,
    ) -> Result<Signed, AuthorityError> {
        if request.roles.is_empty() {
            return Err(AuthorityError::NoRole(request.name.clone()));
        }
        let (serial, not_after) = (fresh_serial()?, now.plus(NODE_LIFETIME).min(self.not_after));
        let params = self.node_params(request, &serial, now, not_after)?;
        let pem = params.signed_by(key, &self.issuer)?.pem();
        // It is on record before anybody has it: what nobody knows of, nobody can revoke.
        self.record(&request.name, &serial, &pem)?;
        let (name, roles, cluster) = (request.name.clone(), request.roles, self.cluster);
        Ok(Signed { pem, node: PeerIdentity { name, roles, cluster, serial, not_after } })
    }

    /// Revokes all certificates of a node that are still good, and returns their serials. Nodes obey once they have the new list.
    ///
    /// # Errors
    /// The user's fault: there is no such node, or nothing is left to revoke. Transient: another command is at work.
    pub fn revoke(&self, name: &Name, now: Moment) -> Result<Vec<Serial>, AuthorityError> {
        let _lock = self.lock(now)?;
        let mut records = self.list(now)?;
        records.retain(|record| record.node.name == *name);
        if records.is_empty() {
            return Err(AuthorityError::NotIssued(name.clone()));
        }
        records.retain(|record| record.state == State::Valid);
        if records.is_empty() {
            return Err(AuthorityError::NothingToRevoke(name.clone()));
        }
        let serials: Vec<Serial> = records.into_iter().map(|record| record.node.serial).collect();
        let mut revocations = self.revocations()?;
        revocations.number += 1;
        revocations.since.extend(serials.iter().map(|serial| (serial.clone(), now)));
        let pem = revocations.sign(&self.issuer, now, self.not_after)?;
        storage::write(&self.revocations_path(), &pem, Access::Open)?;
        Ok(serials)
    }

    /// All certificates that were issued, by name, of one name the oldest first.
    ///
    /// # Errors
    /// Transient, or a damaged folder.
    pub fn list(&self, now: Moment) -> Result<Vec<Record>, AuthorityError> {
        self.records(now, |_| true)
    }

    /// Those of one name, without a look at the others.
    pub(super) fn list_of(&self, name: &Name, now: Moment) -> Result<Vec<Record>, AuthorityError> {
        // A name has no dot: of `a`, nothing is taken for one of `a-b`.
        let prefix = format!("{name}.");
        let mut records = self.records(now, |file| file.starts_with(&prefix))?;
        records.retain(|record| record.node.name == *name);
        Ok(records)
    }

    /// * `is_wanted`: by the file's name.
    fn records(&self, now: Moment, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Record>, AuthorityError> {
        let revocations = self.revocations()?;
        let folder = self.folder.join(ISSUED_FOLDER);
        let mut records = Vec::new();
        for entry in entries(&folder)? {
            let path = at("cannot read", &folder, entry)?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            if file.starts_with('.') || !file.ends_with(".pem") || !is_wanted(&file) {
                continue;
            }
            let record = Record::parse(&storage::read(&path)?, &revocations, now);
            records.push(record.map_err(|source| AuthorityError::Record { path: path.clone(), source })?);
        }
        records.sort_by(|a, b| {
            let key = |record: &Record| (record.node.name.clone(), record.node.not_after, record.node.serial.clone());
            key(a).cmp(&key(b))
        });
        Ok(records)
    }

    /// Its own certificate.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn revocations_pem(&self) -> Result<String, AuthorityError> {
        Ok(storage::read(&self.revocations_path())?)
    }

    fn revocations(&self) -> Result<Revocations, AuthorityError> {
        let path = self.revocations_path();
        let revocations = Revocations::parse(&storage::read(&path)?);
        revocations.ok_or(AuthorityError::Damaged { path, reason: "no revocation list in PEM" })
    }

    fn record(&self, name: &Name, serial: &Serial, pem: &str) -> Result<(), AuthorityError> {
        let folder = self.folder.join(ISSUED_FOLDER);
        if !folder.exists() {
            at("cannot make", &folder, storage::make_private_folder(&folder))?;
        }
        Ok(storage::write(&folder.join(format!("{name}.{serial}.pem")), pem, Access::Open)?)
    }

    /// Keeps other commands out while this one changes something; let go when it is dropped.
    pub(super) fn lock(&self, now: Moment) -> Result<File, AuthorityError> {
        if self.not_after < now {
            return Err(AuthorityError::Expired { folder: self.folder.clone(), not_after: self.not_after });
        }
        let path = self.folder.join(LOCK_FILE);
        let file = at("cannot write", &path, File::create(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(AuthorityError::Busy { folder: self.folder.clone() }),
            Err(TryLockError::Error(error)) => Ok(at("cannot lock", &path, Err(error))?),
        }
    }

    fn node_params(
        &self,
        request: &NodeRequest,
        serial: &Serial,
        now: Moment,
        not_after: Moment,
    ) -> Result<CertificateParams, rcgen::Error> {
        let subject = Subject::Node { cluster: self.cluster, name: request.name.clone(), roles: request.roles };
        let mut names = vec![
            SanType::URI(subject.to_string().try_into()?),
            SanType::DnsName(node_dns_name(self.cluster, &request.name).try_into()?),
        ];
        for host in &request.hosts {
            names.push(match host {
                Host::Address(address) => SanType::IpAddress(*address),
                Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let mut params = params(request.name.as_str(), names, now, not_after)?;
        params.serial_number = Some(SerialNumber::from_slice(serial.octets()));
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A node is both: it dials some peers and is dialled by others.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params)
    }
}

/// Reads what nobody else may read.
fn read_private(folder: &Path, file: &str) -> Result<String, AuthorityError> {
    let path = folder.join(file);
    let text = storage::read(&path)?;
    if storage::is_open_to_all(&path)? { Err(AuthorityError::Open { path }) } else { Ok(text) }
}

fn authority_params(
    cluster: ClusterId,
    name: &Name,
    now: Moment,
    not_after: Moment,
) -> Result<CertificateParams, rcgen::Error> {
    let subject = Subject::Authority { cluster, name: name.clone() };
    // The id makes the issuer's name unique, by which a revocation list is matched to its certificates.
    let common_name = format!("Relevo cluster {name} {cluster}");
    let mut params = params(&common_name, vec![SanType::URI(subject.to_string().try_into()?)], now, not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(
    common_name: &str,
    names: Vec<SanType>,
    now: Moment,
    not_after: Moment,
) -> Result<CertificateParams, rcgen::Error> {
    let time = |moment: Moment| moment.date_time().ok_or(rcgen::Error::Time);
    let mut params = CertificateParams::default();
    params.not_before = time(now.minus(CLOCK_SLACK))?;
    params.not_after = time(not_after)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = names;
    Ok(params)
}

fn entries(folder: &Path) -> Result<Vec<std::io::Result<fs::DirEntry>>, StorageError> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => at("cannot read", folder, Err(error)),
    }
}

/// 126 random bits after `01`, so that the number is positive and has one length.
fn fresh_serial() -> Result<Serial, getrandom::Error> {
    let mut octets = random()?;
    octets[0] = (octets[0] & 0x3f) | 0x40;
    Ok(Serial::new(&octets))
}

fn random() -> Result<[u8; 16], getrandom::Error> {
    let mut octets = [0; 16];
    getrandom::fill(&mut octets)?;
    Ok(octets)
}
