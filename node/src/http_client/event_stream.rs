//! Server-sent events, <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>: only `data` counts here.

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;

/// How long a stream may be silent.
const SILENCE_DEADLINE: Duration = Duration::from_secs(300);

/// Longest event that is accepted.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// The events of one answer.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    parser: EventParser,
    ready: VecDeque<String>,
}

/// Why a stream broke off.
#[derive(Debug, thiserror::Error)]
pub enum EventStreamError {
    /// The connection failed.
    #[error("the connection broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing came any more.
    #[error("no event came for {} s", SILENCE_DEADLINE.as_secs())]
    Silent,
    /// An event without an end.
    #[error("an event is longer than {MAX_EVENT_BYTES} bytes")]
    TooLong,
}

impl EventStream {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, parser: EventParser::default(), ready: VecDeque::new() }
    }

    /// The data of the next event; `None` when the server has ended the stream.
    ///
    /// # Errors
    /// The stream broke off.
    pub async fn next(&mut self) -> Result<Option<String>, EventStreamError> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Ok(Some(data));
            }
            let frame = tokio::time::timeout(SILENCE_DEADLINE, self.body.frame());
            let Some(frame) = frame.await.map_err(|_| EventStreamError::Silent)? else { return Ok(None) };
            if let Ok(bytes) = frame?.into_data() {
                self.parser.push(&bytes, &mut self.ready)?;
            }
        }
    }
}

/// Cuts bytes, however they come, into events.
#[derive(Debug, Default)]
pub struct EventParser {
    line: Vec<u8>,
    after_carriage_return: bool,
    data: String,
    has_data: bool,
}

impl EventParser {
    /// Takes what has come and appends the data of the events it completes.
    ///
    /// # Errors
    /// The server's fault: [`EventStreamError::TooLong`].
    pub fn push(&mut self, bytes: &[u8], events: &mut VecDeque<String>) -> Result<(), EventStreamError> {
        for &byte in bytes {
            let after_carriage_return = std::mem::replace(&mut self.after_carriage_return, byte == b'\r');
            match byte {
                b'\n' if after_carriage_return => {}
                b'\n' | b'\r' => self.end_line(events),
                _ if self.line.len() + self.data.len() >= MAX_EVENT_BYTES => return Err(EventStreamError::TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, events: &mut VecDeque<String>) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                events.push_back(std::mem::take(&mut self.data));
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        if field == "data" {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push('\n');
            }
            self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = EventParser::default();
        let mut events = VecDeque::new();
        for piece in pieces {
            parser.push(piece, &mut events).unwrap();
        }
        events.into()
    }

    #[test]
    fn events_are_their_data_whatever_ends_a_line() {
        let stream = ": comment\n\ndata: one\n\nevent: x\r\ndata:two\r\ndata: three\r\n\r\ndata\r\rdata: cut off";
        assert_eq!(parse(&[stream.as_bytes()]), ["one", "two\nthree", ""]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = EventParser::default();
        let megabyte = vec![b'x'; 1 << 20];
        let mut events = VecDeque::new();
        let results: Vec<bool> = (0..5).map(|_| parser.push(&megabyte, &mut events).is_ok()).collect();
        assert_eq!(results, [true, true, true, true, false]);
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(lines in "((data: ?[aé☃]{0,3}|:x|id: 1)?(\n|\r\n|\r)){0,12}", cut in 0usize..64) {
            let bytes = lines.as_bytes();
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(parse(&[first, second]), parse(&[bytes]));
        }
    }
}
