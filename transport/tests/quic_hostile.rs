//! What peers do to a QUIC endpoint, and what its other peers notice: nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helper fails as its test does")]

mod links;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use links::{CAPACITY, DEADLINE, LAYOUT, Notes, Quic, blocks, endpoint, frame, header, until};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, TransportConfig};
use relevo_transport::{ALPN, EphemeralAuthority, Frame, Patience, PushError};
use relevo_wire::{KvBlocksHeader, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A server, a peer that behaves, and one that does not.
struct Scene {
    ends: Quic,
    notes: Arc<Notes>,
    tasks: JoinSet<()>,
    good: relevo_transport::FrameSender,
    num_good: u32,
    villain: quinn::Endpoint,
}

impl Scene {
    fn new(patience: Patience) -> Self {
        let ends = Quic::new(patience);
        let (notes, mut tasks) = (Arc::new(Notes::default()), JoinSet::new());
        ends.serve(&mut tasks, Arc::clone(&notes));
        let good = ends.link(&mut tasks);
        let villain = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        Self { ends, notes, tasks, good, num_good: 0, villain }
    }

    /// Dials as a peer of the cluster with these words for the protocol.
    async fn dial(&self, authority: &EphemeralAuthority, alpn: &[u8]) -> Result<Connection, ConnectionError> {
        let (_, mut tls) = authority.admit("device-9").unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        self.dial_with(tls).await
    }

    async fn dial_with(&self, tls: rustls::ClientConfig) -> Result<Connection, ConnectionError> {
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let mut transport = TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_millis(100)));
        config.transport_config(Arc::new(transport));
        self.villain.connect_with(config, self.ends.server.address(), "device-1").unwrap().await
    }

    async fn attack(&self) -> (Connection, SendStream, RecvStream) {
        let connection = self.dial(&self.ends.authority, ALPN).await.unwrap();
        let (outgoing, incoming) = connection.open_bi().await.unwrap();
        (connection, outgoing, incoming)
    }

    /// The other link still carries frames.
    async fn others_notice_nothing(&mut self) {
        let layer = self.num_good % 50;
        self.num_good += 1;
        assert_eq!(self.good.push(frame(layer), DEADLINE).await, Ok(()));
        assert_eq!(self.notes.arrived().len() as u32, self.num_good, "and no frame of the other peer has arrived");
        assert_eq!(self.notes.arrived().last().unwrap().0, layer);
    }
}

