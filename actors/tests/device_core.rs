//! What a `DeviceCore` promises, one promise at a time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "the hands of tests, outside their functions")]

mod device_rig;

use std::sync::Arc;
use std::time::Duration;

use device_rig::{Rig, limits, options, prompt, reference, request};
use relevo_actors::device::{
    CoreEvent, CoreLimits, Destination, DeviceCommand, DeviceEvent, DeviceRole, GrantedLease, SequenceOutcome,
};
use relevo_gpu::model::ScriptedModel;
use relevo_wire::{
    BlockIndex, Epoch, FinishReason, GenerateRequest, Instant64, LeaseId, RequestError, SequenceId, StreamEvent,
    TenantId,
};

fn granted(blocks: std::ops::Range<u32>, num_present: u32) -> GrantedLease {
    GrantedLease { lease: LeaseId(1), epoch: Epoch(9), blocks: blocks.map(BlockIndex).collect(), num_present }
}

fn reserve(rig: &mut Rig, lease: u64, request: &GenerateRequest) -> Option<GrantedLease> {
    rig.command(DeviceCommand::Reserve { lease: LeaseId(lease), request: Arc::new(request.clone()) });
    match rig.told.last() {
        Some(DeviceEvent::Reserved { lease, .. }) => Some(lease.clone()),
        Some(DeviceEvent::Refused { .. }) => None,
        other => panic!("no answer but {other:?}"),
    }
}

#[test]
fn a_sequence_yields_what_it_yields_alone() {
    let mut rig = Rig::new(64);
    let request = request(1, &prompt(1, 100), 20);
    let id = rig.submit(request.clone());
    rig.run();
    assert_eq!(rig.tokens(id), reference(&request));
    assert!(matches!(
        rig.emitted[&id].last,
        Some(StreamEvent::Finished { reason: FinishReason::Length, usage }) if usage.completion_tokens == 20
    ));
    let hands: Vec<_> = rig.told.iter().map(DeviceEvent::role).collect();
    assert_eq!(hands, [Some(DeviceRole::Prefill), None, Some(DeviceRole::Decode)], "prefill, hand-over, end");
}

#[test]
fn chunks_end_at_multiples_of_16_but_the_last() {
    let mut rig = Rig::new(64);
    rig.submit(request(1, &prompt(1, 5), 30));
    rig.step();
    rig.submit(request(2, &prompt(2, 150), 2));
    rig.run();
    let mut end = 0;
    for (_, rows) in rig.step_rows.iter().flatten().filter(|(id, _)| id.request.0 == 2) {
        end += rows;
        assert!(end % 16 == 0 || end >= 150, "a chunk ends at {end}");
    }
}

#[test]
fn decode_rows_ride_along_with_every_chunk() {
    let mut rig = Rig::new(64);
    let first = rig.submit(request(1, &prompt(1, 5), 30));
    rig.step();
    rig.submit(request(2, &prompt(2, 200), 2));
    let before = rig.step_rows.len();
    for _ in 0..4 {
        rig.step();
    }
    for rows in &rig.step_rows[before..] {
        assert!(rows.contains(&(first, 1)), "{rows:?}");
        assert!(rows.iter().map(|(_, rows)| rows).sum::<usize>() <= 48, "{rows:?}");
    }
}

#[test]
fn a_prefix_is_computed_once() {
    let mut rig = Rig::new(64);
    rig.submit(request(1, &prompt(1, 100), 1));
    rig.run();
    let again = request(2, &prompt(1, 100), 5);
    let id = rig.submit(again.clone());
    rig.run();
    let computed: usize = rig.step_rows.iter().flatten().filter(|(it, _)| *it == id).map(|(_, rows)| rows).sum();
    assert_eq!(computed, 4 + 4, "the four tokens after six full blocks, then four generated ones");
    assert_eq!(rig.tokens(id), reference(&again));
    let Some(StreamEvent::Finished { usage, .. }) = &rig.emitted[&id].last else { panic!() };
    assert_eq!((usage.cached_tokens, rig.emitted[&id].cached_tokens), (96, Some(96)), "told early and at the end");
}

