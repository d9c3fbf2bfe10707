//! A node's folder changes while the node runs: what is taken up, by whom it is noticed, and what is refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair};
use relevo_transport::identity::{
    Authority, Complaint, Expected, Issued, LiveIdentity, LoadError, Moment, PROTOCOL, PeerIdentity, Refusal,
    ReloadError, Reloaded, Role,
};
use rustls::{ClientConfig, ServerConfig};

use super::cluster::{Cluster, DAY, NOW, authority_params, days_later, name, request};
use super::meeting::{At, client, meet_again, server};

const NOTHING: Reloaded = Reloaded { certificate: false, revocations: false };
const CERTIFICATE: Reloaded = Reloaded { certificate: true, revocations: false };
const REVOCATIONS: Reloaded = Reloaded { certificate: false, revocations: true };

/// A prefill node that dials a decode node, with configurations that are made once.
struct Pair {
    cluster: Cluster,
    prefill: LiveIdentity,
    decode: LiveIdentity,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Pair {
    fn new() -> Self {
        let cluster = Cluster::new();
        let prefill = cluster.node("prefill-1", &[Role::Prefill]);
        let decode = cluster.node("decode-1", &[Role::Decode]);
        let (client, server) = (Arc::new(client(&prefill, "decode-1")), Arc::new(server(&decode)));
        Self { cluster, prefill, decode, client, server }
    }

    /// Issues a new certificate for a node and puts it, with its key, into the node's folder.
    fn issue_anew(&self, node: &str, role: Role, now: Moment) -> Issued {
        let out = self.cluster.path(&format!("{node}-at-{now}"));
        let issued = self.cluster.authority.issue(&request(node, &[role]), &out, now).unwrap();
        copy(&out, &self.cluster.path(node), &["node.pem", "node.key"]);
        issued
    }

    /// Who the prefill node is to the decode node, and the reverse.
    #[track_caller]
    fn meet(&self) -> (PeerIdentity, PeerIdentity) {
        let (here, there) = meet_again(&self.client, &self.server);
        (there.peer(), here.peer())
    }
}

fn copy(from: &Path, to: &Path, files: &[&str]) {
    for file in files {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn a_new_certificate_is_shown_in_the_next_handshake_on_either_side() {
    let pair = Pair::new();
    let before = (pair.prefill.own(), pair.decode.own());
    assert_eq!(pair.meet(), before);

    let answers = pair.issue_anew("decode-1", Role::Decode, Moment(NOW.0 + 60)).node;
    assert_eq!(pair.meet(), before, "nobody has reloaded");
    assert_eq!(pair.decode.reload().unwrap(), CERTIFICATE);
    assert_eq!(pair.meet(), (before.0.clone(), answers.clone()));

    let dials = pair.issue_anew("prefill-1", Role::Prefill, Moment(NOW.0 + 60)).node;
    assert_eq!(pair.prefill.reload().unwrap(), CERTIFICATE);
    assert_eq!(pair.meet(), (dials.clone(), answers));
    assert_eq!((pair.prefill.own(), pair.prefill.present().own()), (dials.clone(), &dials));
    assert_eq!(pair.prefill.reload().unwrap(), NOTHING);
}

#[test]
fn a_revocation_refuses_the_next_handshake_on_either_side() {
    let pair = Pair::new();
    pair.meet();
    pair.cluster.authority.revoke(&name("prefill-1"), NOW).unwrap();
    pair.cluster.tell("decode-1");
    pair.meet();
    assert_eq!(pair.decode.reload().unwrap(), REVOCATIONS);
    let (here, there) = meet_again(&pair.client, &pair.server);
    assert_eq!(there.refusal(), Refusal::Revoked);
    assert_eq!(here.refusal(), Refusal::ByPeer(Complaint::Revoked));

    let pair = Pair::new();
    pair.cluster.authority.revoke(&name("decode-1"), NOW).unwrap();
    pair.cluster.tell("prefill-1");
    assert_eq!(pair.prefill.reload().unwrap(), REVOCATIONS);
    let (here, there) = meet_again(&pair.client, &pair.server);
    assert_eq!(here.refusal(), Refusal::Revoked);
    assert_eq!(there.refusal(), Refusal::ByPeer(Complaint::Revoked));
}

#[test]
fn a_connection_that_is_open_can_be_held_to_the_present_list_and_to_its_time() {
    let pair = Pair::new();
    let (dialled, _) = pair.meet();
    let (last, over) = (dialled.not_after, Moment(dialled.not_after.0 + 1));
    assert!(
        pair.decode.admits(&dialled, NOW) && pair.decode.admits(&dialled, last) && !pair.decode.admits(&dialled, over)
    );

    pair.cluster.authority.revoke(&name("prefill-1"), NOW).unwrap();
    pair.cluster.tell("decode-1");
    assert!(!pair.decode.is_revoked(&dialled));
    pair.decode.reload().unwrap();
    assert!(pair.decode.is_revoked(&dialled) && !pair.decode.admits(&dialled, NOW));
    assert!(!pair.decode.is_revoked(&pair.decode.own()));

    let anew = pair.issue_anew("prefill-1", Role::Prefill, days_later(1)).node;
    assert!(!pair.decode.is_revoked(&anew) && pair.decode.admits(&anew, NOW));
}

#[test]
fn a_change_of_any_file_is_noticed_once() {
    let pair = Pair::new();
    let folder = pair.cluster.path("decode-1");
    assert!(!pair.decode.has_changed());
    for file in ["ca.pem", "node.pem", "node.key", "revoked.crl.pem", "cluster.secret"] {
        // As an editor or rsync does it, and with the old modification time.
        let (path, aside) = (folder.join(file), folder.join("aside"));
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::copy(&path, &aside).unwrap();
        fs::File::options().write(true).open(&aside).unwrap().set_modified(modified).unwrap();
        fs::rename(&aside, &path).unwrap();
        assert!(pair.decode.has_changed(), "{file}");
        assert_eq!(pair.decode.reload().unwrap(), NOTHING);
        assert!(!pair.decode.has_changed(), "{file}");
    }
}

#[test]
fn a_folder_that_was_refused_is_looked_at_again_when_it_changes() {
    let pair = Pair::new();
    let list = pair.cluster.path("decode-1/revoked.crl.pem");
    let good = fs::read(&list).unwrap();
    fs::write(&list, &good[..good.len() / 2]).unwrap();
    assert!(matches!(pair.decode.reload(), Err(ReloadError::Load(LoadError::NotPem { .. }))));
    assert!(!pair.decode.has_changed());
    pair.meet();
    fs::write(&list, &good).unwrap();
    assert!(pair.decode.has_changed());
    pair.decode.reload().unwrap();

    // What may be over in a moment is tried again without a change.
    fs::remove_file(&list).unwrap();
    for _ in 0..2 {
        assert!(pair.decode.has_changed());
        assert!(matches!(pair.decode.reload(), Err(ReloadError::Load(LoadError::Storage(_)))));
    }
    pair.meet();
}

/// Puts files of another folder into the decode node's, and expects that they are refused and nothing has changed.
#[track_caller]
fn refused(pair: &Pair, from: &Path, files: &[&str]) -> ReloadError {
    let (folder, before) = (pair.cluster.path("decode-1"), pair.meet());
    let good: Vec<Vec<u8>> = files.iter().map(|file| fs::read(folder.join(file)).unwrap()).collect();
    copy(from, &folder, files);
    let error = pair.decode.reload().unwrap_err();
    assert_eq!(pair.meet(), before);
    for (file, good) in files.iter().zip(good) {
        fs::write(folder.join(file), good).unwrap();
    }
    assert_eq!(pair.decode.reload().unwrap(), NOTHING);
    error
}

const ALL: [&str; 5] = ["ca.pem", "node.pem", "node.key", "revoked.crl.pem", "cluster.secret"];

#[test]
fn a_folder_of_another_node_or_cluster_is_refused() {
    let pair = Pair::new();
    let error = refused(&pair, &pair.cluster.path("prefill-1"), &ALL);
    assert!(
        matches!(&error, ReloadError::OtherNode { found, present } if *found == name("prefill-1") && *present == name("decode-1")),
        "{error}"
    );
    let other = Cluster::new();
    other.issue("decode-1", &[Role::Decode]);
    let error = refused(&pair, &other.path("decode-1"), &ALL);
    let (found, present) = (other.authority.cluster(), pair.cluster.authority.cluster());
    assert!(
        matches!(error, ReloadError::OtherCluster { found: f, present: p } if (f, p) == (found, present)),
        "{error}"
    );
    let error = refused(&pair, &other.path("decode-1"), &["cluster.secret"]);
    assert!(matches!(error, ReloadError::OtherSecret), "{error}");
    let error = refused(&pair, &pair.cluster.path("prefill-1"), &["node.key"]);
    assert!(matches!(error, ReloadError::Load(LoadError::Tls { .. })), "{error}");
}

#[test]
fn an_authority_with_another_key_is_refused_though_it_gives_itself_our_name() {
    let pair = Pair::new();
    let (cluster, ca) = (&pair.cluster, pair.cluster.path("usurper"));
    let (params, key) = (authority_params(cluster), KeyPair::generate().unwrap());
    fs::create_dir(&ca).unwrap();
    copy(&cluster.path("ca"), &ca, &["cluster.secret", "ca.key"]);
    fs::write(ca.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(ca.join("ca.key"), key.serialize_pem()).unwrap();
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2036, 1, 1),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&Issuer::new(params, key)).unwrap().pem().unwrap();
    fs::write(ca.join("revoked.crl.pem"), list).unwrap();

    let out = cluster.path("usurped");
    let usurper = Authority::load(&ca).unwrap();
    usurper.issue(&request("decode-1", &[Role::Decode]), &out, NOW).unwrap();
    let error = refused(&pair, &out, &ALL);
    assert!(matches!(error, ReloadError::OtherAuthority), "{error}");
}

#[test]
fn a_list_from_before_is_refused_and_so_is_another_of_the_same_number() {
    let pair = Pair::new();
    let (cluster, ca) = (&pair.cluster, pair.cluster.path("ca"));
    cluster.issue("stolen", &[Role::Decode]);
    let (old, backup) = (cluster.path("old"), cluster.path("backup"));
    for folder in [&old, &backup] {
        fs::create_dir(folder).unwrap();
        copy(&ca, folder, &["revoked.crl.pem"]);
    }
    cluster.authority.revoke(&name("stolen"), NOW).unwrap();
    cluster.tell("decode-1");
    assert_eq!(pair.decode.reload().unwrap(), REVOCATIONS);
    let error = refused(&pair, &old, &["revoked.crl.pem"]);
    assert!(matches!(error, ReloadError::OlderRevocations { found: 1, present: 2 }), "{error}");

    copy(&backup, &ca, &["revoked.crl.pem"]);
    cluster.authority.revoke(&name("prefill-1"), NOW).unwrap();
    let error = refused(&pair, &ca, &["revoked.crl.pem"]);
    assert!(matches!(error, ReloadError::ForkedRevocations(2)), "{error}");
}

#[test]
fn a_certificate_that_ends_earlier_is_refused() {
    let pair = Pair::new();
    let (cluster, earlier) = (&pair.cluster, pair.cluster.path("earlier"));
    cluster.authority.issue(&request("decode-1", &[Role::Decode]), &earlier, Moment(NOW.0 - DAY)).unwrap();
    let error = refused(&pair, &earlier, &["node.pem", "node.key"]);
    let (found, present) = (Moment(days_later(30).0 - DAY), days_later(30));
    assert!(
        matches!(error, ReloadError::OlderCertificate { found: f, present: p } if (f, p) == (found, present)),
        "{error}"
    );
}

#[test]
fn several_protocols_meet_at_the_first_that_both_speak() {
    let pair = Pair::new();
    let clock = || Arc::new(At(NOW));
    let expected = || Expected::one_of(Role::ALL);
    let served: [&[u8]; 2] = [b"relevo-kv/1", PROTOCOL];
    let server = Arc::new(pair.decode.server_config(expected(), &served, clock()).unwrap());
    for (dialled, met) in
        [(&[PROTOCOL][..], Some(PROTOCOL)), (&[b"relevo-kv/1", PROTOCOL], Some(b"relevo-kv/1")), (&[b"relevo/2"], None)]
    {
        let client = Arc::new(pair.prefill.client_config(expected(), dialled, clock()).unwrap());
        let (here, there) = meet_again(&client, &server);
        assert_eq!((here.connection.alpn_protocol(), there.connection.alpn_protocol()), (met, met));
        assert_eq!(here.connection.is_handshaking(), met.is_none());
    }
}

#[test]
fn handshakes_go_on_while_certificates_and_lists_change() {
    let pair = Pair::new();
    let (is_done, num_changes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let changes = scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                change_everything(&pair, Moment(NOW.0 + num_changes.fetch_add(1, Ordering::Relaxed)));
            }
        });
        let mut num_handshakes = 0;
        while (num_handshakes < 200 || num_changes.load(Ordering::Relaxed) < 5) && !changes.is_finished() {
            let (dialled, answered) = pair.meet();
            assert_eq!((dialled.name, answered.name), (name("prefill-1"), name("decode-1")));
            num_handshakes += 1;
        }
        is_done.store(true, Ordering::Relaxed);
        changes.join().unwrap();
    });
}

/// Gives both nodes a new certificate and a longer list, and lets them take these up.
fn change_everything(pair: &Pair, now: Moment) {
    let cluster = &pair.cluster;
    cluster.authority.issue(&request("other", &[Role::Expert]), &cluster.path(&format!("other-{now}")), now).unwrap();
    cluster.authority.revoke(&name("other"), now).unwrap();
    let nodes = [("prefill-1", Role::Prefill, &pair.prefill), ("decode-1", Role::Decode, &pair.decode)];
    for (node, role, live) in nodes {
        pair.issue_anew(node, role, now);
        cluster.tell(node);
        assert_eq!(live.reload().unwrap(), Reloaded { certificate: true, revocations: true });
    }
}
