//! Folders that nodes get: what is refused when one is loaded, before any peer sees it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use relevo_transport::identity::{Authority, LoadError, NodeIdentity, Refusal, Role};

use super::cluster::{Cluster, NOW, name, request};

#[test]
fn a_key_that_everybody_can_read_is_refused() {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    let key = cluster.path("decode-1/node.key");
    for (mode, is_refused) in [(0o600, false), (0o640, false), (0o400, false), (0o604, true), (0o644, true)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let loaded = NodeIdentity::load(&cluster.path("decode-1"));
        assert_eq!(matches!(loaded, Err(LoadError::OpenKey { .. })), is_refused, "{mode:o}: {loaded:?}");
    }
}

#[test]
fn files_of_several_folders_do_not_go_together() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    cluster.issue("decode-1", &[Role::Decode]);
    cluster.issue("decode-2", &[Role::Decode]);
    other.issue("decode-1", &[Role::Decode]);
    let folder = cluster.path("decode-1");
    let refused_with = |file: &str, from: &std::path::Path| {
        let good = fs::read(folder.join(file)).unwrap();
        fs::write(folder.join(file), fs::read(from.join(file)).unwrap()).unwrap();
        let error = NodeIdentity::load(&folder).unwrap_err();
        fs::write(folder.join(file), good).unwrap();
        error
    };
    let error = refused_with("ca.pem", &other.path("decode-1"));
    assert!(matches!(&error, LoadError::Mismatch { reason: Refusal::WrongCluster { .. }, .. }), "{error}");
    let error = refused_with("revoked.crl.pem", &other.path("decode-1"));
    assert!(matches!(&error, LoadError::Mismatch { .. }), "{error}");
    let error = refused_with("node.key", &cluster.path("decode-2"));
    assert!(matches!(&error, LoadError::Tls { .. }), "{error}");
    NodeIdentity::load(&folder).unwrap();
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    let folder = cluster.path("decode-1");
    for file in ["ca.pem", "node.pem", "node.key", "revoked.crl.pem"] {
        fs::rename(folder.join(file), folder.join("aside")).unwrap();
        fs::write(folder.join(file), "nothing").unwrap();
        let error = NodeIdentity::load(&folder).unwrap_err();
        assert!(matches!(&error, LoadError::NotPem { path, .. } if path.ends_with(file)), "{error}");
        fs::remove_file(folder.join(file)).unwrap();
        let error = NodeIdentity::load(&folder).unwrap_err();
        assert!(matches!(&error, LoadError::Storage(inner) if inner.path.ends_with(file)), "{error}");
        fs::rename(folder.join("aside"), folder.join(file)).unwrap();
    }
}

#[test]
fn all_nodes_of_a_cluster_have_one_secret_and_other_clusters_have_others() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let secret = |cluster: &Cluster, node| cluster.node(node, &[Role::Decode]).present().cluster_secret();
    let of_one = secret(&cluster, "decode-1");
    assert_eq!(secret(&cluster, "decode-2"), of_one);
    assert_ne!(secret(&other, "decode-1"), of_one);
    let loaded = Authority::load(&cluster.path("ca")).unwrap();
    loaded.issue(&request("decode-3", &[Role::Decode]), &cluster.path("decode-3"), NOW).unwrap();
    assert_eq!(cluster.load("decode-3").present().cluster_secret(), of_one);
}

#[test]
fn a_folder_without_a_secret_or_with_none_that_is_one_says_how_to_mend_it() {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    let folder = cluster.path("decode-1");
    let path = folder.join("cluster.secret");
    let good = fs::read_to_string(&path).unwrap();
    let bad =
        ["", "nothing", &good[1..], &format!("{}g", &good[1..64]), &format!("+{}", &good[1..64]), &good.repeat(2)];
    for text in bad {
        fs::write(&path, text).unwrap();
        let error = NodeIdentity::load(&folder).unwrap_err();
        assert!(matches!(&error, LoadError::BadSecret { path: named } if *named == path), "{error}");
    }
    fs::write(&path, good.trim_end()).unwrap();
    NodeIdentity::load(&folder).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = NodeIdentity::load(&folder).unwrap_err();
    assert!(matches!(&error, LoadError::OpenSecret { path: named } if *named == path), "{error}");
    fs::remove_file(&path).unwrap();
    let error = NodeIdentity::load(&folder).unwrap_err();
    assert!(matches!(&error, LoadError::NoSecret { path: named } if *named == path), "{error}");
    assert!(error.to_string().contains("copy it from the authority's folder"), "{error}");
}

#[test]
fn a_revoked_node_learns_it_from_its_own_list() {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    cluster.authority.revoke(&name("decode-1"), NOW).unwrap();
    fs::copy(cluster.authority.revocations_path(), cluster.path("decode-1/revoked.crl.pem")).unwrap();
    let error = NodeIdentity::load(&cluster.path("decode-1")).unwrap_err();
    assert!(matches!(&error, LoadError::Mismatch { reason: Refusal::Revoked, .. }), "{error}");
}

#[test]
fn a_key_is_never_shown() {
    let cluster = Cluster::new();
    let node = cluster.node("decode-1", &[Role::Decode]);
    let shown = format!("{node:?}");
    assert!(shown.contains("decode-1"), "{shown}");
    let secret = node.present().cluster_secret();
    let (hex, list) = (fs::read_to_string(cluster.path("ca/cluster.secret")).unwrap(), format!("{secret:?}"));
    for secret in [hex.trim_end(), &list[1..20], "PRIVATE", "key"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    let shown = format!("{:?}", cluster.authority);
    assert!(!shown.contains(hex.trim_end()) && !shown.contains("PRIVATE"), "{shown}");
}
