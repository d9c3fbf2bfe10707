//! The keeper of one stream: whatever the workers say and however they die, the client sees one gapless stream and one end.

use proptest::prelude::*;
use relevo_wire::{RequestId, SamplingParams, TenantId};

use super::*;

fn request() -> GenerateRequest {
    GenerateRequest {
        sequence: SequenceId { request: RequestId(1), choice: 0, attempt: 0 },
        tenant: TenantId(0),
        prompt: Arc::from([1, 2, 3]),
        generated: Vec::new(),
        sampling: SamplingParams::default(),
        stop_ids: Arc::from([]),
        max_tokens: 100,
        top_logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
    }
}

fn token(index: u32) -> StreamEvent {
    StreamEvent::Token { index, token: 1000 + index, logprobs: None }
}

fn finished(completion_tokens: u32) -> StreamEvent {
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens };
    StreamEvent::Finished { reason: FinishReason::Stop, usage }
}

fn feed(core: &mut StreamCore, attempt: u32, event: StreamEvent) -> (Verdict, Vec<StreamEvent>) {
    let mut emit = Vec::new();
    let verdict = core.handle(attempt, event, Instant64(5), &mut emit);
    (verdict, emit)
}

#[test]
fn tokens_that_overtake_wait_for_the_one_that_is_next_and_the_end_waits_for_all() {
    let mut core = StreamCore::new(request(), Instant64(0));
    assert_eq!(feed(&mut core, 0, token(1)), (Verdict::Continues, vec![]));
    assert_eq!(feed(&mut core, 0, finished(3)), (Verdict::Continues, vec![]));
    assert_eq!(feed(&mut core, 0, token(0)), (Verdict::Started, vec![token(0), token(1)]));
    assert_eq!(feed(&mut core, 0, token(2)), (Verdict::Over, vec![token(2), finished(3)]));
    assert_eq!(feed(&mut core, 0, token(3)), (Verdict::Continues, vec![]));
}

#[test]
fn a_repeat_is_dropped_and_a_different_one_is_counted() {
    let mut core = StreamCore::new(request(), Instant64(0));
    feed(&mut core, 0, token(0));
    assert_eq!(feed(&mut core, 0, token(0)), (Verdict::Continues, vec![]));
    let other = StreamEvent::Token { index: 0, token: 7, logprobs: None };
    assert_eq!(feed(&mut core, 0, other), (Verdict::Contradicted, vec![]));
}

#[test]
fn a_hole_that_is_never_filled_and_a_worker_that_gives_up_are_losses() {
    let mut core = StreamCore::new(request(), Instant64(0));
    let verdicts: Vec<_> = (1..=65).map(|index| feed(&mut core, 0, token(index)).0).collect();
    assert!(verdicts[..64].iter().all(|verdict| *verdict == Verdict::Continues));
    assert_eq!(verdicts[64], Verdict::Lost);
    let gives_up = StreamEvent::Failed(RequestError::ShuttingDown);
    assert_eq!(feed(&mut core, 0, gives_up), (Verdict::Lost, vec![]));
}

#[test]
fn the_replay_carries_what_was_emitted_and_earlier_attempts_are_not_listened_to() {
    let mut core = StreamCore::new(request(), Instant64(0));
    feed(&mut core, 0, token(0));
    feed(&mut core, 0, token(1));
    let Afterwards::Replay { request, suspect } = core.lost(core.sequence(), Loss::Elsewhere) else { panic!() };
    assert_eq!((request.generated.clone(), request.sequence.attempt, suspect), (vec![1000, 1001], 1, false));
    assert_eq!(feed(&mut core, 0, token(2)), (Verdict::Continues, vec![]));
    assert_eq!(feed(&mut core, 0, finished(2)), (Verdict::Continues, vec![]));
    assert_eq!(feed(&mut core, 1, token(2)), (Verdict::Started, vec![token(2)]));
    let stale = SequenceId { attempt: 0, ..core.sequence() };
    assert_eq!(core.lost(stale, Loss::Elsewhere), Afterwards::Nothing);
}

#[test]
fn what_overtook_in_an_attempt_that_was_lost_is_forgotten() {
    let mut core = StreamCore::new(request(), Instant64(0));
    feed(&mut core, 0, token(0));
    feed(&mut core, 0, token(2));
    assert!(matches!(core.lost(core.sequence(), Loss::Elsewhere), Afterwards::Replay { .. }));
    assert_eq!(feed(&mut core, 1, token(1)), (Verdict::Started, vec![token(1)]));
}