/// A frame's bytes as they go over the wire.
fn wire(header: &[u8], payload_bytes: usize) -> Vec<u8> {
    let mut bytes = b"RKV\x01".to_vec();
    bytes.extend_from_slice(&u32::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(&(payload_bytes as u64).to_le_bytes());
    bytes.extend_from_slice(header);
    bytes
}

fn good_header() -> Vec<u8> {
    header(60, &blocks(60)).to_bytes().unwrap().to_vec()
}

fn payload() -> Vec<u8> {
    blocks(60).concat()
}

/// Why the server closed the connection, as it told the peer.
async fn reason(connection: &Connection) -> String {
    match timeout(DEADLINE, connection.closed()).await.unwrap() {
        ConnectionError::ApplicationClosed(close) => {
            format!("{}: {}", close.error_code, String::from_utf8_lossy(&close.reason))
        }
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn bytes_that_are_no_frames_end_their_connection_alone() {
    let mut scene = Scene::new(Patience::default());
    scene.others_notice_nothing().await;
    let mut long_header = wire(&[], 0);
    long_header[4..8].copy_from_slice(&(MAX_HEADER_BYTES as u32 + 1).to_le_bytes());
    let mut other_version = wire(&good_header(), 192);
    other_version[3] = 2;
    for bytes in [vec![0; 16], b"GET / HTTP/1.1\r\nHost: relevo\r\n\r\n".to_vec(), long_header, other_version] {
        let (connection, mut outgoing, _incoming) = scene.attack().await;
        outgoing.write_all(&bytes).await.unwrap();
        assert_eq!(reason(&connection).await, "1: the peer sends no frames");
        scene.others_notice_nothing().await;
    }
    let (connection, mut outgoing, _incoming) = scene.attack().await;
    outgoing.write_all(&wire(&good_header(), MAX_PAYLOAD_BYTES + 1)).await.unwrap();
    assert_eq!(reason(&connection).await, "1: the peer sends no frames");
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn a_frame_that_is_cut_anywhere_does_not_arrive() {
    let mut scene = Scene::new(Patience::default());
    let header = header(3, &blocks(3)).to_bytes().unwrap();
    let whole = [wire(&header, blocks(3).concat().len()), blocks(3).concat()].concat();
    for length in [1, 15, 16, 17, 16 + header.len(), 17 + header.len(), whole.len() - 1] {
        let (connection, mut outgoing, _incoming) = scene.attack().await;
        outgoing.write_all(&whole[..length]).await.unwrap();
        outgoing.finish().unwrap();
        assert_eq!(reason(&connection).await, "1: the stream ended in the middle of a frame", "{length}");
        let (connection, mut outgoing, _incoming) = scene.attack().await;
        outgoing.write_all(&whole[..length]).await.unwrap();
        connection.close(0u32.into(), b"gone");
        scene.others_notice_nothing().await;
    }
}

#[tokio::test]
async fn a_peer_that_dawdles_is_cut_off_while_others_are_served() {
    let patience = Patience { frame: Duration::from_millis(400), ..Patience::default() };
    let mut scene = Scene::new(patience);
    let (connection, mut outgoing, _incoming) = scene.attack().await;
    let header = header(3, &blocks(3)).to_bytes().unwrap();
    outgoing.write_all(&wire(&header, blocks(3).concat().len())).await.unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let drip = async {
        loop {
            ticks.tick().await;
            if outgoing.write_all(&[7]).await.is_err() {
                return;
            }
        }
    };
    let (reason, ()) = tokio::join!(reason(&connection), drip);
    assert_eq!(reason, "1: a frame did not come within 400ms");
    // A peer that says nothing between two frames may stay.
    let (idle, mut outgoing, mut incoming) = scene.attack().await;
    let mut answer = [0; 32];
    for _ in 0..2 {
        outgoing.write_all(&[wire(&good_header(), payload().len()), payload()].concat()).await.unwrap();
        timeout(DEADLINE, incoming.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer[0], 1, "the lease is gone");
        assert!(timeout(Duration::from_millis(600), idle.closed()).await.is_err());
    }
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn mutated_headers_are_answered_and_leave_the_stream_in_step() {
    let mut scene = Scene::new(Patience::default());
    let (_connection, mut outgoing, mut incoming) = scene.attack().await;
    let (header, payload) = (good_header(), payload());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut answers = [0; 10];
    for _ in 0..3000 {
        let mut bytes = header.clone();
        for _ in 0..3 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let position = (random >> 33) as usize % bytes.len();
            bytes[position] ^= (random >> 24) as u8;
        }
        outgoing.write_all(&[wire(&bytes, payload.len()), payload.clone()].concat()).await.unwrap();
        let mut answer = [0; 32];
        timeout(DEADLINE, incoming.read_exact(&mut answer)).await.unwrap().unwrap();
        answers[usize::from(answer[0])] += 1;
    }
    assert!(answers[4] > 0 && answers[8] > 0, "malformed headers and other versions were among them: {answers:?}");
    let arrived = scene.notes.arrived();
    // A flipped bit may name another layer, or nothing that counts here: then the frame is a good one.
    assert!(arrived.len() <= answers[0] && arrived.iter().all(|(_, blocks)| blocks.concat() == payload));
    scene.num_good = arrived.len() as u32;
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn strangers_are_refused() {
    let mut scene = Scene::new(Patience::default());
    let other = EphemeralAuthority::new().unwrap();
    let (_, ours) = scene.ends.authority.admit("device-9").unwrap();
    // Nobody's certificate, over TLS that trusts the server.
    let mut roots = rustls::RootCertStore::empty();
    roots.add(scene.ends.authority.root().clone()).unwrap();
    let mut anonymous = rustls::ClientConfig::builder_with_provider(Arc::clone(ours.crypto_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![ALPN.to_vec()];
    for dialled in [
        scene.dial_with(anonymous).await,
        scene.dial(&other, ALPN).await,
        scene.dial(&scene.ends.authority, b"relevo-kv/2").await,
    ] {
        // In TLS 1.3 a client is through before the server has looked at its certificate.
        let refused = match dialled {
            Ok(connection) => timeout(DEADLINE, connection.closed()).await.unwrap(),
            Err(error) => error,
        };
        let is_tls = matches!(refused, ConnectionError::ConnectionClosed(_) | ConnectionError::TransportError(_));
        assert!(is_tls, "{refused:?}");
    }
    // A server of another authority, and one of our own by another name.
    let stranger = endpoint(&other, "device-1", Patience::default());
    let namesake = endpoint(&scene.ends.authority, "device-2", Patience::default());
    for server in [stranger, namesake] {
        let (sender, carried) = scene.ends.client.link(server.address(), "device-1", CAPACITY);
        scene.tasks.spawn(carried);
        let (serving, notes) = (server.clone(), Arc::new(Notes::default()));
        let sink = Arc::clone(&notes);
        scene.tasks.spawn(async move { serving.serve(sink).await });
        assert_eq!(sender.push(frame(1), DEADLINE).await, Err(PushError::Closed));
        assert_eq!(notes.num_admitted(), 0);
    }
    scene.others_notice_nothing().await;
}

#[tokio::test]
async fn a_link_whose_peer_owes_answers_is_closed_and_lets_go_of_its_bytes() {
    struct Pinned {
        _pin: Arc<()>,
        bytes: Vec<u8>,
    }
    impl AsRef<[u8]> for Pinned {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    let patience = Patience { answer: Duration::from_millis(300), ..Patience::default() };
    let authority = EphemeralAuthority::new().unwrap();
    let client = endpoint(&authority, "device-0", patience);
    let (mut tls, _) = authority.admit("device-1").unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(config));
    let mute = quinn::Endpoint::server(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let (sender, carried) = client.link(mute.local_addr().unwrap(), "device-1", CAPACITY);
    let mut tasks = JoinSet::new();
    tasks.spawn(carried);
    let mut peer = JoinSet::new();
    peer.spawn(async move {
        let connection = mute.accept().await.unwrap().await.unwrap();
        let stream = connection.accept_bi().await.unwrap();
        connection.closed().await;
        drop(stream);
    });
    let pin = Arc::new(());
    let block = Bytes::from_owner(Pinned { _pin: Arc::clone(&pin), bytes: vec![1; LAYOUT.layer_block_bytes()] });
    let header = KvBlocksHeader { ..header(1, std::slice::from_ref(&block)) };
    let pushed = sender.push(Frame::new(&header, vec![block]).unwrap(), DEADLINE).await;
    assert_eq!(pushed, Err(PushError::Closed));
    until("the bytes are let go of", || Arc::strong_count(&pin) == 1).await;
    until("the link is closed", || sender.is_closed()).await;
    timeout(DEADLINE, peer.join_next()).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_link_is_closed_with_its_endpoint_at_either_side() {
    for closes_server in [true, false] {
        let ends = Quic::new(Patience::default());
        let (notes, mut tasks) = (Arc::new(Notes::default()), JoinSet::new());
        ends.serve(&mut tasks, Arc::clone(&notes));
        let sender = ends.link(&mut tasks);
        assert_eq!(sender.push(frame(1), DEADLINE).await, Ok(()));
        let closing = if closes_server { &ends.server } else { &ends.client };
        timeout(DEADLINE, closing.close()).await.unwrap();
        until("an idle link notices", || sender.is_closed()).await;
        assert_eq!(sender.push(frame(2), DEADLINE).await, Err(PushError::Closed), "{closes_server}");
    }
}
