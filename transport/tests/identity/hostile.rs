//! Bytes of any kind where a certificate or its name belongs: they are read or refused, and nothing else happens.

use std::sync::LazyLock;

use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, SanType};
use relevo_transport::identity::{Host, Name, PeerIdentity, Role, SubjectError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::cluster::Cluster;

static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());

static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let cluster = Cluster::new();
    cluster.issue("decode-1", &[Role::Decode]);
    CertificateDer::from_pem_slice(&std::fs::read(cluster.path("decode-1/node.pem")).unwrap()).unwrap().to_vec()
});

fn read(der: &[u8]) -> Result<PeerIdentity, SubjectError> {
    PeerIdentity::of_chain(&[CertificateDer::from(der)])
}

/// A certificate with these URIs among its names.
fn with_uris(uris: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.self_signed(&*KEY).unwrap().der().to_vec()
}

const ID: &str = "00112233445566778899aabbccddeeff";

#[test]
fn a_name_is_written_in_one_way() {
    let good = format!("relevo://{ID}/node/decode-1?roles=decode,prefill");
    let peer = read(&with_uris(&[&good])).unwrap();
    assert_eq!((peer.name.as_str(), peer.roles.to_string()), ("decode-1", "prefill,decode".to_owned()));
    assert_eq!(peer.cluster.to_string(), ID);
    assert_eq!(
        read(&with_uris(&["https://example.org", &good])).unwrap(),
        PeerIdentity { serial: peer.serial.clone(), ..read(&with_uris(&[&good])).unwrap() }
    );

    let cases = [
        format!("relevo://{}/node/decode-1?roles=decode", ID.to_uppercase()),
        format!("relevo://+{}/node/decode-1?roles=decode", &ID[1..]),
        format!("relevo://{}/node/decode-1?roles=decode", &ID[1..]),
        format!("relevo://{ID}/node/decode-1"),
        format!("relevo://{ID}/node/decode-1?roles="),
        format!("relevo://{ID}/node/decode-1?roles=decode,"),
        format!("relevo://{ID}/node/decode-1?roles=decode&roles=operator"),
        format!("relevo://{ID}/node/decode%2d1?roles=decode"),
        format!("relevo://{ID}/node/a/b?roles=decode"),
        format!("relevo://{ID}/node/?roles=decode"),
        format!("relevo://{ID}//node/a?roles=decode"),
        format!("relevo://{ID}/gateway/a?roles=decode"),
        "relevo://".to_owned(),
    ];
    for uri in cases {
        assert_eq!(read(&with_uris(&[&uri])), Err(SubjectError::Malformed), "{uri}");
    }
    let authority = format!("relevo://{ID}/authority/test");
    assert_eq!(read(&with_uris(&[&authority])), Err(SubjectError::OtherKind));
    assert_eq!(read(&with_uris(&[&good, &good])), Err(SubjectError::NoName));
    assert_eq!(read(&with_uris(&[])), Err(SubjectError::NoName));
    assert_eq!(PeerIdentity::of_chain(&[]), Err(SubjectError::Missing));
}

#[test]
fn a_role_of_a_newer_version_grants_nothing_and_takes_nothing() {
    let peer = read(&with_uris(&[&format!("relevo://{ID}/node/a?roles=vision,decode")])).unwrap();
    assert_eq!(peer.roles, Role::Decode.into());
    let peer = read(&with_uris(&[&format!("relevo://{ID}/node/a?roles=vision")])).unwrap();
    assert!(peer.roles.is_empty());
}

#[test]
fn bytes_after_a_certificate_are_refused() {
    let mut bytes = GOOD.clone();
    assert_eq!(read(&bytes).unwrap().name.as_str(), "decode-1");
    bytes.push(0);
    assert_eq!(read(&bytes), Err(SubjectError::NotX509));
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(&bytes);
    }

    #[test]
    fn a_changed_certificate_is_read_or_refused_without_a_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        len in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = GOOD.clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if is_cut {
            bytes.truncate(len.index(bytes.len()));
        }
        let _ = read(&bytes);
    }

    #[test]
    fn any_name_in_a_certificate_is_read_or_refused(rest in "[ -~]{0,80}", begins_well in any::<bool>()) {
        let uri = if begins_well { format!("relevo://{ID}/node/{rest}") } else { format!("relevo://{rest}") };
        if let Ok(peer) = read(&with_uris(&[&uri])) {
            let named = format!("/node/{}?roles=", peer.name);
            prop_assert!(uri.contains(&named));
        }
    }

    #[test]
    fn any_text_is_a_name_or_a_host_or_refused(text in "\\PC{0,80}") {
        if let Ok(name) = text.parse::<Name>() {
            prop_assert_eq!(name.as_str(), &text);
        }
        if let Ok(host) = text.parse::<Host>() {
            prop_assert_eq!(host.to_string().parse::<Host>().unwrap(), host);
        }
    }
}
