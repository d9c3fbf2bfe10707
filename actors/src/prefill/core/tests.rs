//! The prefill role against a model: every lease that is granted is handed over or returned, once.

use std::collections::BTreeSet;

use proptest::prelude::*;
use relevo_wire::{Epoch, RequestId, SamplingParams, TenantId};

use super::*;

const HERE: DeviceId = DeviceId(0);
const THERE: DeviceId = DeviceId(1);

fn request(id: u64) -> Arc<GenerateRequest> {
    Arc::new(GenerateRequest {
        sequence: sequence(id),
        tenant: TenantId(0),
        prompt: Arc::from([1, 2, 3]),
        generated: Vec::new(),
        sampling: SamplingParams::default(),
        stop_ids: Arc::from([]),
        max_tokens: 4,
        top_logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
    })
}

fn sequence(id: u64) -> SequenceId {
    SequenceId { request: RequestId(id), choice: 0, attempt: 0 }
}

fn grant(id: u64, lease: u64, decode: DeviceId) -> PrefillEvent {
    let lease = GrantedLease { lease: LeaseId(lease), epoch: Epoch(1), blocks: Vec::new(), num_present: 0 };
    PrefillEvent::Granted { sequence: sequence(id), decode, lease }
}

fn finished(id: u64, continues: bool) -> PrefillEvent {
    PrefillEvent::Finished { sequence: sequence(id), first_token: Some(9), continues, cached_tokens: 0 }
}

fn drive(core: &mut PrefillCore, events: impl IntoIterator<Item = PrefillEvent>, now: Instant64) -> Vec<PrefillEffect> {
    let mut effects = Vec::new();
    events.into_iter().for_each(|event| core.handle(event, now, &mut effects));
    effects
}

#[test]
fn on_the_same_device_nothing_is_leased() {
    let mut core = PrefillCore::new(HERE);
    let effects =
        drive(&mut core, [PrefillEvent::Admit { request: request(1), decode: HERE }, finished(1, true)], Instant64(0));
    let admitted = PrefillEffect::Prefill { request: request(1), destination: Destination::SamePool };
    assert_eq!(effects, [admitted, PrefillEffect::Started(sequence(1))]);
    assert!(core.is_empty());
}

#[test]
fn for_what_ends_with_its_first_token_nothing_is_leased_elsewhere() {
    for (max_tokens, generated, destination) in [
        (0, vec![], Destination::SamePool),
        (1, vec![], Destination::SamePool),
        (4, vec![7, 7, 7], Destination::SamePool),
        (2, vec![], Destination::Remote),
        (4, vec![7, 7], Destination::Remote),
    ] {
        let request = Arc::new(GenerateRequest { max_tokens, generated, ..(*request(1)).clone() });
        let mut core = PrefillCore::new(HERE);
        let admit = PrefillEvent::Admit { request: Arc::clone(&request), decode: THERE };
        let effects = drive(&mut core, [admit, finished(1, false)], Instant64(0));
        assert_eq!(
            effects,
            [PrefillEffect::Prefill { request, destination }, PrefillEffect::Started(sequence(1))],
            "{max_tokens}"
        );
    }
}

#[test]
fn a_lease_is_asked_for_when_the_first_chunk_is_due_and_handed_over_with_the_first_token() {
    let mut core = PrefillCore::new(HERE);
    drive(&mut core, [PrefillEvent::Admit { request: request(1), decode: THERE }], Instant64(0));
    let asked = drive(&mut core, [PrefillEvent::LeaseWanted(sequence(1))], Instant64(0));
    assert_eq!(asked, [PrefillEffect::AskLease { decode: THERE, request: request(1) }]);
    drive(&mut core, [grant(1, 5, THERE)], Instant64(0));
    let hand_over = HandOver { sequence: sequence(1), lease: LeaseId(5), first_token: 9, cached_tokens: 0 };
    let effects = drive(&mut core, [finished(1, true)], Instant64(0));
    assert!(effects.contains(&PrefillEffect::HandOver { decode: THERE, hand_over }));
}

#[test]
fn an_answer_that_does_not_come_is_a_refusal_and_one_that_comes_late_is_returned() {
    let mut core = PrefillCore::new(HERE);
    let admit = PrefillEvent::Admit { request: request(1), decode: THERE };
    drive(&mut core, [admit, PrefillEvent::LeaseWanted(sequence(1))], Instant64(0));
    let later = Instant64(0) + ANSWER_PATIENCE;
    assert_eq!(drive(&mut core, [PrefillEvent::Tick], later), [PrefillEffect::Refused(sequence(1))]);
    let effects = drive(&mut core, [grant(1, 5, THERE)], later);
    assert_eq!(effects, [PrefillEffect::ReturnLease { decode: THERE, lease: LeaseId(5) }]);
    let redirect = PrefillEvent::Redirect { sequence: sequence(1), decode: DeviceId(2) };
    let effects = drive(&mut core, [redirect], later);
    assert_eq!(effects, [PrefillEffect::AskLease { decode: DeviceId(2), request: request(1) }]);
}

