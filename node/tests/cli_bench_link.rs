//! `relevo bench link`: what it tells of a cluster's KV paths, that the cluster serves meanwhile, and that nothing of it stays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::process::{Child, Command};

use program::local_cluster::{
    World, body, eventually, is_at_rest, node, num_pools_read, pid, prompt, status, stop, stream,
};
use program::{finish, finished, kill, relevo};
use serde_json::Value;

fn bench(url: &str, arguments: &[&str]) -> Command {
    relevo([&["bench", "link", "--url", url], arguments].concat())
}

fn start(url: &str, arguments: &[&str]) -> Child {
    bench(url, arguments).spawn().unwrap()
}

fn measured(url: &str, arguments: &[&str]) -> Value {
    let end = finish(&mut bench(url, &[arguments, &["--json"]].concat()));
    assert!(end.status.success(), "{end:?}");
    serde_json::from_str(&end.stdout).unwrap()
}

fn refused(url: &str, arguments: &[&str]) -> String {
    let end = finish(&mut bench(url, arguments));
    assert!(!end.status.success(), "{end:?}");
    end.stderr
}

#[test]
fn a_link_is_measured_while_it_serves_and_nothing_stays_of_it() {
    let world = World::new();
    let expected = world.expected(300);
    for (carrier, has_packets) in [("quic", true), ("shm", false)] {
        let cluster = world.cluster_with("1p1d", &["--carrier", carrier]);
        let url = cluster.url.clone();
        let mut other = None;
        let begins = || other = Some(start(&url, &["decode-0", "--json", "--block-kib", "64", "--rounds", "3"]));
        assert_eq!(stream(&url, &body(&prompt(), 300), 5, begins), expected, "{carrier}: while a link is measured");
        let end = finished(other.unwrap());
        assert!(end.status.success(), "{end:?}");
        let figures: Value = serde_json::from_str(&end.stdout).unwrap();
        assert_eq!(
            (&figures["from"], &figures["to"], &figures["carrier"]),
            (&"prefill-0".into(), &"decode-0".into(), &carrier.into())
        );
        assert_eq!((&figures["block_bytes"], &figures["frame_blocks"]), (&65_536.into(), &32.into()));
        for kind in ["kv", "bare"] {
            let transfer = &figures[kind];
            assert!(transfer["bytes"].as_u64().unwrap() > 1 << 20, "{figures}");
            for figure in ["bytes_per_s", "sender_cpu_s_per_gb", "receiver_cpu_s_per_gb", "round_trip_us_p50"] {
                assert!(transfer[figure].as_f64().unwrap() > 0.0, "{kind} {figure}: {figures}");
            }
        }
        // Packets of 65,507 bytes at most.
        let least = figures["kv"]["bytes"].as_u64().unwrap() / 65_507;
        let sent = figures["kv"]["sent_packets"].as_u64().unwrap();
        assert_eq!((sent >= least, sent > 0), (has_packets, has_packets), "{figures}");
        // The model's own blocks: 32 + 32 elements of two bytes for 16 tokens.
        assert_eq!(measured(&url, &["decode-0", "--rounds", "1"])["block_bytes"], 64 * 2 * 16);
        assert_eq!(stream(&url, &body(&prompt(), 300), usize::MAX, || {}), expected, "{carrier}: afterwards");
        eventually("the cluster is at rest", || is_at_rest(&url, 2));
        // The one that the streams' blocks come from, and no longer those of the measurements.
        let pools = usize::from(carrier == "shm");
        eventually("no further pool is read", || num_pools_read(pid(&url, "decode-0")) == pools);
        stop(cluster);
    }
}

#[test]
fn what_cannot_be_measured_is_refused_with_the_reason() {
    let world = World::new();
    let cluster = world.cluster("1p1d");
    let url = &cluster.url;
    let names = "there are decode-0, gateway, prefill-0";
    assert!(refused(url, &["decode-7"]).contains(names), "{}", refused(url, &["decode-7"]));
    assert!(refused(url, &["gateway"]).contains("gateway has no device"));
    assert!(refused(url, &["decode-0", "--from", "gateway"]).contains("gateway may not prefill"));
    assert!(refused(url, &["decode-0", "--from", "decode-0"]).contains("decode-0 needs no link to itself"));
    assert!(refused(url, &["decode-0", "--block-kib", "4096"]).contains("4096 is not in 1..=1024"));
    stop(cluster);
}

#[test]
fn a_node_that_dies_under_a_measurement_ends_it_and_is_measured_when_it_is_back() {
    let world = World::new();
    let cluster = world.cluster("1p1d");
    let url = &cluster.url;
    let measuring = start(url, &["decode-0", "--rounds", "60"]);
    let rate = |status: &Value| {
        let links = node(status, "prefill-0")["links"].as_array().unwrap().clone();
        let to_it = links.into_iter().find(|link| link["peer"] == "decode-0");
        to_it.map_or(0, |link| link["sent_bytes_per_s"].as_u64().unwrap())
    };
    eventually("blocks go there", || rate(&status(url)) > 10 << 20);
    let before = pid(url, "decode-0");
    kill(before, "KILL");
    let end = finished(measuring);
    assert!(!end.status.success() && end.stderr.contains("decode-0"), "{end:?}");
    eventually("it is back", || is_at_rest(url, 2) && pid(url, "decode-0") != before);
    assert!(measured(url, &["decode-0", "--rounds", "1"])["kv"]["bytes"].as_u64().unwrap() > 0);
    eventually("the cluster is at rest", || is_at_rest(url, 2));
    stop(cluster);
}
