//! The coordinator: who is a member, which roles each device plays, who is suspected; it publishes the cluster map.

mod core;
mod shell;

pub use self::core::{CoordinatorCore, CoordinatorEffect, CoordinatorEvent, CoordinatorLimits, NodeOrder, OrderError};
pub use relevo_wire::{ClusterMap, DeviceFacts, Heartbeat, MapEntry, NodeEntry, Standing};
pub(crate) use shell::{CoordinatorActor, CoordinatorMessage, NAME};
