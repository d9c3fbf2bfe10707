//! A collector of OpenTelemetry, as small as it can be: it reads what comes by the messages that the OpenTelemetry project makes, not by ours.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// A span, and what it was sent with.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) span: Span,
    pub(crate) resource: Vec<KeyValue>,
    /// Lines, in lower case.
    pub(crate) headers: Vec<String>,
    /// The whole message, as text as far as it is text.
    pub(crate) message: String,
}

/// A running collector. Its threads end with the test.
pub(crate) struct Collector {
    address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

/// What it answers, and what it has answered so.
struct Shelf {
    status: &'static str,
    taken: Vec<Taken>,
}

impl Collector {
    /// Listens at this address, and answers everything with this status.
    pub(crate) fn start(address: &str, status: &'static str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shelf = Arc::new(Mutex::new(Shelf { status, taken: Vec::new() }));
        let served = Arc::clone(&shelf);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let shelf = Arc::clone(&served);
                std::thread::spawn(move || while take(&socket, &shelf).is_some() {});
            }
        });
        Self { address, shelf }
    }

    /// Answers otherwise from here on, and forgets what came before.
    pub(crate) fn answer(&self, status: &'static str) {
        *self.shelf.lock().unwrap() = Shelf { status, taken: Vec::new() };
    }

    /// Everything that has come.
    pub(crate) fn all(&self) -> Vec<Taken> {
        self.shelf.lock().unwrap().taken.clone()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has come of a trace.
    pub(crate) fn of_trace(&self, trace_id: &str) -> Vec<Taken> {
        let is_its = |taken: &&Taken| hex(&taken.span.trace_id) == trace_id;
        self.shelf.lock().unwrap().taken.iter().filter(is_its).cloned().collect()
    }
}

/// One request of a connection; nothing when there is none any more.
fn take(socket: &TcpStream, shelf: &Mutex<Shelf>) -> Option<()> {
    let mut reader = BufReader::new(socket);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        match line.trim_end() {
            "" => break,
            line => headers.push(line.to_lowercase()),
        }
    }
    assert_eq!(headers[0], "post /v1/traces http/1.1");
    let length = headers.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).ok()?;
    let message = String::from_utf8_lossy(&body).into_owned();
    let request = ExportTraceServiceRequest::decode(&*body).unwrap();
    let mut shelf = shelf.lock().unwrap();
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.unwrap().attributes;
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let (resource, headers, message) = (resource.clone(), headers.clone(), message.clone());
            shelf.taken.push(Taken { span, resource, headers, message });
        }
    }
    let status = shelf.status;
    drop(shelf);
    let mut socket = socket;
    socket.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).ok()
}

/// As people write ids.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An attribute as text.
pub(crate) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(text(found.value.as_ref()?))
}

fn text(value: &AnyValue) -> String {
    match value.value.as_ref() {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(count)) => count.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::ArrayValue(list)) => format!("[{}]", list.values.iter().map(text).collect::<Vec<_>>().join(" ")),
        other => format!("{other:?}"),
    }
}
