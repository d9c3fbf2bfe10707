//! A request to a server and its whole answer, byte by byte.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::DEADLINE;

/// Status and body of `POST path`. The connection is closed after it, so that a stream's body is as it was written.
///
/// # Panics
/// If the server does not answer.
pub fn post(url: &str, path: &str, body: &Value) -> (u16, String) {
    let body = body.to_string();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\n");
    exchange(url, &format!("{head}content-length: {length}\r\n\r\n{body}")).expect("the server answers")
}

/// Status and body of `GET path`; nothing if nobody listens.
pub fn get(url: &str, path: &str) -> Option<(u16, String)> {
    exchange(url, &format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n"))
}

fn exchange(url: &str, request: &str) -> Option<(u16, String)> {
    let address = url.strip_prefix("http://").expect("a URL of http");
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(DEADLINE)).expect("a deadline above zero");
    socket.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Some((status.unwrap_or_else(|| panic!("no status in {head}")), body.to_owned()))
}
