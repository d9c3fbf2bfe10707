//! Renewal over the wire, the authority's side: a node that is connected by its present certificate asks for the next one, for a new key.
//!
//! **Invariant:** of what a node sends, its public key is used and nothing else. Who it is, what it may do and where it is reached stand in the
//! copy of the certificate that it has shown.

use std::time::Duration;

use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use relevo_wire::{MAX_CERTIFICATE_REQUEST_BYTES, Renewed};
use rustls::pki_types::alg_id;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::FromDer;

use super::authority::{Authority, AuthorityError, NodeRequest};
use super::moment::Moment;
use super::name::{ClusterId, Name, Serial};
use super::peer::PeerIdentity;
use super::record::{Record, State};
use crate::crypto::crypto_provider;

/// Most certificates that one node gets in a day. A node that asks in a loop must not fill the authority's disk; one that failed and starts over must get on.
const MAX_PER_DAY: usize = 24;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Why a node gets no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The peer's fault.
    #[error("a certificate request of {byte_len} bytes, expected at most {MAX_CERTIFICATE_REQUEST_BYTES}")]
    TooLong {
        /// Its length.
        byte_len: usize,
    },
    /// The peer's fault.
    #[error("no PKCS#10 certificate request in DER")]
    Malformed,
    /// The peer's fault.
    #[error("the request is for another kind of key than ECDSA on P-256 with SHA-256")]
    OtherKey,
    /// The peer's fault: it does not have the key.
    #[error("the request is not signed by the key that it is for")]
    BadSignature,
    /// The peer's fault: a renewal ends the time of a key, too.
    #[error("node {0} has had a certificate for that key already, expected a new one")]
    UsedKey(Name),
    /// The peer's fault, and it should not have been let in.
    #[error("the node is of cluster {found}, expected {expected}")]
    OtherCluster {
        /// The peer's.
        found: ClusterId,
        /// The authority's.
        expected: ClusterId,
    },
    /// A certificate that is not on record as the peer shows it.
    #[error("certificate {serial} of {name} is not on record here")]
    Unknown {
        /// The peer's name.
        name: Name,
        /// Of its certificate.
        serial: Serial,
    },
    /// The node's certificate is revoked.
    #[error("certificate {serial} of {name} is revoked since {since}")]
    Revoked {
        /// The node.
        name: Name,
        /// Of its certificate.
        serial: Serial,
        /// When.
        since: Moment,
    },
    /// The node's certificate is over: issue a new one by hand.
    #[error("the certificate of {name} expired at {not_after}: issue anew")]
    Expired {
        /// The node.
        name: Name,
        /// Its last second.
        not_after: Moment,
    },
    /// The peer's fault: it asks again and again.
    #[error("node {name} got {num_issued} certificates within a day, expected fewer than {MAX_PER_DAY}")]
    TooOften {
        /// The node.
        name: Name,
        /// How many.
        num_issued: usize,
    },
    /// The authority can not. Transient where another command is at work.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Authority {
    /// Signs the next certificate of a node, for the name, roles and hosts of the one that it has.
    ///
    /// * `node`: who asks, by the verified chain of its connection.
    /// * `request`: a PKCS#10 request in DER, of which the key is used alone. Any bytes may come.
    ///
    /// # Errors
    /// The peer's fault, or transient: see [`RequestError`].
    pub fn renew(&self, node: &PeerIdentity, request: &[u8], now: Moment) -> Result<Renewed, RequestError> {
        if node.cluster != self.cluster() {
            return Err(RequestError::OtherCluster { found: node.cluster, expected: self.cluster() });
        }
        // Before the lock: bytes that say nothing keep nobody waiting.
        let key = key_of(request)?;
        let _lock = self.lock(now)?;
        let records = self.list_of(&node.name, now)?;
        let record = records.iter().find(|record| record.node == *node);
        let record =
            record.ok_or_else(|| RequestError::Unknown { name: node.name.clone(), serial: node.serial.clone() })?;
        check_is_good(record)?;
        check_is_new(&node.name, &key, &records, now)?;
        let renewal = NodeRequest { name: node.name.clone(), roles: node.roles, hosts: record.hosts.clone() };
        let signed = self.sign(&renewal, &key, now)?;
        Ok(Renewed {
            certificate_pem: signed.pem,
            authority_pem: self.pem().to_owned(),
            revocations_pem: self.revocations_pem()?,
        })
    }
}

fn check_is_good(record: &Record) -> Result<(), RequestError> {
    let PeerIdentity { name, serial, not_after, .. } = record.node.clone();
    match record.state {
        State::Valid => Ok(()),
        State::Expired => Err(RequestError::Expired { name, not_after }),
        State::Revoked { since } => Err(RequestError::Revoked { name, serial, since }),
    }
}

/// * `records`: of this node, all there are.
fn check_is_new(name: &Name, key: &SubjectPublicKeyInfo, records: &[Record], now: Moment) -> Result<(), RequestError> {
    if records.iter().any(|record| record.key == key.der_bytes()) {
        return Err(RequestError::UsedKey(name.clone()));
    }
    let num_issued = records.iter().filter(|record| record.validity.not_before > now.minus(DAY)).count();
    if num_issued < MAX_PER_DAY { Ok(()) } else { Err(RequestError::TooOften { name: name.clone(), num_issued }) }
}

/// The key that a request is for, once the request is found to be signed by it.
fn key_of(request: &[u8]) -> Result<SubjectPublicKeyInfo, RequestError> {
    if request.len() > MAX_CERTIFICATE_REQUEST_BYTES {
        return Err(RequestError::TooLong { byte_len: request.len() });
    }
    let Ok((&[], parsed)) = X509CertificationRequest::from_der(request) else {
        return Err(RequestError::Malformed);
    };
    let info = &parsed.certification_request_info;
    let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| RequestError::OtherKey)?;
    let is_ours = key.algorithm() == &PKCS_ECDSA_P256_SHA256 && is_uncompressed(key.der_bytes());
    if !is_ours || parsed.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
        return Err(RequestError::OtherKey);
    }
    let algorithms = crypto_provider().signature_verification_algorithms.all;
    let is_signed = algorithms
        .iter()
        .filter(|one| one.public_key_alg_id() == alg_id::ECDSA_P256 && one.signature_alg_id() == alg_id::ECDSA_SHA256)
        .any(|one| one.verify_signature(key.der_bytes(), info.raw, &parsed.signature_value.data).is_ok());
    if is_signed { Ok(key) } else { Err(RequestError::BadSignature) }
}

/// A point of P-256 by both of its coordinates (SEC 1, section 2.3.3): the one way in which certificates of ours write it, so that equal keys are equal bytes.
fn is_uncompressed(point: &[u8]) -> bool {
    point.len() == 65 && point.first() == Some(&4)
}
