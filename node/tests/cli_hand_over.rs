//! A process that ends at a step of a hand-over, for each step that a role actor takes: its stream goes on elsewhere and shows nothing of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use program::Scrape;
use program::local_cluster::{World, body, eventually, is_at_rest, prompt, stream};

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
