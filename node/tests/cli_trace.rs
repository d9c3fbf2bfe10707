//! Where the time of a request went: as `relevo trace` shows it, and as a collector gets it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod collector;
mod program;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;

use collector::{Collector, Taken, attribute, hex};
use program::{DEADLINE, Finished, Scrape, Server, finish, relevo};
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
    fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relevo.toml");
        std::fs::write(&file, settings).unwrap();
        let (data, file) = (folder.path().to_str().unwrap(), file.to_str().unwrap());
        let arguments = ["--local-cluster", "1p1d", "--device", "scripted", "--disaggregate", "always"];
        let server = Server::start(&[&arguments[..], &["--data-dir", data, "--config", file]].concat());
        Self { server, _folder: folder }
    }

    /// One whose nodes export their spans there.
    fn exporting(url: &str) -> Self {
        Self::new(&format!("[traces]\notlp_endpoint = \"{url}\"\nservice_name = \"a rack\"\n"))
    }

    /// Stops it; a line of level error fails the test.
    fn stop(self) -> String {
        let end = self.server.stop("TERM");
        assert!(end.status.success() && !end.stderr.contains(" ERROR "), "{end:?}");
        end.stderr
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
    let world = World::new("");
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
    let route = &span(&by_id, "route")["fields"];
    assert_eq!((&route["prefill"], &route["decode"]), (&json!("prefill-0 device-0"), &json!("decode-0 device-0")));
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
    let world = World::new("");
    let url = &world.server.url;
    for unknown in ["chatcmpl-0", "request-1", "request-99999999999999999999"] {
        let asked = ask(url, unknown, &[]);
        assert_eq!(asked.status.code(), Some(1), "{asked:?}");
        assert!(asked.stderr.contains(&format!("No request '{unknown}' is known here")), "{}", asked.stderr);
    }
    assert_eq!(ask(url, "a b", &[]).status.code(), Some(2));
    world.stop();
}

/// The spans of a trace once all have come.
#[track_caller]
fn exported(collector: &Collector, trace_id: &str, num_spans: usize) -> Vec<Taken> {
    let began = clock::now();
    loop {
        let taken = collector.of_trace(trace_id);
        if taken.len() >= num_spans {
            return taken;
        }
        assert!(clock::now().since(began) < DEADLINE, "fewer than {num_spans} spans: {taken:#?}");
    }
}

fn by_name<'a>(taken: &'a [Taken], name: &str) -> &'a Taken {
    taken.iter().find(|taken| taken.span.name == name).unwrap_or_else(|| panic!("no {name}: {taken:#?}"))
}

/// Names by the node that exported them; the request's span has a name of its own.
fn exported_hops(taken: &[Taken]) -> BTreeMap<&str, String> {
    let hop = |name: &'static str| name;
    let name = |taken: &'_ Taken| match HOPS.iter().find(|(hop, _)| *hop == taken.span.name) {
        Some((known, _)) => hop(known),
        None => "generation",
    };
    taken.iter().map(|taken| (name(taken), attribute(&taken.resource, "service.instance.id").unwrap())).collect()
}

const REQUEST: &str = "text_completion scripted";

