//! Renewal over the wire: what a node asks, what the authority signs and refuses, and what the node makes of the answer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;

use proptest::prelude::*;
use rcgen::{CertificateParams, DnType, IsCa, KeyPair, SanType};
use relevo_transport::identity::{
    Authority, AuthorityError, Expected, Host, LiveIdentity, LoadError, Moment, NodeIdentity, PeerIdentity, Reloaded,
    Renewal, RenewalError, Renewed, RequestError, Role, State, Validity,
};
use relevo_wire::MAX_CERTIFICATE_REQUEST_BYTES;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::cluster::{Cluster, DAY, NOW, authority_params, days_later, name, request};
use super::meeting::{client_for, meet_again, server_for};

/// When nodes of these tests renew.
fn due() -> Moment {
    days_later(20)
}

/// A request that a node could have sent with this key.
fn request_of(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

fn renew(authority: &Authority, live: &LiveIdentity, now: Moment) -> Reloaded {
    let (renewal, request) = Renewal::begin(live).unwrap();
    renewal.finish(&authority.renew(&live.own(), &request, now).unwrap()).unwrap()
}

#[test]
fn a_third_of_its_time_before_its_end_a_certificate_is_due() {
    let validity = |not_before, not_after| Validity { not_before: Moment(not_before), not_after: Moment(not_after) };
    for (from, to, at) in [(100, 400, 300), (0, 10, 7), (5, 5, 5), (0, u64::MAX, u64::MAX - u64::MAX / 3)] {
        let validity = validity(from, to);
        assert_eq!(validity.renewal_at(), Moment(at));
        assert!(validity.is_renewal_due(Moment(at)) && validity.is_renewal_due(Moment(u64::MAX)));
        assert!(!validity.is_renewal_due(Moment(at - 1)));
    }
    // One that ends before it begins has no time at all.
    assert_eq!(validity(9, 3).renewal_at(), Moment(3));

    let cluster = Cluster::new();
    let validity = cluster.node("decode-1", &[Role::Decode]).present().validity();
    assert_eq!((validity.not_before, validity.not_after), (Moment(NOW.0 - 300), days_later(30)));
    assert_eq!(validity.renewal_at(), Moment(days_later(20).0 - 100));
}

#[test]
fn a_node_renews_while_it_runs_and_is_the_same_node() {
    let cluster = Cluster::new();
    let prefill = cluster.node("prefill-1", &[Role::Prefill]);
    let decode = cluster.node("decode-1", &[Role::Decode, Role::Expert]);
    let expected = || Expected::one_of(Role::ALL);
    let client = Arc::new(client_for(&prefill, expected(), due()));
    let server = Arc::new(server_for(&decode, expected(), due()));
    let before = decode.own();
    assert_eq!(meet_again(&client, &server).0.peer(), before);

    let reloaded = renew(&cluster.authority, &decode, due());
    assert_eq!(reloaded, Reloaded { certificate: true, revocations: false });
    let after = meet_again(&client, &server).0.peer();
    assert_eq!(after, decode.own());
    assert_eq!(after, PeerIdentity { serial: after.serial.clone(), not_after: days_later(50), ..before.clone() });
    assert_ne!(after.serial, before.serial);
    assert_eq!(cluster.load("decode-1").own(), after);
    assert!(!decode.has_changed());

    let records = cluster.authority.list(due()).unwrap();
    let of_node: Vec<_> = records.iter().filter(|record| record.node.name == before.name).collect();
    assert_eq!([&of_node[0].node, &of_node[1].node], [&before, &after]);
    assert_eq!(of_node[0].hosts, of_node[1].hosts);
    assert!(of_node.iter().all(|record| record.state == State::Valid));
    assert_eq!(cluster.authority.revoke(&name("decode-1"), due()).unwrap(), [before.serial, after.serial]);
}

#[test]
fn a_renewal_leaves_a_new_key_for_its_owner_only_and_nothing_beside_it() {
    let cluster = Cluster::new();
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let folder = cluster.path("decode-1");
    let files = || {
        let mut files: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        files
    };
    let (key, before) = (folder.join("node.key"), files());
    let old = fs::read(&key).unwrap();
    renew(&cluster.authority, &decode, due());
    assert_ne!(fs::read(&key).unwrap(), old);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(files(), before);
}

#[test]
fn a_revocation_comes_with_the_renewal() {
    let cluster = Cluster::new();
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let stolen = cluster.issue("stolen", &[Role::Prefill]).node;
    cluster.authority.revoke(&name("stolen"), NOW).unwrap();
    assert_eq!(renew(&cluster.authority, &decode, due()), Reloaded { certificate: true, revocations: true });
    assert!(decode.is_revoked(&stolen));
}

#[test]
fn what_a_request_says_beside_its_key_counts_for_nothing() {
    let cluster = Cluster::new();
    let decode = cluster.issue("decode-1", &[Role::Decode]).node;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let uri = format!("relevo://{}/node/root?roles=operator,coordinator", cluster.authority.cluster());
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let renewed = cluster.authority.renew(&decode, request.der(), due()).unwrap();

    let (_, pem) = x509_parser::pem::parse_x509_pem(renewed.certificate_pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    assert!(!certificate.is_ca());
    assert_eq!(certificate.subject().to_string(), "CN=decode-1");
    let records = cluster.authority.list(due()).unwrap();
    assert_eq!(records.len(), 2);
    for record in records {
        assert_eq!((record.node.name, record.node.roles), (name("decode-1"), Role::Decode.into()));
        assert_eq!(record.hosts.iter().map(Host::to_string).collect::<Vec<_>>(), ["127.0.0.1", "node.example.org"]);
    }
}

#[test]
fn who_is_unknown_revoked_expired_or_of_elsewhere_is_not_renewed() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let node = cluster.issue("decode-1", &[Role::Decode]).node;
    let ask = |node: &PeerIdentity, now| {
        cluster.authority.renew(node, &request_of(&KeyPair::generate().unwrap()), now).unwrap_err()
    };
    let error = ask(&other.issue("decode-1", &[Role::Decode]).node, due());
    assert!(matches!(error, RequestError::OtherCluster { .. }), "{error}");

    let never = cluster.issue("never", &[Role::Decode]).node;
    let as_another = [
        PeerIdentity { name: name("decode-2"), ..node.clone() },
        PeerIdentity { roles: Role::Operator.into(), ..node.clone() },
        PeerIdentity { serial: never.serial, ..node.clone() },
        PeerIdentity { not_after: days_later(90), ..node.clone() },
    ];
    for stranger in as_another {
        let error = ask(&stranger, due());
        assert!(matches!(error, RequestError::Unknown { .. }), "{error}");
    }
    let error = ask(&node, Moment(node.not_after.0 + 1));
    assert!(matches!(error, RequestError::Expired { not_after, .. } if not_after == node.not_after), "{error}");
    cluster.authority.revoke(&name("decode-1"), due()).unwrap();
    let error = ask(&node, due());
    assert!(matches!(error, RequestError::Revoked { since, .. } if since == due()), "{error}");
    assert_eq!(cluster.authority.list(NOW).unwrap().len(), 2);
}

#[test]
fn a_revocation_takes_what_was_renewed_as_well() {
    let cluster = Cluster::new();
    let thief = cluster.node("decode-1", &[Role::Decode]);
    let stolen = thief.own();
    renew(&cluster.authority, &thief, due());
    let revoked = cluster.authority.revoke(&name("decode-1"), due()).unwrap();
    assert_eq!(revoked, [stolen.serial, thief.own().serial]);
}

#[test]
fn another_kind_of_key_than_ours_is_not_signed_for() {
    let cluster = Cluster::new();
    let node = cluster.issue("decode-1", &[Role::Decode]).node;
    for kind in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256] {
        let request = request_of(&KeyPair::generate_for(kind).unwrap());
        let error = cluster.authority.renew(&node, &request, due()).unwrap_err();
        assert!(matches!(error, RequestError::OtherKey), "{kind:?}: {error}");
    }
}

