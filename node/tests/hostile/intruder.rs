//! A node with a good certificate and no manners: it dials as the others do, and says what it likes.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, TransportConfig};
use relevo_transport::identity::{Expected, LiveIdentity, Name};
use relevo_transport::{ALPN, ControlConnection, NodeEndpoint, Patience};
use relevo_wire::{Hello, ModelFacts, NodeId, PROTOCOL_VERSION, Role};
use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;
use rustls::time_provider::DefaultTimeProvider;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::packets::Packet;

/// How long the other side may take for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Longest hello, and what stands before its archive.
const HELLO_BYTES: usize = 16 << 10;
const HELLO_PREFIX_BYTES: usize = 16;

/// Largest packet that an intruder sends.
const PACKET_BYTES: u16 = 8192;

/// The number of an intruder's facade, as it says.
pub(crate) const OWN_PID: u64 = 77;

/// What a step of a conversation fails by: the other side has ended it.
pub(crate) type Ended = std::io::Error;

/// Who attacks, and whom.
pub(crate) struct Intruder {
    pub(crate) name: Name,
    pub(crate) target: Name,
    address: SocketAddr,
    identity: LiveIdentity,
    endpoint: NodeEndpoint,
    bare: quinn::Endpoint,
    model: Option<ModelFacts>,
}

/// A control connection and its stream of messages, to be written to as bytes.
pub(crate) struct Line {
    pub(crate) connection: ControlConnection,
    pub(crate) outgoing: Box<dyn AsyncWrite + Send + Unpin>,
    incoming: Box<dyn AsyncRead + Send + Unpin>,
}

/// A line on which there is a session.
pub(crate) struct Session {
    pub(crate) line: Line,
    /// The facade that the other side has for this node.
    pub(crate) facade: u64,
    /// Groups of facades for other nodes, as a session is told.
    pub(crate) others: Vec<String>,
    pub(crate) secret: [u8; 32],
}

impl Intruder {
    /// Must be called in a runtime. `identity`: the folder with the certificate.
    pub(crate) async fn enter(identity: &Path, target: &str, address: SocketAddr) -> Self {
        let identity = LiveIdentity::load(identity).unwrap();
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = NodeEndpoint::open(loopback, identity.clone(), Patience::default()).unwrap();
        let (name, target) = (identity.own().name, target.parse().unwrap());
        let bare = quinn::Endpoint::client(loopback).unwrap();
        let mut intruder = Self { name, target, address, identity, endpoint, bare, model: None };
        intruder.model = Some(intruder.learn().await.model);
        intruder
    }

    pub(crate) fn node(&self) -> NodeId {
        NodeId::of_name(self.name.as_str())
    }

    /// What the target says of itself to whoever opens a stream.
    async fn learn(&self) -> Hello {
        let connection = self.dial().await;
        let (writer, mut reader) = connection.messages(HELLO_BYTES).await.unwrap();
        writer.into_inner().write_all(&[0]).await.unwrap();
        let bytes = timeout(DEADLINE, reader.next()).await.unwrap().unwrap();
        let mut aligned = AlignedVec::<16>::new();
        aligned.extend_from_slice(&bytes[HELLO_PREFIX_BYTES..]);
        rkyv::from_bytes::<Hello, RkyvError>(&aligned).unwrap()
    }

    pub(crate) async fn dial(&self) -> ControlConnection {
        self.endpoint.dial(self.address, Expected::node(self.target.clone())).await.unwrap()
    }

