//! The UDP socket under an endpoint.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// Asked for in each direction. With 2 MB the kernel dropped packets of a transfer on loopback while the receiver was busy.
const BUFFER_BYTES: usize = 8 << 20;

/// A socket on `address`, with buffers as large as the kernel gives.
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // What the kernel gives is read back below: it caps in silence.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.bind(&address.into())?;
    check_buffers(&socket, address)?;
    Ok(socket.into())
}

fn check_buffers(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let given = [("net.core.rmem_max", socket.recv_buffer_size()?), ("net.core.wmem_max", socket.send_buffer_size()?)];
    for (setting, bytes) in given.into_iter().filter(|(_, bytes)| *bytes < BUFFER_BYTES) {
        tracing::info!(
            %address, bytes, wanted = BUFFER_BYTES,
            "the kernel gave a smaller socket buffer, which can lose packets: raise {setting}"
        );
    }
    Ok(())
}
