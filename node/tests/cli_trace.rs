//! Where the time of a request went: as `relevo trace` shows it, and as a collector gets it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use program::{DEADLINE, Finished, Server, finish, relevo};
use relevo_actors::clock;
use serde_json::{Value, json};

/// The client's side of a trace: W3C's own example.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A cluster of a process for each role, that prefills and decodes on two nodes whatever comes.
struct World {
    _folder: tempfile::TempDir,
    server: Server,
}

impl World {
    fn new(shape: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_str().unwrap();
        let arguments = ["--local-cluster", shape, "--device", "scripted", "--disaggregate", "always"];
        let server = Server::start(&[&arguments[..], &["--data-dir", data]].concat());
        Self { server, _folder: folder }
    }

    /// Stops it; a line of level error fails the test.
    fn stop(self) {
        let end = self.server.stop("TERM");
        assert!(end.status.success() && !end.stderr.contains(" ERROR "), "{end:?}");
    }
}

/// The body and the `x-request-id` of an answer. `headers`: whole lines.
fn complete(url: &str, headers: &[String], body: &Value) -> (Value, String) {
    let mut socket = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let body = body.to_string();
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!(
        "POST /v1/completions HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
    (serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")), id.to_owned())
}

fn body(prompt: &str) -> Value {
    json!({"prompt": prompt, "max_tokens": 12, "seed": 1})
}

fn ask(url: &str, request: &str, flags: &[&str]) -> Finished {
    finish(&mut relevo([&["trace", request, "--url", url], flags].concat()))
}

/// What `relevo trace --json` says once the last hop has closed: the last token is read before all that has to do with it is over.
fn trace(url: &str, request: &str, num_spans: usize) -> Value {
    let began = clock::now();
    loop {
        let asked = ask(url, request, &["--json"]);
        assert!(asked.status.success(), "{asked:?}");
        let trace: Value = serde_json::from_str(&asked.stdout).unwrap();
        if trace["spans"].as_array().unwrap().len() >= num_spans {
            return trace;
        }
        assert!(clock::now().since(began) < DEADLINE, "fewer than {num_spans} spans: {trace}");
    }
}

/// Hop by node.
fn hops(trace: &Value) -> BTreeMap<&str, &str> {
    let spans = trace["spans"].as_array().unwrap();
    spans.iter().map(|span| (span["hop"].as_str().unwrap(), span["node"].as_str().unwrap())).collect()
}

fn span<'a>(trace: &'a Value, hop: &str) -> &'a Value {
    trace["spans"].as_array().unwrap().iter().find(|span| span["hop"] == hop).unwrap()
}

/// The hops of a request that is prefilled on one node and decoded on another.
const HOPS: [(&str, &str); 8] = [
    ("decode", "decode-0"),
    ("gateway", "gateway"),
    ("generation", "gateway"),
    ("land", "decode-0"),
    ("prefill", "prefill-0"),
    ("push", "prefill-0"),
    ("queue", "prefill-0"),
    ("route", "gateway"),
];

#[test]
fn a_request_is_traced_over_all_nodes_by_any_of_its_names() {
    let world = World::new("1p1d");
    let url = &world.server.url;
    let (answer, request_id) = complete(url, &[], &body("a secret prompt that is not to be seen anywhere"));
    let id = answer["id"].as_str().unwrap();
    let by_id = trace(url, id, HOPS.len());
    assert_eq!(hops(&by_id), BTreeMap::from(HOPS), "{by_id}");
    assert_eq!(by_id["spans"].as_array().unwrap().len(), HOPS.len(), "{by_id}");

    let generation = span(&by_id, "generation");
    assert_eq!((generation["start_ms"].as_f64(), &generation["fields"]["response_id"]), (Some(0.0), &json!(id)));
    assert_eq!(generation["fields"]["finish_reasons"], "length");
    assert_eq!(generation["fields"]["output_tokens"], 12);
    let whole = generation["duration_ms"].as_f64().unwrap();
    for span in by_id["spans"].as_array().unwrap() {
        let (start, duration) = (span["start_ms"].as_f64().unwrap(), span["duration_ms"].as_f64().unwrap());
        assert!(start >= 0.0 && start + duration < whole + 1000.0, "{span}");
        assert_eq!(span["device"].is_null(), span["node"] == "gateway" || span["hop"] == "push", "{span}");
    }
    let nodes = by_id["nodes"].as_array().unwrap();
    assert!(nodes.len() == 3 && nodes.iter().all(|node| node["answered"] == true), "{by_id}");
    assert!(!by_id.to_string().contains("secret"), "{by_id}");

    for name in [&request_id, by_id["request"].as_str().unwrap()] {
        let by_name = trace(url, name, HOPS.len());
        assert_eq!((&by_name["spans"], &by_name["trace_id"]), (&by_id["spans"], &by_id["trace_id"]));
    }
    let drawn = ask(url, id, &[]);
    assert!(drawn.stdout.contains("└─ gateway") && drawn.stdout.contains("decode-0 device-0"), "{}", drawn.stdout);

    let (answer, own_id) =
        complete(url, &["x-request-id: team/7".to_owned(), format!("traceparent: {TRACEPARENT}")], &body("b"));
    let joined = trace(url, "team/7", HOPS.len());
    assert_eq!((own_id.as_str(), &span(&joined, "generation")["fields"]["response_id"]), ("team/7", &answer["id"]));
    assert_eq!(joined["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    world.stop();
}

#[test]
fn a_request_that_is_not_known_is_said_so() {
    let world = World::new("1p1d");
    let url = &world.server.url;
    for unknown in ["chatcmpl-0", "request-1", "request-99999999999999999999"] {
        let asked = ask(url, unknown, &[]);
        assert_eq!(asked.status.code(), Some(1), "{asked:?}");
        assert!(asked.stderr.contains(&format!("No request '{unknown}' is known here")), "{}", asked.stderr);
    }
    assert_eq!(ask(url, "a b", &[]).status.code(), Some(2));
    world.stop();
}
