//! The gateway's side of a sequence: it keeps the request and what was emitted until the stream ends, and replays it elsewhere.

mod core;
mod handle;
mod keeper;
mod paces;
mod phases;
mod placement;
mod shell;
mod stream_metrics;

pub use self::core::{Afterwards, Loss, Phase, StreamCore, StreamOutcome, Verdict, accused};
pub use handle::{Gateway, SequenceStream, Submission, gateway_channel};
pub(crate) use keeper::Keeper;
pub use phases::PhaseTimes;
pub use placement::Placement;
pub(crate) use shell::{GatewayActor, GatewayArguments, GatewayMessage, Intake, NAME};
