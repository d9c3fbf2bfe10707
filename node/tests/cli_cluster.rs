//! Many processes, one cluster: the tokens are those of one process, whatever dies, and nothing is left of what died.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use program::{DEADLINE, Scrape, Server, finish, kill, post, relevo};
use relevo_actors::clock;
use serde_json::{Value, json};

/// Blocks of some size, and steps long enough to be killed in.
const SCRIPT: &str = "num_layers = 4\nkey_dim = 32\nvalue_dim = 32\nelement = \"f16\"\nfixed_us = 4000\n";

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(world.script(), SCRIPT).unwrap();
        world
    }

    fn script(&self) -> PathBuf {
        self.folder.path().join("script.toml")
    }

    fn device(&self) -> String {
        format!("scripted:{}", self.script().display())
    }

    /// One process.
    fn alone(&self) -> Server {
        Server::start(&["--device", &self.device()])
    }

    /// What a node of the cluster was started with.
    fn settings(&self, node: &str) -> toml::Table {
        let clusters = self.folder.path().join("data/local-clusters");
        let cluster = std::fs::read_dir(clusters).unwrap().next().unwrap().unwrap().path();
        toml::from_str(&std::fs::read_to_string(cluster.join(format!("{node}.toml"))).unwrap()).unwrap()
    }

    /// A process for each role.
    fn cluster(&self, shape: &str) -> Server {
        let data = self.folder.path().join("data");
        let data = data.to_str().unwrap();
        let arguments = ["--local-cluster", shape, "--device", &self.device(), "--disaggregate", "always"];
        Server::start(&[&arguments[..], &["--data-dir", data]].concat())
    }
}

fn body(prompt: &str, num_tokens: u32) -> Value {
    json!({
        "prompt": prompt, "max_tokens": num_tokens, "temperature": 0.9, "seed": 11, "stream": true,
        "logprobs": 0, "return_tokens_as_token_ids": true,
    })
}

/// The tokens of a stream. `at` is called once, when that many have come.
fn stream(url: &str, body: &Value, at: usize, mut act: impl FnMut()) -> Vec<String> {
    let address = url.strip_prefix("http://").unwrap();
    let text = body.to_string();
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    socket.write_all((head + &text).as_bytes()).unwrap();
    let mut tokens = Vec::new();
    let mut acted = false;
    for line in BufReader::new(socket).lines() {
        let line = line.unwrap();
        let Some(event) = line.strip_prefix("data: ") else { continue };
        if event == "[DONE]" {
            return tokens;
        }
        let event: Value = serde_json::from_str(event).unwrap();
        assert!(event.get("error").is_none(), "{event}");
        let named = event["choices"][0]["logprobs"]["tokens"].as_array().cloned().unwrap_or_default();
        tokens.extend(named.iter().map(|token| token.as_str().unwrap().to_owned()));
        if tokens.len() >= at && !acted {
            acted = true;
            act();
        }
    }
    panic!("a stream ends with [DONE]: {tokens:?}");
}

fn status(url: &str) -> Value {
    let asked = finish(&mut relevo(["status", "--json", "--url", url]));
    assert!(asked.status.success(), "{asked:?}");
    serde_json::from_str(&asked.stdout).unwrap()
}

fn node<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap_or(&Value::Null)
}

fn pid(url: &str, name: &str) -> u32 {
    u32::try_from(node(&status(url), name)["pid"].as_u64().unwrap()).unwrap()
}

/// The worker that decodes something now.
fn busy_decoder(url: &str) -> String {
    let mut busy = String::new();
    eventually("somebody decodes", || {
        let status = status(url);
        let mut nodes = status["nodes"].as_array().unwrap().iter();
        let decodes = |node: &&Value| {
            node["name"].as_str().unwrap().starts_with("decode") && node["running_requests"].as_u64().unwrap_or(0) > 0
        };
        nodes.find(decodes).and_then(|node| node["name"].as_str()).is_some_and(|name| {
            name.clone_into(&mut busy);
            true
        })
    });
    busy
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = clock::now();
    while !holds() {
        assert!(clock::now().since(began) < DEADLINE, "{what}: not within {DEADLINE:?}");
    }
}

/// Every worker serves, and holds nothing for anybody.
fn is_at_rest(url: &str, num_workers: usize) -> bool {
    let status = status(url);
    let devices = status["nodes"].as_array().unwrap().iter().flat_map(|node| node["devices"].as_array().unwrap());
    let resting = devices.filter(|device| {
        let blocks = &device["kv_blocks"];
        device["standing"] == "serving" && blocks["active"] == 0 && blocks["leased"] == 0 && device["leases"] == 0
    });
    resting.count() == num_workers
}

