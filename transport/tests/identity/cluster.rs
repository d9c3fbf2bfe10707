//! A cluster to test with: an authority in a folder of its own, and nodes with folders beside it.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose, SanType};
use relevo_transport::identity::{Authority, Host, Issued, LiveIdentity, Moment, Name, NodeRequest, Role};

/// When everything in these tests happens: 2026-01-01.
pub(crate) const NOW: Moment = Moment(1_767_225_600);
/// A day, in seconds.
pub(crate) const DAY: u64 = 86_400;

pub(crate) fn days_later(days: u64) -> Moment {
    Moment(NOW.0 + days * DAY)
}

pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    pub(crate) authority: Authority,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("ca"), &name("test"), NOW).unwrap();
        Self { folder, authority }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Issues for a node, into a folder of its name.
    pub(crate) fn issue(&self, node: &str, roles: &[Role]) -> Issued {
        self.authority.issue(&request(node, roles), &self.path(node), NOW).unwrap()
    }

    /// What a node holds that was just issued for.
    pub(crate) fn node(&self, node: &str, roles: &[Role]) -> LiveIdentity {
        self.issue(node, roles);
        self.load(node)
    }

    pub(crate) fn load(&self, node: &str) -> LiveIdentity {
        LiveIdentity::load(&self.path(node)).unwrap()
    }

    /// Revokes a node, and tells another of it.
    pub(crate) fn revoke(&self, node: &str, told: &str) -> LiveIdentity {
        self.authority.revoke(&name(node), NOW).unwrap();
        self.tell(told);
        self.load(told)
    }

    /// Copies the present revocation list into a node's folder.
    pub(crate) fn tell(&self, node: &str) {
        std::fs::copy(self.authority.revocations_path(), self.path(node).join("revoked.crl.pem")).unwrap();
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn request(node: &str, roles: &[Role]) -> NodeRequest {
    let hosts = ["127.0.0.1", "node.example.org"].map(|host| host.parse::<Host>().unwrap());
    NodeRequest { name: name(node), roles: roles.iter().copied().collect(), hosts: hosts.to_vec() }
}

/// What stands in the certificate of a cluster's authority, or of somebody who wants to be taken for it.
pub(crate) fn authority_params(cluster: &Cluster) -> CertificateParams {
    let id = cluster.authority.cluster();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Relevo cluster test {id}"));
    params.subject_alt_names = vec![SanType::URI(format!("relevo://{id}/authority/test").try_into().unwrap())];
    params
}
