//! What the kernel knows of the way to a peer before a packet is sent there, and what follows from it for a connection's packets.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use rustix::net::sockopt;

/// Headers of a packet: IP's and UDP's.
const HEADERS_V4: u32 = 28;
const HEADERS_V6: u32 = 48;

/// Largest UDP payloads: an IPv4 packet has at most 65,535 bytes; of IPv6's, QUIC leaves room for its headers, too.
const MOST_V4: u32 = 65_507;
const MOST_V6: u32 = 65_488;

/// What any path carries (RFC 9000 section 14).
const LEAST: u32 = 1200;

/// Of Ethernet, where the kernel does not say.
const USUAL_MTU: u32 = 1500;

/// Bytes that one call can hand to the kernel: it cuts them into packets itself (generic segmentation offload).
const SEGMENTED: u32 = 65_507;

/// Of the way to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// The largest packet that leaves this host on that way, in bytes.
    pub route_mtu: u32,
    /// The peer is this host.
    pub is_loopback: bool,
    /// The largest UDP payload that is looked for: what fits into a packet of the route.
    pub max_payload: u16,
    /// Whether the kernel is handed several packets at a time. Where one fills what a call can send there is nothing to cut.
    pub segments: bool,
}

impl LinkFacts {
    /// Of the way to `peer`, as the kernel would send there now.
    pub(super) fn of(peer: SocketAddr) -> Self {
        let route_mtu = route_mtu(peer).unwrap_or_else(|error| {
            tracing::debug!(%peer, %error, "the kernel does not say how large packets to a peer may be");
            USUAL_MTU
        });
        Self::with_mtu(peer, route_mtu)
    }

    fn with_mtu(peer: SocketAddr, route_mtu: u32) -> Self {
        let (headers, most) = if peer.is_ipv4() { (HEADERS_V4, MOST_V4) } else { (HEADERS_V6, MOST_V6) };
        let payload = route_mtu.saturating_sub(headers).clamp(LEAST, most);
        Self {
            route_mtu,
            is_loopback: peer.ip().to_canonical().is_loopback(),
            max_payload: u16::try_from(payload).unwrap_or(u16::MAX),
            segments: payload <= SEGMENTED / 2,
        }
    }
}

/// Nothing is sent: a datagram socket that is connected only knows its route.
fn route_mtu(peer: SocketAddr) -> io::Result<u32> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    let mtu = if peer.is_ipv4() { sockopt::ip_mtu(&socket) } else { sockopt::ipv6_mtu(&socket) };
    Ok(mtu?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(peer: &str, mtu: u32) -> (u16, bool) {
        let LinkFacts { max_payload, segments, .. } = LinkFacts::with_mtu(peer.parse().unwrap(), mtu);
        (max_payload, segments)
    }

    #[test]
    fn a_payload_is_what_a_packet_of_the_route_has_beside_its_headers() {
        for (peer, mtu, payload, segments) in [
            ("10.0.0.1:7400", 1500, 1472, true),
            ("[fd00::1]:7400", 1500, 1452, true),
            ("10.0.0.1:7400", 9000, 8972, true),
            ("10.0.0.1:7400", 65_536, 65_507, false),
            ("[::1]:7400", 65_536, 65_488, false),
            ("10.0.0.1:7400", 576, 1200, true),
            ("10.0.0.1:7400", 0, 1200, true),
        ] {
            assert_eq!(facts(peer, mtu), (payload, segments), "{peer} {mtu}");
        }
    }

    #[test]
    fn the_kernel_knows_the_way_to_this_host() {
        let facts = LinkFacts::of("127.0.0.1:9".parse().unwrap());
        assert!(facts.is_loopback && facts.route_mtu >= 16_384, "{facts:?}");
        assert!(LinkFacts::of("[::ffff:127.0.0.1]:9".parse().unwrap()).is_loopback);
    }
}
