//! The prefill role of a device: it takes prompts, finds them a lease on the decode side, and hands them over.

mod core;
mod push;
mod shell;

pub use self::core::{PrefillCore, PrefillEffect, PrefillEvent};
pub(crate) use push::{FRAME_BYTES, PushRoutes};
pub use relevo_wire::HandOver;
pub(crate) use shell::{PrefillActor, PrefillArguments, PrefillMessage};