#[test]
fn the_last_token_is_computed_even_if_every_block_is_held() {
    let mut rig = Rig::new(64);
    rig.submit(request(1, &prompt(1, 96), 1));
    rig.run();
    let again = request(2, &prompt(1, 96), 5);
    let id = rig.submit(again.clone());
    rig.run();
    assert_eq!(rig.tokens(id), reference(&again));
}

#[test]
fn choices_of_one_prompt_wait_for_the_first_ones_prefix() {
    let mut rig = Rig::new(64);
    let requests: Vec<_> = (0..4)
        .map(|choice| {
            let mut request = request(1, &prompt(1, 20), 4);
            request.sequence.choice = choice;
            request
        })
        .collect();
    for request in &requests {
        rig.submit(request.clone());
    }
    rig.run();
    let prefilled: usize = rig.step_rows.iter().flatten().map(|(_, rows)| rows).filter(|&&rows| rows > 1).sum();
    assert_eq!(prefilled, 20 + 3 * 4, "16 tokens are shared, though all would have fitted into the first step");
    for request in &requests {
        assert_eq!(rig.tokens(request.sequence), reference(request));
    }
}

#[test]
fn tenants_do_not_share_prefixes() {
    let mut rig = Rig::new(64);
    rig.submit(request(1, &prompt(1, 64), 1));
    rig.run();
    rig.submit(GenerateRequest { tenant: TenantId(5), ..request(2, &prompt(1, 64), 1) });
    rig.run();
    assert_eq!(rig.core.counters().prefix_hit_tokens, 0);
}

#[test]
fn a_tenant_who_churns_does_not_evict_one_who_does_not() {
    let mut rig = Rig::new(16);
    rig.submit(request(1, &prompt(1, 48), 1));
    rig.run();
    for kind in 2..20 {
        rig.submit(GenerateRequest { tenant: TenantId(5), ..request(u64::from(kind), &prompt(kind, 100), 1) });
        rig.run();
    }
    rig.submit(request(100, &prompt(1, 48), 1));
    rig.run();
    assert_eq!(rig.core.counters().prefix_hit_tokens, 32, "two of its three blocks count, the last is computed anyhow");
}

#[test]
fn preemption_recomputes_and_emits_nothing_twice() {
    let mut rig = Rig::new(12);
    let requests: Vec<_> = (0..4).map(|id| request(id, &prompt(id as u32, 30), 50)).collect();
    for request in &requests {
        rig.submit(request.clone());
    }
    rig.run();
    assert!(rig.core.counters().preemptions > 0);
    for request in &requests {
        assert_eq!(rig.tokens(request.sequence), reference(request), "{}", request.sequence);
    }
}

#[test]
fn nobody_is_let_in_beside_those_who_will_need_the_room() {
    let mut rig = Rig::new(9);
    let running = request(1, &prompt(1, 64), 30);
    rig.submit(running.clone());
    rig.step();
    // It will take its fifth block and need a sixth: the other four hold the next prompt, but then nobody could go on for long.
    let next = request(2, &prompt(2, 64), 40);
    rig.submit(next.clone());
    rig.run();
    assert_eq!(rig.core.counters().preemptions, 0);
    for request in [running, next] {
        assert_eq!(rig.tokens(request.sequence), reference(&request));
    }
}

#[test]
fn blocks_of_a_prefix_that_is_taken_up_again_make_no_room() {
    let mut rig = Rig::new(12);
    rig.submit(request(1, &prompt(1, 96), 1));
    rig.run();
    assert_eq!(rig.core.kv_blocks().cached, 6);
    let running = request(2, &prompt(2, 64), 30);
    rig.submit(running.clone());
    rig.step();
    // It would find six blocks of its eight idle. Once it uses them, two of the pool are left for both.
    let again = request(3, &prompt(1, 128), 1);
    rig.submit(again.clone());
    rig.run();
    assert_eq!(rig.core.counters().preemptions, 0, "it waits until there is room for all of it");
    assert_eq!(rig.core.counters().prefix_hit_tokens, 96);
    for request in [running, again] {
        assert_eq!(rig.tokens(request.sequence), reference(&request));
    }
}

