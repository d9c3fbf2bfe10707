//! The pure decisions: which block is given away, which prefix is held, who goes first, what a step may hold,
//! which worker serves, which engine hangs, which device is slow.
//!
//! **Invariant:** no I/O, no clock, no async, no randomness in here.

pub mod blocks;
pub mod eviction;
pub mod fairness;
pub mod hand_over;
pub mod hint_keys;
pub mod hints;
pub mod in_hand;
pub mod leases;
pub mod liveness;
pub mod pace;
pub mod planner;
pub mod prefix;
pub mod prefix_news;
pub mod progress;
pub(crate) mod rate;
pub mod restarts;
pub mod routing;
pub(crate) mod search;
