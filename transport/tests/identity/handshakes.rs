//! Nodes of one authority: who meets, and who is refused, on both sides.

use std::sync::Arc;

use relevo_transport::identity::{Complaint, Expected, Moment, PROTOCOL, Refusal, Role, Roles, SubjectError};
use rustls::{CertificateError, ProtocolVersion};

use super::cluster::{Cluster, NOW, days_later, name};
use super::meeting::{client, client_for, meet, meet_again, server, server_for};

#[test]
fn nodes_of_a_cluster_meet_and_see_who_the_other_is() {
    let cluster = Cluster::new();
    let prefill = cluster.node("prefill-1", &[Role::Prefill]);
    let decode = cluster.node("decode-1", &[Role::Decode, Role::Expert]);
    let (here, there) = meet(client(&prefill, "decode-1"), server(&decode));
    assert_eq!(there.peer(), prefill.own());
    let peer = here.peer();
    assert_eq!(peer, decode.own());
    assert_eq!((peer.name.as_str(), peer.roles.to_string().as_str()), ("decode-1", "decode,expert"));
    assert_eq!((peer.cluster, peer.not_after), (cluster.authority.cluster(), days_later(30)));
    for side in [&here, &there] {
        assert_eq!(side.connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(side.connection.alpn_protocol(), Some(PROTOCOL));
    }
}

#[test]
fn a_revoked_caller_is_refused_and_told() {
    let cluster = Cluster::new();
    let stolen = cluster.node("stolen", &[Role::Prefill]);
    cluster.node("decode-1", &[Role::Decode]);
    let decode = cluster.revoke("stolen", "decode-1");
    let (here, there) = meet(client(&stolen, "decode-1"), server(&decode));
    assert_eq!(there.refusal(), Refusal::Revoked);
    assert_eq!(here.refusal(), Refusal::ByPeer(Complaint::Revoked));
}

#[test]
fn a_revoked_answerer_is_refused_and_told() {
    let cluster = Cluster::new();
    let stolen = cluster.node("stolen", &[Role::Decode]);
    cluster.node("prefill-1", &[Role::Prefill]);
    let prefill = cluster.revoke("stolen", "prefill-1");
    let (here, there) = meet(client(&prefill, "stolen"), server(&stolen));
    assert_eq!(here.refusal(), Refusal::Revoked);
    assert_eq!(there.refusal(), Refusal::ByPeer(Complaint::Revoked));
}

#[test]
fn a_revocation_touches_nobody_else() {
    let cluster = Cluster::new();
    let prefill = cluster.node("prefill-1", &[Role::Prefill]);
    cluster.node("decode-1", &[Role::Decode]);
    cluster.issue("stolen", &[Role::Decode]);
    let decode = cluster.revoke("stolen", "decode-1");
    let (here, there) = meet(client(&prefill, "decode-1"), server(&decode));
    assert_eq!((here.peer(), there.peer()), (decode.own(), prefill.own()));
}

#[test]
fn a_certificate_is_good_to_its_last_second_and_no_longer() {
    let cluster = Cluster::new();
    let prefill = cluster.node("prefill-1", &[Role::Prefill]);
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let expected = || Expected::one_of([Role::Prefill, Role::Decode]);
    let meet_at = |here, there| meet(client_for(&prefill, expected(), here), server_for(&decode, expected(), there));
    let (last, over) = (days_later(30), Moment(days_later(30).0 + 1));
    assert_eq!(meet_at(last, last).1.peer().name, name("prefill-1"));
    let expired = Refusal::Expired { not_after: Some(last) };

    let (here, there) = meet_at(over, last);
    assert_eq!((here.refusal(), there.refusal()), (expired.clone(), Refusal::ByPeer(Complaint::Expired)));
    let (here, there) = meet_at(last, over);
    assert_eq!((here.refusal(), there.refusal()), (Refusal::ByPeer(Complaint::Expired), expired));
}

#[test]
fn a_certificate_of_the_future_is_refused_but_for_clocks_a_little_behind() {
    let cluster = Cluster::new();
    let prefill = cluster.node("prefill-1", &[Role::Prefill]);
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let begins = Moment(NOW.0 - 300);
    let meet_at = |now| meet(client_for(&prefill, Expected::node(name("decode-1")), now), server(&decode));
    assert_eq!(meet_at(begins).1.peer().name, name("prefill-1"));
    let (here, _) = meet_at(Moment(begins.0 - 1));
    assert_eq!(here.refusal(), Refusal::NotYetValid { not_before: Some(begins) });
}

#[test]
fn who_answers_under_another_name_is_refused() {
    let cluster = Cluster::new();
    let prefill = cluster.node("prefill-1", &[Role::Prefill]);
    let decode = cluster.node("decode-2", &[Role::Decode]);
    let (here, there) = meet(client(&prefill, "decode-1"), server(&decode));
    assert_eq!(here.refusal(), Refusal::WrongName { found: name("decode-2"), expected: name("decode-1") });
    assert_eq!(there.refusal(), Refusal::ByPeer(Complaint::Unexpected));
}

#[test]
fn who_has_another_role_is_refused_on_either_side() {
    let cluster = Cluster::new();
    let prefill = cluster.node("prefill-1", &[Role::Prefill]);
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let wrong = |found, expected| Refusal::WrongRole {
        name: name(found),
        found: Roles::from(if found == "decode-1" { Role::Decode } else { Role::Prefill }),
        expected,
    };

    let coordinator = Roles::from(Role::Coordinator);
    let (here, there) = meet(client_for(&prefill, Expected::one_of([Role::Coordinator]), NOW), server(&decode));
    assert_eq!(here.refusal(), wrong("decode-1", coordinator));
    assert_eq!(there.refusal(), Refusal::ByPeer(Complaint::Unexpected));

    let operators = server_for(&decode, Expected::one_of([Role::Operator]), NOW);
    let (here, there) = meet(client(&prefill, "decode-1"), operators);
    assert_eq!(there.refusal(), wrong("prefill-1", Role::Operator.into()));
    assert_eq!(here.refusal(), Refusal::ByPeer(Complaint::Unexpected));
}

#[test]
fn a_node_of_another_cluster_is_refused_as_such() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let prefill = cluster.node("prefill-1", &[Role::Prefill]);
    let decode = other.node("decode-1", &[Role::Decode]);
    let (here, there) = meet(client(&prefill, "decode-1"), server(&decode));
    let (found, expected) = (other.authority.cluster(), cluster.authority.cluster());
    assert_eq!(here.refusal(), Refusal::WrongCluster { found, expected });
    assert_eq!(there.refusal(), Refusal::ByPeer(Complaint::Unexpected));
}

