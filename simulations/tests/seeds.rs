//! Some hundred seeds, each a cluster of its own with its own misfortunes.

use relevo_simulations::{Failure, Report, play};

fn play_all(seeds: std::ops::Range<u64>) -> Report {
    let mut sum = Report::default();
    let mut failures: Vec<Failure> = Vec::new();
    for seed in seeds {
        match play(seed) {
            Ok(report) => {
                sum.steps += report.steps;
                sum.replays += report.replays;
                sum.finished += report.finished;
                sum.leases += report.leases;
                sum.preemptions += report.preemptions;
            }
            Err(failure) => failures.push(failure),
        }
    }
    let first = failures.first().map(ToString::to_string).unwrap_or_default();
    assert!(failures.is_empty(), "{} seeds break a promise, the first:\n{first}", failures.len());
    sum
}

#[test]
fn no_seed_breaks_a_promise() {
    let sum = play_all(0..200);
    // The seeds would prove little if they did not get into these situations.
    assert!(sum.finished > 700 && sum.leases > 200 && sum.replays > 60 && sum.preemptions > 20, "{sum:?}");
}

#[test]
fn a_seed_plays_the_same_way_twice() {
    for seed in 0..20 {
        assert_eq!(play(seed).unwrap(), play(seed).unwrap(), "seed {seed}");
    }
}
