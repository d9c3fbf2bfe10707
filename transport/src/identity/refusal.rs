//! Why a peer was not let in, or did not let us in.

use rustls::{AlertDescription, CertificateError, Error as TlsError, OtherError};

use super::moment::Moment;
use super::name::{ClusterId, Name};
use super::subject::SubjectError;
use relevo_wire::Roles;

/// Why a handshake ended without a connection, as far as certificates are concerned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The peer's certificate names no node.
    #[error("the certificate is not one of a node")]
    Unreadable(#[from] SubjectError),
    /// It is of another cluster, or says so.
    #[error("the certificate is of cluster {found}, expected {expected}")]
    WrongCluster {
        /// The peer's.
        found: ClusterId,
        /// Ours.
        expected: ClusterId,
    },
    /// It names our cluster, but our authority has not signed it.
    #[error("the certificate is not signed by this cluster's authority")]
    UnknownAuthority,
    /// Its time is over.
    #[error("the certificate has expired{}", at(.not_after))]
    Expired {
        /// Its last second, where it is known.
        not_after: Option<Moment>,
    },
    /// Its time has not come: most likely a clock is wrong.
    #[error("the certificate is not valid yet{}: is a clock wrong?", at(.not_before))]
    NotYetValid {
        /// Its first second, where it is known.
        not_before: Option<Moment>,
    },
    /// It was revoked.
    #[error("the certificate is revoked")]
    Revoked,
    /// Somebody else answers at that address.
    #[error("the peer is node {found}, expected {expected}")]
    WrongName {
        /// The peer's.
        found: Name,
        /// Who was dialled.
        expected: Name,
    },
    /// It may not do what is done here.
    #[error("node {name} has the roles {found}, expected one of {expected}")]
    WrongRole {
        /// The peer.
        name: Name,
        /// Its roles.
        found: Roles,
        /// Of which it needs one.
        expected: Roles,
    },
    /// Anything else that is wrong with it.
    #[error("the certificate is invalid: {0}")]
    Invalid(CertificateError),
    /// The peer refused us.
    #[error("the peer refused this node: {0}")]
    ByPeer(Complaint),
}

/// What a peer says is wrong with our certificate, as far as TLS has words for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Complaint {
    /// It saw none.
    #[error("it saw no certificate")]
    NoCertificate,
    /// Expired, or not valid yet by its clock.
    #[error("by its clock this node's certificate is not valid now")]
    Expired,
    /// On its revocation list.
    #[error("this node's certificate is revoked")]
    Revoked,
    /// Not signed by its authority.
    #[error("this node's certificate is not signed by its authority")]
    UnknownAuthority,
    /// A signature on it, or made with it, is not right.
    #[error("a signature of this node's certificate does not hold")]
    BadSignature,
    /// Another cluster, name or role than it expects, or unreadable to it.
    #[error("it expects another cluster, name or role; its log says which")]
    Unexpected,
}

impl Refusal {
    /// The reason in an error of a handshake, if certificates are the reason.
    pub fn of(error: &TlsError) -> Option<Self> {
        match error {
            TlsError::NoCertificatesPresented => Some(Self::NoCertificate),
            TlsError::InvalidCertificate(fault) => Some(Self::of_fault(fault)),
            TlsError::AlertReceived(alert) => Complaint::of(*alert).map(Self::ByPeer),
            _ => None,
        }
    }

    /// A word for its kind, the same in every version: what refusals are counted by.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Unreadable(_) => "unreadable",
            Self::WrongCluster { .. } => "wrong_cluster",
            Self::UnknownAuthority => "unknown_authority",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::WrongName { .. } => "wrong_name",
            Self::WrongRole { .. } => "wrong_role",
            Self::Invalid(_) => "invalid",
            Self::ByPeer(_) => "by_peer",
        }
    }

    fn of_fault(fault: &CertificateError) -> Self {
        match fault {
            CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<Self>() {
                Some(refusal) => refusal.clone(),
                None => Self::Invalid(fault.clone()),
            },
            CertificateError::Expired => Self::Expired { not_after: None },
            CertificateError::ExpiredContext { not_after, .. } => {
                Self::Expired { not_after: Some((*not_after).into()) }
            }
            CertificateError::NotValidYet => Self::NotYetValid { not_before: None },
            CertificateError::NotValidYetContext { not_before, .. } => {
                Self::NotYetValid { not_before: Some((*not_before).into()) }
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            other => Self::Invalid(other.clone()),
        }
    }
}

impl Complaint {
    /// The meaning of a TLS alert, if it is about our certificate.
    fn of(alert: AlertDescription) -> Option<Self> {
        match alert {
            AlertDescription::CertificateRequired => Some(Self::NoCertificate),
            AlertDescription::CertificateExpired => Some(Self::Expired),
            AlertDescription::CertificateRevoked => Some(Self::Revoked),
            AlertDescription::UnknownCA => Some(Self::UnknownAuthority),
            AlertDescription::DecryptError => Some(Self::BadSignature),
            AlertDescription::CertificateUnknown
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied => Some(Self::Unexpected),
            _ => None,
        }
    }
}

/// So that rustls hands our reason through; it tells the peer `certificate_unknown`.
impl From<Refusal> for TlsError {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(std::sync::Arc::new(refusal))))
    }
}

fn at(moment: &Option<Moment>) -> String {
    moment.map(|moment| format!(" ({moment})")).unwrap_or_default()
}