#[test]
fn the_lowest_priority_makes_room_first() {
    let mut rig = Rig::new(12);
    let low = rig.submit(GenerateRequest { priority: -1, ..request(1, &prompt(1, 30), 60) });
    let high = rig.submit(request(2, &prompt(2, 30), 60));
    let higher = rig.submit(GenerateRequest { priority: 1, ..request(3, &prompt(3, 30), 60) });
    rig.run();
    let ends: Vec<_> = rig
        .told
        .iter()
        .filter_map(|event| match event {
            DeviceEvent::Ended { sequence, .. } => Some(*sequence),
            _ => None,
        })
        .collect();
    assert_eq!(ends.last(), Some(&low), "{high} and {higher} go first: {ends:?}");
}

#[test]
fn a_higher_priority_is_admitted_first_and_equals_by_age() {
    let mut rig = Rig::new(64);
    let first = rig.submit(request(1, &prompt(1, 60), 1));
    let second = rig.submit(request(2, &prompt(2, 60), 1));
    let urgent = rig.submit(GenerateRequest { priority: 5, ..request(3, &prompt(3, 60), 1) });
    rig.run();
    let mut order: Vec<SequenceId> = rig.step_rows.iter().flatten().map(|(id, _)| *id).collect();
    order.dedup();
    assert_eq!(order, [urgent, first, second]);
}

#[test]
fn a_tenant_with_one_request_does_not_wait_behind_anothers_many() {
    let mut rig = Rig::new(64);
    for id in 0..10 {
        rig.submit(request(id, &prompt(id as u32, 60), 1));
    }
    rig.step();
    let other = rig.submit(GenerateRequest { tenant: TenantId(2), ..request(50, &prompt(50, 60), 1) });
    rig.run();
    let place = rig.step_rows.iter().position(|rows| rows.iter().any(|(id, _)| *id == other)).unwrap();
    assert!(place <= 2, "it ran in step {place}");
}

#[test]
fn prompt_logprobs_skip_the_cache_and_come_in_pieces() {
    let mut rig = Rig::new(64);
    rig.submit(request(1, &prompt(1, 100), 1));
    rig.run();
    let scored = GenerateRequest { prompt_logprobs: Some(0), ..request(2, &prompt(1, 100), 3) };
    let id = rig.submit(scored.clone());
    rig.run();
    assert_eq!(rig.emitted[&id].prompt_logprobs.len(), 99);
    assert_eq!(rig.tokens(id), reference(&scored));
}

#[test]
fn no_tokens_wanted_gives_the_prompts_logprobs_alone() {
    let mut rig = Rig::new(64);
    let id = rig.submit(GenerateRequest { prompt_logprobs: Some(2), ..request(2, &prompt(1, 70), 0) });
    let one = rig.submit(GenerateRequest { prompt_logprobs: Some(2), ..request(3, &prompt(1, 1), 0) });
    rig.run();
    assert_eq!(rig.emitted[&id].prompt_logprobs.len(), 69);
    assert!(rig.tokens(id).is_empty() && rig.tokens(one).is_empty());
    assert_eq!(rig.outcome(one), Some(SequenceOutcome::Finished));
    assert!(rig.told.iter().any(|event| matches!(event, DeviceEvent::PrefillFinished { first_token: None, .. })));
}

#[test]
fn a_stop_id_is_the_last_token() {
    let mut rig = Rig::new(64);
    let mut stopping = request(1, &prompt(1, 40), 30);
    let stop = reference(&stopping)[5];
    stopping.stop_ids = Arc::from([stop]);
    let id = rig.submit(stopping);
    rig.run();
    assert_eq!(rig.tokens(id).last(), Some(&stop));
    assert!(matches!(rig.emitted[&id].last, Some(StreamEvent::Finished { reason: FinishReason::Stop, .. })));
}

#[test]
fn a_replay_goes_on_where_the_first_attempt_stood() {
    let whole = request(1, &prompt(1, 40), 30);
    let expected = reference(&whole);
    let mut rig = Rig::new(64);
    let mut replay = GenerateRequest { generated: expected[..11].to_vec(), ..whole };
    replay.sequence.attempt = 1;
    rig.emitted.entry(replay.sequence).or_default().tokens = replay.generated.clone();
    let id = rig.submit(replay);
    rig.run();
    assert_eq!(rig.tokens(id), expected);
}

