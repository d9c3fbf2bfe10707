//! The first words on a control connection: which protocol, which start of the node, which roles, which model. Two that do not fit part here, and both
//! know why.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use relevo_transport::identity::Name;
use relevo_transport::{ControlConnection, ControlError, MessageReader, MessageWriter};
use relevo_wire::{Beat, Hello, ModelFacts, NodeId, PROTOCOL_VERSION, Roles};
use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;
use tokio::time::timeout;

use super::network::Network;
use crate::clock;
use crate::cluster::Directory;

/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Longest hello.
const MAX_BYTES: usize = 16 << 10;

/// What stands before the archive, so that versions with other archives can tell each other apart: the version, and what aligns the rest.
const PREFIX_BYTES: usize = 16;

/// A connection whose ends have said hello.
pub(crate) struct Greeted {
    pub(super) connection: ControlConnection,
    pub(super) hello: Hello,
    pub(super) writer: MessageWriter,
    pub(super) reader: MessageReader,
}

/// Why two nodes do not talk.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    #[error("it speaks version {theirs} of the protocol, this node {PROTOCOL_VERSION} and the one before")]
    Version { theirs: u16 },
    #[error("it serves `{theirs}`, this node `{ours}`")]
    Model { theirs: String, ours: String },
    #[error("its KV blocks are {theirs}, this node's {ours}")]
    Layout { theirs: String, ours: String },
    #[error("it plays {plays}, its certificate allows {allowed}")]
    Roles { plays: Roles, allowed: Roles },
    #[error("{0} and this node have one number: give one of them another name")]
    SameNumber(Name),
    #[error("it is this node itself")]
    Itself,
    #[error("its hello is none: {0}")]
    Malformed(String),
    #[error("it did not say hello within {PATIENCE:?}")]
    Silent,
    #[error(transparent)]
    Lost(#[from] ControlError),
    /// Its reason is in words for the operator there.
    #[error("it ended the connection: {0}")]
    Parted(String),
}

impl HelloError {
    /// The label in the metrics.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Self::Version { .. } => "protocol_version",
            Self::Model { .. } => "model",
            Self::Layout { .. } => "kv_layout",
            Self::Roles { .. } => "wrong_role",
            Self::SameNumber(_) => "same_number",
            Self::Itself => "itself",
            Self::Malformed(_) => "malformed_hello",
            Self::Silent => "silent",
            Self::Lost(_) | Self::Parted(_) => "lost",
        }
    }

    /// Whether it would be the same at the next try.
    pub(super) const fn is_lasting(&self) -> bool {
        !matches!(self, Self::Silent | Self::Lost(_) | Self::Parted(_))
    }
}

/// Says hello, hears it, and holds the two against each other. The peer is told why it is refused.
pub(super) async fn greet(network: &Network, connection: ControlConnection) -> Result<Greeted, HelloError> {
    let greeted = timeout(PATIENCE, exchange(network, &connection)).await.unwrap_or(Err(HelloError::Silent));
    match greeted {
        Ok((hello, writer, reader)) => Ok(Greeted { connection, hello, writer, reader }),
        // A stream that breaks does not say why; the connection does, if it was closed.
        Err(HelloError::Lost(error)) if !matches!(error, ControlError::TooLong { .. }) => {
            match timeout(PATIENCE, connection.closed()).await {
                Ok(reason) => Err(HelloError::Parted(reason)),
                Err(_) => {
                    connection.close(&error.to_string());
                    Err(error.into())
                }
            }
        }
        Err(error) => {
            connection.close(&error.to_string());
            Err(error)
        }
    }
}

async fn exchange(
    network: &Network,
    connection: &ControlConnection,
) -> Result<(Hello, MessageWriter, MessageReader), HelloError> {
    let own = own_hello(network);
    let (mut writer, mut reader) = connection.messages(MAX_BYTES).await?;
    writer.send(to_bytes(&own)?).await?;
    let hello = from_bytes(reader.next().await?)?;
    check(network, connection, &own, &hello)?;
    Ok((hello, writer, reader))
}

