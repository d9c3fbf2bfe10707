//! `relevo status`: what a running server says of itself, as a tree or as JSON.

use std::time::Duration;

use relevo_actors::status::{ActorStatus, ClusterStatus, DeviceStatus, LinkStatus, SocketStatus};

use crate::cli::Failure;
use crate::http_client::ServerArgs;
use crate::terminal::{self, Style};

/// Where a server tells it.
pub const STATUS_PATH: &str = "/relevo/status";

/// Arguments of `relevo status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Print the server's own JSON
    #[arg(long)]
    json: bool,
    /// Show it anew every second, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

/// How often `--watch` asks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Puts the cursor to the upper left and clears what is below (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

/// Asks and prints.
///
/// # Errors
/// See [`Failure`].
pub async fn run(args: &StatusArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    if args.json {
        let status: serde_json::Value = client.get(STATUS_PATH).await?;
        return Ok(terminal::print(status)?);
    }
    let mut ticks = tokio::time::interval(WATCH_EVERY);
    loop {
        ticks.tick().await;
        let status: ClusterStatus = client.get(STATUS_PATH).await?;
        let drawn = drawing(&status, Style::of_stdout());
        if !args.watch {
            return Ok(terminal::print(drawn)?);
        }
        terminal::print(format!("{CLEAR}{drawn}"))?;
    }
}

/// The whole, as lines for a person.
fn drawing(status: &ClusterStatus, style: Style) -> String {
    let mut lines = Vec::new();
    for node in &status.nodes {
        let roles = node.roles.join(", ");
        let state = if node.state == "lost" { format!(" {}", style.bad("lost")) } else { String::new() };
        let facts = format!("pid {}, epoch {}, {roles}", node.pid, node.epoch);
        lines.push(format!("{} {}{state}", style.strong(&node.name), style.faint(facts)));
        lines.extend(node.devices.iter().flat_map(device_lines));
        lines.extend(node.socket.iter().map(socket_line));
        lines.extend(node.links.iter().map(link_line));
    }
    lines.push(String::new());
    lines.push(style.strong("Supervision"));
    // Who names a parent that is not there is drawn as a root rather than lost.
    let is_root = |actor: &&ActorStatus| match &actor.parent {
        Some(parent) => !status.supervision.iter().any(|other| other.name == *parent),
        None => true,
    };
    for root in status.supervision.iter().filter(is_root) {
        lines.push(format!("  {}", actor_label(root, style)));
        draw_children(&status.supervision, root, "  ", style, &mut lines);
    }
    lines.push(String::new());
    lines.push(style.strong("Queues"));
    let width = status.queues.iter().map(|queue| queue.name.len()).max().unwrap_or(0);
    for queue in &status.queues {
        lines.push(format!("  {:width$}  {} of {}", queue.name, queue.depth, queue.capacity));
    }
    lines.join("\n")
}

fn device_lines(device: &DeviceStatus) -> [String; 3] {
    let blocks = &device.kv_blocks;
    let hit_percent = 100 * device.prefix_hit_tokens / device.prefix_query_tokens.max(1);
    [
        format!(
            "  {} ({}{})  epoch {}, {} steps, {} running, {} waiting, {} leases",
            device.name,
            device.roles.join(" + "),
            if device.standing == "serving" { String::new() } else { format!(", {}", device.standing) },
            device.epoch,
            terminal::thousands(device.steps),
            device.running_requests,
            device.waiting_requests,
            device.leases
        ),
        format!(
            "    KV blocks: {} free, {} cached, {} active, {} leased",
            terminal::thousands(blocks.free),
            terminal::thousands(blocks.cached),
            terminal::thousands(blocks.active),
            terminal::thousands(blocks.leased)
        ),
        format!(
            "    prefix cache: {} of {} prompt tokens ({hit_percent} %)",
            terminal::thousands(device.prefix_hit_tokens),
            terminal::thousands(device.prefix_query_tokens)
        ),
    ]
}

fn socket_line(socket: &SocketStatus) -> String {
    let [asked, receive, send] =
        [socket.asked_buffer_bytes, socket.receive_buffer_bytes, socket.send_buffer_bytes].map(terminal::bytes);
    let asked = if receive == asked && send == asked { String::new() } else { format!(", {asked} asked for") };
    format!("    socket buffers: {receive} to receive, {send} to send{asked}")
}

fn link_line(link: &LinkStatus) -> String {
    format!(
        "    to {} by {}{}: {} us, {} of {} packets lost, {} sent ({}/s now), {} received, {} of {} bytes a packet{}, {}",
        link.peer,
        link.carrier,
        if link.kv_carrier.is_empty() { String::new() } else { format!(", KV blocks by {}", link.kv_carrier) },
        terminal::thousands(link.round_trip_us),
        link.lost_packets,
        terminal::thousands(link.sent_packets),
        terminal::bytes(link.sent_bytes),
        terminal::bytes(link.sent_bytes_per_s),
        terminal::bytes(link.received_bytes),
        terminal::thousands(link.mtu),
        terminal::thousands(link.max_mtu),
        if link.segmentation_offload { " by GSO" } else { "" },
        link.congestion_control
    )
}

