//! Frames of a session that are its peer's own, and those that are not.

use tokio::io::AsyncReadExt;

use super::*;

const MAX_BYTES: u64 = 1 << 20;

fn named(name: &str) -> Option<Named> {
    Some(Named { name: name.to_owned() })
}

fn auth(name: Option<Named>, challenge: Option<Named>) -> Vec<u8> {
    framed(&Packet { auth: Some(Auth { name, challenge }), control: None }.encode_to_vec())
}

fn control(join: Option<Named>, leave: Option<Named>) -> Vec<u8> {
    framed(&Packet { auth: None, control: Some(Control { join, leave }) }.encode_to_vec())
}

fn framed(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u64).to_be_bytes(), content].concat()
}

/// What of these bytes gets through from `decode-1` in its third start, and what is said of the rest.
async fn heard(bytes: &[u8]) -> (Vec<u8>, Option<String>, std::io::Result<usize>) {
    let (failed, mut failures) = mpsc::channel(1);
    let own = OwnWords { peer: "decode-1".parse().unwrap(), incarnation: 3, failed };
    let mut through = Vec::new();
    let end = Heard::new(bytes, own, MAX_BYTES).read_to_end(&mut through).await;
    (through, failures.try_recv().ok(), end)
}

#[tokio::test]
async fn a_peers_own_words_come_through_as_they_are() {
    let name = "decode-1.0000000000000003@relevo";
    let message = framed(&[0x12, 3, 1, 2, 3]);
    let large = framed(&[&[0x12, 0x80, 0x80, 0x04][..], &[7; 1 << 16]].concat());
    let words = [
        auth(named(name), None),
        auth(None, named(name)),
        control(named("relevo/decode-1/00ff"), None),
        control(None, named("relevo/decode-1/00ff")),
        message,
        framed(&[]),
        large,
        // It is for `ractor_cluster` to find that it is no packet.
        framed(&[0xff; 9]),
    ]
    .concat();
    let (through, failure, end) = heard(&words).await;
    assert!(through == words && failure.is_none() && end.is_ok(), "{failure:?} {end:?}");
}

#[tokio::test]
async fn words_of_another_end_the_link_before_anybody_hears_them() {
    let own = control(named("relevo/decode-1/00ff"), None);
    for foreign in [
        auth(named("decode-2.0000000000000003@relevo"), None),
        // Of another start of the same node.
        auth(named("decode-1.0000000000000002@relevo"), None),
        auth(None, named("decode-2.0000000000000003@relevo")),
        auth(named(""), None),
        control(named("relevo/decode-2/00ff"), None),
        control(named("relevo/decode-11/00ff"), None),
        control(None, named("relevo/decode-2/00ff")),
        control(named("relevo/decode-1/00ff"), named("anything")),
    ] {
        let (through, failure, end) = heard(&[&own[..], &foreign, &own].concat()).await;
        assert_eq!(through, own, "{foreign:?}");
        assert!(failure.is_some(), "{foreign:?}");
        assert_eq!(end.unwrap_err().kind(), ErrorKind::PermissionDenied, "{foreign:?}");
    }
}

#[tokio::test]
async fn a_frame_that_is_cut_or_too_long_does_not_come_through() {
    let own = control(named("relevo/decode-1/00ff"), None);
    for len in 1..own.len() {
        let (through, _, end) = heard(&own[..len]).await;
        assert!(through.is_empty(), "{len}");
        assert_eq!(end.unwrap_err().kind(), ErrorKind::UnexpectedEof, "{len}");
    }
    for length in [MAX_BYTES + 1, u64::MAX] {
        let (through, _, end) = heard(&length.to_be_bytes()).await;
        assert!(through.is_empty());
        assert_eq!(end.unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
