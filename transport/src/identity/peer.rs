//! Who the other side is, by its certificate.

use rustls::pki_types::{CertificateDer, ServerName};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::moment::Moment;
use super::name::{ClusterId, NODE_DOMAIN, Name, Serial};
use super::subject::{Subject, SubjectError};
use relevo_wire::Roles;

/// A node as its certificate describes it.
///
/// **It is worth what the certificate is worth**: take it from the chain of a connection whose handshake is done, never from a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its name, unique in its cluster.
    pub name: Name,
    /// What it may do. Roles that this version does not know are left out.
    pub roles: Roles,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Of the certificate.
    pub serial: Serial,
    /// The last second in which the certificate is valid.
    pub not_after: Moment,
}

impl PeerIdentity {
    /// Reads the first certificate of a chain, as rustls and quinn give it after the handshake.
    ///
    /// # Errors
    /// The peer's fault: there is none, or it is not one of a node.
    pub fn of_chain(chain: &[CertificateDer<'_>]) -> Result<Self, SubjectError> {
        Self::of_der(chain.first().ok_or(SubjectError::Missing)?)
    }

    /// Reads a certificate's bytes, whatever they are.
    pub(super) fn of_der(der: &[u8]) -> Result<Self, SubjectError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| SubjectError::NotX509)?;
        if rest.is_empty() { Self::of_certificate(&certificate) } else { Err(SubjectError::NotX509) }
    }

    pub(super) fn of_certificate(certificate: &X509Certificate<'_>) -> Result<Self, SubjectError> {
        match Subject::of(certificate)? {
            Subject::Node { cluster, name, roles } => Ok(Self {
                name,
                roles,
                cluster,
                serial: Serial::new(certificate.raw_serial()),
                not_after: Moment::of_certificate(certificate.validity().not_after),
            }),
            Subject::Authority { .. } => Err(SubjectError::OtherKind),
        }
    }

    /// What its certificate calls it for TLS, whatever host or address it is dialled at.
    pub(super) fn server_name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(node_dns_name(self.cluster, &self.name)).ok()
    }
}

/// The DNS name of a node in its certificate: `NAME.CLUSTER.relevo.internal`.
pub(super) fn node_dns_name(cluster: ClusterId, name: &Name) -> String {
    format!("{name}.{cluster}.{NODE_DOMAIN}")
}
