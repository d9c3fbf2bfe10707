//! The coordinator: who is in the map, when one is suspected, what a successor knows.

use relevo_wire::DeviceFacts;

use super::*;

const LIMITS: CoordinatorLimits = CoordinatorLimits {
    silence: Duration::from_millis(500),
    no_progress: Duration::from_secs(2),
    tick: Duration::from_millis(100),
};

fn facts(device: u32, epoch: u64) -> DeviceFacts {
    let roles = vec![DeviceRole::Prefill, DeviceRole::Decode];
    let name = format!("cpu{device}");
    let able = roles.clone();
    DeviceFacts { device: DeviceId(device), name, roles, able, epoch: Epoch(epoch), num_blocks: 10, max_context: 100 }
}

fn heartbeat(device: u32, epoch: u64, progress: u64, busy: bool) -> Heartbeat {
    Heartbeat { facts: facts(device, epoch), serving: true, progress, busy, draining: false, map: (0, MapVersion(0)) }
}

struct World {
    core: CoordinatorCore,
    now: Instant64,
}

impl World {
    fn new() -> Self {
        let now = Instant64(1_000_000_000);
        Self { core: CoordinatorCore::new(LIMITS, (0, MapVersion(0)), now), now }
    }

    fn say(&mut self, event: CoordinatorEvent) -> Vec<CoordinatorEffect> {
        let mut effects = Vec::new();
        self.core.handle(event, self.now, &mut effects);
        effects
    }

    /// Time goes by in ticks; `each` speaks at every one.
    fn pass(&mut self, ticks: u32, mut each: impl FnMut(u32) -> Option<Heartbeat>) -> Vec<CoordinatorEffect> {
        let mut effects = Vec::new();
        for tick in 0..ticks {
            self.now = self.now + LIMITS.tick;
            if let Some(heartbeat) = each(tick) {
                effects.extend(self.say(CoordinatorEvent::Heartbeat(heartbeat)));
            }
            effects.extend(self.say(CoordinatorEvent::Tick));
        }
        effects
    }

    fn standing(&self, device: u32) -> Option<Standing> {
        self.core.map().devices.iter().find(|entry| entry.facts.device.0 == device).map(|entry| entry.standing)
    }
}

#[test]
fn a_change_is_published_once_under_a_version_that_grows() {
    let mut world = World::new();
    let effects = world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 1, 0, false)));
    assert!(matches!(&effects[..], [CoordinatorEffect::Publish(map)] if map.version == MapVersion(1)));
    assert_eq!(world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 1, 5, false))), []);
    let effects = world.say(CoordinatorEvent::Heartbeat(heartbeat(1, 1, 0, false)));
    assert!(matches!(&effects[..], [CoordinatorEffect::Publish(map)] if map.version == MapVersion(2)));
    world.say(CoordinatorEvent::Left { device: DeviceId(0), epoch: Epoch(1) });
    assert_eq!((world.standing(0), world.standing(1)), (None, Some(Standing::Serving)));
}

#[test]
fn a_heartbeat_of_an_older_epoch_is_not_listened_to() {
    let mut world = World::new();
    world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 3, 0, false)));
    assert_eq!(world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 2, 0, false))), []);
    assert_eq!(world.core.map().devices[0].facts.epoch, Epoch(3));
}

#[test]
fn silence_makes_a_device_suspected_and_a_word_clears_it() {
    let mut world = World::new();
    world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 1, 0, false)));
    assert_eq!(world.pass(4, |_| None), []);
    let effects = world.pass(1, |_| None);
    assert!(effects.contains(&CoordinatorEffect::Suspect(DeviceId(0))));
    assert_eq!(world.standing(0), Some(Standing::Suspected));
    world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 1, 0, false)));
    assert_eq!(world.standing(0), Some(Standing::Serving));
}

#[test]
fn a_busy_engine_without_progress_is_suspected_under_a_live_runtime_and_only_progress_clears_it() {
    let mut world = World::new();
    world.pass(30, |tick| Some(heartbeat(0, 1, u64::from(tick), true)));
    assert_eq!(world.standing(0), Some(Standing::Serving));
    world.pass(25, |_| Some(heartbeat(0, 1, 29, true)));
    assert_eq!(world.standing(0), Some(Standing::Suspected));
    world.pass(3, |_| Some(heartbeat(0, 1, 29, true)));
    assert_eq!(world.standing(0), Some(Standing::Suspected));
    world.pass(1, |_| Some(heartbeat(0, 1, 30, true)));
    assert_eq!(world.standing(0), Some(Standing::Serving));
    world.pass(50, |_| Some(heartbeat(0, 1, 30, false)));
    assert_eq!(world.standing(0), Some(Standing::Serving), "an idle engine makes no progress and is not to blame");
}

