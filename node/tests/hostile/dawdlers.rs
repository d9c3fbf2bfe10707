//! Those who keep the other side waiting, or announce more than it takes: each says how it was cut off.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use relevo_transport::ControlConnection;
use relevo_wire::{MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES};
use tokio::io::AsyncWriteExt;
use tokio::time::{interval, timeout};

use super::dice::Dice;
use super::intruder::{DEADLINE, Intruder};
use super::tenant::beat;

/// How often one who drips lets a byte go.
const DRIP: Duration = Duration::from_millis(50);

async fn reason(connection: &ControlConnection) -> String {
    timeout(DEADLINE, connection.closed()).await.unwrap()
}

/// A frame of blocks, byte by byte.
pub(crate) async fn drip_a_frame(intruder: &Intruder) -> String {
    let connection = intruder.dial_for_blocks().await;
    let (mut outgoing, _incoming) = connection.open_bi().await.unwrap();
    let prefix = prefix(400, 4096);
    let (mut ticks, mut bytes) = (interval(DRIP), prefix.into_iter().chain(std::iter::repeat(7)));
    loop {
        tokio::select! {
            reason = connection.closed() => return reason.to_string(),
            _ = ticks.tick() => drop(outgoing.write_all(&[bytes.next().unwrap()]).await),
        }
    }
}

/// A frame that would be of these lengths, of which nothing but that comes.
pub(crate) async fn announce(intruder: &Intruder, (header_bytes, payload_bytes): (usize, usize)) -> String {
    let connection = intruder.dial_for_blocks().await;
    let (mut outgoing, _incoming) = connection.open_bi().await.unwrap();
    outgoing.write_all(&prefix(header_bytes, payload_bytes)).await.unwrap();
    timeout(DEADLINE, connection.closed()).await.unwrap().to_string()
}

/// Header and payload of frames that nobody takes.
pub(crate) const TOO_LONG: [(usize, usize); 2] = [(MAX_HEADER_BYTES + 1, 0), (400, MAX_PAYLOAD_BYTES + 1)];

fn prefix(header_bytes: usize, payload_bytes: usize) -> Vec<u8> {
    let header_bytes = u32::try_from(header_bytes).unwrap().to_le_bytes();
    [b"RKV\x01", &header_bytes[..], &(payload_bytes as u64).to_le_bytes()].concat()
}

/// A control connection, and not a word.
pub(crate) async fn say_nothing(intruder: &Intruder) -> String {
    reason(&intruder.dial().await).await
}

/// A hello that is never finished.
pub(crate) async fn drip_a_hello(intruder: &Intruder) -> String {
    let hello = intruder.hello();
    let mut line = intruder.say(&hello[..1]).await.unwrap();
    let (mut ticks, mut bytes) = (interval(DRIP), hello[1..hello.len() - 1].iter());
    loop {
        tokio::select! {
            reason = line.connection.closed() => return reason,
            _ = ticks.tick() => if let Some(&byte) = bytes.next() { drop(line.outgoing.write_all(&[byte]).await) },
        }
    }
}

/// A hello of more than it may have.
pub(crate) async fn say_too_much(intruder: &Intruder) -> String {
    let connection = intruder.dial().await;
    let (writer, _reader) = connection.messages(0).await.unwrap();
    writer.into_inner().write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    reason(&connection).await
}

/// A hello, heartbeats, and a session that is never begun.
pub(crate) async fn begin_nothing(intruder: &Intruder) -> String {
    let line = intruder.greet().await.unwrap();
    let (reason, ()) = tokio::join!(reason(&line.connection), beat(line.connection.clone()));
    reason
}

/// Everything that one should say but heartbeats.
pub(crate) async fn fall_silent(intruder: &Intruder) -> String {
    let session = intruder.join().await.unwrap();
    reason(&session.line.connection).await
}

/// Packets that are none.
pub(crate) async fn throw_datagrams(address: SocketAddr, num_datagrams: usize) {
    let (socket, mut dice) = (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), Dice::new(5));
    for number in 0..num_datagrams {
        let byte_len = 1 + dice.below(1400);
        let mut bytes = dice.bytes(byte_len);
        if number % 2 == 0 {
            // As a handshake's first packet begins: a long header, of version 1.
            bytes[0] |= 0xc0;
            bytes.splice(1..bytes.len().min(5), [0, 0, 0, 1]);
        }
        // A full buffer is no failure here.
        let _ = socket.send_to(&bytes, address);
        tokio::task::yield_now().await;
    }
}
