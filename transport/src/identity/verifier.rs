//! Whom a node lets in: rustls' own check of the chain, then who the peer is, both by the identity that is present at that moment.
//!
//! **Invariant:** no error of rustls' verifiers is ever taken for a yes. What is read from a certificate before its chain is checked can only refuse it.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::name::Name;
use super::node_identity::NodeIdentity;
use super::peer::PeerIdentity;
use super::present::Present;
use super::refusal::Refusal;
use relevo_wire::{Role, Roles};

/// Who is expected at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    name: Option<Name>,
    one_of: Roles,
}

impl Expected {
    /// The node of this name, whatever its roles.
    pub fn node(name: Name) -> Self {
        Self { name: Some(name), ..Self::one_of(Role::ALL) }
    }

    /// Any node that has one of these roles.
    pub fn one_of(roles: impl IntoIterator<Item = Role>) -> Self {
        Self { name: None, one_of: roles.into_iter().collect() }
    }

    fn check(&self, peer: PeerIdentity) -> Result<(), Refusal> {
        if let Some(expected) = self.name.as_ref().filter(|expected| **expected != peer.name) {
            return Err(Refusal::WrongName { found: peer.name, expected: expected.clone() });
        }
        if !self.one_of.intersects(peer.roles) {
            return Err(Refusal::WrongRole { name: peer.name, found: peer.roles, expected: self.one_of });
        }
        Ok(())
    }
}

/// Reads who the peer says it is: said, not shown, until the chain is checked.
fn claim(present: &NodeIdentity, certificate: &CertificateDer<'_>) -> Result<PeerIdentity, Refusal> {
    let (peer, expected) = (PeerIdentity::of_der(certificate)?, present.own().cluster);
    if peer.cluster == expected { Ok(peer) } else { Err(Refusal::WrongCluster { found: peer.cluster, expected }) }
}

/// The server's side: who may dial us.
#[derive(Debug)]
pub(super) struct Callers {
    pub(super) present: Arc<Present>,
    pub(super) expected: Expected,
}

impl ClientCertVerifier for Callers {
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let present = self.present.get();
        let peer = claim(&present, certificate)?;
        let verified = present.callers().verify_client_cert(certificate, intermediates, now)?;
        self.expected.check(peer)?;
        Ok(verified)
    }

    /// None: nodes have one certificate to show, and what is lent here could not follow the present identity.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.present.get().callers().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.present.get().callers().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.present.get().callers().supported_verify_schemes()
    }
}

/// The client's side: who may answer where we dial.
///
/// Nodes are dialled by address, so the host is no evidence: the chain is checked against the node's own name in the certificate, and that
/// against whom we expect.
#[derive(Debug)]
pub(super) struct Answerers {
    pub(super) present: Arc<Present>,
    pub(super) expected: Expected,
}

impl ServerCertVerifier for Answerers {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let present = self.present.get();
        let peer = claim(&present, certificate)?;
        let name = peer.server_name().ok_or(CertificateError::BadEncoding)?;
        let verified = present.answerers().verify_server_cert(certificate, intermediates, &name, ocsp, now)?;
        self.expected.check(peer)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.present.get().answerers().verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.present.get().answerers().verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.present.get().answerers().supported_verify_schemes()
    }
}
