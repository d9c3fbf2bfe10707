//! The UDP socket under an endpoint.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use rustix::net::sockopt;

/// Asked for in each direction. With 2 MB the kernel dropped packets of a transfer on loopback while the receiver was busy.
const BUFFER_BYTES: usize = 8 << 20;

/// Linux doubles what it is asked for, for its own bookkeeping, and says the double.
const SAID_FOR_GIVEN: usize = if cfg!(target_os = "linux") { 2 } else { 1 };

/// The buffers of an endpoint's socket, in bytes of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketBuffers {
    /// What was asked for, each way.
    pub asked: usize,
    /// What the kernel gave to receive.
    pub receive: usize,
    /// What it gave to send.
    pub send: usize,
}

/// A socket on `address`, with buffers as large as the kernel gives.
pub(super) fn bind(address: SocketAddr) -> io::Result<(UdpSocket, SocketBuffers)> {
    let socket = UdpSocket::bind(address)?;
    // Who administers the network may have more than the limit. What the kernel gives is read back below: it caps in silence.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES));
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, BUFFER_BYTES));
    let buffers = SocketBuffers {
        asked: BUFFER_BYTES,
        receive: sockopt::socket_recv_buffer_size(&socket)? / SAID_FOR_GIVEN,
        send: sockopt::socket_send_buffer_size(&socket)? / SAID_FOR_GIVEN,
    };
    buffers.check(address);
    Ok((socket, buffers))
}

impl SocketBuffers {
    /// Tells the operator where they are smaller than they should be.
    fn check(self, address: SocketAddr) {
        for (setting, given) in [("net.core.rmem_max", self.receive), ("net.core.wmem_max", self.send)] {
            if given < self.asked {
                let asked = self.asked;
                tracing::warn!(
                    %address, given, asked,
                    "the kernel gives a smaller socket buffer, which can lose packets: sysctl -w {setting}={asked}"
                );
            }
        }
    }
}
