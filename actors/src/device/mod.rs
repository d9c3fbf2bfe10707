//! A device: its engine thread, the pure core that plans its steps, and its supervisor.

mod interface;

pub use interface::{
    Destination, DeviceCommand, DeviceEvent, EngineExit, EngineExitCause, EnginePorts, EngineStats, GrantedLease, Role,
    SequenceOutcome, TokenBatch,
};
