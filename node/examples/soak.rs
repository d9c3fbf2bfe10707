//! The long form of `tests/soak`: as many mixed requests as its argument says, 2,000 without one, against the binary of the same profile.
//! `make soak` builds both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "it is a test")]

#[path = "../tests/soak/load.rs"]
mod load;
#[path = "../tests/program/mod.rs"]
mod program;
#[path = "../tests/soak/requests.rs"]
mod requests;

/// What the project promises to stand.
const LONG: usize = 2000;

fn main() {
    let count = std::env::args().nth(1).map_or(Ok(LONG), |count| count.parse());
    let num_requests = count.expect("a number of requests");
    load::run(num_requests);
    println!("{num_requests} requests left nothing behind");
}
