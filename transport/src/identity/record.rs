//! What an authority has issued: a copy of each certificate in its folder, and nothing beside it that could say otherwise.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::moment::Moment;
use super::name::{Host, NODE_DOMAIN};
use super::peer::PeerIdentity;
use super::revocation::Revocations;
use super::subject::SubjectError;
use super::validity::Validity;

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whom it is about.
    pub node: PeerIdentity,
    /// Where the node can be reached, as was said when it was issued.
    pub hosts: Vec<Host>,
    /// Whether it is good.
    pub state: State,
    /// Its time.
    pub(super) validity: Validity,
    /// Its public key.
    pub(super) key: Vec<u8>,
}

/// Whether a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is.
    Valid,
    /// Its time is over.
    Expired,
    /// It was revoked, expired or not.
    Revoked {
        /// When.
        since: Moment,
    },
}

impl Record {
    /// Reads the copy of a certificate.
    pub(super) fn parse(pem: &str, revocations: &Revocations, now: Moment) -> Result<Self, SubjectError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| SubjectError::NotX509)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| SubjectError::NotX509)?;
        let node = PeerIdentity::of_certificate(&certificate)?;
        let state = match revocations.since.get(&node.serial) {
            Some(since) => State::Revoked { since: *since },
            None if node.not_after < now => State::Expired,
            None => State::Valid,
        };
        let key = certificate.public_key().subject_public_key.data.to_vec();
        Ok(Self { hosts: hosts(&certificate), node, state, validity: Validity::of(&certificate), key })
    }
}

fn hosts(certificate: &X509Certificate<'_>) -> Vec<Host> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    names.filter_map(host).collect()
}

fn host(name: &GeneralName<'_>) -> Option<Host> {
    match name {
        GeneralName::DNSName(name) if !name.ends_with(NODE_DOMAIN) => Some(Host::Name((*name).to_owned())),
        GeneralName::IPAddress(octets) => address(octets).map(Host::Address),
        _ => None,
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}
