//! A device: its engine thread, the pure core that plans its steps, and its supervisor.

mod core;
mod engine;
mod engine_metrics;
mod faulty_model;
mod interface;
mod outbox;
mod pins;
mod port;
mod pump;
mod sequence;
mod supervisor;
mod thread_waker;

pub use self::core::{
    CoreCounters, CoreEvent, CoreLimits, DeviceCore, Effect, LimitsError, PinId, PlanBuffers, STEP_OUTPUTS, STEP_ROWS,
    StepShape,
};
pub use engine::{StartError, start_engine};
pub use interface::{
    Destination, DeviceCommand, DeviceEvent, DeviceRole, EngineExit, EnginePorts, EngineStats, GrantedLease,
    SequenceOutcome, TokenBatch,
};
pub(crate) use port::DevicePort;
pub(crate) use supervisor::{DeviceSupervisor, SupervisorArguments, SupervisorMessage, bury};