#[test]
fn a_key_is_renewed_with_its_certificate() {
    let cluster = Cluster::new();
    let node = cluster.issue("decode-1", &[Role::Decode]).node;
    let old = KeyPair::from_pem(&fs::read_to_string(cluster.path("decode-1/node.key")).unwrap()).unwrap();
    let error = cluster.authority.renew(&node, &request_of(&old), due()).unwrap_err();
    assert!(matches!(error, RequestError::UsedKey(_)), "{error}");
    let new = request_of(&KeyPair::generate().unwrap());
    cluster.authority.renew(&node, &new, due()).unwrap();
    let error = cluster.authority.renew(&node, &new, due()).unwrap_err();
    assert!(matches!(error, RequestError::UsedKey(_)), "{error}");
}

#[test]
fn a_request_that_its_key_has_not_signed_is_refused() {
    let cluster = Cluster::new();
    let node = cluster.issue("decode-1", &[Role::Decode]).node;
    let [mine, theirs] = [(); 2].map(|()| request_of(&KeyPair::generate().unwrap()));
    // Both are alike but for the key and the signature, so that a point of one fits into the other.
    let point = |request: &[u8]| request.windows(2).position(|pair| pair == [0x42, 0x00]).unwrap() + 2;
    let mut forged = mine.clone();
    forged[point(&mine)..][..65].copy_from_slice(&theirs[point(&theirs)..][..65]);
    let error = cluster.authority.renew(&node, &forged, due()).unwrap_err();
    assert!(matches!(error, RequestError::BadSignature), "{error}");
    // A point that is on no curve.
    let mut forged = mine.clone();
    forged[point(&mine) + 1..][..64].fill(0xff);
    let error = cluster.authority.renew(&node, &forged, due()).unwrap_err();
    assert!(matches!(error, RequestError::BadSignature), "{error}");
    // A point in its short form has the same key in other bytes.
    let mut forged = mine;
    let at = point(&forged);
    forged[at] = 2;
    let error = cluster.authority.renew(&node, &forged, due()).unwrap_err();
    assert!(matches!(error, RequestError::OtherKey), "{error}");
}

