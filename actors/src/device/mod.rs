//! A device: its engine thread, the pure core that plans its steps, and its supervisor.

mod core;
mod interface;
mod sequence;

pub use self::core::{
    CoreCounters, CoreEvent, CoreLimits, DeviceCore, Effect, LimitsError, PinId, PlanBuffers, StepShape,
};
pub use interface::{
    Destination, DeviceCommand, DeviceEvent, DeviceRole, EngineExit, EnginePorts, EngineStats, GrantedLease,
    SequenceOutcome, TokenBatch,
};
