//! The cluster's status, gathered.

use std::sync::atomic::Ordering;

use super::directory::Directory;
use crate::device::{DevicePort, DeviceRole};
use crate::gateway::Gateway;
use crate::status::{ClusterStatus, DeviceStatus, NodeStatus, QueueStatus};

/// A snapshot. Figures of different devices are not of one instant.
pub(super) fn status(directory: &Directory, gateway: &Gateway) -> ClusterStatus {
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
        queues: queues(directory, gateway),
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

fn queues(directory: &Directory, gateway: &Gateway) -> Vec<QueueStatus> {
    let mut queues = Vec::new();
    let mut add = |name: String, (depth, capacity): (usize, usize)| {
        queues.push(QueueStatus { name, depth: depth as u64, capacity: capacity as u64 });
    };
    add("submissions".into(), gateway.depth());
    add("streams".into(), directory.keeper.depth());
    add("router".into(), (directory.router_waiting.load(Ordering::Relaxed), directory.limits.max_waiting));
    for port in directory.devices.values() {
        if let Some(engine) = port.engine().as_ref() {
            let capacity = engine.commands.max_capacity();
            add(format!("{}/commands", port.id), (capacity - engine.commands.capacity(), capacity));
        }
        if let Some(link) = port.inbound() {
            add(format!("{}/inbound", port.id), link.depth());
        }
    }
    queues
}
