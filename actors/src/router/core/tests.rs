//! The router against a model: whatever happens, each sequence is in one place, nobody is forgotten, no worker is overfull.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use relevo_wire::{RequestId, SamplingParams, TenantId};

use super::*;
use relevo_wire::DeviceFacts;

use crate::policy::pace::{Gaps, SLOW_FACTOR};
use crate::policy::prefix_news::{PrefixChange, PrefixWords};
use crate::router::workers::RESYNC_PATIENCE;

const LIMITS: RouterLimits = RouterLimits {
    max_waiting: 6,
    max_running: 4,
    max_prefilling: 2,
    disaggregate: Disaggregate::Auto,
    local_prefill_below_tokens: routing::LOCAL_PREFILL_BELOW_TOKENS,
    slow_factor: SLOW_FACTOR,
};

fn router(limits: RouterLimits) -> RouterCore {
    RouterCore::new(limits, HintKeyer::default())
}

fn request(id: u64) -> Arc<GenerateRequest> {
    Arc::new(GenerateRequest {
        sequence: SequenceId { request: RequestId(id), choice: 0, attempt: 0 },
        tenant: TenantId(u32::try_from(id % 3).unwrap()),
        prompt: (0..20 + u32::try_from(id).unwrap() % 200).collect(),
        generated: Vec::new(),
        sampling: SamplingParams::default(),
        stop_ids: Arc::from([]),
        max_tokens: 16,
        top_logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
    })
}

fn worker(device: u32, prefill: bool, decode: bool) -> MapEntry {
    let roles = [(prefill, DeviceRole::Prefill), (decode, DeviceRole::Decode)];
    let roles: Vec<_> = roles.into_iter().filter(|(plays, _)| *plays).map(|(_, role)| role).collect();
    let facts = DeviceFacts {
        device: DeviceId(device),
        name: format!("cpu{device}"),
        able: roles.clone(),
        roles,
        epoch: Epoch(1),
        num_blocks: 100,
        max_context: 1000,
    };
    MapEntry { facts, standing: Standing::Serving }
}

fn map(term: u64, version: u64, devices: Vec<MapEntry>) -> RouterEvent {
    RouterEvent::Map(ClusterMap { term, version: MapVersion(version), devices, nodes: Vec::new() })
}

fn both() -> RouterEvent {
    map(1, 1, vec![worker(0, true, true)])
}

fn submit(id: u64, suspect: bool) -> RouterEvent {
    RouterEvent::Submit { request: request(id), admitted: suspect, suspect }
}

/// Handles events and returns what was dispatched, rejected.
fn drive(core: &mut RouterCore, events: Vec<RouterEvent>, now: u64) -> (Vec<u64>, Vec<RequestError>) {
    let mut effects = Vec::new();
    for event in events {
        core.handle(event, Instant64(now), &mut effects);
    }
    let mut outcome = (Vec::new(), Vec::new());
    for effect in effects {
        match effect {
            RouterEffect::Dispatch { request, .. } => outcome.0.push(request.sequence.request.0),
            RouterEffect::Reject { error, .. } => outcome.1.push(error),
            RouterEffect::Redirect { .. }
            | RouterEffect::Misplaced { .. }
            | RouterEffect::NodeLost { .. }
            | RouterEffect::ResyncPrefixes { .. }
            | RouterEffect::Slow { .. } => {}
        }
    }
    outcome
}

#[test]
fn requests_wait_for_a_worker_and_go_when_there_is_one() {
    let mut core = router(LIMITS);
    assert_eq!(drive(&mut core, vec![submit(1, false), submit(2, false)], 0), (vec![], vec![]));
    assert_eq!(drive(&mut core, vec![both()], 1).0, [1, 2]);
}

#[test]
fn beyond_the_bound_of_the_line_requests_are_told_to_come_back() {
    let mut core = router(LIMITS);
    drive(&mut core, vec![both()], 0);
    let (dispatched, rejected) = drive(&mut core, (0..10).map(|id| submit(id, false)).collect(), 0);
    assert_eq!(dispatched, [0, 1]);
    assert_eq!(rejected.len(), 2);
    assert!(matches!(rejected[0], RequestError::QueueFull { num_waiting: 6, limit: 6, .. }));
}