fn actor_label(actor: &ActorStatus, style: Style) -> String {
    let state = if actor.state == "running" { style.good(&actor.state) } else { style.bad(&actor.state) };
    let restarts = match actor.restarts {
        0 => String::new(),
        1 => ", 1 restart".to_owned(),
        many => format!(", {many} restarts"),
    };
    format!("{} {state}{restarts}", actor.name)
}

/// Depth is bounded by the number of actors: a child is drawn once, under its parent, which came before it.
fn draw_children(actors: &[ActorStatus], parent: &ActorStatus, indent: &str, style: Style, lines: &mut Vec<String>) {
    let after = actors.iter().position(|actor| std::ptr::eq(actor, parent)).map_or(0, |index| index + 1);
    let is_child = |actor: &&ActorStatus| actor.parent.as_deref() == Some(parent.name.as_str());
    let children: Vec<&ActorStatus> = actors[after..].iter().filter(is_child).collect();
    for (index, child) in children.iter().enumerate() {
        let last = index + 1 == children.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines.push(format!("{indent}{branch}{}", actor_label(child, style)));
        draw_children(actors, child, &format!("{indent}{below}"), style, lines);
    }
}

#[cfg(test)]
mod tests {
    use relevo_actors::status::{KvBlocks, NodeStatus, QueueStatus};

    use super::*;

    fn actor(name: &str, parent: Option<&str>) -> ActorStatus {
        ActorStatus { name: name.into(), parent: parent.map(Into::into), state: "running".into(), restarts: 0 }
    }

    #[test]
    fn the_supervision_tree_is_drawn_as_one() {
        let device = DeviceStatus {
            name: "cpu0".into(),
            roles: vec!["prefill".into(), "decode".into()],
            epoch: 2,
            steps: 12_345,
            standing: "serving".into(),
            kv_blocks: KvBlocks { free: 1000, cached: 3, active: 2, leased: 1 },
            prefix_hit_tokens: 30,
            prefix_query_tokens: 60,
            ..DeviceStatus::default()
        };
        let link = LinkStatus {
            peer: "decode-0".into(),
            carrier: "quic".into(),
            kv_carrier: "shm".into(),
            round_trip_us: 1234,
            sent_packets: 5000,
            lost_packets: 1,
            sent_bytes: 2048,
            sent_bytes_per_s: 1024,
            received_bytes: 0,
            mtu: 1452,
            max_mtu: 8972,
            segmentation_offload: true,
            congestion_control: "cubic".into(),
            ..LinkStatus::default()
        };
        let node = NodeStatus {
            name: "relevo".into(),
            pid: 7,
            epoch: 3,
            roles: vec!["gateway".into()],
            devices: vec![device],
            links: vec![link],
            socket: Some(SocketStatus {
                asked_buffer_bytes: 8 << 20,
                receive_buffer_bytes: 208 << 10,
                send_buffer_bytes: 8 << 20,
            }),
            ..NodeStatus::default()
        };
        let mut restarted = actor("device-0/prefill", Some("device-0"));
        restarted.restarts = 1;
        let status = ClusterStatus {
            nodes: vec![node],
            supervision: vec![
                actor("cluster", None),
                actor("router", Some("cluster")),
                actor("device-0", Some("cluster")),
                restarted,
                actor("device-0/decode", Some("device-0")),
            ],
            queues: vec![QueueStatus { name: "submissions".into(), depth: 1, capacity: 512 }],
        };
        let expected = "\
relevo pid 7, epoch 3, gateway
  cpu0 (prefill + decode)  epoch 2, 12,345 steps, 0 running, 0 waiting, 0 leases
    KV blocks: 1,000 free, 3 cached, 2 active, 1 leased
    prefix cache: 30 of 60 prompt tokens (50 %)
    socket buffers: 208.0 KiB to receive, 8.0 MiB to send, 8.0 MiB asked for
    to decode-0 by quic, KV blocks by shm: 1,234 us, 1 of 5,000 packets lost, 2.0 KiB sent (1.0 KiB/s now), 0 B received, 1,452 of 8,972 bytes a packet by GSO, cubic

Supervision
  cluster running
  ├─ router running
  └─ device-0 running
     ├─ device-0/prefill running, 1 restart
     └─ device-0/decode running

Queues
  submissions  1 of 512";
        assert_eq!(drawing(&status, Style::plain()), expected);
    }

    #[test]
    fn a_tree_that_contradicts_itself_is_drawn_to_an_end() {
        let supervision = vec![actor("a", Some("b")), actor("b", Some("a")), actor("c", Some("gone"))];
        let status = ClusterStatus { supervision, ..ClusterStatus::default() };
        assert!(drawing(&status, Style::plain()).contains("  c running"));
    }
}
