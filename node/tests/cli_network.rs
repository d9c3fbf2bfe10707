//! Clusters on networks that lose packets, are slow, or are cut: in network namespaces of their own, where this user may make them; else each
//! test says that it is left out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::process::{Command, Stdio};
use std::time::Duration;

use program::local_cluster::{World, body, busy_decoder, eventually, is_at_rest, node, prompt, status, stop, stream};
use program::{Scrape, Server};
use relevo_actors::clock;

/// Says to a test that it is in its namespace already.
const INSIDE: &str = "TEST_IN_NETWORK_NAMESPACE";

#[expect(clippy::print_stderr, reason = "a test that is left out says so")]
fn say_left_out() {
    eprintln!("left out: this user may not make a network namespace (unshare), or nft is not installed");
}

/// A cut that is over within that time is no death: half a second of silence is one, and heartbeats come every tenth.
const A_FLAP: Duration = Duration::from_millis(250);

/// A moment that a way is cut.
#[expect(clippy::disallowed_methods, reason = "the time is what is tried, not a wait for something")]
fn let_a_moment_pass() {
    std::thread::sleep(Duration::from_millis(60));
}

/// Runs the test of this name once more, in a namespace; or `test`, if that has been done.
fn in_namespace(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", "link set lo up");
        return test();
    }
    let is_root = rustix::process::geteuid().is_root();
    let flags = if is_root { vec!["--net"] } else { vec!["--net", "--map-root-user"] };
    let mut tried = Command::new("unshare");
    tried.args(&flags).args(["nft", "list", "tables"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !tried.status().is_ok_and(|status| status.success()) {
        return say_left_out();
    }
    let mut again = Command::new("unshare");
    again.args(&flags).arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    assert!(again.env(INSIDE, "1").status().unwrap().success(), "it fails in its namespace");
}

fn run(program: &str, arguments: &str) {
    let ended = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(ended.status.success(), "{program} {arguments}: {ended:?}");
}

/// Loses the packets of UDP that match, of all that arrive here.
fn lose(rules: &[String]) {
    mend();
    run("nft", "add table inet test");
    // On their way in: of a packet that is lost on its way out, its sender hears.
    run("nft", "add chain inet test lost { type filter hook input priority 0 ; }");
    for rule in rules {
        run("nft", &format!("add rule inet test lost {rule} drop"));
    }
}

fn mend() {
    // There may be none.
    let _ = Command::new("nft").args(["delete", "table", "inet", "test"]).stderr(Stdio::null()).status();
}

fn tokens(cluster: &Server, prompt: &str, num_tokens: u32) -> Vec<String> {
    stream(&cluster.url, &body(prompt, num_tokens), usize::MAX, || {})
}

fn by_quic(world: &World, shape: &str) -> Server {
    world.cluster_with(shape, &["--carrier", "quic"])
}

#[test]
fn packets_that_are_lost_cost_no_token() {
    in_namespace("packets_that_are_lost_cost_no_token", || {
        let world = World::new();
        let cluster = by_quic(&world, "1p1d");
        let long = prompt().repeat(10);
        let expected = tokens(&cluster, &long, 60);
        for percent in [1, 5] {
            lose(&[format!("meta l4proto udp numgen random mod 100 < {percent}")]);
            for index in 0..3 {
                // No prefix of it is there already.
                let fresh = format!("{percent} {index} {long}");
                let lossy = tokens(&cluster, &fresh, 60);
                mend();
                assert_eq!(tokens(&cluster, &fresh, 60), lossy, "{percent} % lost");
                lose(&[format!("meta l4proto udp numgen random mod 100 < {percent}")]);
            }
            assert_eq!(tokens(&cluster, &long, 60), expected, "{percent} % lost");
        }
        let status = status(&cluster.url);
        let nodes = status["nodes"].as_array().unwrap().iter();
        let lost: u64 = nodes
            .flat_map(|node| node["links"].as_array().unwrap())
            .map(|link| link["lost_packets"].as_u64().unwrap())
            .sum();
        assert!(lost > 0, "packets were lost: {status}");
        mend();
        eventually("the cluster is at rest", || is_at_rest(&cluster.url, 2));
        stop(cluster);
    });
}

#[test]
fn a_hundred_megabits_are_slow_and_change_nothing() {
    in_namespace("a_hundred_megabits_are_slow_and_change_nothing", || {
        let world = World::new();
        let cluster = by_quic(&world, "1p1d");
        let long = prompt().repeat(20);
        let expected = tokens(&cluster, &long, 20);
        run("tc", "qdisc add dev lo root tbf rate 100mbit burst 128kb latency 400ms");
        let fresh = format!("another {long}");
        let began = clock::now();
        let slow = tokens(&cluster, &fresh, 20);
        let took = clock::now().since(began);
        // The context's blocks, each of 4 layers of 32 + 32 elements of two bytes for 16 tokens.
        let num_bytes = fresh.len().div_ceil(16) * 4 * 64 * 2 * 16;
        assert!(
            took.as_secs_f64() > num_bytes as f64 * 8.0 / 100e6,
            "{num_bytes} bytes in {took:?}: the network is not slow"
        );
        run("tc", "qdisc del dev lo root");
        assert_eq!(tokens(&cluster, &fresh, 20), slow);
        assert_eq!(tokens(&cluster, &long, 20), expected);
        eventually("the cluster is at rest", || is_at_rest(&cluster.url, 2));
        stop(cluster);
    });
}

#[test]
fn a_worker_that_is_cut_off_one_way_or_both_costs_a_pause_and_a_flap_costs_nothing() {
    let name = "a_worker_that_is_cut_off_one_way_or_both_costs_a_pause_and_a_flap_costs_nothing";
    in_namespace(name, || {
        let world = World::new();
        let cluster = by_quic(&world, "2p2d");
        let url = cluster.url.clone();
        // Long enough to notice that a worker is silent before it has done all that it was asked to.
        let expected = tokens(&cluster, &prompt(), 300);
        let port = |name: &str| {
            let listen = world.settings(name)["node"]["listen"].as_str().unwrap().to_owned();
            listen.rsplit_once(':').unwrap().1.to_owned()
        };
        let replays = || Scrape::of(&url).sum("relevo_replays_total", "").unwrap_or(0);
        for ends in [&["dport", "sport"][..], &["dport"], &["sport"]] {
            eventually("the cluster is at rest", || is_at_rest(&url, 4));
            let before = replays();
            let mut victim = String::new();
            let cut = stream(&url, &body(&prompt(), 300), 20, || {
                victim = busy_decoder(&url);
                let port = port(&victim);
                lose(&ends.iter().map(|end| format!("udp {end} {port}")).collect::<Vec<_>>());
            });
            assert_eq!(cut, expected, "{ends:?}");
            assert!(replays() > before, "{ends:?}: it was cut off under the stream");
            eventually("it is lost", || node(&status(&url), &victim)["state"] == "lost");
            mend();
        }
        eventually("the cluster is at rest", || is_at_rest(&url, 4));
        // Under load a command may come late, and what was to be a flap is a death; then once more.
        let mut attempts = 0..10;
        let (flap, num_replays) = loop {
            attempts.next().expect("one of ten cuts is as short as a flap");
            eventually("the cluster is at rest", || is_at_rest(&url, 4));
            let (before, mut lasted) = (replays(), Duration::MAX);
            let flapped = stream(&url, &body(&prompt(), 300), 20, || {
                let port = port(&busy_decoder(&url));
                let began = clock::now();
                lose(&[format!("udp dport {port}"), format!("udp sport {port}")]);
                let_a_moment_pass();
                mend();
                lasted = clock::now().since(began);
            });
            assert_eq!(flapped, expected);
            if lasted < A_FLAP {
                break (lasted, replays() - before);
            }
        };
        let end = cluster.stop("TERM");
        assert_eq!(num_replays, 0, "a flap of {flap:?} is no death: {end:#?}");
        assert!(!end.stderr.contains(" ERROR "), "{}", end.stderr);
    });
}
