//! Ports of loopback for processes that are yet to begin.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;

use crate::cli::Failure;

/// Where Linux says which ports it gives to those who do not care.
const SYSTEMS_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The lowest port that is handed out: services that are known by their port lie below.
const LOWEST: u16 = 10_240;

/// Fewer would soon be used up.
const ENOUGH: u16 = 1024;

/// Hands out ports that are free now, each once. They lie apart from those that the system gives to every connection that is opened, so
/// that none of these takes one before its process has begun.
#[derive(Debug)]
pub(super) struct FreePorts {
    range: Range<u16>,
    next: u16,
    num_left: u16,
}

impl FreePorts {
    /// Begins somewhere: others may be at it, too.
    pub(super) fn new() -> Self {
        let mut start = [0; 2];
        // Without random numbers all begin at one place, and look for the next that is free.
        let _ = getrandom::fill(&mut start);
        let systems = std::fs::read_to_string(SYSTEMS_RANGE).unwrap_or_default();
        let range = range_beside(&systems);
        let num_left = range.end - range.start;
        let next = range.start + u16::from_le_bytes(start) % num_left;
        Self { range, next, num_left }
    }

    /// One of TCP.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn tcp(&mut self) -> Result<SocketAddr, Failure> {
        self.find(|address| TcpListener::bind(address).map(drop))
    }

    /// One of UDP.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn udp(&mut self) -> Result<SocketAddr, Failure> {
        self.find(|address| UdpSocket::bind(address).map(drop))
    }

    fn find(&mut self, probe: impl Fn(SocketAddr) -> std::io::Result<()>) -> Result<SocketAddr, Failure> {
        let mut refusal = std::io::Error::other("all have been tried");
        while self.num_left > 0 {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.next));
            self.num_left -= 1;
            self.next = if self.next + 1 < self.range.end { self.next + 1 } else { self.range.start };
            match probe(address) {
                Ok(()) => return Ok(address),
                Err(error) => refusal = error,
            }
        }
        Err(Failure::System { doing: "cannot find a free port".into(), source: refusal })
    }
}

/// The ports below the system's own range, else those above it, else all.
fn range_beside(systems: &str) -> Range<u16> {
    let mut ends = systems.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high))) = (ends.next(), ends.next()) else { return LOWEST..u16::MAX };
    if low >= LOWEST + ENOUGH {
        LOWEST..low
    } else if high < u16::MAX - ENOUGH {
        high + 1..u16::MAX
    } else {
        LOWEST..u16::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_lie_beside_those_that_the_system_gives_to_connections() {
        assert_eq!(range_beside("32768\t60999\n"), LOWEST..32_768);
        assert_eq!(range_beside("1024 40000"), 40_001..u16::MAX);
        for unknown in ["1024 65535", "", "x y"] {
            assert_eq!(range_beside(unknown), LOWEST..u16::MAX, "{unknown}");
        }
    }

    #[test]
    fn a_port_is_handed_out_once_and_one_that_is_taken_never() {
        let mut ports = FreePorts { range: 20_000..20_004, next: 20_003, num_left: 4 };
        let taken = |address: SocketAddr| match address.port() {
            20_000 => Err(std::io::ErrorKind::AddrInUse.into()),
            _ => Ok(()),
        };
        let mut found = || ports.find(taken).map(|address| address.port()).ok();
        assert_eq!([found(), found(), found(), found()], [Some(20_003), Some(20_001), Some(20_002), None]);
    }
}
