//! The authority's folder: what it keeps, for whose eyes, and what it refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use relevo_transport::identity::{
    AUTHORITY_LIFETIME, Authority, AuthorityError, BadHost, Host, Moment, Name, NodeRequest, Role, Roles, State,
};
use x509_parser::prelude::{FromDer, Pem};
use x509_parser::revocation_list::CertificateRevocationList;

use super::cluster::{Cluster, DAY, NOW, days_later, name, request};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

/// The number and the length of the cluster's revocation list.
fn revocations(cluster: &Cluster) -> (u64, usize) {
    let text = fs::read(cluster.authority.revocations_path()).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&text).unwrap();
    let (_, list) = CertificateRevocationList::from_der(&pem.contents).unwrap();
    (list.crl_number().unwrap().try_into().unwrap(), list.iter_revoked_certificates().count())
}

#[test]
fn keys_and_folders_are_their_owners_only_and_nothing_is_left_beside_them() {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    let (ca, node) = (cluster.path("ca"), cluster.path("decode-1"));
    assert_eq!([mode(&ca), mode(&ca.join("issued"))], [0o700, 0o700]);
    assert_eq!([mode(&ca.join("ca.key")), mode(&ca.join("cluster.secret"))], [0o600, 0o600]);
    assert_eq!(
        [&node, &node.join("node.key"), &node.join("cluster.secret")].map(|path| mode(path)),
        [0o700, 0o600, 0o600]
    );
    assert_eq!(files(&ca), [".lock", "ca.key", "ca.pem", "cluster.secret", "issued", "revoked.crl.pem"]);
    assert_eq!(files(&node), ["ca.pem", "cluster.secret", "node.key", "node.pem", "revoked.crl.pem"]);
    assert_eq!(files(ca.parent().unwrap()), ["ca", "decode-1"]);
    let key = fs::read_to_string(node.join("node.key")).unwrap();
    let leaked = files(&ca.join("issued"))
        .iter()
        .any(|file| fs::read_to_string(ca.join("issued").join(file)).unwrap().contains(&key));
    assert!(!leaked);
}

#[test]
fn an_authority_is_the_same_after_it_is_loaded() {
    let cluster = Cluster::new();
    let loaded = Authority::load(&cluster.path("ca")).unwrap();
    assert_eq!((loaded.cluster(), loaded.name().as_str()), (cluster.authority.cluster(), "test"));
    assert_eq!(loaded.not_after().0, NOW.0 + AUTHORITY_LIFETIME.as_secs());
    loaded.issue(&request("decode-1", &[Role::Decode]), &cluster.path("decode-1"), NOW).unwrap();
    assert_eq!(cluster.load("decode-1").own().cluster, cluster.authority.cluster());
    let other = Cluster::new();
    assert_ne!(cluster.authority.cluster(), other.authority.cluster());
}

#[test]
fn nothing_is_overwritten() {
    let cluster = Cluster::new();
    let before = fs::read(cluster.path("ca/ca.key")).unwrap();
    let error = Authority::create(&cluster.path("ca"), &name("test"), NOW).unwrap_err();
    assert!(matches!(&error, AuthorityError::Exists { path } if *path == cluster.path("ca")), "{error}");
    assert_eq!(fs::read(cluster.path("ca/ca.key")).unwrap(), before);

    fs::create_dir(cluster.path("taken")).unwrap();
    fs::write(cluster.path("taken/letter"), "dear").unwrap();
    fs::write(cluster.path("file"), "dear").unwrap();
    for taken in ["taken", "file"] {
        let out = cluster.path(taken);
        let error = cluster.authority.issue(&request("decode-1", &[Role::Decode]), &out, NOW).unwrap_err();
        assert!(matches!(&error, AuthorityError::Exists { path } if *path == out), "{error}");
    }
    assert_eq!(files(&cluster.path("taken")), ["letter"]);
    assert_eq!(cluster.authority.list(NOW).unwrap(), []);
}

