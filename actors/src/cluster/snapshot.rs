//! The cluster's status, gathered.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use relevo_transport::{CONGESTION, SocketBuffers};
use relevo_wire::{ClusterMap, ControlMessage, ControlReply, NodeEntry, NodeId};
use tokio::task::JoinSet;

use super::directory::Directory;
use super::links::Links;
use crate::device::DevicePort;
use crate::peers::{AskError, Peer};
use crate::status::{ClusterStatus, DeviceStatus, LinkStatus, NodeStatus, QueueStatus, SocketStatus};

/// How long another node may take to say how it is.
const PATIENCE: Duration = Duration::from_millis(500);

/// A snapshot. Figures of different devices are not of one instant.
pub(super) async fn status(directory: &Arc<Directory>, queues: Vec<QueueStatus>) -> ClusterStatus {
    let mut status = alone(directory, queues);
    status.nodes.extend(others(directory).await);
    status
}

/// The same of this process only.
pub(super) fn alone(directory: &Directory, queues: Vec<QueueStatus>) -> ClusterStatus {
    ClusterStatus { nodes: vec![directory.node_report()], supervision: directory.tree.status(), queues }
}

/// The nodes of the map, each by its own account, or as the map has it if it does not answer.
async fn others(directory: &Arc<Directory>) -> Vec<NodeStatus> {
    let map = directory.map();
    let mut asking = JoinSet::new();
    for entry in map.nodes.iter().filter(|entry| entry.node != directory.node) {
        let (directory, entry) = (Arc::clone(directory), entry.clone());
        asking.spawn(async move {
            let asked = directory.peers.ask(entry.node, &ControlMessage::AskStatus, PATIENCE).await;
            (entry, asked)
        });
    }
    let mut nodes: Vec<NodeStatus> =
        asking.join_all().await.into_iter().map(|(entry, asked)| node(&map, &entry, asked)).collect();
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    nodes
}

fn node(map: &ClusterMap, entry: &NodeEntry, asked: Result<ControlReply, AskError>) -> NodeStatus {
    let reported = match &asked {
        Ok(ControlReply::Status(json)) => serde_json::from_str::<NodeStatus>(json).ok(),
        _ => None,
    };
    // What a node says of others' matters is not taken over.
    reported.map_or_else(|| lost_node(entry), |node| NodeStatus { name: entry.name.clone(), ..node }).standing(map)
}

fn lost_node(entry: &NodeEntry) -> NodeStatus {
    NodeStatus {
        name: entry.name.clone(),
        roles: entry.roles.iter().map(|role| role.name().to_owned()).collect(),
        state: "lost".to_owned(),
        ..NodeStatus::default()
    }
}

impl NodeStatus {
    /// With what the map says of its devices.
    fn standing(mut self, map: &ClusterMap) -> Self {
        let node = NodeId::of_name(&self.name);
        for (index, device) in self.devices.iter_mut().enumerate() {
            let is_it = |entry: &&relevo_wire::MapEntry| {
                entry.facts.device.node() == node && entry.facts.device.index() as usize == index
            };
            if let Some(entry) = map.devices.iter().find(is_it) {
                entry.standing.name().clone_into(&mut device.standing);
            }
        }
        self
    }
}

impl Directory {
    /// What this process says of itself.
    pub(crate) fn node_report(&self) -> NodeStatus {
        let devices: Vec<_> = self.devices.values().map(|port| device(port)).collect();
        let keeper = self.keeper.depth().0 as u64;
        let running = devices.iter().map(|device| device.running_requests).sum::<u64>();
        let node = NodeStatus {
            name: self.name.clone(),
            pid: std::process::id(),
            roles: self.roles().iter().map(|role| role.name().to_owned()).collect(),
            epoch: self.incarnation,
            state: "linked".to_owned(),
            running_requests: if devices.is_empty() { keeper } else { running },
            links: self.peers.all().iter().map(|peer| link(peer, &self.links)).collect(),
            devices,
            socket: self.socket_buffers.map(socket),
        };
        node.standing(&self.map())
    }

    /// The nodes that this one has a link to, and itself.
    pub(crate) fn known_nodes(&self) -> Vec<NodeEntry> {
        let mut nodes: Vec<_> = self.peers.all().iter().map(|peer| peer.entry()).collect();
        nodes.extend(self.own_entry.clone());
        nodes
    }
}

fn link(peer: &Peer, links: &Links) -> LinkStatus {
    let (path, facts) = (peer.connection.path(), peer.connection.link_facts());
    let kv_carriers: Vec<_> = links.carriers_to(peer.node).into_iter().collect();
    LinkStatus {
        peer: peer.name.to_string(),
        address: peer.connection.address().to_string(),
        carrier: "quic".to_owned(),
        kv_carrier: kv_carriers.join("+"),
        round_trip_us: u64::try_from(path.round_trip.as_micros()).unwrap_or(u64::MAX),
        sent_packets: path.sent_packets,
        lost_packets: path.lost_packets,
        sent_bytes: path.sent_bytes,
        received_bytes: path.received_bytes,
        sent_bytes_per_s: peer.sent_bytes_per_s.load(Ordering::Relaxed),
        mtu: u64::from(path.mtu),
        max_mtu: u64::from(facts.max_payload),
        segmentation_offload: facts.segments,
        congestion_control: CONGESTION.to_owned(),
        congestion_window: path.congestion_window,
        waiting_messages: peer.remote.depth().0 as u64,
    }
}

fn socket(SocketBuffers { asked, receive, send }: SocketBuffers) -> SocketStatus {
    let [asked_buffer_bytes, receive_buffer_bytes, send_buffer_bytes] =
        [asked, receive, send].map(|bytes| bytes as u64);
    SocketStatus { asked_buffer_bytes, receive_buffer_bytes, send_buffer_bytes }
}

fn device(port: &DevicePort) -> DeviceStatus {
    let stats = port.stats();
    DeviceStatus {
        name: port.name.clone(),
        roles: port.roles().iter().map(|role| role.name().to_owned()).collect(),
        standing: String::new(),
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
