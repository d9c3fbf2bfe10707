//! A long mixed load on the real binary: streams, aborts, disconnects, stops, prompts that are too long, bodies that are no JSON, 64 at a
//! time. At its end no block is active or leased, memory is flat, every accepted request was answered, and nothing was worth a warning.
//!
//! This is the short form; `make soak` sends 2,000 requests by `examples/soak.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; this one shows how it goes"
)]

mod load;
#[path = "../program/mod.rs"]
mod program;
mod requests;

/// Three of each kind for each place in the load.
const SHORT: usize = 192;

#[test]
fn a_mixed_load_leaves_nothing_behind() {
    load::run(SHORT);
}
