//! Whether what a node's folder holds now may follow what the running node has, and how a change of the folder is noticed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::moment::Moment;
use super::name::{ClusterId, Name};
use super::node_identity::{
    AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, LoadError, NodeIdentity, REVOCATIONS_FILE, SECRET_FILE,
};

/// What is new since the folder was read before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// The node's certificate is another.
    pub certificate: bool,
    /// The revocation list is another: connections that are open may be of a node that it names.
    pub revocations: bool,
}

/// Why a folder does not replace the present identity. The user's fault, or transient: a folder in the middle of being copied.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It is of no use to anybody.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Another node's.
    #[error("the folder is that of node {found} now, and this is {present}: start it anew to change that")]
    OtherNode {
        /// Whose the folder is.
        found: Name,
        /// Who runs.
        present: Name,
    },
    /// Another cluster's.
    #[error("the folder is of cluster {found} now, and this node of {present}: start it anew to change that")]
    OtherCluster {
        /// Of which the folder is.
        found: ClusterId,
        /// Of which the node is.
        present: ClusterId,
    },
    /// Another authority that gives out the same cluster's id.
    #[error("{AUTHORITY_FILE} is another authority's now, of the same cluster: start the node anew to change that")]
    OtherAuthority,
    /// Another secret, which would make the running node a stranger to caches and sessions.
    #[error("{SECRET_FILE} is another now: start the node anew to change that")]
    OtherSecret,
    /// A revocation list from before: what it leaves out would be let in again.
    #[error("{REVOCATIONS_FILE} has the number {found} now, expected at least {present}")]
    OlderRevocations {
        /// The folder's.
        found: u64,
        /// The present one's.
        present: u64,
    },
    /// Two lists with one number: somebody has revoked with an authority's folder from a backup.
    #[error(
        "{REVOCATIONS_FILE} has the number {0}, as before, and names others: copy the list of the authority that is right, or revoke once more"
    )]
    ForkedRevocations(u64),
    /// A certificate from before.
    #[error("{CERTIFICATE_FILE} is good until {found}, and the present one until {present}")]
    OlderCertificate {
        /// The folder's end.
        found: Moment,
        /// The present one's.
        present: Moment,
    },
}

impl Reloaded {
    /// Whether nothing is new.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }

    pub(super) fn and(self, then: Self) -> Self {
        Self { certificate: self.certificate | then.certificate, revocations: self.revocations | then.revocations }
    }

    /// What the next identity changes, if it may follow the present one.
    pub(super) fn of(present: &NodeIdentity, next: &NodeIdentity) -> Result<Self, ReloadError> {
        check_same_node(present, next)?;
        check_not_older(present, next)?;
        Ok(Self {
            certificate: present.shown().cert != next.shown().cert,
            revocations: present.revocations() != next.revocations(),
        })
    }
}

fn check_same_node(present: &NodeIdentity, next: &NodeIdentity) -> Result<(), ReloadError> {
    let (own, found) = (present.own(), next.own());
    if own.cluster != found.cluster {
        return Err(ReloadError::OtherCluster { found: found.cluster, present: own.cluster });
    }
    if own.name != found.name {
        return Err(ReloadError::OtherNode { found: found.name.clone(), present: own.name.clone() });
    }
    if present.authority().key != next.authority().key {
        return Err(ReloadError::OtherAuthority);
    }
    if present.cluster_secret() != next.cluster_secret() {
        return Err(ReloadError::OtherSecret);
    }
    Ok(())
}

fn check_not_older(present: &NodeIdentity, next: &NodeIdentity) -> Result<(), ReloadError> {
    let (had, has) = (present.revocations(), next.revocations());
    if has.number < had.number {
        return Err(ReloadError::OlderRevocations { found: has.number, present: had.number });
    }
    if has.number == had.number && has != had {
        return Err(ReloadError::ForkedRevocations(has.number));
    }
    let (own, found) = (present.own(), next.own());
    if found.serial != own.serial && found.not_after < own.not_after {
        return Err(ReloadError::OlderCertificate { found: found.not_after, present: own.not_after });
    }
    Ok(())
}

/// What tells without reading whether files have been touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FolderStamp([Option<FileStamp>; 5]);

/// The time of the last change to inode is part of it, so that a file that gets an old modification time (`scp -p`) or other permissions is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    byte_len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FolderStamp {
    pub(super) fn of(folder: &Path) -> Self {
        let files = [AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, REVOCATIONS_FILE, SECRET_FILE];
        Self(files.map(|file| {
            let found = fs::metadata(folder.join(file)).ok()?;
            Some(FileStamp {
                inode: found.ino(),
                byte_len: found.size(),
                modified: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
            })
        }))
    }
}
