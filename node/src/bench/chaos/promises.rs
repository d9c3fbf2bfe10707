//! What became of the promises.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use relevo_wire::Instant64;

use super::ChaosArgs;
use super::misfortunes::{Kind, Strike};
use super::workload::{End, Outcome};
use crate::bench::percentiles::Percentiles;
use crate::cli::Failure;

/// The part of a run after which memory is looked at: until then caches and pools fill.
const WARM_AFTER: f64 = 0.25;

/// How much a gateway's memory may grow afterwards: the allocator's pages, and what a scrape's histograms keep.
const GROWTH: (f64, u64) = (1.25, 16 << 10);

/// A run as it was seen.
#[derive(Debug, Default)]
pub(super) struct Witnessed {
    pub(super) began: Instant64,
    pub(super) duration: Duration,
    pub(super) has_partitions: bool,
    pub(super) strikes: Vec<Strike>,
    /// Times that the cluster was not whole when the next misfortune was due.
    pub(super) not_whole: u64,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) at_rest: bool,
    pub(super) leftovers: u64,
    pub(super) contradictions: Option<u64>,
    /// Lines of level error, of any process.
    pub(super) errors: Vec<String>,
    /// Of the gateway.
    pub(super) memory_kib: Vec<(Instant64, u64)>,
}

/// A run in figures.
#[derive(Debug, serde::Serialize)]
pub(super) struct Report {
    shape: String,
    duration_s: f64,
    has_partitions: bool,
    misfortunes: BTreeMap<Kind, usize>,
    strikes: Vec<Struck>,
    completed: usize,
    aborted: usize,
    refused: usize,
    failed: usize,
    wrong: usize,
    contradicted_tokens: u64,
    /// Streams that went on elsewhere, from each misfortune until the cluster was whole again.
    replays: u64,
    /// Of these, at a drain or a renewal, for which no stream need be sent again.
    needless_replays: u64,
    /// Requests that were open from when something happened until the cluster was whole again.
    struck: usize,
    ttft_ms: Option<Percentiles>,
    /// To the first token of a long prompt that nothing happened to: what prefilling again takes, waiting included.
    undisturbed_long_ttft_ms: Option<Percentiles>,
    /// The longest pause in each stream that nothing happened to.
    undisturbed_gap_ms: Option<Percentiles>,
    /// The longest pause in each that something happened to.
    struck_gap_ms: Option<Percentiles>,
    max_gap_ms: f64,
    gap_limit_ms: f64,
    leftover_blocks: u64,
    gateway_memory_mib: (f64, f64),
    broken: Vec<String>,
    examples: Vec<String>,
}

/// What happened to whom.
#[derive(Debug, serde::Serialize)]
struct Struck {
    /// Since the load began.
    at_s: f64,
    /// Until the cluster was whole again.
    whole_again_s: f64,
    worker: String,
    kind: Kind,
    /// Streams that went on elsewhere meanwhile.
    replays: Option<u64>,
}

impl Struck {
    fn of(strike: &Strike, began: Instant64) -> Self {
        let seconds = |span: Duration| (span.as_secs_f64() * 1e3).round() / 1e3;
        let (at_s, whole_again_s) = (seconds(strike.at.since(began)), seconds(strike.until.since(strike.at)));
        let (worker, kind, replays) = (strike.worker.clone(), strike.kind, strike.replays);
        Self { at_s, whole_again_s, worker, kind, replays }
    }
}