    /// A hello as it should be, with its length before it.
    pub(crate) fn hello(&self) -> Vec<u8> {
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            incarnation: 1,
            roles: [Role::Prefill].into_iter().collect(),
            listen: self.endpoint.address(),
            model: self.model.clone().unwrap(),
        };
        let archive = rkyv::to_bytes::<RkyvError>(&hello).unwrap();
        let mut prefix = [0; HELLO_PREFIX_BYTES];
        prefix[..2].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        let byte_len = u32::try_from(HELLO_PREFIX_BYTES + archive.len()).unwrap();
        [&byte_len.to_le_bytes(), &prefix[..], &archive].concat()
    }

    /// A control connection whose stream begins with these bytes.
    pub(crate) async fn say(&self, first: &[u8]) -> Result<Line, Ended> {
        let connection = self.dial().await;
        let (writer, mut reader) = connection.messages(HELLO_BYTES).await.map_err(Ended::other)?;
        let mut outgoing = writer.into_inner();
        outgoing.write_all(first).await?;
        // Theirs; they say it whatever they hear.
        timeout(DEADLINE, reader.next()).await?.map_err(Ended::other)?;
        Ok(Line { connection, outgoing: Box::new(outgoing), incoming: Box::new(reader.into_inner()) })
    }

    /// A control connection on which a session begins.
    pub(crate) async fn greet(&self) -> Result<Line, Ended> {
        self.say(&self.hello()).await
    }

    /// The name of this node's sessions.
    pub(crate) fn session_name(&self) -> String {
        format!("{}.{:016x}@relevo", self.name, 1)
    }

    /// A session by this name, whose facade cannot be reached yet.
    pub(crate) async fn authenticate(&self, name: &str) -> Result<Session, Ended> {
        let mut line = self.greet().await?;
        line.write(&Packet::name(name, 1)).await?;
        let challenge = line.read_until(|packet| Some(packet.auth?.challenge?.challenge)).await?;
        line.write(&Packet::answer(challenge, &self.cookie())).await?;
        let number = u128::from_le_bytes(line.connection.secret(b"relevo facade").unwrap()[..16].try_into().unwrap());
        let secret = line.connection.secret(b"relevo message").unwrap();
        let own = format!("relevo/{}/{number:032x}", self.target);
        let (mut others, mut facade) = (Vec::new(), 0);
        line.read_until(|packet| {
            let control = packet.control?;
            match control.join {
                Some(join) if join.group == own => facade = join.actors[0].pid,
                Some(join) => others.push(join.group),
                None => {}
            }
            control.ready
        })
        .await?;
        Ok(Session { line, facade, others, secret })
    }

    /// A session over which messages go both ways.
    pub(crate) async fn join(&self) -> Result<Session, Ended> {
        let mut session = self.authenticate(&self.session_name()).await?;
        session.line.write(&Packet::join(&self.own_group(&session), OWN_PID)).await?;
        session.line.write(&Packet::ready()).await?;
        Ok(session)
    }

    /// The group by which the target finds this node's facade.
    pub(crate) fn own_group(&self, session: &Session) -> String {
        let secret = session.line.connection.secret(b"relevo facade").unwrap();
        format!("relevo/{}/{:032x}", self.name, u128::from_le_bytes(secret[..16].try_into().unwrap()))
    }

    /// What sessions begin with: all nodes know it.
    fn cookie(&self) -> String {
        let secret = self.identity.present().cluster_secret();
        let secret = blake3::derive_key("relevo 2026-11 ractor_cluster cookie", &secret);
        secret.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    /// A connection for blocks.
    pub(crate) async fn dial_for_blocks(&self) -> Connection {
        let expected = Expected::node(self.target.clone());
        let tls = self.identity.client_config(expected, &[ALPN], Arc::new(DefaultTimeProvider)).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let mut transport = TransportConfig::default();
        // Large packets, as the nodes have them on loopback: few of them carry many frames. More would not fit the window that QUIC begins with.
        transport.initial_mtu(PACKET_BYTES).min_mtu(PACKET_BYTES).mtu_discovery_config(None);
        // A batch of them would be longer than one call can send.
        transport.enable_segmentation_offload(false);
        transport.keep_alive_interval(Some(Duration::from_millis(250)));
        config.transport_config(Arc::new(transport));
        let connecting = self.bare.connect_with(config, self.address, "node").unwrap();
        timeout(DEADLINE, connecting).await.unwrap().unwrap()
    }
}

impl Line {
    pub(crate) async fn write(&mut self, packet: &Packet) -> Result<(), Ended> {
        self.outgoing.write_all(&packet.frame()).await
    }

    /// The next frame that comes.
    pub(crate) async fn read(&mut self) -> Result<Packet, Ended> {
        let byte_len = self.incoming.read_u64().await?;
        let mut content = vec![0; usize::try_from(byte_len).unwrap()];
        self.incoming.read_exact(&mut content).await?;
        Packet::decode(Bytes::from(content)).map_err(Ended::other)
    }

    /// Reads until a frame has what is sought.
    async fn read_until<T>(&mut self, mut sought: impl FnMut(Packet) -> Option<T>) -> Result<T, Ended> {
        timeout(DEADLINE, async {
            loop {
                if let Some(found) = sought(self.read().await?) {
                    return Ok(found);
                }
            }
        })
        .await?
    }

    /// Returns when the other side has ended it, the stream or the whole connection, with what it says of why, if it does.
    pub(crate) async fn ended(mut self) -> Option<String> {
        let drained = async {
            let mut sink = [0; 4096];
            while self.incoming.read(&mut sink).await.is_ok_and(|num_read| num_read > 0) {}
        };
        tokio::select! {
            biased;
            reason = self.connection.closed() => Some(reason),
            () = drained => None,
            () = tokio::time::sleep(DEADLINE) => panic!("{} does not end a conversation", self.connection.peer().name),
        }
    }

    /// The reading and the writing half, for two tasks.
    pub(crate) fn into_parts(self) -> (ControlConnection, Box<dyn AsyncWrite + Send + Unpin>, Self) {
        let outgoing = self.outgoing;
        let rest = Self { outgoing: Box::new(tokio::io::sink()), ..self };
        (rest.connection.clone(), outgoing, rest)
    }
}