#[test]
fn a_collector_gets_the_spans_of_all_nodes_as_one_trace_below_the_clients() {
    let collector = Collector::start("127.0.0.1:0", "200 OK");
    let world = World::exporting(&collector.url());
    let url = &world.server.url;
    // The client does not keep the first: nobody gets it.
    let unsampled = TRACEPARENT.replace("4bf9", "ffff").replace("-01", "-00");
    complete(url, &[format!("traceparent: {unsampled}")], &body("a"));
    let (answer, _) = complete(url, &[format!("traceparent: {TRACEPARENT}")], &body("a secret that is not to be seen"));
    let taken = exported(&collector, &TRACEPARENT[3..35], HOPS.len());
    assert_eq!(exported_hops(&taken), HOPS.iter().map(|(hop, node)| (*hop, (*node).to_owned())).collect());
    assert_eq!(taken.len(), HOPS.len());
    assert!(collector.of_trace(&unsampled[3..35]).is_empty());

    let (request, gateway) = (by_name(&taken, REQUEST), by_name(&taken, "gateway"));
    assert_eq!(hex(&request.span.parent_span_id), &TRACEPARENT[36..52]);
    assert_eq!(gateway.span.parent_span_id, request.span.span_id);
    for hop in ["route", "queue", "prefill", "land", "push", "decode"] {
        assert_eq!(by_name(&taken, hop).span.parent_span_id, gateway.span.span_id, "{hop}");
    }
    let ids: BTreeSet<_> = taken.iter().map(|taken| &taken.span.span_id).collect();
    assert_eq!(ids.len(), HOPS.len());

    let address = url.strip_prefix("http://").unwrap();
    let expected = [
        ("gen_ai.operation.name", "text_completion"),
        ("gen_ai.provider.name", "relevo"),
        ("gen_ai.request.model", "scripted"),
        ("gen_ai.response.model", "scripted"),
        ("gen_ai.request.max_tokens", "12"),
        ("gen_ai.usage.input_tokens", &answer["usage"]["prompt_tokens"].to_string()),
        ("gen_ai.usage.output_tokens", "12"),
        ("gen_ai.response.finish_reasons", "[length]"),
        ("gen_ai.response.id", answer["id"].as_str().unwrap()),
        ("server.address", address.split(':').next().unwrap()),
        ("server.port", address.split(':').next_back().unwrap()),
    ];
    for (key, value) in expected {
        assert_eq!(attribute(&request.span.attributes, key).as_deref(), Some(value), "{key}: {request:#?}");
    }
    assert_eq!(attribute(&by_name(&taken, "decode").span.attributes, "relevo.attempt").as_deref(), Some("0"));
    for taken in &taken {
        assert!(taken.span.start_time_unix_nano < taken.span.end_time_unix_nano, "{taken:#?}");
        assert_eq!(attribute(&taken.resource, "service.name").as_deref(), Some("a rack"));
        assert!(!taken.message.contains("secret"), "{}", taken.message);
    }

    let (answer, _) = complete(url, &[], &body("b"));
    let told = trace(url, answer["id"].as_str().unwrap(), HOPS.len());
    let taken = exported(&collector, told["trace_id"].as_str().unwrap(), HOPS.len());
    assert_eq!(exported_hops(&taken).len(), HOPS.len());
    assert!(by_name(&taken, REQUEST).span.parent_span_id.is_empty());
    world.stop();
}

#[test]
fn a_collector_that_is_away_harms_no_request_and_gets_what_waits_when_it_is_back() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let world = World::exporting(&format!("http://{address}"));
    let url = &world.server.url;
    let answers: Vec<_> = (0..20).map(|_| complete(url, &[], &body("a")).0).collect();
    assert!(answers.iter().all(|answer| answer["choices"][0]["finish_reason"] == "length"), "{answers:?}");
    let traces: Vec<_> = answers.iter().map(|answer| trace(url, answer["id"].as_str().unwrap(), HOPS.len())).collect();

    let collector = Collector::start(&address, "503 Service Unavailable");
    let began = clock::now();
    // Twice, so that a second warning would be there to be seen.
    let refused = |node: &str| {
        let taken = collector.all();
        let mut of_node =
            taken.iter().filter(|taken| attribute(&taken.resource, "service.instance.id").as_deref() == Some(node));
        let first = of_node.next().map(|taken| &taken.span.span_id);
        first.is_some() && of_node.any(|taken| Some(&taken.span.span_id) == first)
    };
    while !["gateway", "prefill-0", "decode-0"].into_iter().all(refused) {
        assert!(clock::now().since(began) < DEADLINE, "each node sees that it is away");
    }
    collector.answer("200 OK");
    for trace in &traces {
        exported(&collector, trace["trace_id"].as_str().unwrap(), HOPS.len());
    }
    let log = world.stop();
    let warnings = log.lines().filter(|line| line.contains("a collector does not take spans")).count();
    assert_eq!(warnings, 3, "one of each node: {log}");
}

#[test]
fn what_a_collector_refuses_is_counted_and_not_sent_again() {
    let collector = Collector::start("127.0.0.1:0", "400 Bad Request");
    let folder = tempfile::tempdir().unwrap();
    let (settings, headers) = (folder.path().join("relevo.toml"), folder.path().join("headers"));
    std::fs::write(&headers, "# ours\nX-Collector-Key: abc:def\n").unwrap();
    let text = format!(
        "[traces]\notlp_endpoint = \"{}\"\notlp_headers_file = \"{}\"\n[[device]]\nkind = \"scripted\"\n",
        collector.url(),
        headers.display()
    );
    std::fs::write(&settings, text).unwrap();
    let server = Server::with_config(&settings, &[]);
    let (answer, _) = complete(&server.url, &[], &body("a"));
    let told = trace(&server.url, answer["id"].as_str().unwrap(), 6);
    let num_spans = told["spans"].as_array().unwrap().len() as u64;
    let began = clock::now();
    while Scrape::of(&server.url).sum("relevo_spans_dropped_total", "refused") != Some(num_spans) {
        assert!(clock::now().since(began) < DEADLINE);
    }
    let taken = collector.of_trace(told["trace_id"].as_str().unwrap());
    assert_eq!(taken.len() as u64, num_spans, "each once");
    assert!(taken[0].headers.contains(&"x-collector-key: abc:def".to_owned()), "{:?}", taken[0].headers);
    assert!(server.stop("TERM").status.success());
}
