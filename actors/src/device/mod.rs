//! A device: its engine thread, the pure core that plans its steps, and its supervisor.

mod core;
mod engine;
mod engine_metrics;
mod interface;
mod outbox;
mod pins;
mod sequence;
mod thread_waker;

pub use self::core::{
    CoreCounters, CoreEvent, CoreLimits, DeviceCore, Effect, LimitsError, PinId, PlanBuffers, StepShape,
};
pub use engine::{StartError, start_engine};
pub use interface::{
    Destination, DeviceCommand, DeviceEvent, DeviceRole, EngineExit, EnginePorts, EngineStats, GrantedLease,
    SequenceOutcome, TokenBatch,
};
