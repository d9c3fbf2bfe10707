//! Renewal over the wire, the node's side: a new key, a request for it, and the exchange of key and certificate in the node's folder.
//!
//! Key and certificate are two files, and no file system replaces two at once. So the new key is first put beside the old one
//! ([`NEXT_KEY_FILE`]), then the certificate is replaced, then the key. Whoever loads a folder takes the key that belongs to the certificate, of
//! whichever file. Each step is one rename, made durable before the next; the list comes last, since only the new certificate is known not to be on it.
//!
//! **Invariant:** wherever the exchange is cut off, by a crash or a full disk, the folder can be loaded and renewed.

use std::path::Path;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use super::live_identity::LiveIdentity;
use super::node_identity::{CERTIFICATE_FILE, KEY_FILE, LoadError, NEXT_KEY_FILE, NodeIdentity, REVOCATIONS_FILE};
use super::reload::{ReloadError, Reloaded};
use super::storage::{self, Access, StorageError};
use relevo_wire::{Renewed, Roles};

/// A node's next key, for which a certificate has been asked.
#[derive(Debug)]
pub struct Renewal {
    live: LiveIdentity,
    key: KeyPair,
}

/// Why a node has not got its next certificate. It keeps the present one.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// Our bug, or a system without random numbers.
    #[error("cannot make a key and a request for it")]
    Request(#[from] rcgen::Error),
    /// The authority's fault: not for this node's key, or not signed by its authority.
    #[error("what the authority has sent is of no use")]
    Unusable(#[source] LoadError),
    /// The authority's fault: another certificate of its own than the one in the folder.
    #[error("what the authority has sent is of another authority than the one in the folder")]
    OtherAuthority,
    /// The authority's fault.
    #[error("the authority has sent a certificate for the roles {found}, expected {present}")]
    OtherRoles {
        /// Of the new certificate.
        found: Roles,
        /// Of the present one.
        present: Roles,
    },
    /// What was sent, or what the folder holds, can not follow the present identity.
    #[error(transparent)]
    Reload(#[from] ReloadError),
    /// The folder cannot be written: the user's fault, or transient.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Renewal {
    /// Makes a key, and a request for its certificate: PKCS#10 in DER, for [`super::Authority::renew`].
    ///
    /// # Errors
    /// Our bug: see [`RenewalError::Request`].
    pub fn begin(live: &LiveIdentity) -> Result<(Self, Vec<u8>), RenewalError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // For people: the authority goes by the connection.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, live.own().name.as_str());
        let request = params.serialize_request(&key)?.der().to_vec();
        Ok((Self { live: live.clone(), key }, request))
    }

    /// Puts the new certificate and its key into the node's folder, and makes them the present identity. Waits for the disk.
    ///
    /// # Errors
    /// The authority's fault, the user's or transient: see [`RenewalError`]. The node keeps what it has, and may begin anew.
    pub fn finish(self, renewed: &Renewed) -> Result<Reloaded, RenewalError> {
        let key_pem = self.key.serialize_pem();
        self.live.rewrite(|folder, present| {
            let exchange = Exchange { folder, key_pem: &key_pem, renewed };
            exchange.check(present)?;
            STEPS.into_iter().try_for_each(|step| exchange.take(step))
        })
    }
}

/// One change of the folder, which is made whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Ends an exchange that was cut off: the next step overwrites its key.
    Settle,
    NextKey,
    Certificate,
    Key,
    Revocations,
}

const STEPS: [Step; 5] = [Step::Settle, Step::NextKey, Step::Certificate, Step::Key, Step::Revocations];

/// What goes where.
struct Exchange<'a> {
    folder: &'a Path,
    key_pem: &'a str,
    renewed: &'a Renewed,
}

