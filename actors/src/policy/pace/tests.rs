//! Devices of two paces, and what comes of it.

use proptest::prelude::*;

use super::*;

const FAST: DeviceId = DeviceId(1);
const OTHER: DeviceId = DeviceId(2);
const THIRD: DeviceId = DeviceId(3);
const TICK: Duration = Duration::from_millis(20);

/// A router's look at the paces every 20 ms.
struct Rig {
    paces: Paces,
    now: Instant64,
}

/// A device with so many sequences, each of which gets a token every so many milliseconds.
#[derive(Clone, Copy)]
struct Player {
    device: DeviceId,
    gap_ms: u64,
    num_running: usize,
    is_prefilling: bool,
}

fn player(device: DeviceId, gap_ms: u64) -> Player {
    Player { device, gap_ms, num_running: 4, is_prefilling: false }
}

impl Rig {
    fn new() -> Self {
        Self { paces: Paces::new(SLOW_FACTOR), now: Instant64(0) }
    }

    /// Plays until a device is found slow, for so long at most.
    fn play(&mut self, players: &[Player], time: Duration) -> Option<(DeviceId, Duration)> {
        let (began, end) = (self.now, self.now + time);
        while self.now < end {
            let before = self.now;
            self.now = self.now + TICK;
            self.paces.tick(self.now);
            for player in players {
                let tokens = |at: Instant64| at.0 / (player.gap_ms * 1_000_000);
                let num_tokens = (tokens(self.now) - tokens(before)) as u32;
                let count = num_tokens * player.num_running as u32;
                let gaps = Gaps { count, total: Duration::from_millis(player.gap_ms) * count };
                let work = Work { num_running: player.num_running, is_prefilling: player.is_prefilling };
                if self.paces.seen((player.device, Epoch(1)), gaps, work, self.now).is_some() {
                    return Some((player.device, self.now.since(began)));
                }
            }
        }
        None
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_device_five_times_as_slow_as_its_peer_is_found_within_a_second_or_two() {
    for (gap_ms, within_ms) in [(5, 1100), (20, 1500), (60, 3000)] {
        let mut rig = Rig::new();
        let found = rig.play(&[player(FAST, gap_ms), player(OTHER, 5 * gap_ms)], LONG);
        let (device, took) = found.unwrap();
        assert_eq!(device, OTHER);
        assert!(took <= Duration::from_millis(within_ms), "{gap_ms} ms: {took:?}");
        assert!(rig.paces.is_slow(OTHER) && !rig.paces.is_slow(FAST));
    }
}

#[test]
fn what_a_peer_did_before_it_fell_idle_is_remembered() {
    let mut rig = Rig::new();
    assert_eq!(rig.play(&[player(FAST, 10)], Duration::from_secs(1)), None);
    assert_eq!(rig.play(&[player(OTHER, 50)], LONG).unwrap().0, OTHER);
}

#[test]
fn a_device_alone_or_twice_as_slow_or_slower_by_what_nobody_notices_is_not_slow() {
    assert_eq!(Rig::new().play(&[player(FAST, 500)], LONG), None);
    assert_eq!(Rig::new().play(&[player(FAST, 20), player(OTHER, 50)], LONG), None);
    assert_eq!(Rig::new().play(&[player(FAST, 1), player(OTHER, 5)], LONG), None);
    assert!(Paces::new(0).seen((OTHER, Epoch(1)), Gaps::default(), work(1), Instant64(0)).is_none());
}

fn work(num_running: usize) -> Work {
    Work { num_running, is_prefilling: false }
}

#[test]
fn what_has_a_reason_is_not_held_against_a_device() {
    let busy = Player { num_running: 20, ..player(OTHER, 50) };
    assert_eq!(Rig::new().play(&[player(FAST, 10), busy], LONG), None, "it has five times as many");
    let prefilling = Player { is_prefilling: true, ..player(OTHER, 50) };
    assert_eq!(Rig::new().play(&[player(FAST, 10), prefilling], LONG), None);
}

#[test]
fn a_moment_of_slowness_is_forgiven() {
    let mut rig = Rig::new();
    for _ in 0..20 {
        let slow = [player(FAST, 10), player(OTHER, 50)];
        assert_eq!(rig.play(&slow, Duration::from_millis(600)), None);
        assert_eq!(rig.play(&[player(FAST, 10), player(OTHER, 10)], Duration::from_millis(1000)), None);
    }
}

#[test]
fn of_three_the_one_that_differs_is_the_slow_one() {
    let mut rig = Rig::new();
    let found = rig.play(&[player(FAST, 10), player(OTHER, 12), player(THIRD, 50)], LONG);
    assert_eq!(found.unwrap().0, THIRD);
    // Those that are left are still each other's peers, and the slow one is nobody's.
    assert_eq!(rig.play(&[player(FAST, 10), player(OTHER, 12)], Duration::from_secs(5)), None);
}

#[test]
fn it_is_tried_again_after_a_while_and_each_time_later_until_it_is_well() {
    let mut rig = Rig::new();
    let slow = [player(FAST, 10), player(OTHER, 50)];
    assert!(rig.play(&slow, LONG).is_some());
    let mut avoided = Vec::new();
    for _ in 0..8 {
        let began = rig.now;
        while rig.paces.is_slow(OTHER) {
            rig.now = rig.now + TICK;
            rig.paces.tick(rig.now);
        }
        avoided.push(rig.now.since(began).as_secs());
        assert!(rig.play(&slow, LONG).is_some());
    }
    assert_eq!(avoided, [10, 20, 40, 80, 160, 320, 320, 320]);
    rig.now = rig.now + Duration::from_secs(400);
    rig.paces.tick(rig.now);
    assert_eq!(rig.play(&[player(FAST, 10), player(OTHER, 10)], LONG), None);
    assert!(rig.play(&slow, LONG).is_some());
    let began = rig.now;
    while rig.paces.is_slow(OTHER) {
        rig.now = rig.now + TICK;
        rig.paces.tick(rig.now);
    }
    assert_eq!(rig.now.since(began).as_secs(), 10, "it was well in between");
}

#[test]
fn an_engine_that_is_begun_anew_is_judged_anew() {
    let mut rig = Rig::new();
    assert!(rig.play(&[player(FAST, 10), player(OTHER, 50)], LONG).is_some());
    rig.paces.retain(|device, epoch| device == FAST || epoch == Epoch(2));
    assert!(!rig.paces.is_slow(OTHER));
    rig.paces.retain(|_, _| false);
    assert_eq!(rig.play(&[player(OTHER, 50)], LONG), None, "nothing is left of who has gone");
}

proptest! {
    /// Devices of one pace, however long, that jitter by less than the factor, are never slow.
    #[test]
    fn equals_are_never_slow(
        gap_ms in 1_u64..200,
        jitter in prop::collection::vec((1_u64..20, 1_u64..20, 1_usize..9), 1..200),
    ) {
        let mut rig = Rig::new();
        for (one, other, num_running) in jitter {
            // From 1.0 to 1.95 of the pace.
            let pace = |jitter: u64| gap_ms * (20 + jitter - 1) / 20;
            let players = [player(FAST, pace(one).max(1)), player(OTHER, pace(other).max(1))];
            let players = players.map(|player| Player { num_running, ..player });
            prop_assert_eq!(rig.play(&players, Duration::from_millis(200)), None);
        }
    }
}