#[test]
fn an_observer_that_slept_does_not_take_it_for_the_silence_of_others() {
    let mut world = World::new();
    world.pass(3, |_| Some(heartbeat(0, 1, 0, false)));
    world.now = world.now + Duration::from_secs(10);
    assert_eq!(world.say(CoordinatorEvent::Tick), []);
    assert_eq!(world.standing(0), Some(Standing::Serving));
    assert!(world.pass(6, |_| None).contains(&CoordinatorEffect::Suspect(DeviceId(0))));
}

#[test]
fn a_word_that_was_read_after_the_sleep_gives_no_more_time_than_any_other() {
    let mut world = World::new();
    world.pass(3, |_| Some(heartbeat(0, 1, 0, false)));
    world.now = world.now + Duration::from_secs(10);
    world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 1, 1, false)));
    world.say(CoordinatorEvent::Tick);
    assert!(world.pass(5, |_| None).contains(&CoordinatorEffect::Suspect(DeviceId(0))));
}

#[test]
fn a_successor_listens_first_and_goes_on_in_a_higher_term() {
    let mut world = World::new();
    let seen = |device| Heartbeat { map: (3, MapVersion(9)), ..heartbeat(device, 1, 0, false) };
    assert_eq!(world.pass(1, |_| Some(seen(0))), []);
    assert_eq!(world.pass(1, |_| Some(seen(1))), []);
    let effects = world.pass(6, |tick| Some(seen(tick % 2)));
    let [CoordinatorEffect::Publish(map)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((map.term, map.devices.len()), (4, 2));
}

#[test]
fn a_device_that_was_given_up_comes_back_in_a_later_epoch_only() {
    let mut world = World::new();
    let left = |epoch| CoordinatorEvent::Left { device: DeviceId(0), epoch: Epoch(epoch) };
    world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 2, 0, false)));
    world.say(left(2));
    // Both were under way when it was given up.
    assert_eq!(world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 2, 0, false))), []);
    assert_eq!(world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 1, 0, false))), []);
    assert_eq!(world.standing(0), None);
    world.say(CoordinatorEvent::Heartbeat(heartbeat(0, 3, 0, false)));
    assert_eq!(world.standing(0), Some(Standing::Serving));
    // The news that it was given up was slower than the device itself.
    assert_eq!(world.say(left(2)), []);
    assert_eq!(world.standing(0), Some(Standing::Serving));
}

#[test]
fn what_a_successor_has_heard_is_not_in_force_while_it_listens() {
    let mut world = World::new();
    let seen = |device| Heartbeat { map: (3, MapVersion(9)), ..heartbeat(device, 1, 0, false) };
    world.pass(1, |_| Some(seen(0)));
    assert_eq!(*world.core.map(), ClusterMap { term: 1, ..ClusterMap::default() });
}

#[test]
fn a_higher_term_is_published_even_if_nothing_else_is_new() {
    let mut world = World::new();
    world.pass(1, |_| Some(heartbeat(0, 1, 0, false)));
    let seen = Heartbeat { map: (1, MapVersion(7)), ..heartbeat(0, 1, 0, false) };
    let effects = world.pass(7, |_| Some(seen.clone()));
    assert!(matches!(&effects[..], [CoordinatorEffect::Publish(map)] if map.term == 2), "{effects:?}");
}

#[test]
fn a_silent_device_is_given_the_time_for_silence_however_little_there_is_for_progress() {
    let mut world = World::new();
    let limits = CoordinatorLimits { no_progress: Duration::from_millis(200), ..LIMITS };
    world.core = CoordinatorCore::new(limits, (0, MapVersion(0)), world.now);
    world.pass(3, |_| Some(heartbeat(0, 1, 0, false)));
    assert_eq!(world.pass(4, |_| None), []);
    assert!(world.pass(1, |_| None).contains(&CoordinatorEffect::Suspect(DeviceId(0))));
}

#[test]
fn a_successor_whose_node_has_seen_a_map_outbids_it_though_nobody_speaks() {
    let mut world = World::new();
    world.core = CoordinatorCore::new(LIMITS, (1, MapVersion(4)), world.now);
    assert_eq!(world.pass(4, |_| None), []);
    let effects = world.pass(1, |_| None);
    assert!(matches!(&effects[..], [CoordinatorEffect::Publish(map)] if map.term == 2 && map.devices.is_empty()));
}

#[test]
fn a_map_that_only_a_node_without_devices_has_seen_is_outbid() {
    let mut world = World::new();
    let mut effects = Vec::new();
    world.core.handle(CoordinatorEvent::MapSeen((1, MapVersion(7))), world.now, &mut effects);
    assert_eq!(effects, [], "it listens first");
    let effects = world.pass(7, |_| None);
    assert!(matches!(&effects[..], [CoordinatorEffect::Publish(map)] if map.term == 2), "{effects:?}");
}