/// Stops a cluster; a line of level error fails the test.
fn stop(server: Server) {
    let end = server.stop("TERM");
    assert!(end.status.success(), "{end:?}");
    assert!(!end.stderr.contains(" ERROR "), "{}", end.stderr);
}

fn prompt() -> String {
    "a prompt of more than two blocks, so that some are full and one is not; ".repeat(2)
}

#[test]
fn a_stream_goes_on_with_the_same_tokens_whichever_worker_is_killed_or_stopped() {
    let world = World::new();
    let alone = world.alone();
    let expected = stream(&alone.url, &body(&prompt(), 120), usize::MAX, || {});
    assert_eq!(expected.len(), 120);
    stop(alone);

    let cluster = world.cluster("2p2d");
    let url = cluster.url.clone();
    assert_eq!(stream(&url, &body(&prompt(), 120), usize::MAX, || {}), expected);
    for signal in ["KILL", "STOP"] {
        eventually("the cluster is at rest", || is_at_rest(&url, 4));
        let mut victim = None;
        let tokens = stream(&url, &body(&prompt(), 120), 20, || {
            let name = busy_decoder(&url);
            victim = Some(pid(&url, &name));
            kill(victim.unwrap(), signal);
        });
        assert_eq!(tokens, expected, "after SIG{signal}");
        if signal == "STOP" {
            kill(victim.unwrap(), "CONT");
        }
    }
    let replays = Scrape::of(&url).sum("relevo_replays_total", "").unwrap_or(0);
    assert!(replays >= 2, "{replays} replays");
    for prefill in ["prefill-0", "prefill-1"] {
        eventually("the cluster is at rest", || is_at_rest(&url, 4));
        let tokens = stream(&url, &body(&prompt(), 120), 1, || kill(pid(&url, prefill), "KILL"));
        assert_eq!(tokens, expected, "after the death of {prefill}");
    }
    eventually("the cluster is at rest", || is_at_rest(&url, 4));
    assert_eq!(Scrape::of(&url).sum("relevo_contradicted_tokens_total", ""), None);
    stop(cluster);
}

#[test]
fn blocks_travel_and_a_gateway_that_dies_leaves_none_behind() {
    let world = World::new();
    let cluster = world.cluster("1p1d");
    let url = cluster.url.clone();
    let expected = stream(&url, &body(&prompt(), 40), usize::MAX, || {});
    let prefill = world.settings("prefill-0");
    let metrics = format!("http://{}", prefill["node"]["metrics_listen"].as_str().unwrap());
    // The context's blocks, each of 4 layers of 32 + 32 elements of two bytes for 16 tokens.
    let num_blocks = u64::try_from(prompt().len()).unwrap().div_ceil(16);
    let carried = Scrape::of(&metrics).sum("relevo_kv_bytes_handed_over_total", "carrier=\"quic\"");
    assert_eq!(carried, Some(num_blocks * 4 * 64 * 2 * 16));
    let gateway = pid(&url, "gateway");
    let began = std::thread::spawn({
        let url = url.clone();
        // Nobody reads to its end.
        move || std::panic::catch_unwind(|| stream(&url, &body(&prompt(), 2000), usize::MAX, || {}))
    });
    eventually("the stream runs", || node(&status(&url), "decode-0")["running_requests"] == 1);
    kill(gateway, "KILL");
    let _ = began.join();
    eventually("the gateway is back", || {
        let asked = finish(&mut relevo(["status", "--json", "--url", &url]));
        asked.status.success() && serde_json::from_str::<Value>(&asked.stdout).is_ok()
    });
    eventually("the workers hold nothing", || is_at_rest(&url, 2));
    assert_eq!(stream(&url, &body(&prompt(), 40), usize::MAX, || {}), expected);
    let map = status(&url);
    assert!(node(&map, "gateway")["epoch"].as_u64().unwrap() > 1, "{map}");
    stop(cluster);
}

