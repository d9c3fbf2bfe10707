//! Many processes, one cluster: the tokens are those of one process, whatever dies, and nothing is left of what died.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::path::{Path, PathBuf};

use program::local_cluster::{
    SCRIPT, World, body, busy_decoder, eventually, is_at_rest, node, pid, prompt, status, stop, stream,
};
use program::{Scrape, finish, kill, post, relevo};
use relevo_actors::clock;
use serde_json::{Value, json};

#[test]
fn a_stream_goes_on_with_the_same_tokens_whichever_worker_is_killed_or_stopped() {
    let world = World::new();
    let expected = world.expected(120);
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
fn a_worker_that_is_asked_to_stop_finishes_what_it_has_and_nothing_is_sent_again() {
    let world = World::new();
    let cluster = world.cluster("2p2d");
    let url = cluster.url.clone();
    let expected = stream(&url, &body(&prompt(), 240), usize::MAX, || {});
    for role in ["decode", "prefill"] {
        let mut victim = (String::new(), 0);
        let tokens = stream(&url, &body(&prompt(), 240), 20, || {
            let name = if role == "decode" { busy_decoder(&url) } else { "prefill-0".to_owned() };
            victim = (name.clone(), pid(&url, &name));
            kill(victim.1, "TERM");
        });
        assert_eq!(tokens, expected);
        let (name, old) = victim;
        eventually("another takes its place", || {
            let status = status(&url);
            node(&status, &name)["pid"].as_u64().is_some_and(|pid| pid != 0 && pid != u64::from(old))
        });
        eventually("the cluster is at rest", || is_at_rest(&url, 4));
    }
    assert_eq!(Scrape::of(&url).sum("relevo_replays_total", ""), None);
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
    let carried = Scrape::of(&metrics).sum("relevo_kv_bytes_handed_over_total", "");
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

/// Settings of one more node that would decode, with this identity.
fn stranger_settings(world: &World, identity: &Path, device: &str) -> PathBuf {
    let gateway = world.settings("gateway");
    let seed = gateway["node"]["listen"].as_str().unwrap();
    let free = program::test_ports::free_udp();
    let settings = format!(
        "[node]\nroles = [\"decode\"]\nlisten = \"{free}\"\nseeds = [\"{seed}\"]\nidentity = \"{}\"\nstate_dir = \"{}\"\n\
         [[device]]\nkind = \"{device}\"\n",
        identity.display(),
        world.folder.path().join("state").display(),
    );
    let path = world.folder.path().join("stranger.toml");
    std::fs::write(&path, settings).unwrap();
    path
}

/// Its certificate is good, and what it would do with KV blocks is not.
#[test]
fn a_node_that_serves_another_model_or_has_other_blocks_is_refused_and_both_sides_say_why() {
    let world = World::new();
    let cluster = world.cluster("1p1d");
    let expected = stream(&cluster.url, &body(&prompt(), 40), usize::MAX, || {});
    let folder = world.folder.path();
    let authority = world.settings_path("gateway").parent().unwrap().join("ca");
    let identity = folder.join("misfit");
    issue(&authority, "misfit", &identity);
    for (reason, change, words) in [
        ("kv_layout", ("key_dim = 32", "key_dim = 16"), "its KV blocks are"),
        ("model", ("num_layers", "tokens = \"echo\"\nnum_layers"), "it serves"),
    ] {
        let other = folder.join("other.toml");
        std::fs::write(&other, SCRIPT.replace(change.0, change.1)).unwrap();
        let path = stranger_settings(&world, &identity, &format!("scripted:{}", other.display()));
        let mut child = relevo(["node", "--config"]).arg(&path).spawn().unwrap();
        eventually("it is refused", || {
            let label = format!("reason=\"{reason}\"");
            Scrape::of(&cluster.url).sum("relevo_peers_refused_total", &label).is_some_and(|count| count > 0)
        });
        assert_eq!(node(&status(&cluster.url), "misfit"), &Value::Null, "{reason}");
        assert_eq!(stream(&cluster.url, &body(&prompt(), 40), usize::MAX, || {}), expected, "{reason}");
        child.kill().unwrap();
        let told = child.wait_with_output().unwrap();
        let told = String::from_utf8(told.stderr).unwrap();
        assert!(told.contains(words), "{reason}: {told}");
    }
    eventually("the cluster is at rest", || is_at_rest(&cluster.url, 2));
    let end = cluster.stop("TERM");
    assert!(end.stderr.contains("misfit") && end.stderr.contains("it serves"), "{end:?}");
}

#[test]
fn a_node_of_another_cluster_is_refused_and_counted() {
    let world = World::new();
    let cluster = world.cluster("1p1d");
    let folder = world.folder.path();
    let (authority, stranger) = (folder.join("other-ca"), folder.join("stranger"));
    assert!(finish(relevo(["ca", "init", "--dir"]).arg(&authority)).status.success());
    issue(&authority, "decode-0", &stranger);
    let path = stranger_settings(&world, &stranger, &world.device());
    let mut child = relevo(["node", "--config"]).arg(&path).spawn().unwrap();
    eventually("it is refused", || {
        Scrape::of(&cluster.url).sum("relevo_peers_refused_total", "").is_some_and(|count| count > 0)
    });
    assert!(node(&status(&cluster.url), "decode-0")["state"] == "linked", "the true one is not disturbed");
    child.kill().unwrap();
    child.wait().unwrap();
    stop(cluster);
}