#[test]
fn the_list_tells_what_the_certificates_say_and_whether_they_are_good() {
    let cluster = Cluster::new();
    let decode = cluster.issue("decode-1", &[Role::Decode, Role::Prefill]);
    let again = cluster.authority.issue(&request("decode-1", &[Role::Decode]), &cluster.path("again"), days_later(9));
    let again = again.unwrap();
    assert_eq!(again.still_valid, std::slice::from_ref(&decode.node.serial));
    cluster.issue("a-gateway", &[Role::Gateway]);
    cluster.authority.revoke(&name("a-gateway"), days_later(1)).unwrap();

    let records = cluster.authority.list(days_later(31)).unwrap();
    let told: Vec<_> =
        records.iter().map(|record| (record.node.name.as_str(), record.node.roles.to_string(), record.state)).collect();
    assert_eq!(
        told,
        [
            ("a-gateway", "gateway".to_owned(), State::Revoked { since: days_later(1) }),
            ("decode-1", "prefill,decode".to_owned(), State::Expired),
            ("decode-1", "decode".to_owned(), State::Valid),
        ]
    );
    let hosts: Vec<String> = records[0].hosts.iter().map(Host::to_string).collect();
    assert_eq!(hosts, ["127.0.0.1", "node.example.org"]);
    assert_eq!(records[2].node, again.node);
}

#[test]
fn a_revocation_takes_all_good_certificates_of_a_name_and_counts_the_list_up() {
    let cluster = Cluster::new();
    assert_eq!(revocations(&cluster), (1, 0));
    let first = cluster.issue("decode-1", &[Role::Decode]).node.serial;
    let request = request("decode-1", &[Role::Decode]);
    let second = cluster.authority.issue(&request, &cluster.path("second"), days_later(1)).unwrap().node.serial;
    assert_eq!(cluster.authority.revoke(&name("decode-1"), NOW).unwrap(), [first, second]);
    assert_eq!(revocations(&cluster), (2, 2));

    let error = cluster.authority.revoke(&name("decode-1"), NOW).unwrap_err();
    assert!(matches!(error, AuthorityError::NothingToRevoke(_)), "{error}");
    let error = cluster.authority.revoke(&name("decode-2"), NOW).unwrap_err();
    assert!(matches!(error, AuthorityError::NotIssued(_)), "{error}");

    cluster.authority.issue(&request, &cluster.path("third"), days_later(2)).unwrap();
    assert_eq!(cluster.authority.revoke(&name("decode-1"), days_later(2)).unwrap().len(), 1);
    assert_eq!(revocations(&cluster), (3, 3));
}