#[test]
fn the_end_of_the_context_ends_a_sequence() {
    let mut rig = Rig::new(64);
    let id = rig.submit(request(1, &prompt(1, 250), 1000));
    let too_long = rig.submit(request(2, &prompt(1, 256), 1));
    rig.run();
    assert_eq!(rig.tokens(id).len(), 6);
    assert!(matches!(
        rig.outcome(too_long),
        Some(SequenceOutcome::Failed(RequestError::ContextTooLong { num_tokens: 257, max_context: 256 }))
    ));
}

#[test]
fn what_the_pool_can_never_hold_is_refused() {
    let mut rig = Rig::new(4);
    let id = rig.submit(request(1, &prompt(1, 100), 1));
    assert_eq!(
        rig.outcome(id),
        Some(SequenceOutcome::Failed(RequestError::KvPoolTooSmall { num_blocks: 7, pool_blocks: 4 }))
    );
}

#[test]
fn an_abort_in_mid_step_frees_after_the_step() {
    let mut rig = Rig::new(64);
    let id = rig.submit(request(1, &prompt(1, 100), 5));
    rig.begin_step();
    rig.command(DeviceCommand::Abort { sequence: id });
    assert_eq!(rig.outcome(id), None, "the step still writes to its blocks");
    while rig.advance_step() {}
    assert_eq!(rig.outcome(id), Some(SequenceOutcome::Aborted));
    assert!(rig.emitted.get(&id).is_none_or(|emitted| emitted.tokens.is_empty()));
    assert_eq!(rig.core.kv_blocks().active, 0);
}

#[test]
fn a_deadline_ends_a_sequence_wherever_it_is() {
    let mut rig = Rig::new(64);
    let soon = Instant64(0) + Duration::from_secs(1);
    let running = rig.submit(GenerateRequest { deadline: Some(soon), ..request(1, &prompt(1, 20), 200) });
    rig.step();
    let waiting = rig.submit(GenerateRequest { deadline: Some(soon), ..request(2, &prompt(2, 20), 200) });
    assert_eq!(rig.core.next_deadline(), Some(soon));
    rig.now = soon;
    rig.handle(CoreEvent::Tick);
    for id in [running, waiting] {
        assert_eq!(rig.outcome(id), Some(SequenceOutcome::Failed(RequestError::DeadlineExceeded)));
        assert_eq!(rig.emitted[&id].last, Some(StreamEvent::Failed(RequestError::DeadlineExceeded)));
    }
    assert_eq!(rig.core.next_deadline(), None);
}

#[test]
fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mut rig = Rig::new(64);
    let running = rig.submit(request(1, &prompt(1, 20), 5));
    rig.step();
    rig.command(DeviceCommand::Drain { deadline: Instant64(1000) });
    let late = rig.submit(request(2, &prompt(2, 20), 5));
    assert_eq!(rig.outcome(late), Some(SequenceOutcome::Failed(RequestError::ShuttingDown)));
    rig.run();
    assert_eq!(rig.outcome(running), Some(SequenceOutcome::Finished));
    assert!(matches!(rig.told.last(), Some(DeviceEvent::Stopped)));
}

#[test]
fn a_drain_gives_up_at_its_deadline() {
    let mut rig = Rig::new(64);
    let running = rig.submit(request(1, &prompt(1, 20), 200));
    rig.step();
    rig.command(DeviceCommand::Drain { deadline: Instant64(1000) });
    rig.step();
    rig.now = Instant64(1000);
    rig.handle(CoreEvent::Tick);
    assert_eq!(rig.outcome(running), Some(SequenceOutcome::Failed(RequestError::ShuttingDown)));
    assert!(rig.core.is_stopped() && !rig.step());
}

#[test]
fn a_lease_is_asked_for_when_the_first_chunk_could_run() {
    let mut rig = Rig::new(64);
    let busy = rig.submit(request(1, &prompt(1, 64), 1));
    let remote = rig.submit_to(request(2, &prompt(2, 40), 5), Destination::Remote);
    let wanted = |rig: &Rig| rig.told.iter().any(|event| matches!(event, DeviceEvent::LeaseWanted { .. }));
    rig.step();
    assert!(!wanted(&rig), "the first step is full with {busy}");
    rig.step();
    assert!(wanted(&rig));
    assert!(!rig.step(), "nothing runs without a lease");
    rig.command(DeviceCommand::UseLease { sequence: remote, lease: granted(0..3, 1) });
    rig.run();
    assert_eq!(rig.outcome(remote), Some(SequenceOutcome::Pushed));
    assert_eq!(rig.tokens(remote).len(), 1);
    assert_eq!(rig.pushed, [(0, 1, 2), (1, 1, 2)], "both layers' blocks 1 and 2");
    assert_eq!(rig.core.kv_blocks().active, 3, "they, and the block before them, stay until the bytes are gone");
    rig.unpin_all();
    assert_eq!(rig.core.kv_blocks().active, 0);
}

