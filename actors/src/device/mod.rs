//! A device: its engine thread, the pure core that plans its steps, and its supervisor.

mod interface;

pub use interface::{
    Destination, DeviceCommand, DeviceEvent, DeviceRole, EngineExit, EnginePorts, EngineStats, GrantedLease,
    SequenceOutcome, TokenBatch,
};