#[test]
fn a_folder_without_an_authority_or_with_a_damaged_one_says_so() {
    let cluster = Cluster::new();
    let ca = cluster.path("ca");
    assert!(matches!(Authority::load(&cluster.path("gone")), Err(AuthorityError::Missing { .. })));
    let other = Cluster::new();
    let cases: [(&str, Vec<u8>); 6] = [
        ("cluster.secret", b"nothing".to_vec()),
        ("ca.pem", b"nothing".to_vec()),
        ("ca.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec()),
        ("ca.key", b"nothing".to_vec()),
        ("ca.key", fs::read(other.path("ca/ca.key")).unwrap()),
        ("ca.pem", fs::read(other.path("ca/ca.pem")).unwrap()),
    ];
    for (file, bytes) in cases {
        let good = fs::read(ca.join(file)).unwrap();
        fs::write(ca.join(file), bytes).unwrap();
        let error = Authority::load(&ca).unwrap_err();
        assert!(matches!(&error, AuthorityError::Damaged { .. }), "{error}");
        fs::write(ca.join(file), good).unwrap();
    }
    Authority::load(&ca).unwrap();

    fs::write(ca.join("issued.pem"), "beside the folder").unwrap();
    cluster.issue("decode-1", &[Role::Decode]);
    fs::write(ca.join("issued/odd.pem"), "nothing").unwrap();
    let error = cluster.authority.list(NOW).unwrap_err();
    assert!(matches!(&error, AuthorityError::Record { path, .. } if path.ends_with("odd.pem")), "{error}");
    fs::remove_file(ca.join("issued/odd.pem")).unwrap();
    fs::write(ca.join("revoked.crl.pem"), "nothing").unwrap();
    assert!(matches!(cluster.authority.list(NOW), Err(AuthorityError::Damaged { .. })));
}

#[test]
fn an_authority_whose_secrets_others_can_read_is_refused() {
    let cluster = Cluster::new();
    for file in ["ca.key", "cluster.secret"] {
        let path = cluster.path("ca").join(file);
        for (mode, is_refused) in [(0o640, false), (0o604, true), (0o644, true), (0o600, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = Authority::load(&cluster.path("ca"));
            let is_open = matches!(&loaded, Err(AuthorityError::Open { path: named }) if *named == path);
            assert_eq!(is_open, is_refused, "{mode:o}: {loaded:?}");
        }
    }
}

#[test]
fn an_authority_from_before_clusters_had_a_secret_says_how_to_mend_it() {
    let cluster = Cluster::new();
    let path = cluster.path("ca/cluster.secret");
    fs::remove_file(&path).unwrap();
    let error = Authority::load(&cluster.path("ca")).unwrap_err();
    assert!(matches!(&error, AuthorityError::NoSecret { path: named } if *named == path), "{error}");
    let shown = path.display();
    let expected =
        format!("{shown} is missing: `(umask 077; openssl rand -hex 32 > {shown})` makes it; each node needs");
    assert!(error.to_string().starts_with(&expected), "{error}");
    fs::write(&path, "00112233445566778899aabbccddeeff".repeat(2)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    Authority::load(&cluster.path("ca")).unwrap();
}

#[test]
fn one_command_at_a_time_changes_an_authority() {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    let lock = fs::File::open(cluster.path("ca/.lock")).unwrap();
    lock.lock().unwrap();
    let busy = cluster.authority.revoke(&name("decode-1"), NOW).unwrap_err();
    assert!(matches!(busy, AuthorityError::Busy { .. }), "{busy}");
    lock.unlock().unwrap();
    cluster.authority.revoke(&name("decode-1"), NOW).unwrap();
}

#[test]
fn no_certificate_outlives_its_authority() {
    let cluster = Cluster::new();
    let end = cluster.authority.not_after();
    let late = Moment(end.0 - DAY);
    let request = request("decode-1", &[Role::Decode]);
    let issued = cluster.authority.issue(&request, &cluster.path("late"), late).unwrap();
    assert_eq!(issued.node.not_after, end);
    let error = cluster.authority.issue(&request, &cluster.path("later"), Moment(end.0 + 1)).unwrap_err();
    assert!(matches!(error, AuthorityError::Expired { .. }), "{error}");
}

#[test]
fn a_node_without_a_role_gets_no_certificate() {
    let cluster = Cluster::new();
    let request = NodeRequest { name: name("idle"), roles: Roles::default(), hosts: Vec::new() };
    let error = cluster.authority.issue(&request, &cluster.path("idle"), NOW).unwrap_err();
    assert!(matches!(error, AuthorityError::NoRole(_)), "{error}");
}

#[test]
fn certificates_say_what_they_are_for() {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    let pem = |path: &str| Pem::iter_from_buffer(&fs::read(cluster.path(path)).unwrap()).next().unwrap().unwrap();
    let (authority, node) = (pem("ca/ca.pem"), pem("decode-1/node.pem"));
    let (authority, node) = (authority.parse_x509().unwrap(), node.parse_x509().unwrap());
    assert_eq!(node.issuer(), authority.subject());
    assert!(authority.is_ca() && !node.is_ca());
    let usage = node.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    let key = authority.key_usage().unwrap().unwrap().value;
    assert!(key.key_cert_sign() && key.crl_sign() && !key.digital_signature());
}

#[test]
fn names_and_hosts_are_those_that_need_no_escaping() {
    for good in ["a", "decode-1", "0", &"x".repeat(63)] {
        assert_eq!(good.parse::<Name>().unwrap().to_string(), good);
    }
    for bad in ["", "-a", "a-", "Decode", "a.b", "a_b", "a/b", "ä", "a b", &"x".repeat(64)] {
        assert!(bad.parse::<Name>().is_err(), "{bad}");
    }
    for (given, kept) in [("10.0.0.7", "10.0.0.7"), ("fe80::1", "fe80::1"), ("GPU-1.example.org", "gpu-1.example.org")]
    {
        assert_eq!(given.parse::<Host>().unwrap().to_string(), kept);
    }
    for bad in ["", "10.0.0.300", "10.0.0.7:80", "a b", "*.example.org", "host.", "-x.org"] {
        assert!(matches!(bad.parse::<Host>(), Err(BadHost::Malformed(_))), "{bad}");
    }
    assert!(matches!("x.relevo.internal".parse::<Host>(), Err(BadHost::Reserved(_))));
}