#[test]
fn no_connection_is_resumed_past_the_certificates() {
    let cluster = Cluster::new();
    let prefill = cluster.node("prefill-1", &[Role::Prefill]);
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let (client, server) = (Arc::new(client(&prefill, "decode-1")), Arc::new(server(&decode)));
    for _ in 0..3 {
        let (here, there) = meet_again(&client, &server);
        assert_eq!(there.peer().name, name("prefill-1"));
        assert!(!here.is_resumed() && !there.is_resumed());
    }
}

#[test]
fn a_renewed_certificate_is_as_good_as_the_one_before() {
    let cluster = Cluster::new();
    let decode = cluster.node("decode-1", &[Role::Decode]);
    let before = cluster.node("prefill-1", &[Role::Prefill]);
    let renewed = cluster.path("prefill-1-renewed");
    let request = super::cluster::request("prefill-1", &[Role::Prefill]);
    let issued = cluster.authority.issue(&request, &renewed, days_later(20)).unwrap();
    assert_eq!(issued.still_valid, std::slice::from_ref(&before.own().serial));
    let after = relevo_transport::identity::LiveIdentity::load(&renewed).unwrap();
    for node in [before, after] {
        let dialling = client_for(&node, Expected::node(name("decode-1")), days_later(20));
        let (_, there) = meet(dialling, server_for(&decode, Expected::one_of([Role::Prefill]), days_later(20)));
        assert_eq!(there.peer(), node.own());
    }
}

#[test]
fn refusals_are_counted_by_words_that_stay() {
    let name = || name("a");
    let cluster = Cluster::new().authority.cluster();
    let words = [
        (Refusal::NoCertificate, "no_certificate"),
        (Refusal::Unreadable(SubjectError::NoName), "unreadable"),
        (Refusal::WrongCluster { found: cluster, expected: cluster }, "wrong_cluster"),
        (Refusal::UnknownAuthority, "unknown_authority"),
        (Refusal::Expired { not_after: None }, "expired"),
        (Refusal::NotYetValid { not_before: None }, "not_yet_valid"),
        (Refusal::Revoked, "revoked"),
        (Refusal::WrongName { found: name(), expected: name() }, "wrong_name"),
        (Refusal::WrongRole { name: name(), found: Roles::default(), expected: Roles::default() }, "wrong_role"),
        (Refusal::Invalid(CertificateError::BadSignature), "invalid"),
        (Refusal::ByPeer(Complaint::Revoked), "by_peer"),
    ];
    for (refusal, word) in words {
        assert_eq!(refusal.label(), word);
    }
}