impl Exchange<'_> {
    /// Whether what was sent may follow the present identity, before anything of it is written.
    fn check(&self, present: &NodeIdentity) -> Result<(), RenewalError> {
        let Renewed { certificate_pem, authority_pem, revocations_pem } = self.renewed;
        let next = present.renewed(self.folder, [certificate_pem, self.key_pem, authority_pem, revocations_pem]);
        let next = next.map_err(RenewalError::Unusable)?;
        if next.authority() != present.authority() {
            return Err(RenewalError::OtherAuthority);
        }
        let (found, own) = (next.own().roles, present.own().roles);
        if found != own {
            return Err(RenewalError::OtherRoles { found, present: own });
        }
        Reloaded::of(present, &next)?;
        Ok(())
    }

    fn take(&self, step: Step) -> Result<(), RenewalError> {
        let path = |file| self.folder.join(file);
        match step {
            Step::Settle => {
                if NodeIdentity::has_next_key(self.folder).map_err(ReloadError::Load)? {
                    storage::replace(&path(NEXT_KEY_FILE), &path(KEY_FILE))?;
                }
            }
            Step::NextKey => storage::write(&path(NEXT_KEY_FILE), self.key_pem, Access::Secret)?,
            Step::Certificate => storage::write(&path(CERTIFICATE_FILE), &self.renewed.certificate_pem, Access::Open)?,
            Step::Key => storage::replace(&path(NEXT_KEY_FILE), &path(KEY_FILE))?,
            Step::Revocations => storage::write(&path(REVOCATIONS_FILE), &self.renewed.revocations_pem, Access::Open)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::identity::{Authority, Moment, NodeRequest, Role};

    const NOW: Moment = Moment(1_767_225_600);

    /// An authority, and a running node of it.
    struct Place {
        _parent: tempfile::TempDir,
        folder: PathBuf,
        authority: Authority,
        live: LiveIdentity,
    }

    impl Place {
        fn new() -> Self {
            let parent = tempfile::tempdir().unwrap();
            let [ca, folder] = ["ca", "node"].map(|name| parent.path().join(name));
            let authority = Authority::create(&ca, &"test".parse().unwrap(), NOW).unwrap();
            for (name, out) in [("decode-1", folder.clone()), ("other", parent.path().join("other"))] {
                let request =
                    NodeRequest { name: name.parse().unwrap(), roles: Role::Decode.into(), hosts: Vec::new() };
                authority.issue(&request, &out, NOW).unwrap();
            }
            let live = LiveIdentity::load(&folder).unwrap();
            Self { _parent: parent, folder, authority, live }
        }

        /// A renewal that is cut off after some steps.
        fn renew_to(&self, live: &LiveIdentity, num_steps: usize) {
            let (renewal, request) = Renewal::begin(live).unwrap();
            let renewed = self.authority.renew(&live.own(), &request, NOW).unwrap();
            let key_pem = renewal.key.serialize_pem();
            let exchange = Exchange { folder: &self.folder, key_pem: &key_pem, renewed: &renewed };
            exchange.check(&live.present()).unwrap();
            STEPS.into_iter().take(num_steps).for_each(|step| exchange.take(step).unwrap());
        }
    }

    #[test]
    fn wherever_a_renewal_is_cut_off_the_folder_is_good_and_the_next_one_mends_it() {
        let certificate_at = 1 + STEPS.iter().position(|step| *step == Step::Certificate).unwrap();
        // Twice: what the first one has left must not spoil the second.
        for (first, second) in (0..=STEPS.len()).flat_map(|first| (0..=STEPS.len()).map(move |second| (first, second)))
        {
            let place = Place::new();
            let mut serial = place.live.own().serial;
            for num_steps in [first, second] {
                let started = LiveIdentity::load(&place.folder).unwrap();
                place.renew_to(&started, num_steps);
                // As a temporary file is left when a file is cut off in the middle.
                fs::write(place.folder.join(".node.key.next.0123"), "-----BEGIN").unwrap();
                let restarted = LiveIdentity::load(&place.folder).unwrap();
                let has_new = num_steps >= certificate_at;
                assert_eq!(restarted.own().serial != serial, has_new, "cut off after {first} and {second} steps");
                serial = restarted.own().serial;
                // The process that was not restarted takes up what there is, too.
                place.live.reload().unwrap();
                assert_eq!(place.live.own().serial, serial);
            }
            let (renewal, request) = Renewal::begin(&place.live).unwrap();
            let renewed = place.authority.renew(&place.live.own(), &request, NOW).unwrap();
            assert!(renewal.finish(&renewed).unwrap().certificate);
            assert_eq!(LiveIdentity::load(&place.folder).unwrap().own(), place.live.own());
            assert!(!place.folder.join(NEXT_KEY_FILE).exists());
        }
    }

    #[test]
    fn a_list_that_came_with_the_certificate_is_there_once_all_steps_are_done() {
        let place = Place::new();
        let other = "other".parse().unwrap();
        let serials = place.authority.revoke(&other, NOW).unwrap();
        for num_steps in 0..=STEPS.len() {
            place.renew_to(&place.live, num_steps);
            place.live.reload().unwrap();
            let has_revoked = serials.iter().all(|serial| place.live.present().has_revoked(serial));
            assert_eq!(has_revoked, num_steps == STEPS.len());
        }
    }
}
