//! How connections that carry KV blocks are set up, and where each figure comes from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::link_facts::LinkFacts;

/// The protocol that both ends name in the handshake; another one is refused there.
pub const ALPN: &[u8] = b"relevo-kv/1";

/// Longest silence of a peer. QUIC takes no notice of a closed port, so that this is what detects a dead one.
const IDLE: Duration = Duration::from_secs(1);

/// A quarter of [`IDLE`]: three may be lost.
const KEEP_ALIVE: Duration = Duration::from_millis(250);

/// What a sender may be ahead of its receiver on a stream: a layer of a chunk of 512 rows of a large model, twice.
const STREAM_WINDOW: u32 = 16 << 20;

/// The same over all streams of a connection.
const CONNECTION_WINDOW: u32 = 32 << 20;

/// Streams that a peer may have open: one, and those that are closing.
const MAX_STREAMS: u32 = 4;

/// Heartbeats that may wait to be read.
const BEATS_BYTES: usize = 64 << 10;

/// The congestion control of every connection (RFC 9438), for the status.
pub const CONGESTION: &str = "cubic";

/// What loopback carries in any case.
const LOOPBACK_PAYLOAD_LEAST: u16 = 8192;

/// Largest UDP payload that is received: what QUIC allows.
const MAX_PAYLOAD: u16 = 65_527;

/// How long peers may keep us waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From a frame's first byte to its last: several times what a sender waits for its answer.
    pub frame: Duration,
    /// From a frame's last byte, or the answer before, to its answer. A link that is silent for longer while it owes answers is closed, so that the
    /// bytes that it pins come free.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { frame: Duration::from_secs(10), answer: Duration::from_secs(10) }
    }
}

/// Of an endpoint.
///
/// # Errors
/// Our bug: a payload that QUIC does not allow.
pub(super) fn endpoint() -> Result<EndpointConfig, quinn::ConfigError> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(MAX_PAYLOAD)?;
    Ok(config)
}

/// Of a connection with this peer, by what the kernel knows of the way there.
pub(super) fn connection(peer: SocketAddr) -> Arc<TransportConfig> {
    let LinkFacts { is_loopback, max_payload, segments, .. } = LinkFacts::of(peer);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_STREAMS))
        .datagram_receive_buffer_size(Some(BEATS_BYTES))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IDLE.try_into().ok())
        .enable_segmentation_offload(segments);
    // Nobody on the way to this host can carry less than it says; elsewhere larger packets are tried before they are used.
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(max_payload);
    let mut congestion = CubicConfig::default();
    if is_loopback {
        // Ten packets, as everywhere (RFC 9002 section 7.2); the default counts them at 1472 bytes, and no packet of ours would ever fit.
        congestion.initial_window(10 * u64::from(max_payload));
        // Losses of a socket buffer that overflowed can pass for a path that carries less. A packet of the handshake is padded to the least, and its
        // length must fit fourteen bits.
        discovery.black_hole_cooldown(IDLE);
        config.initial_mtu(max_payload).min_mtu(LOOPBACK_PAYLOAD_LEAST.min(max_payload));
    }
    config.congestion_controller_factory(Arc::new(congestion)).mtu_discovery_config(Some(discovery));
    Arc::new(config)
}