#[test]
fn an_operator_drains_nodes_and_changes_their_roles_while_they_serve() {
    let world = World::new();
    let cluster = world.cluster("2p2d");
    let url = cluster.url.clone();
    let expected = stream(&url, &body(&prompt(), 60), usize::MAX, || {});
    let order = |words: &[&str]| finish(relevo(words).args(["--url", &url]));
    let standing = |name: &str| node(&status(&url), name)["devices"][0]["standing"].clone();

    let tokens = stream(&url, &body(&prompt(), 60), 10, || {
        let name = busy_decoder(&url);
        let drained = order(&["drain", &name]);
        assert!(drained.status.success(), "{drained:?}");
        eventually("it drains", || standing(&name) == "draining");
    });
    assert_eq!(tokens, expected, "what a drained node has it finishes");
    for name in ["decode-0", "decode-1"] {
        assert!(order(&["undrain", name]).status.success());
        eventually("it serves", || standing(name) == "serving");
    }

    assert!(order(&["role", "prefill-0", "decode"]).status.success());
    eventually("it decodes", || node(&status(&url), "prefill-0")["devices"][0]["roles"] == json!(["decode"]));
    for name in ["decode-0", "decode-1"] {
        assert!(order(&["drain", name]).status.success());
        eventually("it drains", || standing(name) == "draining");
    }
    let steps = |name: &str| node(&status(&url), name)["devices"][0]["steps"].as_u64().unwrap();
    let before = steps("prefill-0");
    assert_eq!(stream(&url, &body(&prompt(), 60), usize::MAX, || {}), expected);
    assert!(steps("prefill-0") >= before + 59, "the one that was flipped decodes");

    let unknown = order(&["drain", "decode-7"]);
    assert!(unknown.stderr.contains("no node is named `decode-7`, there are decode-0"), "{unknown:?}");
    let cannot = order(&["role", "gateway", "decode"]);
    assert!(cannot.stderr.contains("gateway has no devices"), "{cannot:?}");
    stop(cluster);
}

#[test]
fn what_is_left_serves_when_nobody_plays_a_role_and_a_typed_error_comes_at_once_when_nobody_is_left() {
    let world = World::new();
    let cluster = world.cluster("1p1d");
    let url = cluster.url.clone();
    let expected = stream(&url, &body(&prompt(), 40), usize::MAX, || {});
    let decode = pid(&url, "decode-0");
    let tokens = stream(&url, &body(&prompt(), 40), 5, || kill(decode, "STOP"));
    assert_eq!(tokens, expected, "the one that prefills decodes, too");
    let prefill = pid(&url, "prefill-0");
    kill(prefill, "STOP");
    eventually("both are lost", || {
        let status = status(&url);
        ["prefill-0", "decode-0"].iter().all(|name| node(&status, name)["state"] == "lost")
    });
    let ask = || post(&url, "/v1/completions", &json!({"prompt": "x", "max_tokens": 1}));
    // The first may wait for a worker that could come back.
    assert_eq!(ask().0, 503);
    let began = clock::now();
    let (code, answer) = ask();
    assert_eq!(code, 503, "{answer}");
    assert!(answer.contains("worker"), "{answer}");
    // Ten times the promise, for a machine that does other things, too.
    assert!(clock::now().since(began).as_millis() < 1000);
    kill(prefill, "CONT");
    kill(decode, "CONT");
    eventually("the cluster is at rest", || is_at_rest(&url, 2));
    assert_eq!(stream(&url, &body(&prompt(), 40), usize::MAX, || {}), expected);
    stop(cluster);
}

fn issue(authority: &Path, name: &str, out: &Path) {
    let words = ["ca", "issue", name, "--role", "prefill,decode", "--host", "127.0.0.1", "--dir"];
    let issued = finish(relevo(words).arg(authority).arg("--out").arg(out));
    assert!(issued.status.success(), "{issued:?}");
}

#[test]
fn a_node_of_another_cluster_is_refused_and_counted() {
    let world = World::new();
    let cluster = world.cluster("1p1d");
    let folder = world.folder.path();
    let (authority, stranger) = (folder.join("other-ca"), folder.join("stranger"));
    assert!(finish(relevo(["ca", "init", "--dir"]).arg(&authority)).status.success());
    issue(&authority, "decode-0", &stranger);
    let gateway = world.settings("gateway");
    let seed = gateway["node"]["listen"].as_str().unwrap();
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = format!(
        "[node]\nroles = [\"decode\"]\nlisten = \"{free}\"\nseeds = [\"{seed}\"]\nidentity = \"{}\"\nstate_dir = \"{}\"\n\
         [[device]]\nkind = \"{}\"\n",
        stranger.display(),
        folder.join("state").display(),
        world.device()
    );
    let path = folder.join("stranger.toml");
    std::fs::write(&path, settings).unwrap();
    let mut child = relevo(["node", "--config"]).arg(&path).spawn().unwrap();
    eventually("it is refused", || {
        Scrape::of(&cluster.url).sum("relevo_peers_refused_total", "").is_some_and(|count| count > 0)
    });
    assert!(node(&status(&cluster.url), "decode-0")["state"] == "linked", "the true one is not disturbed");
    child.kill().unwrap();
    child.wait().unwrap();
    stop(cluster);
}
