//! The coordinator: who is a member, which roles each device plays, who is suspected; it publishes the cluster map.

mod core;
mod shell;

pub use self::core::{
    ClusterMap, CoordinatorCore, CoordinatorEffect, CoordinatorEvent, CoordinatorLimits, DeviceFacts, Heartbeat,
    MapEntry, Standing,
};
pub(crate) use shell::{CoordinatorActor, CoordinatorMessage, NAME};
