//! What carries KV blocks between the processes of a cluster: whatever it is, and whatever breaks, the tokens are those of one process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use program::local_cluster::{
    World, body, busy_decoder, eventually, is_at_rest, node, num_pools_read, pid, prompt, status, stop, stream,
};
use program::{Scrape, Server, finish, kill, relevo};

const HANDED_OVER: &str = "relevo_kv_bytes_handed_over_total";

impl World {
    /// A cluster whose blocks travel so.
    fn cluster_by(&self, shape: &str, carrier: &str) -> Server {
        self.cluster_with(shape, &["--carrier", carrier])
    }

    /// The metrics of a worker.
    fn scrape(&self, worker: &str) -> Scrape {
        let settings = self.settings(worker);
        Scrape::of(&format!("http://{}", settings["node"]["metrics_listen"].as_str().unwrap()))
    }

    /// KV bytes that a worker has sent by a carrier.
    fn sent(&self, worker: &str, carrier: &str) -> u64 {
        self.scrape(worker).sum(HANDED_OVER, &format!("carrier=\"{carrier}\"")).unwrap_or(0)
    }

    /// Has a node begin anew with another carrier: whoever watches it starts it again by its settings.
    fn restart_with(&self, url: &str, worker: &str, carrier: &str) {
        let mut settings = self.settings(worker);
        settings["transport"].as_table_mut().unwrap().insert("carrier".to_owned(), carrier.into());
        std::fs::write(self.settings_path(worker), settings.to_string()).unwrap();
        let before = pid(url, worker);
        kill(before, "KILL");
        eventually("it is back", || {
            let status = status(url);
            let back = node(&status, worker);
            back["pid"].as_u64().is_some_and(|pid| pid != 0 && pid != u64::from(before))
                && back["devices"][0]["standing"] == "serving"
        });
    }
}

fn tokens(url: &str, num_tokens: u32) -> Vec<String> {
    stream(url, &body(&prompt(), num_tokens), usize::MAX, || {})
}

/// What carries blocks from one node to another.
fn kv_carrier(url: &str, from: &str, to: &str) -> String {
    let status = status(url);
    let mut links = node(&status, from)["links"].as_array().unwrap().iter();
    links.find(|link| link["peer"] == to).unwrap()["kv_carrier"].as_str().unwrap().to_owned()
}

#[test]
fn blocks_travel_by_the_carrier_that_is_asked_for() {
    let world = World::new();
    let expected = world.expected(40);
    // The context's blocks, each of 4 layers of 32 + 32 elements of two bytes for 16 tokens.
    let context_bytes = u64::try_from(prompt().len()).unwrap().div_ceil(16) * 4 * 64 * 2 * 16;
    for (asked, carrier, other) in [("shm", "shm", "quic"), ("auto", "shm", "quic"), ("quic", "quic", "shm")] {
        let cluster = world.cluster_by("1p1d", asked);
        let url = &cluster.url;
        assert_eq!(tokens(url, 40), expected, "{asked}");
        assert_eq!((world.sent("prefill-0", carrier), world.sent("prefill-0", other)), (context_bytes, 0), "{asked}");
        assert_eq!(kv_carrier(url, "prefill-0", "decode-0"), carrier, "{asked}");
        assert_eq!(kv_carrier(url, "decode-0", "prefill-0"), "", "{asked}: nothing goes back");
        let decode = pid(url, "decode-0");
        assert_eq!(num_pools_read(decode), usize::from(carrier == "shm"), "{asked}");
        eventually("the cluster is at rest", || is_at_rest(url, 2));
        // Nobody asks for anything, so that no link is made anew.
        kill(pid(url, "prefill-0"), "KILL");
        eventually("the memory of a process that is gone is let go of", || num_pools_read(decode) == 0);
        eventually("the cluster is at rest", || is_at_rest(url, 2));
        assert_eq!(tokens(url, 40), expected, "{asked}");
        assert_eq!(world.sent("prefill-0", other), 0, "{asked}");
        stop(cluster);
        std::fs::remove_dir_all(world.folder.path().join("data")).unwrap();
    }
}

#[test]
fn streams_by_shared_memory_go_on_whichever_worker_is_killed_or_stopped() {
    let world = World::new();
    let expected = world.expected(120);
    let cluster = world.cluster_by("2p2d", "shm");
    let url = &cluster.url;
    for signal in ["KILL", "STOP"] {
        eventually("the cluster is at rest", || is_at_rest(url, 4));
        let mut victim = None;
        let act = || {
            victim = Some(pid(url, &busy_decoder(url)));
            kill(victim.unwrap(), signal);
        };
        assert_eq!(stream(url, &body(&prompt(), 120), 20, act), expected, "after SIG{signal}");
        if signal == "STOP" {
            kill(victim.unwrap(), "CONT");
        }
    }
    for prefill in ["prefill-0", "prefill-1"] {
        eventually("the cluster is at rest", || is_at_rest(url, 4));
        let tokens = stream(url, &body(&prompt(), 120), 1, || kill(pid(url, prefill), "KILL"));
        assert_eq!(tokens, expected, "after the death of {prefill}");
    }
    eventually("the cluster is at rest", || is_at_rest(url, 4));
    assert_eq!(Scrape::of(url).sum("relevo_contradicted_tokens_total", ""), None);
    stop(cluster);
}

