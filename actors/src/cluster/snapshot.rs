//! The cluster's status, gathered.

use super::directory::Directory;
use crate::device::{DevicePort, DeviceRole};
use crate::status::{ClusterStatus, DeviceStatus, NodeStatus, QueueStatus};

/// A snapshot. Figures of different devices are not of one instant.
pub(super) fn status(directory: &Directory, queues: Vec<QueueStatus>) -> ClusterStatus {
    let devices: Vec<_> = directory.devices.values().map(|port| device(port)).collect();
    let plays = |role| directory.devices.values().any(|port| port.plays(role));
    let roles = [
        ("gateway", true),
        ("coordinator", true),
        ("prefill", plays(DeviceRole::Prefill)),
        ("decode", plays(DeviceRole::Decode)),
    ];
    let roles = roles.into_iter().filter(|(_, plays)| *plays).map(|(name, _)| name.to_owned()).collect();
    ClusterStatus {
        nodes: vec![NodeStatus { name: directory.node.clone(), pid: std::process::id(), roles, devices }],
        supervision: directory.tree.status(),
        queues,
    }
}

fn device(port: &DevicePort) -> DeviceStatus {
    let stats = port.stats();
    let role_name = |role: &DeviceRole| match role {
        DeviceRole::Prefill => "prefill".to_owned(),
        DeviceRole::Decode => "decode".to_owned(),
    };
    DeviceStatus {
        name: port.name.clone(),
        roles: port.roles.iter().map(role_name).collect(),
        epoch: port.epoch().0,
        running_requests: stats.running,
        waiting_requests: stats.waiting,
        leases: stats.leases,
        kv_blocks: stats.kv_blocks,
        prefix_hit_tokens: stats.prefix_hit_tokens,
        prefix_query_tokens: stats.prefix_query_tokens,
        steps: stats.steps,
    }
}