#[test]
fn what_can_never_be_served_is_refused_at_once_with_the_figures() {
    let mut core = router(LIMITS);
    let mut long = GenerateRequest::clone(&request(1));
    long.max_tokens = 2000;
    let long = RouterEvent::Submit { request: Arc::new(long), admitted: false, suspect: false };
    let (_, rejected) = drive(&mut core, vec![both(), long], 0);
    assert_eq!(rejected, [RequestError::ContextTooLong { num_tokens: 2021, max_context: 1000 }]);
}

#[test]
fn suspects_go_one_at_a_time_and_before_all_others_until_each_has_shown_a_token() {
    let mut core = router(LIMITS);
    let sequence = |id| request(id).sequence;
    drive(&mut core, vec![both()], 0);
    let (dispatched, _) = drive(&mut core, vec![submit(1, true), submit(2, true), submit(3, false)], 0);
    assert_eq!(dispatched, [1]);
    assert_eq!(drive(&mut core, vec![RouterEvent::Started(sequence(1))], 1).0, [2]);
    assert_eq!(drive(&mut core, vec![RouterEvent::Ended(sequence(2))], 2).0, [3]);
}

#[test]
fn new_work_does_not_keep_a_suspect_from_the_device_that_it_waits_for() {
    let mut core = router(LIMITS);
    assert_eq!(drive(&mut core, vec![both(), submit(1, false)], 0).0, [1]);
    assert_eq!(drive(&mut core, vec![submit(2, true), submit(3, false)], 0).0, [0; 0], "one is there without a token");
    let first_token = |id| vec![RouterEvent::Started(request(id).sequence)];
    assert_eq!(drive(&mut core, first_token(1), 0).0, [2]);
    assert_eq!(drive(&mut core, first_token(2), 0).0, [3]);
}

#[test]
fn one_that_was_admitted_before_is_never_told_that_the_line_is_full() {
    let mut core = router(LIMITS);
    drive(&mut core, (0..6).map(|id| submit(id, false)).collect(), 0);
    let again = RouterEvent::Submit { request: request(6), admitted: true, suspect: false };
    assert_eq!(drive(&mut core, vec![again], 0), (vec![], vec![]));
    assert_eq!(drive(&mut core, vec![submit(7, false)], 0).1.len(), 1);
}

#[test]
fn a_refused_lease_is_asked_for_elsewhere_and_then_again_after_a_while() {
    let mut core = router(RouterLimits { disaggregate: Disaggregate::Always, ..LIMITS });
    let mut effects = Vec::new();
    let workers = vec![worker(0, true, false), worker(1, false, true), worker(2, false, true)];
    core.handle(map(1, 1, workers), Instant64(0), &mut effects);
    core.handle(submit(1, false), Instant64(0), &mut effects);
    let sequence = request(1).sequence;
    let mut asked = Vec::new();
    for (refused, now) in [(true, 1), (true, 2), (false, 3), (false, 50_000_000)] {
        effects.clear();
        let event = if refused { RouterEvent::Refused(sequence) } else { RouterEvent::Tick };
        core.handle(event, Instant64(now), &mut effects);
        asked.extend(effects.iter().filter_map(|effect| match effect {
            RouterEffect::Redirect { decode, .. } => Some((decode.0, now)),
            _ => None,
        }));
    }
    assert_eq!(asked, [(2, 1), (1, 50_000_000)]);
}

#[test]
fn a_sequence_whose_only_decode_worker_has_come_to_be_its_prefill_worker_is_sent_again() {
    let limits = RouterLimits { disaggregate: Disaggregate::Always, ..LIMITS };
    let mut core = router(limits);
    let apart = map(1, 1, vec![worker(0, true, true), worker(1, false, true)]);
    drive(&mut core, vec![apart], 0);
    let (sequence, route) = (request(1).sequence, route_of(&core, 1));
    assert_eq!((route.prefill, route.decode), (DeviceId(0), DeviceId(1)));
    drive(&mut core, vec![submit(1, false)], 0);
    let flipped = map(1, 2, vec![worker(0, true, true), worker(1, true, false)]);
    let mut effects = Vec::new();
    for event in [flipped, RouterEvent::Refused(sequence), RouterEvent::Tick] {
        core.handle(event, Instant64(0), &mut effects);
    }
    let misplaced = effects.iter().filter(|effect| **effect == RouterEffect::Misplaced { sequence });
    assert_eq!(misplaced.count(), 1, "{effects:?}");
}