#[test]
fn a_link_that_breaks_under_a_frame_costs_a_replay_and_no_token() {
    let world = World::new();
    let expected = world.expected(40);
    // "auto" does not try again by what broke; who insists does.
    for (asked, afterwards) in [("shm", "shm"), ("auto", "quic"), ("quic", "quic")] {
        let cluster = world.faulty_cluster_by("1p1d", asked, "{ kind = \"break-link\", frame = 2 }");
        let url = &cluster.url;
        assert_eq!(tokens(url, 40), expected, "{asked}");
        assert!(Scrape::of(url).sum("relevo_replays_total", "").unwrap_or(0) >= 1, "{asked}");
        assert_eq!(kv_carrier(url, "prefill-0", "decode-0"), afterwards, "{asked}");
        eventually("the cluster is at rest", || is_at_rest(url, 2));
        assert_eq!(num_pools_read(pid(url, "decode-0")), usize::from(afterwards == "shm"), "{asked}");
        assert_eq!(tokens(url, 40), expected, "{asked}");
        eventually("the cluster is at rest", || is_at_rest(url, 2));
        stop(cluster);
        std::fs::remove_dir_all(world.folder.path().join("data")).unwrap();
    }
}

#[test]
fn a_block_that_is_damaged_on_its_way_through_shared_memory_is_sent_again() {
    let world = World::new();
    let expected = world.expected(40);
    let cluster = world.faulty_cluster_by("1p1d", "shm", "{ kind = \"corrupt-frame\", frame = 3 }");
    assert_eq!(tokens(&cluster.url, 40), expected);
    let damaged = world.scrape("prefill-0").sum("relevo_kv_blocks_corrupt_total", "carrier=\"shm\"");
    assert_eq!(damaged, Some(1));
    assert_eq!(Scrape::of(&cluster.url).sum("relevo_replays_total", ""), None);
    eventually("the cluster is at rest", || is_at_rest(&cluster.url, 2));
    stop(cluster);
}

#[test]
fn a_peer_that_shares_no_memory_gets_blocks_by_quic_or_from_those_who_insist_none() {
    let world = World::new();
    let expected = world.expected(40);

    let cluster = world.cluster_by("1p1d", "auto");
    world.restart_with(&cluster.url, "decode-0", "quic");
    // Until its peers are linked to the one that began anew, prefill-0 decodes for want of another.
    eventually("blocks go over QUIC", || {
        assert_eq!(tokens(&cluster.url, 40), expected);
        world.sent("prefill-0", "quic") > 0
    });
    assert_eq!(world.sent("prefill-0", "shm"), 0);
    stop(cluster);
    std::fs::remove_dir_all(world.folder.path().join("data")).unwrap();

    let cluster = world.cluster_by("1p2d", "shm");
    let url = cluster.url.clone();
    world.restart_with(&url, "decode-0", "quic");
    let order = |words: &[&str]| assert!(finish(relevo(words).args(["--url", &url])).status.success());
    order(&["drain", "decode-1"]);
    eventually("it drains", || node(&status(&url), "decode-1")["devices"][0]["standing"] == "draining");
    // Until the map has the one that began anew, prefill-0 decodes for want of another: then one more is asked for.
    let is_there = Arc::new(AtomicBool::new(false));
    let asks = std::thread::spawn({
        let (url, is_there, expected) = (url.clone(), Arc::clone(&is_there), expected.clone());
        move || {
            while !is_there.load(Ordering::Relaxed) {
                assert_eq!(tokens(&url, 40), expected, "one that shares its memory decodes");
            }
        }
    });
    eventually("blocks find no way", || Scrape::of(&url).sum("relevo_replays_total", "").unwrap_or(0) > 0);
    is_there.store(true, Ordering::Relaxed);
    order(&["undrain", "decode-1"]);
    asks.join().unwrap();
    eventually("blocks go to the one that shares its memory", || {
        assert_eq!(tokens(&url, 40), expected);
        world.sent("prefill-0", "shm") > 0
    });
    assert_eq!(world.sent("prefill-0", "quic"), 0);
    eventually("the cluster is at rest", || is_at_rest(&url, 3));
    let end = cluster.stop("TERM");
    let said: Vec<_> = end.stderr.lines().filter(|line| line.contains(" ERROR ")).collect();
    let [said] = said[..] else { panic!("once, and nothing else: {said:?}") };
    for words in
        ["decode-0", "it refuses: transport.carrier is \\\"quic\\\" there", "set \\\"auto\\\" or \\\"quic\\\" here"]
    {
        assert!(said.contains(words) || said.contains(&words.replace('\\', "")), "{said}");
    }
}

/// Its blocks leave all at once, and no frame announces so many.
#[test]
fn a_cached_prefix_of_thousands_of_blocks_is_handed_over() {
    let world = World::new();
    std::fs::write(world.script(), "tokens = \"echo\"\nmax_context_tokens = 300000\n").unwrap();
    let long = body(&prompt().repeat(1500), 20);
    let alone = world.alone();
    let expected = stream(&alone.url, &long, usize::MAX, || {});
    stop(alone);
    for carrier in ["quic", "shm"] {
        let cluster = world.cluster_by("1p1d", carrier);
        let url = &cluster.url;
        // The decode worker gets nothing of this one, and of the next one all.
        let first = body(&prompt().repeat(1500), 1);
        assert_eq!(stream(url, &first, usize::MAX, || {}), expected[..1], "{carrier}");
        assert_eq!(stream(url, &long, usize::MAX, || {}), expected, "{carrier}");
        assert_eq!(Scrape::of(url).sum("relevo_replays_total", "").unwrap_or(0), 0, "{carrier}");
        let blocks = u64::try_from(prompt().len() * 1500 / 16).unwrap();
        assert!(world.sent("prefill-0", carrier) >= blocks * 2 * 2 * 4 * 16, "{carrier}");
        eventually("the cluster is at rest", || is_at_rest(url, 2));
        stop(cluster);
    }
}
