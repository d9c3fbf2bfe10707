//! What a measurement of a link tells; the body of `relevo bench link --json`.

use std::time::Duration;

use relevo_transport::PathFacts;
use serde::{Deserialize, Serialize};

/// The whole.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkMeasurement {
    /// The node that has pushed.
    pub from: String,
    /// The node that has taken.
    pub to: String,
    /// Where that is.
    pub address: String,
    /// What carries KV blocks there: `quic` or `shm`.
    pub carrier: String,
    /// Bytes of a block of one layer.
    pub block_bytes: u64,
    /// Blocks of a frame.
    pub frame_blocks: u64,
    /// Rounds, each of both kinds one after the other.
    pub rounds: u64,
    /// The largest UDP payload that the path carries, in bytes.
    pub mtu: u64,
    /// KV blocks: with headers, checksums, a lease and an answer for each frame.
    pub kv: Transfer,
    /// Bytes as they are, over a QUIC connection of the same settings.
    pub bare: Transfer,
    /// Processor seconds of the first for one of the second.
    pub cpu_ratio: Ratio,
    /// Bytes a second of the first for one of the second.
    pub rate_ratio: Ratio,
}

/// One kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Transfer {
    /// Bytes in all.
    pub bytes: u64,
    /// The median of the rounds.
    pub bytes_per_s: f64,
    /// Processor seconds of both processes for 10⁹ bytes, the median of the rounds.
    pub cpu_s_per_gb: f64,
    /// The share of the one that sends.
    pub sender_cpu_s_per_gb: f64,
    /// The share of the one that receives.
    pub receiver_cpu_s_per_gb: f64,
    /// From handing over 4 KiB to their answer, in microseconds: the median.
    pub round_trip_us_p50: f64,
    /// The 99th percentile.
    pub round_trip_us_p99: f64,
    /// Packets of the connection; none where none carries it.
    pub sent_packets: u64,
    /// Of these, how many were lost.
    pub lost_packets: u64,
}

/// Of pairs of rounds, one after the other.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub most: f64,
}

/// One round of one kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) bytes: u64,
    pub(super) took: Duration,
    pub(super) sender_ns: u64,
    pub(super) receiver_ns: u64,
}

impl Round {
    fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Nanoseconds for a byte are seconds for a GB.
    fn cpu(&self, ns: u64) -> f64 {
        ns as f64 / self.bytes.max(1) as f64
    }

    fn cpu_s_per_gb(&self) -> f64 {
        self.cpu(self.sender_ns + self.receiver_ns)
    }
}

impl Transfer {
    pub(super) fn of(rounds: &[Round], round_trips: &mut [Duration], path: Option<PathFacts>) -> Self {
        round_trips.sort_unstable();
        let at = |share: f64| {
            let place = (round_trips.len() as f64 * share) as usize;
            round_trips.get(place).or(round_trips.last()).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        let of = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure));
        let path = path.unwrap_or_default();
        Self {
            bytes: rounds.iter().map(|round| round.bytes).sum(),
            bytes_per_s: of(&Round::bytes_per_s),
            cpu_s_per_gb: of(&Round::cpu_s_per_gb),
            sender_cpu_s_per_gb: of(&|round| round.cpu(round.sender_ns)),
            receiver_cpu_s_per_gb: of(&|round| round.cpu(round.receiver_ns)),
            round_trip_us_p50: at(0.5),
            round_trip_us_p99: at(0.99),
            sent_packets: path.sent_packets,
            lost_packets: path.lost_packets,
        }
    }
}

impl Ratio {
    fn of(ratios: impl Iterator<Item = f64> + Clone) -> Self {
        Self {
            median: median(ratios.clone()),
            least: ratios.clone().reduce(f64::min).unwrap_or(0.0),
            most: ratios.reduce(f64::max).unwrap_or(0.0),
        }
    }

    pub(super) fn of_cpu(kv: &[Round], bare: &[Round]) -> Self {
        Self::of(kv.iter().zip(bare).map(|(kv, bare)| kv.cpu_s_per_gb() / bare.cpu_s_per_gb()))
    }

    pub(super) fn of_rates(kv: &[Round], bare: &[Round]) -> Self {
        Self::of(kv.iter().zip(bare).map(|(kv, bare)| kv.bytes_per_s() / bare.bytes_per_s()))
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
