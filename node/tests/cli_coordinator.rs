//! A coordinator that is a process of its own, killed under load and started again somewhere else: streams and workers do without it, and what it knew it
//! learns from the others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use program::by_hand::{ByHand, Node, Settings, now};
use program::local_cluster::{body, busy_decoder, eventually, is_at_rest, node, prompt, status, stop, stream};
use program::test_ports::{free_tcp, free_udp};
use program::{Finished, Server, finish, get, post, relevo};
use relevo_actors::clock;
use relevo_transport::identity::Role;
use serde_json::{Value, json};

/// Longer than silence (half a second), a message without an answer and a cluster without workers (two seconds each) may last.
const LONG: Duration = Duration::from_millis(2500);

/// A stream that is at it for longer than a link without heartbeats lasts: 4 ms for each token, at least.
const NUM_TOKENS: u32 = 200;

const COORDINATOR: &str = "coordinator";

/// A coordinator, a gateway and workers, a process each.
struct Cluster {
    place: ByHand,
    url: String,
    gateway: SocketAddr,
    settings: BTreeMap<String, PathBuf>,
    nodes: BTreeMap<String, Node>,
    num_workers: usize,
}

impl Cluster {
    fn start(workers: &[(&str, Role)]) -> Self {
        let place = ByHand::begun(now());
        let (gateway, api) = (free_udp(), free_tcp());
        let of_gateway = format!(
            "expected_devices = {}\n[server]\nlisten = \"{api}\"\n[router]\ndisaggregate = \"always\"",
            workers.len()
        );
        let mut settings = vec![
            (COORDINATOR, place.node(COORDINATOR, &[Role::Coordinator], now(), place.seed, "")),
            ("gateway", place.node("gateway", &[Role::Gateway], now(), gateway, &of_gateway)),
        ];
        for &(name, role) in workers {
            // Each could play the other role, too.
            place.issue(name, &[Role::Prefill, Role::Decode], now());
            let node = Settings { roles: &[role], listen: free_udp(), seeds: vec![place.seed], lines: "" };
            settings.push((name, place.settings(name, name, &node)));
        }
        let settings: BTreeMap<_, _> = settings.into_iter().map(|(name, path)| (name.to_owned(), path)).collect();
        let (url, num_workers) = (format!("http://{api}"), workers.len());
        let mut cluster = Self { place, url, gateway, settings, nodes: BTreeMap::new(), num_workers };
        for name in cluster.settings.keys().cloned().collect::<Vec<_>>() {
            cluster.begin(&name);
        }
        eventually("the cluster serves", || get(&cluster.url, "/ready").is_some_and(|(code, _)| code == 200));
        cluster
    }

    fn begin(&mut self, name: &str) {
        self.nodes.insert(name.to_owned(), Node::start(&self.settings[name]));
    }

    fn kill(&mut self, name: &str) {
        self.nodes.remove(name).unwrap().kill();
    }

    /// Starts the coordinator at another address, of which only it knows. With a file of its own it has a state of its own, too.
    fn begin_coordinator_elsewhere(&mut self, seeds: Vec<SocketAddr>, file: &str) {
        let settings = Settings { roles: &[Role::Coordinator], listen: free_udp(), seeds, lines: "" };
        let path = self.place.settings(COORDINATOR, file, &settings);
        self.settings.insert(COORDINATOR.to_owned(), path);
        self.begin(COORDINATOR);
    }

    /// The tokens of a process that is alone.
    fn expected(&self) -> Vec<String> {
        let alone = Server::start(&["--device", &self.place.device()]);
        let expected = stream(&alone.url, &body(&prompt(), NUM_TOKENS), usize::MAX, || {});
        stop(alone);
        expected
    }

    fn order(&self, words: &[&str]) -> Finished {
        finish(relevo(words).args(["--url", &self.url]))
    }

    fn obeys(&self, words: &[&str]) {
        let told = self.order(words);
        assert!(told.status.success(), "{words:?}: {told:?}");
    }

    /// By the map that the gateway has.
    fn standing(&self, name: &str) -> Value {
        node(&status(&self.url), name)["devices"][0]["standing"].clone()
    }

    fn roles(&self, name: &str) -> Value {
        node(&status(&self.url), name)["devices"][0]["roles"].clone()
    }

    fn state(&self, name: &str) -> Value {
        node(&status(&self.url), name)["state"].clone()
    }

    fn stop(mut self) {
        eventually("the cluster is at rest", || is_at_rest(&self.url, self.num_workers));
        // The gateway first, as an operator would.
        self.nodes.remove("gateway").unwrap().stop();
        std::mem::take(&mut self.nodes).into_values().for_each(Node::stop);
    }
}