#[test]
fn a_node_that_asks_in_a_loop_is_held_up_until_the_next_day() {
    let cluster = Cluster::new();
    let node = cluster.issue("decode-1", &[Role::Decode]).node;
    cluster.issue("decode-1-b", &[Role::Decode]);
    let ask = |now| cluster.authority.renew(&node, &request_of(&KeyPair::generate().unwrap()), now);
    for _ in 0..24 {
        ask(due()).unwrap();
    }
    let error = ask(due()).unwrap_err();
    assert!(matches!(error, RequestError::TooOften { num_issued: 24, .. }), "{error}");
    ask(Moment(due().0 + DAY)).unwrap();
}

#[test]
fn a_renewal_waits_for_no_other_command() {
    let cluster = Cluster::new();
    let node = cluster.issue("decode-1", &[Role::Decode]).node;
    let lock = fs::File::open(cluster.path("ca/.lock")).unwrap();
    lock.lock().unwrap();
    let request = request_of(&KeyPair::generate().unwrap());
    let error = cluster.authority.renew(&node, &request, due()).unwrap_err();
    assert!(matches!(error, RequestError::Authority(AuthorityError::Busy { .. })), "{error}");
}

/// Lets a node finish its renewal with something else than the authority has sent, and expects that nothing changes.
#[track_caller]
fn refused(cluster: &Cluster, change: impl FnOnce(&mut Renewed)) -> RenewalError {
    let (decode, folder) = (cluster.load("decode-1"), cluster.path("decode-1"));
    let contents = |file: &str| fs::read(folder.join(file)).unwrap();
    let files = || ["ca.pem", "node.pem", "node.key", "revoked.crl.pem"].map(contents);
    let (before, present) = (files(), decode.own());
    let (renewal, request) = Renewal::begin(&decode).unwrap();
    let mut renewed = cluster.authority.renew(&present, &request, due()).unwrap();
    change(&mut renewed);
    let error = renewal.finish(&renewed).unwrap_err();
    assert_eq!(files(), before);
    assert!(decode.own() == present && !folder.join("node.key.next").exists());
    error
}