fn own_hello(network: &Network) -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        incarnation: network.incarnation,
        roles: network.roles,
        listen: network.listen,
        model: network.model.clone(),
    }
}

fn to_bytes(hello: &Hello) -> Result<Bytes, HelloError> {
    let archive = rkyv::to_bytes::<RkyvError>(hello).map_err(|error| HelloError::Malformed(error.to_string()))?;
    let mut bytes = BytesMut::zeroed(PREFIX_BYTES);
    bytes[..2].copy_from_slice(&hello.protocol.to_le_bytes());
    bytes.put_slice(&archive);
    Ok(bytes.freeze())
}

fn from_bytes(bytes: &[u8]) -> Result<Hello, HelloError> {
    let short = || HelloError::Malformed("it is too short".to_owned());
    let (prefix, archive) = bytes.split_at_checked(PREFIX_BYTES).ok_or_else(short)?;
    let theirs = u16::from_le_bytes([prefix[0], prefix[1]]);
    if theirs.abs_diff(PROTOCOL_VERSION) > 1 {
        return Err(HelloError::Version { theirs });
    }
    let mut aligned = AlignedVec::<16>::with_capacity(archive.len());
    aligned.extend_from_slice(archive);
    rkyv::from_bytes::<Hello, RkyvError>(&aligned).map_err(|error| HelloError::Malformed(error.to_string()))
}

fn check(network: &Network, connection: &ControlConnection, own: &Hello, hello: &Hello) -> Result<(), HelloError> {
    let peer = connection.peer();
    if peer.name == network.name {
        return Err(HelloError::Itself);
    }
    if NodeId::of_name(peer.name.as_str()) == network.node() {
        return Err(HelloError::SameNumber(peer.name.clone()));
    }
    if hello.roles.iter().any(|role| !peer.roles.contains(role)) {
        return Err(HelloError::Roles { plays: hello.roles, allowed: peer.roles });
    }
    let (ModelFacts { content: ours, layout }, theirs) = (&own.model, &hello.model);
    if theirs.layout != *layout {
        return Err(HelloError::Layout { theirs: format!("{:?}", theirs.layout), ours: format!("{layout:?}") });
    }
    if theirs.content != *ours {
        return Err(HelloError::Model { theirs: theirs.content.clone(), ours: ours.clone() });
    }
    Ok(())
}

/// What this node says to its peers every 100 ms.
pub(crate) fn own_beat(directory: &Directory) -> Beat {
    Beat { map: directory.map_seen(), devices: directory.pulse.recent(clock::now()) }
}

#[cfg(test)]
mod tests {
    use relevo_wire::{ElementType, KvLayout};

    use super::*;

    fn hello(protocol: u16) -> Hello {
        let layout = KvLayout { num_layers: 2, num_kv_heads: 1, key_dim: 4, value_dim: 4, element: ElementType::F16 };
        Hello {
            protocol,
            incarnation: 3,
            roles: Roles::default(),
            listen: "10.0.0.1:7400".parse().unwrap(),
            model: ModelFacts { content: "a model".to_owned(), layout },
        }
    }

    #[test]
    fn a_version_apart_is_read_and_two_are_refused_by_name() {
        for protocol in [PROTOCOL_VERSION - 1, PROTOCOL_VERSION, PROTOCOL_VERSION + 1] {
            assert_eq!(from_bytes(&to_bytes(&hello(protocol)).unwrap()).unwrap(), hello(protocol));
        }
        let far = from_bytes(&to_bytes(&hello(PROTOCOL_VERSION + 2)).unwrap());
        assert!(matches!(far, Err(HelloError::Version { theirs }) if theirs == PROTOCOL_VERSION + 2));
    }

    #[test]
    fn bytes_that_are_no_hello_are_refused() {
        let good = to_bytes(&hello(PROTOCOL_VERSION)).unwrap();
        for len in 0..good.len() {
            assert!(matches!(from_bytes(&good[..len]), Err(HelloError::Malformed(_))), "{len}");
        }
    }
}
