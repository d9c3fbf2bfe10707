//! A device that takes five times as long as its peers: its streams go elsewhere, and show nothing of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use relevo_actors::policy::hand_over::HandOverStep;
use relevo_simulations::{Blow, Misfortune, Party, Report, Scenario, World};
use relevo_wire::Instant64;

const LONG: Duration = Duration::from_secs(20);

/// Two devices prefill, and the two after them decode.
fn play(slow_devices: &[usize], seed: u64) -> Report {
    let mut scenario = Scenario::of_cell(HandOverStep::Admitted, Blow::Slow(Party::Decode));
    scenario.ambush = None;
    scenario.seed = seed;
    scenario.misfortunes = slow_devices.iter().map(|&device| (Instant64(0), Misfortune::Slow(device, LONG))).collect();
    World::new(scenario).play().unwrap()
}

#[test]
fn streams_leave_a_decode_device_that_is_far_slower_than_its_peer() {
    for seed in 0..20 {
        let report = play(&[3], seed);
        assert_eq!((report.found_slow, report.deaths), (1, 0), "seed {seed}: {report:?}");
        assert!(report.replays >= 1, "seed {seed}: {report:?}");
    }
}

#[test]
fn devices_that_are_all_slow_keep_theirs() {
    for seed in 0..20 {
        let report = play(&[0, 1, 2, 3], seed);
        assert_eq!((report.found_slow, report.replays), (0, 0), "seed {seed}: {report:?}");
    }
}