#[test]
fn an_answer_that_is_of_no_use_changes_nothing() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    cluster.issue("decode-1", &[Role::Decode]);
    other.issue("decode-1", &[Role::Decode]);
    let read = |path: &Path| fs::read_to_string(path).unwrap();

    let error = refused(&cluster, |renewed| renewed.certificate_pem = "nothing".to_owned());
    assert!(matches!(error, RenewalError::Unusable(LoadError::NotPem { .. })), "{error}");
    let error = refused(&cluster, |renewed| renewed.revocations_pem.truncate(100));
    assert!(matches!(error, RenewalError::Unusable(LoadError::NotPem { .. })), "{error}");
    // For the key before, or for somebody else's.
    let error = refused(&cluster, |renewed| renewed.certificate_pem = read(&cluster.path("decode-1/node.pem")));
    assert!(matches!(error, RenewalError::Unusable(LoadError::Tls { .. })), "{error}");
    let error = refused(&cluster, |renewed| renewed.authority_pem = read(&other.path("ca/ca.pem")));
    assert!(matches!(error, RenewalError::Unusable(LoadError::Mismatch { .. })), "{error}");
    let error = refused(&cluster, |renewed| renewed.revocations_pem = read(&other.path("ca/revoked.crl.pem")));
    assert!(matches!(error, RenewalError::Unusable(LoadError::Mismatch { .. })), "{error}");
}

#[test]
fn an_authority_with_another_certificate_of_its_own_is_refused() {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    let key = KeyPair::from_pem(&fs::read_to_string(cluster.path("ca/ca.key")).unwrap()).unwrap();
    let signed_again = authority_params(&cluster).self_signed(&key).unwrap().pem();
    let error = refused(&cluster, |renewed| renewed.authority_pem = signed_again);
    assert!(matches!(error, RenewalError::OtherAuthority), "{error}");
}

#[test]
fn a_certificate_for_other_roles_or_with_an_older_list_is_refused() {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    let old = fs::read_to_string(cluster.authority.revocations_path()).unwrap();
    cluster.issue("stolen", &[Role::Decode]);
    cluster.authority.revoke(&name("stolen"), NOW).unwrap();
    cluster.tell("decode-1");
    let error = refused(&cluster, |renewed| renewed.revocations_pem = old);
    assert!(matches!(error, RenewalError::Reload(_)), "{error}");

    let decode = cluster.load("decode-1");
    let (renewal, request) = Renewal::begin(&decode).unwrap();
    let more = super::cluster::request("decode-1", &[Role::Decode, Role::Coordinator]);
    let more = cluster.authority.issue(&more, &cluster.path("more"), NOW).unwrap().node;
    let renewed = cluster.authority.renew(&more, &request, due()).unwrap();
    let error = renewal.finish(&renewed).unwrap_err();
    assert!(
        matches!(error, RenewalError::OtherRoles { found, present } if (found, present) == (more.roles, decode.own().roles)),
        "{error}"
    );
}

#[test]
fn a_folder_that_cannot_be_written_leaves_the_node_as_it_was() {
    let cluster = Cluster::new();
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let before = decode.own();
    // A folder where the next key belongs: root, as which tests may run, is stopped by no permission.
    let obstacle = cluster.path("decode-1/node.key.next");
    fs::create_dir(&obstacle).unwrap();
    let (renewal, request) = Renewal::begin(&decode).unwrap();
    let renewed = cluster.authority.renew(&before, &request, due()).unwrap();
    let error = renewal.finish(&renewed).unwrap_err();
    assert!(matches!(&error, RenewalError::Storage(inner) if inner.path == obstacle), "{error}");
    assert_eq!((decode.own(), cluster.load("decode-1").own()), (before.clone(), before));
    fs::remove_dir(&obstacle).unwrap();
    renew(&cluster.authority, &decode, due());
}

