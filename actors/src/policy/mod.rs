//! The pure decisions: which block is given away, which prefix is held, who goes first, what a step may hold.
//!
//! **Invariant:** no I/O, no clock, no async, no randomness in here.

pub mod blocks;
pub mod eviction;
pub mod fairness;
pub mod planner;
pub mod prefix;