impl Report {
    pub(super) fn of(args: &ChaosArgs, witnessed: &Witnessed) -> Self {
        let outcomes = &witnessed.outcomes;
        let count = |is_it: fn(&End) -> bool| outcomes.iter().filter(|outcome| is_it(&outcome.end)).count();
        let is_struck = |outcome: &&Outcome| {
            witnessed.strikes.iter().any(|strike| outcome.sent <= strike.until && strike.at <= outcome.ended)
        };
        let struck: Vec<_> = outcomes.iter().filter(is_struck).collect();
        let undisturbed: Vec<_> = outcomes.iter().filter(|outcome| !is_struck(outcome)).collect();
        let gaps = |outcomes: &[&Outcome]| -> Vec<_> {
            outcomes.iter().filter_map(|outcome| Some(outcome.longest_gap?.1)).collect()
        };
        let long_ttft = undisturbed.iter().filter(|outcome| outcome.is_long).filter_map(|outcome| outcome.ttft);
        let undisturbed_long_ttft_ms = Percentiles::of(long_ttft.collect());
        let struck_gaps = gaps(&struck);
        let mut report = Self {
            shape: args.local_cluster.to_string(),
            duration_s: round(witnessed.duration.as_secs_f64()),
            has_partitions: witnessed.has_partitions,
            misfortunes: count_kinds(&witnessed.strikes),
            strikes: witnessed.strikes.iter().map(|strike| Struck::of(strike, witnessed.began)).collect(),
            completed: count(|end| *end == End::Complete),
            aborted: count(|end| *end == End::Aborted),
            refused: count(|end| *end == End::Refused),
            failed: count(|end| matches!(end, End::Failed(_))),
            wrong: count(|end| matches!(end, End::Wrong(_))),
            contradicted_tokens: witnessed.contradictions.unwrap_or(0),
            replays: count_replays(&witnessed.strikes, |_| true),
            needless_replays: count_replays(&witnessed.strikes, Kind::is_smooth),
            struck: struck.len(),
            ttft_ms: Percentiles::of(outcomes.iter().filter_map(|outcome| outcome.ttft).collect()),
            undisturbed_long_ttft_ms,
            undisturbed_gap_ms: Percentiles::of(gaps(&undisturbed)),
            struck_gap_ms: Percentiles::of(struck_gaps.clone()),
            max_gap_ms: round(struck_gaps.iter().max().map_or(0.0, |gap| gap.as_secs_f64() * 1e3)),
            gap_limit_ms: round(
                f64::from(args.max_gap_ms.get()) + undisturbed_long_ttft_ms.map_or(0.0, |ttft| ttft.p99),
            ),
            leftover_blocks: witnessed.leftovers,
            gateway_memory_mib: (0.0, 0.0),
            broken: Vec::new(),
            examples: examples(outcomes, &witnessed.errors),
        };
        let memory = Memory::of(&witnessed.memory_kib);
        report.gateway_memory_mib = (round(memory.warm as f64 / 1024.0), round(memory.end as f64 / 1024.0));
        report.broken = report.broken_promises(witnessed, &memory);
        report
    }

    fn broken_promises(&self, witnessed: &Witnessed, memory: &Memory) -> Vec<String> {
        let gap = self.struck_gap_ms.map_or(0.0, |gaps| gaps.p99);
        let promises = [
            (self.completed == 0, "no request was completed".to_owned()),
            (witnessed.strikes.is_empty(), "nothing happened to any worker".to_owned()),
            (self.failed > 0, format!("{} accepted requests failed", self.failed)),
            (self.wrong > 0, format!("{} answers differ from the single process's", self.wrong)),
            (witnessed.contradictions.is_none(), "the gateway's metrics cannot be read".to_owned()),
            (self.contradicted_tokens > 0, format!("{} tokens of replays differ", self.contradicted_tokens)),
            (
                self.needless_replays > 0,
                format!("{} streams were sent again for drains and certificates", self.needless_replays),
            ),
            (gap > self.gap_limit_ms, format!("pauses: p99 is {gap} ms, promised are {} ms", self.gap_limit_ms)),
            (witnessed.not_whole > 0, format!("{} times the cluster was not whole again in time", witnessed.not_whole)),
            (!witnessed.at_rest, format!("{} blocks and leases are left over", self.leftover_blocks)),
            (!witnessed.errors.is_empty(), format!("{} errors were logged", witnessed.errors.len())),
            (memory.has_grown(), format!("the gateway's memory grew from {} to {} KiB", memory.warm, memory.end)),
        ];
        promises.into_iter().filter(|(is_broken, _)| *is_broken).map(|(_, text)| text).collect()
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let spread = |percentiles: Option<Percentiles>| {
            percentiles
                .map_or("none".to_owned(), |it| format!("p50 {} ms, p90 {} ms, p99 {} ms", it.p50, it.p90, it.p99))
        };
        let kinds: Vec<_> = self.misfortunes.iter().map(|(kind, count)| format!("{count} {}", kind.words())).collect();
        let rows = [
            ("cluster", format!("{}, {} s", self.shape, self.duration_s)),
            ("misfortunes", if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }),
            (
                "requests",
                format!(
                    "{} complete, {} hung up, {} refused, {} failed, {} wrong",
                    self.completed, self.aborted, self.refused, self.failed, self.wrong
                ),
            ),
            ("sent again", format!("{} streams, {} for drains and certificates", self.replays, self.needless_replays)),
            ("to the first token", spread(self.ttft_ms)),
            ("  long, undisturbed", spread(self.undisturbed_long_ttft_ms)),
            ("longest pause", spread(self.undisturbed_gap_ms)),
            (
                "  of those struck",
                format!("{}, {} at most; {} streams", spread(self.struck_gap_ms), self.max_gap_ms, self.struck),
            ),
            ("left over", format!("{} blocks and leases", self.leftover_blocks)),
            (
                "gateway's memory",
                format!("{} MiB warm, {} MiB at the end", self.gateway_memory_mib.0, self.gateway_memory_mib.1),
            ),
        ];
        let lines: Vec<_> = rows.iter().map(|(name, value)| format!("{name:20} {value}")).collect();
        let end = if self.broken.is_empty() { "\nEvery promise was kept." } else { "" };
        lines.join("\n") + end
    }

    /// # Errors
    /// The promises that were broken.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        match self.broken.is_empty() {
            true => Ok(()),
            false => {
                let examples = self.examples.iter().map(|example| format!("; such as: {example}")).collect::<String>();
                Err(Failure::Promise(self.broken.join("; ") + &examples))
            }
        }
    }
}

