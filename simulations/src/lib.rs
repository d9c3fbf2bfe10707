//! Relevo's decisions in virtual time: the very state machines that serve, in a world whose clock, network and misfortunes follow from a seed.
//!
//! A [`Scenario`] is drawn from a seed: nodes with their devices and roles, requests, delays, and misfortunes (engines that fail or hang, actors
//! and processes that die, nodes that pause or are cut off from each other, operators that drain and change roles, heartbeats, frames and news of
//! prefixes that are lost). A [`World`] plays it: it carries messages between the coordinator, the routers, the prefill, decode and device cores
//! and the streams of the gateways, over links that are whole or over, with a scripted model in the place of weights, and holds every promise to
//! account after each event. A run that breaks one ends in a [`Failure`] that names its seed, and the same seed fails the same way again:
//! `cargo run -p relevo-simulations -- SEED` tells what happens in it, line by line.
//!
//! An [`Ambush`] strikes one sequence at one step of its hand-over: [`Scenario::of_cell`] is a cell of the table of all steps and all blows.

mod account;
mod agenda;
mod ambush;
mod cells;
mod checks;
mod coordinating;
mod device;
mod draw;
mod engine;
mod gateway;
mod landing;
mod lease_book;
mod links;
mod misfortunes;
mod node;
mod partings;
mod post;
mod prefixes;
mod random;
mod roles;
mod scenario;
mod supervisors;
mod verdict;
mod witness;
mod world;

pub use cells::CELL_REQUESTS;
pub use checks::Failure;
pub use random::Random;
pub use scenario::{Ambush, Blow, DeviceSpec, Losses, Misfortune, NodeSpec, Party, RequestSpec, SLOWNESS, Scenario};
pub use world::{Report, World};

/// Plays the scenario of a seed to its end.
///
/// # Errors
/// A promise that was broken.
pub fn play(seed: u64) -> Result<Report, Failure> {
    World::new(Scenario::of_seed(seed)).play()
}

/// The same, telling everything that happens, line by line.
///
/// # Errors
/// A promise that was broken.
pub fn play_aloud(seed: u64, tell: &mut dyn FnMut(&str)) -> Result<Report, Failure> {
    World::new(Scenario::of_seed(seed)).play_aloud(tell)
}