#[test]
fn a_coordinator_that_is_gone_is_missed_by_no_stream_and_finds_drains_and_roles_as_they_were_wherever_it_is_started() {
    let mut cluster = Cluster::start(&[
        ("prefill-0", Role::Prefill),
        ("decode-0", Role::Decode),
        ("decode-1", Role::Decode),
        ("decode-2", Role::Decode),
    ]);
    let (url, expected) = (cluster.url.clone(), cluster.expected());
    let ask = || stream(&url, &body(&prompt(), NUM_TOKENS), usize::MAX, || {});
    assert_eq!(ask(), expected);
    cluster.obeys(&["drain", "decode-1"]);
    cluster.obeys(&["role", "decode-2", "prefill"]);
    eventually("it drains", || cluster.standing("decode-1") == "draining");
    eventually("it prefills", || cluster.roles("decode-2") == json!(["prefill"]));

    let tokens = stream(&url, &body(&prompt(), NUM_TOKENS), 20, || cluster.kill(COORDINATOR));
    assert_eq!(tokens, expected, "a stream that was under way");
    let since = clock::now();
    eventually("it is seen to be gone", || cluster.state(COORDINATOR) == "lost");
    while clock::now().since(since) < LONG {
        assert_eq!(ask(), expected, "a stream that began without it");
    }
    for words in [&["undrain", "decode-1"][..], &["role", "decode-2", "decode"]] {
        let told = cluster.order(words);
        assert!(!told.status.success() && told.stderr.contains("ask again"), "{told:?}");
    }
    let (code, answer) = post(&url, "/relevo/order", &json!({ "undrain": "decode-1" }));
    assert!(code == 503 && answer.contains("\"coordinator_unavailable\""), "{code} {answer}");
    assert_eq!(cluster.standing("decode-1"), "draining", "nothing has changed");

    // Its state comes along, as its file has the name that it had.
    let gateway = cluster.gateway;
    let tokens = stream(&url, &body(&prompt(), NUM_TOKENS), 20, || {
        cluster.begin_coordinator_elsewhere(vec![gateway], COORDINATOR);
    });
    assert_eq!(tokens, expected, "a stream that has seen it come back");
    eventually("it is found", || cluster.state(COORDINATOR) == "linked");
    // Shown by its new map, and by no other.
    eventually("it takes orders again", || cluster.order(&["drain", "prefill-0"]).status.success());
    eventually("it drains", || cluster.standing("prefill-0") == "draining");
    let standings = ["decode-0", "decode-1", "decode-2"].map(|name| cluster.standing(name));
    assert_eq!(standings, ["serving", "draining", "serving"]);
    assert_eq!(cluster.roles("decode-2"), json!(["prefill"]));
    assert_eq!(ask(), expected, "by those two that neither drain");
    cluster.obeys(&["undrain", "prefill-0"]);
    cluster.obeys(&["undrain", "decode-1"]);
    cluster.obeys(&["role", "decode-2", "decode"]);
    eventually("it decodes", || cluster.roles("decode-2") == json!(["decode"]));
    eventually("all serve", || is_at_rest(&url, 4));
    assert_eq!(ask(), expected);
    cluster.stop();
}

#[test]
fn a_worker_that_dies_and_one_that_begins_while_there_is_no_coordinator_do_without_it() {
    let mut cluster =
        Cluster::start(&[("prefill-0", Role::Prefill), ("decode-0", Role::Decode), ("decode-1", Role::Decode)]);
    let (url, expected) = (cluster.url.clone(), cluster.expected());
    cluster.kill(COORDINATOR);
    eventually("it is seen to be gone", || cluster.state(COORDINATOR) == "lost");
    let mut dead = Vec::new();
    for _ in 0..2 {
        let tokens = stream(&url, &body(&prompt(), NUM_TOKENS), 20, || {
            let name = busy_decoder(&url);
            cluster.kill(&name);
            dead.push(name);
        });
        assert_eq!(tokens, expected, "after the death of {dead:?}");
        // The other one has nobody else to go to than the one that begins again now.
        let name = dead.last().unwrap();
        cluster.begin(name);
        eventually("it rejoins by itself", || node(&status(&url), name)["epoch"].as_u64() > Some(1));
    }
    assert_ne!(dead[0], dead[1], "the stream has gone elsewhere");
    assert_eq!(cluster.state(COORDINATOR), "lost", "all the while");

    // Any node will do, and nothing is left of what it knew.
    let gateway = cluster.gateway;
    cluster.begin_coordinator_elsewhere(vec![gateway], "coordinator-anew");
    eventually("it is found", || cluster.state(COORDINATOR) == "linked");
    eventually("it takes orders again", || cluster.order(&["drain", "decode-1"]).status.success());
    eventually("it drains", || cluster.standing("decode-1") == "draining");
    assert_eq!(stream(&url, &body(&prompt(), NUM_TOKENS), usize::MAX, || {}), expected);
    cluster.obeys(&["undrain", "decode-1"]);
    cluster.stop();
}