#[test]
fn prompt_log_probabilities_are_not_sent_twice() {
    let piece = |first: u32, n: u32| {
        let logprobs = (first..first + n)
            .map(|token| relevo_wire::TokenLogprobs { token, logprob: 0.0, rank: 0, top: Vec::new() })
            .collect();
        StreamEvent::PromptLogprobs { first, logprobs }
    };
    let mut core = StreamCore::new(request(), Instant64(0));
    assert_eq!(feed(&mut core, 0, piece(1, 4)).1, [piece(1, 4)]);
    core.lost(core.sequence(), Loss::Elsewhere);
    assert_eq!(feed(&mut core, 1, piece(1, 3)).1, []);
    assert_eq!(feed(&mut core, 1, piece(4, 4)).1, [piece(5, 3)]);
}

#[test]
fn what_the_prefix_cache_gave_is_told_once() {
    let prefilled = |cached_tokens| StreamEvent::Prefilled { cached_tokens };
    let mut core = StreamCore::new(request(), Instant64(0));
    assert_eq!(feed(&mut core, 0, prefilled(2)), (Verdict::Continues, vec![prefilled(2)]));
    feed(&mut core, 0, token(0));
    core.lost(core.sequence(), Loss::Elsewhere);
    assert_eq!(feed(&mut core, 1, prefilled(0)), (Verdict::Continues, vec![]));
}

#[test]
fn two_deaths_without_a_token_between_them_make_a_poison_and_a_token_clears() {
    let poisoned = |num_deaths| Afterwards::Fail(RequestError::Poisoned { num_deaths });
    let mut core = StreamCore::new(request(), Instant64(0));
    assert!(matches!(core.lost(core.sequence(), Loss::Stepping), Afterwards::Replay { suspect: true, .. }));
    assert_eq!(core.clone().lost(core.sequence(), Loss::Stepping), poisoned(2));
    for index in 0..3 {
        assert!(core.is_on_trial());
        let attempt = core.sequence().attempt;
        feed(&mut core, attempt, token(index));
        assert!(!core.is_on_trial());
        assert!(matches!(core.lost(core.sequence(), Loss::Stepping), Afterwards::Replay { .. }));
    }
    let attempt = core.sequence().attempt;
    feed(&mut core, attempt, token(3));
    assert_eq!(core.lost(core.sequence(), Loss::Stepping), poisoned(5));
}

#[test]
fn the_one_on_trial_is_accused_and_without_one_all_are() {
    let sequence = |id| SequenceId { request: RequestId(id), choice: 0, attempt: 0 };
    let all = [(sequence(1), false), (sequence(2), false)];
    assert_eq!(accused(all.iter().copied()), [sequence(1), sequence(2)]);
    let one = [(sequence(1), false), (sequence(2), true)];
    assert_eq!(accused(one.iter().copied()), [sequence(2)]);
}

proptest! {
    #[test]
    fn the_client_sees_every_token_once_in_order_and_one_end(
        steps in proptest::collection::vec((0u8..6, 0u32..3, 0u32..6), 0..120), total in 1u32..20,
    ) {
        let mut core = StreamCore::new(request(), Instant64(0));
        let mut emitted = Vec::new();
        // Workers of every attempt say what the model says; a present one is heard to the end at last.
        for (kind, attempt, ahead) in steps {
            let index = (core.request().generated.len() as u32 + ahead).saturating_sub(2).min(total - 1);
            let attempt = core.sequence().attempt.saturating_sub(attempt);
            match kind {
                0..=3 => { core.handle(attempt, token(index), Instant64(1), &mut emitted); }
                4 => { core.handle(attempt, finished(total), Instant64(1), &mut emitted); }
                _ => { core.lost(SequenceId { attempt, ..core.sequence() }, Loss::Elsewhere); }
            }
        }
        let attempt = core.sequence().attempt;
        for index in 0..total {
            core.handle(attempt, token(index), Instant64(2), &mut emitted);
        }
        core.handle(attempt, finished(total), Instant64(2), &mut emitted);
        let expected: Vec<_> = (0..total).map(token).chain([finished(total)]).collect();
        prop_assert_eq!(emitted, expected);
        prop_assert_eq!(core.phase(), Phase::Over);
    }
}
