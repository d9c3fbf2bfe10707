//! The ledger of leases against a model: what was reserved is committed or released exactly once, after its writers are gone.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use relevo_wire::{Epoch, RequestId, SamplingParams, TenantId};

use super::*;

const TERM: Duration = Duration::from_secs(5);

fn request(id: u64, deadline: Option<Instant64>) -> Arc<GenerateRequest> {
    Arc::new(GenerateRequest {
        sequence: SequenceId { request: RequestId(id), choice: 0, attempt: 0 },
        tenant: TenantId(0),
        prompt: Arc::from([1, 2, 3]),
        generated: Vec::new(),
        sampling: SamplingParams::default(),
        stop_ids: Arc::from([]),
        max_tokens: 4,
        top_logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline,
    })
}

fn granted(lease: LeaseId) -> GrantedLease {
    GrantedLease { lease, epoch: Epoch(1), blocks: Vec::new(), num_present: 0 }
}

fn hand_over(id: u64, lease: LeaseId) -> HandOver {
    HandOver { sequence: request(id, None).sequence, lease, first_token: 9, cached_tokens: 0 }
}

fn asked(id: u64) -> DecodeEvent {
    DecodeEvent::LeaseAsked { request: request(id, None), prefill: DeviceId(7) }
}

fn drive(core: &mut DecodeCore, events: impl IntoIterator<Item = DecodeEvent>, now: Instant64) -> Vec<DecodeEffect> {
    let mut effects = Vec::new();
    events.into_iter().for_each(|event| core.handle(event, now, &mut effects));
    effects
}

#[test]
fn a_sequence_joins_when_its_last_block_and_its_hand_over_are_there_in_either_order() {
    for swapped in [false, true] {
        let mut core = DecodeCore::new(LeaseId(4), TERM);
        let lease = LeaseId(5);
        drive(&mut core, [asked(1), DecodeEvent::Reserved(granted(lease))], Instant64(0));
        let mut last = [DecodeEvent::Complete(lease), DecodeEvent::HandedOver(hand_over(1, lease))];
        if swapped {
            last.swap(0, 1);
        }
        let [first, second] = last;
        assert_eq!(drive(&mut core, [first], Instant64(1)), []);
        assert_eq!(drive(&mut core, [second], Instant64(2)), [DecodeEffect::Close(lease)]);
        let effects = drive(&mut core, [DecodeEvent::WritersGone(lease)], Instant64(3));
        assert_eq!(effects, [DecodeEffect::Commit(hand_over(1, lease))]);
        assert_eq!(core.num_leases(), 0);
    }
}

#[test]
fn each_layer_renews_a_lease_and_the_deadline_caps_it() {
    let deadline = Instant64(0) + 3 * TERM;
    for (deadline, renewed_until) in [(None, 5), (Some(deadline), 3)] {
        let mut core = DecodeCore::new(LeaseId(0), TERM);
        let lease = LeaseId(1);
        let asked = DecodeEvent::LeaseAsked { request: request(1, deadline), prefill: DeviceId(7) };
        drive(&mut core, [asked, DecodeEvent::Reserved(granted(lease))], Instant64(0));
        let mut now = Instant64(0);
        let mut lost_at = None;
        for term in 1..=10 {
            now = now + TERM;
            let at = now - Duration::from_millis(1);
            let arrived = (term < 5).then_some(DecodeEvent::Arrived { lease, at });
            let effects = drive(&mut core, arrived.into_iter().chain([DecodeEvent::Tick]), now);
            if effects.contains(&DecodeEffect::Lost(request(1, None).sequence)) {
                lost_at.get_or_insert(term);
                assert!(effects.contains(&DecodeEffect::Close(lease)));
            }
        }
        assert_eq!(lost_at, Some(renewed_until));
    }
}

#[test]
fn an_abort_while_the_last_writer_leaves_commits_nothing() {
    let mut core = DecodeCore::new(LeaseId(0), TERM);
    let lease = LeaseId(1);
    let arrived = [DecodeEvent::Complete(lease), DecodeEvent::HandedOver(hand_over(1, lease))];
    drive(&mut core, [asked(1), DecodeEvent::Reserved(granted(lease))].into_iter().chain(arrived), Instant64(0));
    let sequence = request(1, None).sequence;
    let effects = drive(&mut core, [DecodeEvent::Abort(sequence), DecodeEvent::WritersGone(lease)], Instant64(0));
    assert_eq!(effects, [DecodeEffect::Abort(sequence), DecodeEffect::Release(lease)]);
}

#[test]
fn an_abort_while_the_engine_reserves_gives_back_what_comes() {
    let mut core = DecodeCore::new(LeaseId(0), TERM);
    let sequence = request(1, None).sequence;
    drive(&mut core, [asked(1), DecodeEvent::Abort(sequence)], Instant64(0));
    let effects = drive(&mut core, [DecodeEvent::Reserved(granted(LeaseId(1)))], Instant64(0));
    assert_eq!(effects, [DecodeEffect::Release(LeaseId(1))]);
    assert_eq!(core.num_leases(), 0);
}