fn count_kinds(strikes: &[Strike]) -> BTreeMap<Kind, usize> {
    let mut counts = BTreeMap::new();
    for strike in strikes {
        *counts.entry(strike.kind).or_default() += 1;
    }
    counts
}

fn count_replays(strikes: &[Strike], counts: impl Fn(Kind) -> bool) -> u64 {
    strikes.iter().filter(|strike| counts(strike.kind)).filter_map(|strike| strike.replays).sum()
}

/// A few of what went wrong, each once.
fn examples(outcomes: &[Outcome], errors: &[String]) -> Vec<String> {
    let reasons = outcomes.iter().filter_map(|outcome| match &outcome.end {
        End::Failed(reason) | End::Wrong(reason) => Some(reason.clone()),
        _ => None,
    });
    let distinct: BTreeSet<_> = reasons.chain(errors.iter().cloned()).collect();
    distinct.into_iter().take(3).collect()
}

/// A process's memory over a run, in KiB: medians of its middle and of its last part.
struct Memory {
    warm: u64,
    end: u64,
}

impl Memory {
    fn of(samples: &[(Instant64, u64)]) -> Self {
        let warm_from = (samples.len() as f64 * WARM_AFTER) as usize;
        let warm = &samples[warm_from.min(samples.len())..];
        let part = warm.len().div_ceil(3);
        Self { warm: median(&warm[..part.min(warm.len())]), end: median(&warm[warm.len() - part.min(warm.len())..]) }
    }

    fn has_grown(&self) -> bool {
        let (factor, slack) = GROWTH;
        self.end as f64 > self.warm as f64 * factor + slack as f64
    }
}

fn median(samples: &[(Instant64, u64)]) -> u64 {
    let mut values: Vec<_> = samples.iter().map(|(_, kib)| *kib).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant64 {
        Instant64(ms * 1_000_000)
    }

    fn outcome(end: End, sent: u64, gap: u64) -> Outcome {
        let longest_gap = Some((at(sent + 10), Duration::from_millis(gap)));
        let ttft = Some(Duration::from_millis(20));
        Outcome { end, sent: at(sent), ended: at(sent + 500), ttft, longest_gap, is_long: true }
    }

    fn args() -> ChaosArgs {
        use clap::Parser;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: ChaosArgs,
        }
        Line::parse_from(["chaos"]).args
    }

    fn kept() -> Witnessed {
        let worker = "decode-0".to_owned();
        let strike = Strike { kind: Kind::Killed, worker, at: at(250), until: at(800), replays: Some(3) };
        let outcomes =
            vec![outcome(End::Complete, 0, 900), outcome(End::Aborted, 1000, 21), outcome(End::Refused, 1, 0)];
        Witnessed { strikes: vec![strike], outcomes, at_rest: true, contradictions: Some(0), ..Witnessed::default() }
    }

    #[test]
    fn a_run_in_which_all_was_well_says_so() {
        let report = Report::of(&args(), &kept());
        assert!(report.verdict().is_ok(), "{:?}", report.broken);
        assert_eq!((report.completed, report.struck, report.gap_limit_ms), (1, 2, 1020.0));
        assert_eq!((report.replays, report.needless_replays), (3, 0));
    }

    #[test]
    fn each_promise_that_is_broken_is_named() {
        let gap = outcome(End::Complete, 0, 1500);
        type Break = fn(&mut Witnessed, Outcome);
        let breaks: [(&str, Break); 11] = [
            ("cannot be read", |seen, _| seen.contradictions = None),
            ("errors were logged", |seen, _| seen.errors.push("x".to_owned())),
            ("failed", |seen, _| seen.outcomes.push(outcome(End::Failed("x".to_owned()), 0, 0))),
            ("differ from", |seen, _| seen.outcomes.push(outcome(End::Wrong("x".to_owned()), 0, 0))),
            ("replays differ", |seen, _| seen.contradictions = Some(1)),
            ("were sent again", |seen, _| seen.strikes[0].kind = Kind::Drained),
            ("p99 is", |seen, gap| seen.outcomes = vec![gap]),
            ("not whole", |seen, _| seen.not_whole = 1),
            ("left over", |seen, _| seen.at_rest = false),
            ("nothing happened", |seen, _| seen.strikes.clear()),
            ("memory grew", |seen, _| {
                seen.memory_kib = (0..12).map(|index| (at(index), 40_000 + index * 12_000)).collect();
            }),
        ];
        for (words, breaks) in breaks {
            let mut seen = kept();
            breaks(&mut seen, gap.clone());
            let broken = Report::of(&args(), &seen).verdict().unwrap_err().to_string();
            assert!(broken.contains(words), "{words}: {broken}");
        }
    }
}
