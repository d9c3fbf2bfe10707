//! `relevo bench link NODE`: what the KV path to a node carries, beside a bare copy on the same link. The nodes measure; this asks and prints.

use relevo_actors::link_bench::{LinkMeasurement, Ratio, Transfer};
use relevo_wire::{MAX_BLOCK_KIB, MAX_ROUNDS};
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::http_client::ServerArgs;
use crate::terminal::{self, Style};

/// Where a gateway takes the wish.
const BENCH_PATH: &str = "/relevo/bench/link";

/// Arguments of `relevo bench link`.
#[derive(Debug, clap::Args)]
pub struct LinkArgs {
    /// The node that KV blocks are pushed to, by its name as `relevo status` shows it
    node: String,
    /// The node that pushes them [default: the first other one, by name, that may prefill]
    #[arg(long, value_name = "NODE")]
    from: Option<String>,
    /// Size of a layer's KV block, instead of the model's own
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_BLOCK_KIB)))]
    block_kib: Option<u32>,
    /// Rounds of each kind, in turns; one takes up to a second or so
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_ROUNDS)))]
    rounds: u32,
    #[command(flatten)]
    server: ServerArgs,
    /// Print the gateway's own JSON
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
///
/// # Errors
/// See [`Failure`].
pub(super) async fn run(args: &LinkArgs) -> Result<(), Failure> {
    let mut wish = json!({ "node": args.node, "rounds": args.rounds });
    if let Some(from) = &args.from {
        wish["from"] = json!(from);
    }
    if let Some(block_kib) = args.block_kib {
        wish["block_kib"] = json!(block_kib);
    }
    let client = args.server.client()?;
    if args.json {
        let measured: Value = client.post(BENCH_PATH, &wish).await?;
        return Ok(terminal::print(measured)?);
    }
    let measured: LinkMeasurement = client.post(BENCH_PATH, &wish).await?;
    Ok(terminal::print(table(&measured, Style::of_stdout()))?)
}

/// As lines for a person.
fn table(measured: &LinkMeasurement, style: Style) -> String {
    let LinkMeasurement { from, to, address, carrier, .. } = measured;
    let frame = format!(
        "  {} rounds of each in turns; frames of {} blocks of {}; {} bytes a packet",
        measured.rounds,
        measured.frame_blocks,
        terminal::bytes(measured.block_bytes),
        terminal::thousands(measured.mtu)
    );
    let mut lines = vec![
        format!("{} to {} at {address}", style.strong(from), style.strong(to)),
        style.faint(frame),
        style.faint(format!(
            "  {:<22}{:>10}  {:>9}  {:>17}  {:>20}  {:>16}",
            "", "rate", "CPU-s/GB", "send + receive", "4 KiB there and back", "lost packets"
        )),
        line(&format!("KV blocks by {carrier}"), &measured.kv),
        line("bare copy by quic", &measured.bare),
    ];
    lines.push(format!(
        "  KV blocks for one of the bare copy: {} of its rate, {} of its CPU time",
        ratio(measured.rate_ratio),
        ratio(measured.cpu_ratio)
    ));
    lines.join("\n")
}

fn line(what: &str, transfer: &Transfer) -> String {
    let lost = match transfer.sent_packets {
        0 => "no packets".to_owned(),
        sent => format!("{} of {}", terminal::thousands(transfer.lost_packets), terminal::thousands(sent)),
    };
    format!(
        "  {what:<22}{:>7.2} GB/s{:>9.2}  {:>8.2} + {:>6.2}  {:>7.0} us ({:>5.0} p99)  {lost:>16}",
        transfer.bytes_per_s / 1e9,
        transfer.cpu_s_per_gb,
        transfer.sender_cpu_s_per_gb,
        transfer.receiver_cpu_s_per_gb,
        transfer.round_trip_us_p50,
        transfer.round_trip_us_p99,
    )
}

fn ratio(ratio: Ratio) -> String {
    format!("{:.2} ({:.2}…{:.2})", ratio.median, ratio.least, ratio.most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_two_lines_and_what_one_costs_of_the_other() {
        let kv = Transfer {
            bytes_per_s: 1.25e9,
            cpu_s_per_gb: 0.63,
            sender_cpu_s_per_gb: 0.3,
            receiver_cpu_s_per_gb: 0.33,
            round_trip_us_p50: 91.4,
            round_trip_us_p99: 180.0,
            sent_packets: 12_345,
            lost_packets: 6,
            ..Transfer::default()
        };
        let bare = Transfer { bytes_per_s: 1.5e9, cpu_s_per_gb: 0.5, ..Transfer::default() };
        let measured = LinkMeasurement {
            from: "prefill-0".into(),
            to: "decode-0".into(),
            address: "127.0.0.1:1".into(),
            carrier: "quic".into(),
            block_bytes: 12_288,
            frame_blocks: 32,
            rounds: 12,
            mtu: 65_507,
            kv,
            bare,
            cpu_ratio: Ratio { median: 1.26, least: 1.2, most: 1.3 },
            rate_ratio: Ratio { median: 0.83, least: 0.8, most: 0.9 },
        };
        let expected = "\
prefill-0 to decode-0 at 127.0.0.1:1
  12 rounds of each in turns; frames of 32 blocks of 12.0 KiB; 65,507 bytes a packet
                              rate   CPU-s/GB     send + receive  4 KiB there and back      lost packets
  KV blocks by quic        1.25 GB/s     0.63      0.30 +   0.33       91 us (  180 p99)       6 of 12,345
  bare copy by quic        1.50 GB/s     0.50      0.00 +   0.00        0 us (    0 p99)        no packets
  KV blocks for one of the bare copy: 0.83 (0.80…0.90) of its rate, 1.26 (1.20…1.30) of its CPU time";
        assert_eq!(table(&measured, Style::plain()), expected);
    }
}