#[test]
fn cached_blocks_are_pushed_before_the_first_chunk() {
    let mut rig = Rig::new(64);
    rig.submit(request(1, &prompt(1, 48), 1));
    rig.run();
    let remote = rig.submit_to(request(2, &prompt(1, 60), 5), Destination::Remote);
    rig.step();
    rig.command(DeviceCommand::UseLease { sequence: remote, lease: granted(0..4, 0) });
    rig.begin_step();
    assert_eq!(rig.pushed, [(0, 0, 3), (1, 0, 3)], "three cached blocks in each of two layers");
    while rig.advance_step() {}
    assert_eq!(rig.pushed[2..], [(0, 3, 1), (1, 3, 1)], "and the last block");
    assert_eq!(rig.core.counters().prefix_hit_tokens, 48);
}

#[test]
fn an_abort_while_bytes_are_in_flight_keeps_the_blocks() {
    let mut rig = Rig::new(64);
    let remote = rig.submit_to(request(1, &prompt(1, 40), 5), Destination::Remote);
    rig.step();
    rig.command(DeviceCommand::UseLease { sequence: remote, lease: granted(0..3, 0) });
    rig.step();
    rig.command(DeviceCommand::Abort { sequence: remote });
    assert_eq!(rig.core.kv_blocks().active, 3);
    rig.unpin_all();
    assert_eq!(rig.core.kv_blocks().active, 0);
}

#[test]
fn a_lease_names_what_is_here_already() {
    let mut rig = Rig::new(64);
    rig.submit(request(1, &prompt(1, 48), 1));
    rig.run();
    let lease = reserve(&mut rig, 1, &request(2, &prompt(1, 60), 5)).unwrap();
    assert_eq!((lease.num_present, lease.blocks.len(), lease.epoch), (3, 4, Epoch(3)));
    assert_eq!(rig.core.kv_blocks().leased, 1);
    rig.command(DeviceCommand::Release { lease: LeaseId(1) });
    assert_eq!((rig.core.kv_blocks().leased, rig.core.kv_blocks().active), (0, 0));
    assert_eq!(reserve(&mut rig, 1, &request(2, &prompt(1, 60), 5)), None, "ids are never reused");
}

#[test]
fn a_committed_sequence_goes_on_with_what_prefill_wrote() {
    let request = request(1, &prompt(1, 60), 9);
    let expected = reference(&request);
    let mut prefill = Rig::new(64);
    let mut decode = Rig::new(64);
    prefill.submit(GenerateRequest { max_tokens: 1, ..request.clone() });
    prefill.run();
    let lease = reserve(&mut decode, 7, &request).unwrap();
    copy_blocks(&prefill, &decode, &lease);
    decode.emitted.entry(request.sequence).or_default().tokens = expected[..1].to_vec();
    decode.command(DeviceCommand::Commit { lease: LeaseId(7), first_token: expected[0], cached_tokens: 16 });
    assert_eq!((decode.core.kv_blocks().leased, decode.core.kv_blocks().active), (0, 4), "they are its own now");
    decode.run();
    assert_eq!(decode.tokens(request.sequence), expected);
    let Some(StreamEvent::Finished { usage, .. }) = &decode.emitted[&request.sequence].last else { panic!() };
    assert_eq!((usage.cached_tokens, usage.completion_tokens), (16, 9));
    decode.command(DeviceCommand::Commit { lease: LeaseId(7), first_token: expected[0], cached_tokens: 0 });
    assert!(matches!(decode.told.last(), Some(DeviceEvent::LeaseGone { lease: LeaseId(7) })));
}