proptest! {
    #[test]
    fn what_is_reserved_is_committed_or_released_once_and_after_its_writers(
        steps in proptest::collection::vec((0u8..9, 0u64..4, 1u64..4000), 1..150),
    ) {
        let mut core = DecodeCore::new(LeaseId(0), TERM);
        let mut now = Instant64(0);
        // The engine's and the landing strip's side.
        let (mut asked_for, mut reserved, mut open) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let (mut draining, mut over) = (BTreeSet::new(), BTreeSet::new());
        let drain = std::iter::repeat_n((8u8, 0u64, 20_000u64), 6);
        for (kind, id, millis) in steps.into_iter().chain(drain) {
            let lease = open.iter().nth(id as usize % open.len().max(1)).copied().unwrap_or(LeaseId(id));
            let event = match kind {
                0 => asked(id),
                1 => DecodeEvent::Complete(lease),
                2 => DecodeEvent::HandedOver(hand_over(id, lease)),
                3 => DecodeEvent::Returned(lease),
                4 => DecodeEvent::Expire(lease),
                5 => DecodeEvent::Abort(request(id, None).sequence),
                6 => DecodeEvent::Arrived { lease, at: now },
                7 => DecodeEvent::Refused(LeaseId(id)),
                _ => { now = now + Duration::from_millis(millis); DecodeEvent::Tick }
            };
            if matches!(event, DecodeEvent::Refused(lease) if asked_for.remove(&lease).is_none()) {
                continue;
            }
            let mut events = vec![event];
            // The engine answers, and writers leave, at every other step.
            if millis % 2 == 0 {
                for (lease, ()) in std::mem::take(&mut asked_for) {
                    reserved.insert(lease);
                    events.push(DecodeEvent::Reserved(granted(lease)));
                }
                events.extend(std::mem::take(&mut draining).into_iter().map(DecodeEvent::WritersGone));
            }
            for event in events {
                for effect in drive(&mut core, [event], now) {
                    match effect {
                        DecodeEffect::Reserve { lease, .. } => { asked_for.insert(lease, ()); }
                        DecodeEffect::Grant { lease, .. } => {
                            prop_assert!(reserved.contains(&lease.lease) && open.insert(lease.lease));
                        }
                        DecodeEffect::Close(lease) => {
                            prop_assert!(open.remove(&lease));
                            draining.insert(lease);
                        }
                        DecodeEffect::Commit(HandOver { lease, .. }) | DecodeEffect::Release(lease) => {
                            prop_assert!(!open.contains(&lease) && !draining.contains(&lease), "writers are in");
                            prop_assert!(reserved.remove(&lease) && over.insert(lease), "{} is over twice", lease);
                        }
                        DecodeEffect::Refuse { .. } | DecodeEffect::Abort(_) | DecodeEffect::Lost(_) => {}
                    }
                }
            }
        }
        prop_assert!(reserved.is_empty() && open.is_empty(), "{:?} {:?}", reserved, open);
        prop_assert_eq!(core.num_leases(), asked_for.len());
    }
}

#[test]
fn a_lease_whose_writer_is_lost_is_released_and_its_sequence_told_unless_all_of_it_is_there() {
    let mut core = DecodeCore::new(LeaseId(0), Duration::from_secs(10));
    let mut drive = |event| {
        let mut effects = Vec::new();
        core.handle(event, Instant64(0), &mut effects);
        effects
    };
    let (writer, other) = (DeviceId(3), DeviceId(4));
    for (id, prefill) in [(1, writer), (2, other)] {
        drive(DecodeEvent::LeaseAsked { request: request(id, None), prefill });
        let (blocks, epoch) = (Vec::new(), relevo_wire::Epoch(1));
        drive(DecodeEvent::Reserved(GrantedLease { lease: LeaseId(id), epoch, blocks, num_present: 0 }));
    }
    let lost = request(1, None).sequence;
    let expected = [DecodeEffect::Close(LeaseId(1)), DecodeEffect::Lost(lost)];
    assert_eq!(drive(DecodeEvent::WriterLost(writer)), expected);
    assert_eq!(drive(DecodeEvent::WritersGone(LeaseId(1))), [DecodeEffect::Release(LeaseId(1))]);
    assert_eq!(drive(DecodeEvent::NodeLost(relevo_wire::NodeId(77))), [], "nothing is of that node");
    let all = [DecodeEffect::Close(LeaseId(2))];
    assert_eq!(
        drive(DecodeEvent::NodeLost(relevo_wire::NodeId::ALONE)),
        all,
        "its gateway and its writer, whom nobody need tell"
    );
}
