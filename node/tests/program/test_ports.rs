//! Ports for processes that are yet to begin: apart from those that the system gives to connections, and from those of other tests.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// Each test is a process, and gets so many.
const NUM_PORTS: u16 = 16;

fn free(probe: impl Fn(SocketAddr) -> std::io::Result<()>) -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 2048 + (std::process::id() % 499) as u16 * NUM_PORTS;
    loop {
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(index < NUM_PORTS, "a test may have {NUM_PORTS} ports");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, first + index));
        if probe(address).is_ok() {
            return address;
        }
    }
}

pub fn free_tcp() -> SocketAddr {
    free(|address| TcpListener::bind(address).map(drop))
}

pub fn free_udp() -> SocketAddr {
    free(|address| UdpSocket::bind(address).map(drop))
}
