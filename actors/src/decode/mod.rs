//! The decode role of a device: it leases blocks to those who prefill for it, and goes on with a sequence once they have arrived.

mod core;
mod landing;
mod shell;

pub use self::core::{DecodeCore, DecodeEffect, DecodeEvent};
pub use landing::{LandingEvent, LandingFrame, LandingStrip};
pub(crate) use shell::{DecodeActor, DecodeArguments, DecodeMessage};
