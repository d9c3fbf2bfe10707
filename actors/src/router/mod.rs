//! The router: which prefill and which decode worker serve a request, and who waits for one.

mod core;
mod drain_rate;
mod load;
mod shell;
mod workers;

pub use self::core::{RouterCore, RouterEffect, RouterEvent, RouterLimits};
pub(crate) use shell::{NAME, RouterActor, RouterMessage};
