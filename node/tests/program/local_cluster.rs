//! A scripted cluster of many processes on this machine, and what tests ask of it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use relevo_actors::clock;
use serde_json::{Value, json};

use super::{DEADLINE, Scrape, Server, finish, kill, relevo};

/// Blocks of some size, and steps long enough to be killed in.
pub const SCRIPT: &str = "num_layers = 4\nkey_dim = 32\nvalue_dim = 32\nelement = \"f16\"\nfixed_us = 4000\n";

pub struct World {
    pub folder: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(world.script(), SCRIPT).unwrap();
        world
    }

    pub fn script(&self) -> PathBuf {
        self.folder.path().join("script.toml")
    }

    pub fn device(&self) -> String {
        format!("scripted:{}", self.script().display())
    }

    /// One process.
    pub fn alone(&self) -> Server {
        Server::start(&["--device", &self.device()])
    }

    /// What a node of the cluster was started with.
    pub fn settings(&self, node: &str) -> toml::Table {
        toml::from_str(&std::fs::read_to_string(self.settings_path(node)).unwrap()).unwrap()
    }

    /// Where it is started with them again.
    pub fn settings_path(&self, node: &str) -> PathBuf {
        let clusters = self.folder.path().join("data/local-clusters");
        let cluster = std::fs::read_dir(clusters).unwrap().next().unwrap().unwrap().path();
        cluster.join(format!("{node}.toml"))
    }

    /// A process for each role.
    pub fn cluster(&self, shape: &str) -> Server {
        self.cluster_with(shape, &[])
    }

    /// The same, with further arguments.
    pub fn cluster_with(&self, shape: &str, further: &[&str]) -> Server {
        let data = self.folder.path().join("data");
        let data = data.to_str().unwrap();
        let arguments = ["--local-cluster", shape, "--device", &self.device(), "--disaggregate", "always"];
        Server::start(&[&arguments[..], &["--data-dir", data], further].concat())
    }

    /// The tokens that one process gives.
    pub fn expected(&self, num_tokens: u32) -> Vec<String> {
        let alone = self.alone();
        let tokens = stream(&alone.url, &body(&prompt(), num_tokens), usize::MAX, || {});
        assert_eq!(tokens.len(), num_tokens as usize);
        stop(alone);
        tokens
    }

    /// A cluster whose blocks travel by that carrier, and in which these things go wrong.
    pub fn faulty_cluster_by(&self, shape: &str, carrier: &str, faults: &str) -> Server {
        let path = self.folder.path().join("faults.toml");
        std::fs::write(&path, format!("[testing]\nfaults = [{faults}]\n")).unwrap();
        self.cluster_with(shape, &["--carrier", carrier, "--allow-faults", "--config", path.to_str().unwrap()])
    }
}

pub fn body(prompt: &str, num_tokens: u32) -> Value {
    json!({
        "prompt": prompt, "max_tokens": num_tokens, "temperature": 0.9, "seed": 11, "stream": true,
        "logprobs": 0, "return_tokens_as_token_ids": true,
    })
}

/// The tokens of a stream. `at` is called once, when that many have come.
pub fn stream(url: &str, body: &Value, at: usize, mut act: impl FnMut()) -> Vec<String> {
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

pub fn status(url: &str) -> Value {
    let asked = finish(&mut relevo(["status", "--json", "--url", url]));
    assert!(asked.status.success(), "{asked:?}");
    serde_json::from_str(&asked.stdout).unwrap()
}

pub fn node<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap_or(&Value::Null)
}

pub fn pid(url: &str, name: &str) -> u32 {
    u32::try_from(node(&status(url), name)["pid"].as_u64().unwrap()).unwrap()
}

/// How many pools of other processes a process can read.
pub fn num_pools_read(pid: u32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    // A pool of its own can be written, too.
    maps.lines().filter(|map| map.contains(" r--s ") && map.contains("memfd:relevo-kv")).count()
}

/// The worker that decodes something now.
pub fn busy_decoder(url: &str) -> String {
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
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = clock::now();
    while !holds() {
        assert!(clock::now().since(began) < DEADLINE, "{what}: not within {DEADLINE:?}");
    }
}

/// Every worker serves, and holds nothing for anybody.
pub fn is_at_rest(url: &str, num_workers: usize) -> bool {
    let status = status(url);
    let devices = status["nodes"].as_array().unwrap().iter().flat_map(|node| node["devices"].as_array().unwrap());
    let resting = devices.filter(|device| {
        let blocks = &device["kv_blocks"];
        device["standing"] == "serving" && blocks["active"] == 0 && blocks["leased"] == 0 && device["leases"] == 0
    });
    resting.count() == num_workers
}

/// Stops a cluster; a line of level error fails the test.
pub fn stop(server: Server) {
    let end = server.stop("TERM");
    assert!(end.status.success(), "{end:?}");
    assert!(!end.stderr.contains(" ERROR "), "{}", end.stderr);
}

pub fn prompt() -> String {
    "a prompt of more than two blocks, so that some are full and one is not; ".repeat(2)
}
