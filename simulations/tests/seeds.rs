//! A thousand seeds, each a cluster of its own with its own misfortunes.

use relevo_simulations::{Failure, Report, play, play_aloud};

fn play_all(seeds: std::ops::Range<u64>) -> Vec<Report> {
    let (mut reports, mut failures): (Vec<Report>, Vec<Failure>) = (Vec::new(), Vec::new());
    for seed in seeds {
        match play(seed) {
            Ok(report) => reports.push(report),
            Err(failure) => failures.push(failure),
        }
    }
    let first = failures.first().map(ToString::to_string).unwrap_or_default();
    assert!(failures.is_empty(), "{} seeds break a promise, the first:\n{first}", failures.len());
    reports
}

#[test]
fn no_seed_breaks_a_promise() {
    let reports = play_all(0..1000);
    // The seeds would prove little if they did not get into these situations.
    let at_least = |least: u64, what: &str, count: fn(&Report) -> u64| {
        let found: u64 = reports.iter().map(count).sum();
        assert!(found >= least, "{what}: {found}, expected at least {least}");
    };
    at_least(1500, "streams finished", |report| report.finished);
    at_least(60, "replays", |report| report.replays);
    at_least(20, "sequences that found nobody", |report| report.undelivered);
    at_least(20, "preemptions", |report| report.preemptions);
    at_least(100, "deaths of engines", |report| report.deaths);
    at_least(20, "hung engines", |report| report.hangs);
    at_least(10, "late steps", |report| report.late_steps);
    at_least(200, "leases committed", |report| report.leases_committed);
    at_least(20, "leases released", |report| report.leases_released);
    at_least(20, "leases expired", |report| report.leases_expired);
    at_least(20, "suspicions", |report| report.suspicions);
    at_least(500, "ends of links lost", |report| report.links_lost);
    at_least(200, "processes killed", |report| report.kills);
    at_least(100, "orders of operators", |report| report.orders);
    at_least(100, "streams cut off with their gateway", |report| report.cut_off);
    at_least(2000, "prefix blocks known", |report| report.hints);
    at_least(200, "lost news of prefixes", |report| report.lost_news);
    at_least(1000, "wishes for all prefixes", |report| report.resyncs);
}

#[test]
fn a_seed_gives_the_same_account_byte_for_byte() {
    for seed in 0..40 {
        let account = || {
            let mut text = String::new();
            let outcome = play_aloud(seed, &mut |line| {
                text.push_str(line);
                text.push('\n');
            });
            (outcome.unwrap(), text)
        };
        let (report, text) = account();
        assert_eq!(report, play(seed).unwrap(), "seed {seed}: to tell of it changes it");
        assert!(account() == (report, text), "seed {seed}");
    }
}