/// The blocks of `lease`, from a pool where a sequence of the same length took the first ones.
fn copy_blocks(from: &Rig, to: &Rig, lease: &GrantedLease) {
    use relevo_gpu::model::StepModel;
    use relevo_wire::LayerIndex;
    let (from, to) = (from.model.kv_memory(), to.model.kv_memory());
    for layer in (0..2).map(LayerIndex) {
        for (source, &target) in (0..).map(BlockIndex).zip(&lease.blocks) {
            to.write(layer, target, &from.read(layer, source)).unwrap();
        }
    }
}

#[test]
fn a_grant_never_eats_into_what_running_sequences_will_need() {
    let mut rig = Rig::new(10);
    rig.submit(request(1, &prompt(1, 64), 200));
    rig.step();
    rig.step();
    // It holds 5 blocks and will need one more within the headroom of 32 tokens: 4 are left for a lease and its own headroom.
    assert_eq!(reserve(&mut rig, 1, &request(2, &prompt(2, 48), 100)), None);
    assert!(reserve(&mut rig, 2, &request(2, &prompt(2, 16), 20)).is_some());
    assert_eq!(rig.core.counters().leases_refused, 1);
}

#[test]
fn a_grant_counts_the_idle_blocks_that_it_takes_up() {
    let mut rig = Rig::new(12);
    rig.submit(request(1, &prompt(1, 96), 1));
    rig.run();
    rig.submit(request(2, &prompt(2, 64), 100));
    rig.step();
    // Six idle blocks and two free ones are left, of which the running sequence will need three.
    assert_eq!(reserve(&mut rig, 1, &request(3, &prompt(1, 96), 2)), None);
    assert!(reserve(&mut rig, 2, &request(4, &prompt(1, 64), 2)).is_some());
}

#[test]
fn a_leased_block_is_freed_by_its_release_alone() {
    let mut rig = Rig::new(16);
    let request = request(1, &prompt(1, 60), 9);
    reserve(&mut rig, 1, &request).unwrap();
    rig.command(DeviceCommand::Abort { sequence: request.sequence });
    rig.command(DeviceCommand::AbortAll { role: DeviceRole::Prefill });
    assert_eq!(rig.core.kv_blocks().leased, 4);
    rig.command(DeviceCommand::AbortAll { role: DeviceRole::Decode });
    assert_eq!(rig.core.kv_blocks().leased, 0);
}

#[test]
fn a_roles_sequences_are_aborted_and_no_others() {
    let mut rig = Rig::new(64);
    let decoding = rig.submit(request(1, &prompt(1, 20), 50));
    rig.step();
    let waiting = rig.submit(request(2, &prompt(2, 20), 50));
    rig.command(DeviceCommand::AbortAll { role: DeviceRole::Prefill });
    assert_eq!((rig.outcome(waiting), rig.outcome(decoding)), (Some(SequenceOutcome::Aborted), None));
}

#[test]
fn a_step_names_its_sequences_while_it_is_in_flight() {
    let mut rig = Rig::new(64);
    let ids = [rig.submit(request(1, &prompt(1, 20), 5)), rig.submit(request(2, &prompt(2, 20), 5))];
    rig.begin_step();
    assert_eq!(rig.core.stepping().collect::<Vec<_>>(), ids);
}

#[test]
fn limits_that_starve_prompts_are_refused() {
    let model = ScriptedModel::new(options(8));
    let bad = CoreLimits { max_running: 60, max_outputs: 64, ..limits(&model) };
    let error = relevo_actors::device::DeviceCore::new(bad, Epoch(0)).unwrap_err();
    assert_eq!(error.to_string(), "max_rows is 64, expected at least 76");
}

#[test]
fn plans_reuse_their_memory() {
    let mut rig = Rig::new(64);
    rig.submit(request(1, &prompt(1, 20), 50));
    rig.step();
    let mut buffers = relevo_actors::device::PlanBuffers::default();
    rig.begin_step();
    let plan = rig.core.step_plan(&mut buffers);
    let (pieces, outputs) = (plan.pieces.as_ptr().addr(), plan.pieces[0].outputs.as_ptr().addr());
    buffers.reclaim(plan);
    let plan = rig.core.step_plan(&mut buffers);
    assert_eq!((plan.pieces.as_ptr().addr(), plan.pieces[0].outputs.as_ptr().addr()), (pieces, outputs));
}
