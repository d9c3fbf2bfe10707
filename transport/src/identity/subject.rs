//! Whom a certificate is about: one URI among its alternative names.
//!
//! `relevo://CLUSTER/node/NAME?roles=ROLE,ROLE` in a node's certificate, `relevo://CLUSTER/authority/NAME` in the authority's. All parts
//! are of letters that need no escaping, so that there is one way to write a thing. A URI, because TLS libraries leave it alone
//! (a common name is matched against hosts by some), and because every tool prints it.

use std::fmt;
use std::str::FromStr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::name::{ClusterId, Name};
use relevo_wire::{Role, Roles};

const SCHEME: &str = "relevo://";

/// Whom a certificate is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A node.
    Node { cluster: ClusterId, name: Name, roles: Roles },
    /// The authority itself; the name is the cluster's.
    Authority { cluster: ClusterId, name: Name },
}

/// Why a certificate names no one. The fault of whoever made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// There is no certificate.
    #[error("no certificate")]
    Missing,
    /// Its bytes are no X.509 certificate.
    #[error("not an X.509 certificate")]
    NotX509,
    /// Nobody of a Relevo cluster is named in it.
    #[error("no relevo:// name in the certificate, or more than one")]
    NoName,
    /// A name that cannot be read.
    #[error("the certificate's relevo:// name is malformed")]
    Malformed,
    /// An authority's where a node's belongs, or the reverse.
    #[error("an authority's certificate where a node's is expected, or the reverse")]
    OtherKind,
}

impl Subject {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Result<Self, SubjectError> {
        let names = certificate.subject_alternative_name().map_err(|_| SubjectError::NotX509)?;
        let names = names.iter().flat_map(|extension| &extension.value.general_names);
        let mut ours = names.filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        match (ours.next(), ours.next()) {
            (Some(uri), None) => uri.parse(),
            _ => Err(SubjectError::NoName),
        }
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(uri: &str) -> Result<Self, SubjectError> {
        parse(uri).ok_or(SubjectError::Malformed)
    }
}

fn parse(uri: &str) -> Option<Subject> {
    let (cluster, path) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    let cluster = ClusterId::parse(cluster)?;
    if let Some(name) = path.strip_prefix("authority/") {
        return Some(Subject::Authority { cluster, name: name.parse().ok()? });
    }
    let (name, roles) = path.strip_prefix("node/")?.split_once("?roles=")?;
    let mut known = Vec::new();
    for word in roles.split(',') {
        let _: Name = word.parse().ok()?;
        // A role that only a newer version knows grants nothing here; the others hold.
        known.extend(word.parse::<Role>());
    }
    Some(Subject::Node { cluster, name: name.parse().ok()?, roles: known.into_iter().collect() })
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { cluster, name, roles } => write!(f, "{SCHEME}{cluster}/node/{name}?roles={roles}"),
            Self::Authority { cluster, name } => write!(f, "{SCHEME}{cluster}/authority/{name}"),
        }
    }
}
