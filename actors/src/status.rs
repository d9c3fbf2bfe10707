//! What the cluster says of itself; the body of `relevo status --json`.

use serde::{Deserialize, Serialize};

/// A snapshot of the whole.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Processes, this one first.
    pub nodes: Vec<NodeStatus>,
    /// The supervision tree, parents before children.
    pub supervision: Vec<ActorStatus>,
    /// Every bounded queue.
    pub queues: Vec<QueueStatus>,
}

/// One process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// `gateway`, `coordinator`, `prefill`, `decode`.
    pub roles: Vec<String>,
    /// How often it was started, as far as it is kept.
    pub epoch: u64,
    /// `linked`, or `lost` if it does not answer.
    pub state: String,
    /// Sequences on its devices; of a gateway without devices, its open streams.
    pub running_requests: u64,
    /// Its devices.
    pub devices: Vec<DeviceStatus>,
    /// Its links to other nodes.
    pub links: Vec<LinkStatus>,
    /// The socket that they go through; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<SocketStatus>,
}

/// The buffers of a node's UDP socket, in bytes: where the kernel gives less than it is asked for, packets can be lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketStatus {
    /// Asked for, each way.
    pub asked_buffer_bytes: u64,
    /// Given to receive.
    pub receive_buffer_bytes: u64,
    /// Given to send.
    pub send_buffer_bytes: u64,
}

/// A control connection to another node, and the path that it has measured. KV blocks have links of their own beside it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkStatus {
    /// The other node's name.
    pub peer: String,
    /// Where it is.
    pub address: String,
    /// What carries it.
    pub carrier: String,
    /// What carries KV blocks to the other node: `quic`, `shm`, both joined by `+` if devices differ, nothing while none were sent.
    pub kv_carrier: String,
    /// The latest estimate of a round trip, in microseconds.
    pub round_trip_us: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Of these, how many were lost.
    pub lost_packets: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes that went there in the last whole second, KV blocks by whatever carrier included.
    pub sent_bytes_per_s: u64,
    /// The largest UDP payload that the path was found to carry, in bytes.
    pub mtu: u64,
    /// The largest UDP payload that is looked for there: what fits into a packet of the route, jumbo frames included.
    pub max_mtu: u64,
    /// Whether the kernel is handed several packets at a time (GSO). On loopback one packet fills what a call can send.
    pub segmentation_offload: bool,
    /// The congestion control.
    pub congestion_control: String,
    /// Bytes that may be under way.
    pub congestion_window: u64,
    /// Messages that wait to be sent.
    pub waiting_messages: u64,
}

/// One device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceStatus {
    /// Such as `cpu0`.
    pub name: String,
    /// Roles it plays.
    pub roles: Vec<String>,
    /// `serving`, `starting`, `suspected` or `draining`, as the coordinator has it.
    pub standing: String,
    /// How often its pool was made anew.
    pub epoch: u64,
    /// Sequences in prefill or decode.
    pub running_requests: u64,
    /// Sequences that wait for their first chunk.
    pub waiting_requests: u64,
    /// Leases granted and not over.
    pub leases: u64,
    /// Blocks by state.
    pub kv_blocks: KvBlocks,
    /// Prompt tokens taken from the prefix cache, ever.
    pub prefix_hit_tokens: u64,
    /// Prompt tokens looked up, ever.
    pub prefix_query_tokens: u64,
    /// Steps done, ever.
    pub steps: u64,
}

/// Blocks of a pool by state; they sum up to its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvBlocks {
    /// Hold nothing.
    pub free: u64,
    /// Hold a prefix that nobody uses now.
    pub cached: u64,
    /// Belong to sequences.
    pub active: u64,
    /// Reserved for blocks that come from elsewhere.
    pub leased: u64,
}

/// One actor of the supervision tree.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ActorStatus {
    /// Its name, unique in the process, such as `device-0/prefill`.
    pub name: String,
    /// Its parent's name; absent at the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// `running` or `restarting`.
    pub state: String,
    /// Restarts since the process began.
    pub restarts: u64,
}

/// One bounded queue.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its name, as in the metrics.
    pub name: String,
    /// Entries now.
    pub depth: u64,
    /// Entries at most.
    pub capacity: u64,
}