#[test]
fn a_renewal_takes_up_what_was_put_into_the_folder_before_it() {
    let cluster = Cluster::new();
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let out = cluster.path("by-hand");
    let by_hand = cluster.authority.issue(&request("decode-1", &[Role::Decode]), &out, days_later(25)).unwrap().node;
    let (renewal, csr) = Renewal::begin(&decode).unwrap();
    let renewed = cluster.authority.renew(&decode.own(), &csr, due()).unwrap();
    for file in ["node.pem", "node.key"] {
        fs::copy(out.join(file), cluster.path("decode-1").join(file)).unwrap();
    }
    let error = renewal.finish(&renewed).unwrap_err();
    assert!(matches!(error, RenewalError::Reload(_)), "{error}");
    assert_eq!((decode.own(), cluster.load("decode-1").own()), (by_hand.clone(), by_hand));
}

#[test]
fn a_folder_can_be_loaded_at_any_time_during_renewals() {
    let cluster = Cluster::new();
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let (folder, is_done) = (cluster.path("decode-1"), AtomicBool::new(false));
    thread::scope(|scope| {
        let renewals = scope.spawn(|| {
            for _ in 0..20 {
                renew(&cluster.authority, &decode, due());
            }
        });
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                NodeIdentity::load(&folder).unwrap();
            }
        });
        let renewed = renewals.join();
        is_done.store(true, Ordering::Relaxed);
        renewed.unwrap();
    });
}

/// A node that has had a certificate for a request of its: the same request again is refused, but for that only.
struct Asked {
    cluster: Cluster,
    node: PeerIdentity,
    request: Vec<u8>,
}

static ASKED: LazyLock<Asked> = LazyLock::new(|| {
    let cluster = Cluster::new();
    let node = cluster.issue("decode-1", &[Role::Decode]).node;
    let (_, request) = Renewal::begin(&cluster.load("decode-1")).unwrap();
    cluster.authority.renew(&node, &request, NOW).unwrap();
    Asked { cluster, node, request }
});

impl Asked {
    fn ask(&self, request: &[u8]) -> RequestError {
        self.cluster.authority.renew(&self.node, request, NOW).unwrap_err()
    }

    /// The part of the request that is signed; what is around it says nothing, and is read with some leniency.
    fn signed(&self) -> &[u8] {
        X509CertificationRequest::from_der(&self.request).unwrap().1.certification_request_info.raw
    }

    /// Whether a changed request is refused, or its signed part is the one of before.
    fn holds(&self, request: &[u8]) -> bool {
        match self.ask(request) {
            RequestError::Malformed | RequestError::OtherKey | RequestError::BadSignature => true,
            RequestError::UsedKey(_) => request.windows(self.signed().len()).any(|part| part == self.signed()),
            _ => false,
        }
    }
}

#[test]
fn a_long_request_is_not_even_read() {
    let mut request = ASKED.request.clone();
    request.push(0);
    assert!(matches!(ASKED.ask(&request), RequestError::Malformed));
    request.resize(MAX_CERTIFICATE_REQUEST_BYTES + 1, 0);
    assert!(
        matches!(ASKED.ask(&request), RequestError::TooLong { byte_len } if byte_len == MAX_CERTIFICATE_REQUEST_BYTES + 1)
    );
}

#[test]
fn every_changed_bit_of_what_is_signed_is_refused() {
    assert!(matches!(ASKED.ask(&ASKED.request), RequestError::UsedKey(_)));
    for index in 0..ASKED.request.len() * 8 {
        let mut request = ASKED.request.clone();
        request[index / 8] ^= 1 << (index % 8);
        assert!(ASKED.holds(&request), "bit {index}: {}", ASKED.ask(&request));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_no_request(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(matches!(ASKED.ask(&bytes), RequestError::Malformed));
    }

    #[test]
    fn a_request_with_parts_of_it_changed_cut_or_said_twice_gets_nothing(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        is_twice in any::<bool>(),
    ) {
        let mut bytes = ASKED.request.clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
        let part = bytes[from.min(to)..from.max(to)].to_vec();
        if is_twice {
            bytes.splice(from..from, part);
        } else {
            bytes.drain(from.min(to)..from.max(to));
        }
        prop_assert!(ASKED.holds(&bytes), "{}", ASKED.ask(&bytes));
    }
}
