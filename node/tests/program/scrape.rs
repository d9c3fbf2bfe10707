//! A server's `/metrics`, as a scraper reads them.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::DEADLINE;

/// What `/metrics` said at one moment.
#[derive(Debug)]
pub struct Scrape(String);

impl Scrape {
    /// Asks the server at `url`.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn of(url: &str) -> Self {
        let address = url.strip_prefix("http://").expect("a URL of http");
        let mut socket = TcpStream::connect(address).expect("the server listens");
        socket.set_read_timeout(Some(DEADLINE)).expect("a deadline above zero");
        socket.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").expect("the request is sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("the answer is text");
        assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
        Self(answer)
    }

    /// The sum over all series of this name that carry the label (`state="active"`); nothing if there is none.
    pub fn sum(&self, name: &str, label: &str) -> Option<u64> {
        let series = self.0.lines().filter_map(|line| line.rsplit_once(' '));
        let named = series.filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(label));
        named.map(|(_, value)| value.parse::<f64>().expect("a number") as u64).reduce(|sum, value| sum + value)
    }
}
