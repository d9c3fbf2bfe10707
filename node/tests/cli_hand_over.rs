//! A process that ends at a step of a hand-over, for each step that a role actor takes, and an engine that hangs, or is slow, in a process that lives: its stream
//! goes on elsewhere and shows nothing of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::sync::mpsc;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use program::local_cluster::{
    World, body, busy_decoder, eventually, is_at_rest, node, pid, prompt, status, stop, stream,
};
use program::{Scrape, kill};
use relevo_actors::clock;
use serde_json::Value;

/// The steps that a fault switch can end a process at.
const STEPS: [&str; 5] = ["admitted", "lease-wanted", "lease-asked", "lease-granted", "handed-over"];

#[test]
fn at_whichever_step_of_a_hand_over_a_worker_dies_its_stream_goes_on_with_the_same_tokens() {
    let world = World::new();
    let expected = world.expected(40);
    for step in STEPS {
        // At the second time, so that one that has been started again lives for a while.
        let fault = format!("{{ kind = \"abort-at-hand-over\", step = \"{step}\", time = 2 }}");
        let cluster = world.faulty_cluster_by("2p2d", "auto", &fault);
        let replays = || Scrape::of(&cluster.url).sum("relevo_replays_total", "").unwrap_or(0);
        let mut num_requests = 0;
        eventually("a worker dies at that step", || {
            assert_eq!(stream(&cluster.url, &body(&prompt(), 40), usize::MAX, || {}), expected, "{step}");
            num_requests += 1;
            assert!(num_requests <= 20, "{step}: nobody comes to it");
            replays() > 0
        });
        eventually("the cluster is at rest", || is_at_rest(&cluster.url, 4));
        assert_eq!(Scrape::of(&cluster.url).sum("relevo_contradicted_tokens_total", ""), None, "{step}");
        let end = cluster.stop("TERM");
        assert!(end.status.success(), "{end:?}");
        let mut errors = end.stderr.lines().filter(|line| line.contains(" ERROR "));
        assert!(errors.all(|line| line.contains("fault switch: the process ends")), "{}", end.stderr);
        std::fs::remove_dir_all(world.folder.path().join("data")).unwrap();
    }
}

/// Its process answers, beats and holds its links meanwhile.
#[test]
fn an_engine_that_hangs_under_a_live_process_is_replaced_while_its_stream_goes_on() {
    const HANGS: Duration = Duration::from_secs(60);
    let world = World::new();
    let expected = world.expected(120);
    let alone = world.alone();
    let device = status(&alone.url)["nodes"][0]["devices"][0]["name"].as_str().unwrap().to_owned();
    stop(alone);
    let path = world.folder.path().join("faults.toml");
    let fault =
        format!("{{ kind = \"hang-engine\", device = \"{device}\", step = 40, millis = {} }}", HANGS.as_millis());
    std::fs::write(&path, format!("[router]\nhang_after_ms = 500\n[testing]\nfaults = [{fault}]\n")).unwrap();
    let cluster = world.cluster_with("2p2d", &["--allow-faults", "--config", path.to_str().unwrap()]);
    let (url, began) = (&cluster.url, clock::now());
    // Each decode engine comes to that step once.
    assert_eq!(stream(url, &body(&prompt(), 120), usize::MAX, || {}), expected);
    assert!(clock::now().since(began) < HANGS, "it was not waited for");
    assert!(Scrape::of(url).sum("relevo_replays_total", "").is_some_and(|replays| replays > 0), "one has hung");
    let pids = |status: &Value| status["nodes"].as_array().unwrap().iter().map(|node| node["pid"].clone()).collect();
    let before: Vec<Value> = pids(&status(url));
    eventually("the cluster is at rest", || is_at_rest(url, 4));
    assert_eq!(stream(url, &body(&prompt(), 120), usize::MAX, || {}), expected, "on engines that were replaced");
    assert_eq!(pids(&status(url)), before, "no process was started again");
    assert!(cluster.stop("TERM").status.success());
}

/// A stream that is being read, and its tokens.
type Asked<'scope> = ScopedJoinHandle<'scope, Vec<String>>;

/// It runs for a tenth of the time, as on a machine that does something else: it beats, and its tokens come at a fraction of their pace.
#[test]
fn streams_leave_a_worker_that_is_far_slower_than_its_peer() {
    let world = World::new();
    // Who shares a prefix is decoded where it is.
    let bodies: Vec<_> = (0..4).map(|number| body(&format!("{number} is {}", prompt()), 800)).collect();
    let streams_of = |url: &str, act: &dyn Fn(&[Asked<'_>])| {
        std::thread::scope(|scope| {
            let asked = bodies.iter().map(|body| scope.spawn(|| stream(url, body, usize::MAX, || {})));
            let asked: Vec<_> = asked.collect();
            act(&asked);
            asked.into_iter().map(|stream| stream.join().unwrap()).collect::<Vec<_>>()
        })
    };
    let alone = world.alone();
    let expected = streams_of(&alone.url, &|_| ());
    stop(alone);
    let cluster = world.cluster("1p2d");
    let url = &cluster.url;
    let running = |name: &str| node(&status(url), name)["running_requests"].as_u64();
    let tokens = streams_of(url, &|streams| {
        eventually("both decode", || {
            ["decode-0", "decode-1"].iter().all(|name| running(name).is_some_and(|num| num > 0))
        });
        let slow = busy_decoder(url);
        let slow_pid = pid(url, &slow);
        let (end, ended) = mpsc::sync_channel::<()>(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let over =
                    |time| ended.recv_timeout(Duration::from_millis(time)) != Err(mpsc::RecvTimeoutError::Timeout);
                loop {
                    kill(slow_pid, "STOP");
                    let is_over = over(45);
                    kill(slow_pid, "CONT");
                    if is_over || over(5) {
                        return;
                    }
                }
            });
            eventually("its streams leave it", || running(&slow) == Some(0));
            assert!(streams.iter().any(|stream| !stream.is_finished()), "they go on");
            drop(end);
        });
    });
    assert_eq!(tokens, expected);
    let count = |name| Scrape::of(url).sum(name, "").unwrap_or(0);
    assert_eq!(count("relevo_slow_devices_total"), 1);
    assert!((1..=3).contains(&count("relevo_replays_total")), "those that were there");
    eventually("the cluster is at rest", || is_at_rest(url, 3));
    stop(cluster);
}