#[test]
fn a_router_that_does_not_answer_is_asked_again() {
    let mut core = PrefillCore::new(HERE);
    let admit = PrefillEvent::Admit { request: request(1), decode: THERE };
    drive(&mut core, [admit, PrefillEvent::LeaseWanted(sequence(1))], Instant64(0));
    let refused = PrefillEvent::LeaseRefused { sequence: sequence(1), decode: THERE };
    assert_eq!(drive(&mut core, [refused], Instant64(0)), [PrefillEffect::Refused(sequence(1))]);
    assert_eq!(drive(&mut core, [PrefillEvent::Tick], Instant64(1)), []);
    let later = Instant64(0) + ANSWER_PATIENCE;
    assert_eq!(drive(&mut core, [PrefillEvent::Tick], later), [PrefillEffect::Refused(sequence(1))]);
}

#[test]
fn an_admission_that_comes_after_its_abort_or_twice_is_not_heeded() {
    let mut core = PrefillCore::new(HERE);
    let admit = |id| PrefillEvent::Admit { request: request(id), decode: THERE };
    drive(&mut core, [PrefillEvent::Abort(sequence(1))], Instant64(0));
    assert_eq!(drive(&mut core, [PrefillEvent::Tick, admit(1)], Instant64(1)), []);
    drive(&mut core, [admit(2), PrefillEvent::LeaseWanted(sequence(2))], Instant64(1));
    assert_eq!(drive(&mut core, [admit(2)], Instant64(1)), []);
    let refused = PrefillEvent::LeaseRefused { sequence: sequence(2), decode: THERE };
    assert_eq!(drive(&mut core, [refused], Instant64(1)), [PrefillEffect::Refused(sequence(2))]);
    // What was aborted is not remembered for ever.
    let effects = drive(&mut core, [PrefillEvent::Tick, admit(1)], Instant64(0) + LATE_ADMISSION);
    assert!(matches!(effects.last(), Some(PrefillEffect::Prefill { .. })), "{effects:?}");
}

proptest! {
    #[test]
    fn every_granted_lease_is_handed_over_or_returned_once(
        steps in proptest::collection::vec((0u8..10, 0u64..4, any::<bool>(), 0u64..900), 1..150),
    ) {
        let mut core = PrefillCore::new(HERE);
        let mut now = Instant64(0);
        let (mut next_lease, mut held, mut known) = (0, BTreeSet::new(), BTreeSet::new());
        let end = (0..4).map(|id| (6u8, id, true, 0));
        for (kind, id, flag, millis) in steps.into_iter().chain(end) {
            now = now + Duration::from_millis(millis);
            let decode = if flag { THERE } else { DeviceId(2) };
            let event = match kind {
                0 if known.insert(id) => PrefillEvent::Admit { request: request(id), decode },
                0 | 1 => PrefillEvent::LeaseWanted(sequence(id)),
                2 | 3 => { next_lease += 1; held.insert(LeaseId(next_lease)); grant(id, next_lease, decode) }
                4 => PrefillEvent::LeaseRefused { sequence: sequence(id), decode },
                5 => finished(id, flag),
                6 => PrefillEvent::Abort(sequence(id)),
                7 => PrefillEvent::Ended(sequence(id)),
                8 => PrefillEvent::PushFailed { sequence: sequence(id), lease: LeaseId(next_lease) },
                _ => PrefillEvent::Redirect { sequence: sequence(id), decode },
            };
            if matches!(event, PrefillEvent::Abort(_) | PrefillEvent::Ended(_) | PrefillEvent::Finished { .. }) {
                known.remove(&id);
            }
            for effect in drive(&mut core, [event, PrefillEvent::Tick], now) {
                match effect {
                    PrefillEffect::ReturnLease { lease, .. } => prop_assert!(held.remove(&lease), "{} returned twice", lease),
                    PrefillEffect::HandOver { hand_over, .. } => prop_assert!(held.remove(&hand_over.lease)),
                    PrefillEffect::Lost(lost) => { known.remove(&lost.request.0); }
                    _ => {}
                }
            }
        }
        prop_assert!(held.is_empty(), "{:?} are held for ever", held);
        prop_assert!(core.is_empty());
    }
}