/// Plays so many seconds of tokens that come from two decode devices at these pauses, and returns what the router does.
fn pace(core: &mut RouterCore, gaps_ms: [u64; 2], from: u64, seconds: u64) -> Vec<RouterEffect> {
    let mut effects = Vec::new();
    for tick in 1..=seconds * 10 {
        let gaps = |device, gap_ms: u64| {
            let count = u32::try_from(100 / gap_ms).unwrap();
            (DeviceId(device), Gaps { count, total: Duration::from_millis(gap_ms) * count })
        };
        let now = Instant64(from + tick * 100_000_000);
        core.handle(RouterEvent::Paced(vec![gaps(1, gaps_ms[0]), gaps(2, gaps_ms[1])]), now, &mut effects);
        core.handle(RouterEvent::Tick, now, &mut effects);
    }
    effects.retain(|effect| !matches!(effect, RouterEffect::ResyncPrefixes { .. }));
    effects
}

/// Submits a stream that starts at once, and returns where it decodes.
fn start(core: &mut RouterCore, id: u64, now: u64) -> u32 {
    let mut effects = Vec::new();
    core.handle(submit(id, false), Instant64(now), &mut effects);
    core.handle(RouterEvent::Started(request(id).sequence), Instant64(now), &mut effects);
    match effects.first() {
        Some(RouterEffect::Dispatch { route, .. }) => route.decode.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn streams_leave_a_slow_device_as_far_as_others_have_room_and_new_ones_avoid_it() {
    let mut core = router(LIMITS);
    let devices = vec![worker(0, true, false), worker(1, false, true), worker(2, false, true)];
    drive(&mut core, vec![map(1, 1, devices)], 0);
    assert_eq!([1, 2, 3, 4, 5].map(|id| start(&mut core, id, 0)), [1, 2, 1, 2, 2], "who has its prefix has the last");
    assert_eq!(pace(&mut core, [10, 10], 0, 5), []);
    let effects = pace(&mut core, [10, 100], 5_000_000_000, 3);
    let slow: Vec<_> = effects.iter().filter(|effect| matches!(effect, RouterEffect::Slow { .. })).collect();
    let [RouterEffect::Slow { device: DeviceId(2), gap, peers }] = slow[..] else { panic!("{effects:?}") };
    assert_eq!((gap.as_millis(), peers.as_millis()), (100, 20), "it has three streams where the other has two");
    let is_moved = |effect: &&RouterEffect| matches!(effect, RouterEffect::Misplaced { .. });
    let moved: Vec<_> = effects.iter().filter(is_moved).cloned().collect();
    let misplaced = |id| RouterEffect::Misplaced { sequence: request(id).sequence };
    assert_eq!(moved, [2, 4].map(misplaced), "the other has room for two");
    let now = 8_000_000_000;
    for id in [2, 4] {
        // As the keeper does with them.
        drive(&mut core, vec![RouterEvent::Ended(request(id).sequence)], now);
        assert_eq!(start(&mut core, id, now), 1);
    }
    assert_eq!(start(&mut core, 6, now), 2, "better slow than not at all");
    drive(&mut core, vec![RouterEvent::Ended(request(1).sequence)], now);
    assert_eq!(start(&mut core, 7, now), 1);
}

#[test]
fn nothing_is_slow_where_that_is_switched_off() {
    let mut core = router(RouterLimits { slow_factor: 0, ..LIMITS });
    drive(&mut core, vec![map(1, 1, vec![worker(0, true, true), worker(1, true, true)])], 0);
    start(&mut core, 1, 0);
    assert_eq!(pace(&mut core, [100, 5], 0, 20), []);
}

#[test]
fn the_keeper_is_told_again_of_nodes_that_are_lost_once_nothing_new_goes_there() {
    let (here, there) = (NodeId(1), NodeId(2));
    let mut core = router(LIMITS);
    let mut lost = |event| {
        let mut effects = Vec::new();
        core.handle(event, Instant64(0), &mut effects);
        effects.retain(|effect| *effect == RouterEffect::NodeLost { node: there });
        effects.len()
    };
    assert_eq!(lost(RouterEvent::Reachable(BTreeSet::from([here, there]))), 0);
    assert_eq!(lost(RouterEvent::Reachable(BTreeSet::from([here]))), 1);
    assert_eq!(lost(RouterEvent::Reachable(BTreeSet::from([here]))), 0);
    // The earlier router did not know.
    let (prefill, decode) = (DeviceId::of(here, 0), DeviceId::of(there, 0));
    assert_eq!(lost(RouterEvent::Placed { request: request(1), prefill, decode, started: false }), 1);
}

#[test]
fn a_sequence_that_is_submitted_twice_is_placed_once() {
    let mut core = router(LIMITS);
    drive(&mut core, vec![submit(1, false), submit(1, false), submit(2, true), submit(2, true)], 0);
    assert_eq!(core.num_waiting(), 2);
    assert_eq!(drive(&mut core, vec![both()], 1).0, [2]);
    let started = RouterEvent::Started(request(2).sequence);
    assert_eq!(drive(&mut core, vec![submit(2, true), started], 1).0, [1]);
    assert_eq!(drive(&mut core, vec![submit(1, false), submit(2, false)], 1).0.len(), 0);
    assert_eq!((core.num_in_flight(), core.num_waiting()), (2, 0));
}

#[test]
fn without_any_worker_for_long_requests_are_told_so() {
    let mut core = router(LIMITS);
    drive(&mut core, vec![submit(1, false), submit(2, true)], 0);
    let later = Instant64(0) + NO_WORKER_PATIENCE;
    let (_, rejected) = drive(&mut core, vec![RouterEvent::Tick], later.0);
    assert_eq!(rejected.len(), 2);
    assert!(rejected.iter().all(|error| matches!(error, RequestError::NoWorker { .. })));
    assert_eq!(core.num_waiting(), 0);
}

#[test]
fn only_what_serves_by_the_newest_map_gets_new_work() {
    let mut core = router(LIMITS);
    let standing = |standing| vec![MapEntry { standing, ..worker(0, true, true) }];
    drive(&mut core, vec![map(2, 5, standing(Standing::Suspected))], 0);
    for (term, version) in [(2, 4), (1, 9), (2, 5)] {
        let overtaken = map(term, version, standing(Standing::Serving));
        assert_eq!(drive(&mut core, vec![overtaken, submit(version, false)], 0).0.len(), 0, "{term} {version}");
    }
    assert_eq!(core.map(), (2, MapVersion(5)));
    assert_eq!(drive(&mut core, vec![map(3, 1, standing(Standing::Serving))], 0).0.len(), 2);
}

/// Where a request would go now.
fn route_of(core: &RouterCore, id: u64) -> Route {
    let mut core = core.clone();
    let mut effects = Vec::new();
    core.handle(submit(id, false), Instant64(0), &mut effects);
    match effects.first() {
        Some(RouterEffect::Dispatch { route, .. }) => *route,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_prompt_goes_where_its_blocks_are_until_they_are_evicted_or_the_pool_is_new() {
    let mut core = router(LIMITS);
    let workers = |epoch| {
        let mut entries = [0, 1].map(|device| worker(device, true, true));
        entries.iter_mut().for_each(|entry| entry.facts.epoch = Epoch(epoch));
        map(1, epoch, entries.to_vec())
    };
    let keys = keys_of(199);
    let cached = Route { prefill: DeviceId(1), decode: DeviceId(1), skipped: Some(routing::Skip::Cached) };

    drive(&mut core, vec![workers(1), news(1, 0, &keys, &[])], 0);
    assert_eq!(route_of(&core, 199), cached);
    drive(&mut core, vec![news(1, 1, &[], &keys[2..])], 0);
    assert_ne!(route_of(&core, 199), cached, "most of it is gone");
    drive(&mut core, vec![news(1, 2, &keys, &[])], 0);
    assert_eq!(route_of(&core, 199), cached);
    drive(&mut core, vec![workers(2), news(1, 3, &keys, &[])], 0);
    assert_ne!(route_of(&core, 199), cached, "that was the pool before");
}

fn keys_of(id: u64) -> Vec<HintKey> {
    HintKeyer::default().keys(request(id).tenant, &request(id).prompt)
}

/// What device 1 says.
fn say(epoch: u64, from_seq: u64, words: PrefixWords) -> RouterEvent {
    let batch = PrefixBatch { from_seq, seq: from_seq + 1, words };
    RouterEvent::PrefixChanged { device: DeviceId(1), epoch: Epoch(epoch), batch }
}

fn news(epoch: u64, from_seq: u64, added: &[HintKey], removed: &[HintKey]) -> RouterEvent {
    let change = PrefixChange { added: added.to_vec(), removed: removed.to_vec() };
    say(epoch, from_seq, PrefixWords::Changed(change))
}

/// Whom the router asks for all its prefixes.
fn asked(core: &mut RouterCore, event: RouterEvent, now: Instant64) -> Vec<u32> {
    let mut effects = Vec::new();
    core.handle(event, now, &mut effects);
    let asked = effects.iter().filter_map(|effect| match effect {
        RouterEffect::ResyncPrefixes { device } => Some(device.0),
        _ => None,
    });
    asked.collect()
}

#[test]
fn a_new_router_asks_for_all_prefixes_and_one_that_has_missed_some_asks_again() {
    let mut core = router(LIMITS);
    let workers = || map(1, 1, [0, 1].map(|device| worker(device, true, true)).to_vec());
    let (begin, later) = (Instant64(0), Instant64(0) + RESYNC_PATIENCE);
    assert_eq!(asked(&mut core, workers(), begin), [0, 1]);
    assert_eq!(asked(&mut core, RouterEvent::Tick, begin), [0; 0], "they need some time");
    assert_eq!(asked(&mut core, news(1, 7, &[], &[]), begin), [0; 0], "that is not an answer, but one is on its way");
    let keys = keys_of(199);
    let (first, last) = (keys[..5].to_vec(), keys[5..].to_vec());
    let part = |seq, keys, is_last: bool| say(1, seq, PrefixWords::Snapshot { keys, is_first: !is_last, is_last });
    assert_eq!(asked(&mut core, part(8, first, false), later), [0], "the other one has not answered");
    assert_eq!(asked(&mut core, RouterEvent::Tick, later), [0; 0]);
    assert_ne!(route_of(&core, 199).skipped, Some(routing::Skip::Cached));
    assert_eq!(asked(&mut core, part(9, last, true), later), [0; 0]);
    assert_eq!(route_of(&core, 199).skipped, Some(routing::Skip::Cached));
    assert_eq!(asked(&mut core, news(1, 12, &[], &[]), later), [1], "two batches were lost");
    assert_ne!(route_of(&core, 199).skipped, Some(routing::Skip::Cached));
}

#[test]
fn who_claims_to_hold_more_than_its_pool_is_not_believed() {
    let mut core = router(LIMITS);
    drive(&mut core, vec![map(1, 1, [0, 1].map(|device| worker(device, true, true)).to_vec())], 0);
    let keys: Vec<_> = (0..101).map(HintKey).collect();
    drive(&mut core, vec![news(1, 0, &keys[..100], &[])], 0);
    assert_eq!(core.hints(DeviceId(1)).unwrap().num_held(), 100);
    drive(&mut core, vec![news(1, 1, &keys[100..], &[])], 0);
    assert_eq!(core.hints(DeviceId(1)).unwrap().num_held(), 0);
    assert!(!core.hints(DeviceId(1)).unwrap().is_current());
}

#[test]
fn a_prompt_follows_one_that_begins_alike_and_is_still_in_hand() {
    let mut core = router(LIMITS);
    drive(&mut core, vec![map(1, 1, [0, 1].map(|device| worker(device, true, true)).to_vec())], 0);
    let first = route_of(&core, 199);
    drive(&mut core, vec![submit(199, false)], 0);
    // Of the same tenant, and its prompt is the beginning of the other's.
    let second = route_of(&core, 196);
    assert!([first.prefill, first.decode].contains(&second.prefill) && second.prefill == second.decode, "{second:?}");
    assert_eq!(second.skipped, Some(routing::Skip::Cached));
    drive(&mut core, vec![RouterEvent::Ended(request(199).sequence)], 0);
    assert_ne!(route_of(&core, 196).skipped, Some(routing::Skip::Cached), "no worker has said that it holds it");
}

#[derive(Clone, Debug)]
enum Step {
    Submit { id: u64, suspect: bool },
    Started(usize),
    Ended(usize),
    EndedAnywhere(u64),
    Refused(usize),
    Workers(u8),
    Tick(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..60, prop::bool::weighted(0.2)).prop_map(|(id, suspect)| Step::Submit { id, suspect }),
        3 => any::<usize>().prop_map(Step::Started),
        3 => any::<usize>().prop_map(Step::Ended),
        1 => (0u64..60).prop_map(Step::EndedAnywhere),
        1 => any::<usize>().prop_map(Step::Refused),
        1 => any::<u8>().prop_map(Step::Workers),
        1 => (1u64..500).prop_map(Step::Tick),
    ]
}

proptest! {
    #[test]
    fn every_sequence_is_dispatched_or_rejected_once_and_no_worker_is_overfull(
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut core = router(LIMITS);
        let mut now = Instant64(0);
        let mut submitted = BTreeSet::new();
        // Of the dispatched: its devices, and whether it has started.
        let mut running: BTreeMap<SequenceId, (Route, bool)> = BTreeMap::new();
        let mut settled = BTreeSet::new();
        let nth = |running: &BTreeMap<SequenceId, (Route, bool)>, n: usize| {
            running.keys().nth(n % running.len().max(1)).copied()
        };
        for (version, step) in (1..).zip(steps) {
            let event = match step {
                Step::Submit { id, suspect } => {
                    if !submitted.insert(request(id).sequence) {
                        continue;
                    }
                    submit(id, suspect)
                }
                Step::Started(n) => {
                    let Some(sequence) = nth(&running, n) else { continue };
                    running.get_mut(&sequence).unwrap().1 = true;
                    RouterEvent::Started(sequence)
                }
                Step::Ended(n) => {
                    let Some(sequence) = nth(&running, n) else { continue };
                    running.remove(&sequence);
                    RouterEvent::Ended(sequence)
                }
                Step::EndedAnywhere(id) => {
                    let sequence = request(id).sequence;
                    if submitted.contains(&sequence) {
                        settled.insert(sequence);
                        running.remove(&sequence);
                    }
                    RouterEvent::Ended(sequence)
                }
                Step::Refused(n) => {
                    let Some(sequence) = nth(&running, n) else { continue };
                    RouterEvent::Refused(sequence)
                }
                Step::Workers(mask) => map(
                    1,
                    version,
                    (0..3).filter(|bit| mask >> bit & 1 == 1)
                        .map(|bit| worker(bit, mask >> (3 + bit) & 1 == 0, bit != 0 || mask & 64 == 0))
                        .collect(),
                ),
                Step::Tick(millis) => {
                    now = now + Duration::from_millis(millis);
                    RouterEvent::Tick
                }
            };
            let mut effects = Vec::new();
            core.handle(event, now, &mut effects);
            for effect in effects {
                match effect {
                    RouterEffect::Dispatch { request, route } => {
                        let sequence = request.sequence;
                        prop_assert!(submitted.contains(&sequence));
                        prop_assert!(settled.insert(sequence), "{} is dispatched again", sequence);
                        running.insert(sequence, (route, false));
                    }
                    RouterEffect::Reject { sequence, .. } => {
                        prop_assert!(settled.insert(sequence), "{} was dispatched and is rejected", sequence);
                    }
                    RouterEffect::Redirect { sequence, prefill, decode } => {
                        let (route, started) = running.get_mut(&sequence).unwrap();
                        prop_assert!(!*started && route.prefill == prefill);
                        route.decode = decode;
                    }
                    RouterEffect::Misplaced { sequence } => {
                        prop_assert!(running.get(&sequence).is_some_and(|(_, started)| !started));
                    }
                    RouterEffect::NodeLost { .. }
                    | RouterEffect::ResyncPrefixes { .. }
                    | RouterEffect::Slow { .. } => {}
                }
            }
            for device in (0..3).map(DeviceId) {
                let here = |(route, started): &&(Route, bool)| route.decode == device || (route.prefill == device && !started);
                let prefilling = running.values().filter(|(route, started)| route.prefill == device && !started).count();
                prop_assert!(running.values().filter(here).count() <= LIMITS.max_running);
                prop_assert!(prefilling <= LIMITS.max_prefilling);
            }
            prop_assert_eq!(core.num_in_flight(), running.len());
            prop_assert_eq!(core.num_waiting() + settled.len(), submitted.len());
        }
    }
}
