//! Seeds and cells that have found bugs: `docs/reliability.md` tells of each. They fail again when what mended them is taken back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use relevo_actors::policy::hand_over::HandOverStep;
use relevo_simulations::{Blow, Party, Scenario, World, play};

fn assert_kept(seed: u64) {
    play(seed).unwrap();
}

#[test]
fn what_is_placed_before_the_router_knows_that_a_node_is_lost_is_sent_again() {
    assert_kept(145);
    assert_kept(1517);
}

#[test]
fn a_sequence_whose_decode_worker_has_changed_its_role_does_not_wait_for_it_for_ever() {
    assert_kept(2589);
    assert_kept(3957);
}

#[test]
fn no_lease_is_granted_to_a_gateway_that_cannot_be_reached() {
    assert_kept(3344);
}

#[test]
fn a_new_coordinator_goes_on_above_a_map_that_only_a_gateway_has_seen() {
    assert_kept(2022);
    assert_kept(6607);
}

#[test]
fn nothing_is_taken_of_a_peer_that_could_not_be_answered_yet() {
    assert_kept(1270);
    assert_kept(2071);
}

#[test]
fn a_stream_with_its_first_token_still_counts_on_its_prefill_node() {
    let blow = Blow::Flap(Party::Prefill, Party::Gateway);
    let mut scenario = Scenario::of_cell(HandOverStep::FirstToken, blow);
    scenario.max_layer = Duration::from_millis(2);
    World::new(scenario).play().unwrap();
}
