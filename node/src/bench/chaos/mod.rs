//! `relevo bench chaos`: a cluster of processes under a mixed load, whose workers are killed, stopped, paused, cut off, drained, given other roles and
//! new certificates by turns. What clients get is compared with what a single process says; the run fails if a promise is broken.

mod misfortunes;
mod namespace;
mod promises;
mod subject;
mod upkeep;
mod workload;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use relevo_actors::clock;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::misfortunes::{Misfortunes, Strike};
use self::promises::{Report, Witnessed};
use self::subject::Subject;
use self::workload::{Load, Variant};
use crate::cli::Failure;
use crate::config::DeviceKind;
use crate::terminal;
use crate::up::Shape;

/// Different requests of a run: the expected answer of each is computed once.
const NUM_VARIANTS: u64 = 48;

/// How long a cluster may take to be whole again after a misfortune, and to be at rest at the end.
const RECOVERY: Duration = Duration::from_secs(20);

/// How long it may take until what happened shows in the status.
const SHOWS: Duration = Duration::from_millis(700);

/// Arguments of `relevo bench chaos`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Workers are cut off the network where this user may make a network namespace (unshare) and nft is installed; else those misfortunes are left out, and it says so."
)]
pub struct ChaosArgs {
    /// The cluster's processes, as for `relevo up`
    #[arg(long, default_value = "2p2d", value_name = "SHAPE")]
    local_cluster: Shape,
    /// What computes [default: a scripted device of large blocks]
    #[arg(long, value_name = "cpu|scripted:FILE")]
    device: Option<DeviceKind>,
    /// The model, where the device is no script
    #[arg(long, value_name = "NAME", requires = "device")]
    model: Option<String>,
    /// How long, in seconds
    #[arg(long, default_value = "600", value_name = "S")]
    duration: NonZeroU32,
    /// Seconds from one misfortune to the next
    #[arg(long, default_value = "5", value_name = "S")]
    every: NonZeroU32,
    /// Requests open at a time
    #[arg(long, default_value = "32", value_name = "N")]
    streams: NonZeroUsize,
    /// The longest pause in a stream that is promised beside the time to prefill again, in milliseconds
    #[arg(long, default_value = "1000", value_name = "MS")]
    max_gap_ms: NonZeroU32,
    /// Which requests and which misfortunes
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    /// This process is in a network namespace of its own
    #[arg(long, hide = true)]
    in_namespace: bool,
}

/// Breaks things for as long as it is told, and says what became of the promises.
///
/// # Errors
/// The cluster does not start, or a promise is broken.
pub(super) async fn run(args: &ChaosArgs) -> Result<(), Failure> {
    let network = match namespace::enter(args.in_namespace).await? {
        namespace::Entered::Inside(network) => Some(network),
        namespace::Entered::Not(reason) => {
            terminal::say(format!("no worker is cut off the network: {reason}"));
            None
        }
    };
    let folder = subject::Folder::make()?;
    let variants = Variant::all(args.seed, NUM_VARIANTS);
    let device = subject::device(args, &folder)?;
    let expected = {
        let alone = Subject::alone(args, &device, &folder).await?;
        let expected = workload::expected(alone.client(), &variants).await?;
        alone.stop().await?;
        expected
    };
    let subject = Arc::new(Subject::cluster(args, &device, &folder).await?);
    let load = Load::new(args.streams.get(), variants, expected, Arc::clone(&subject));
    let mut witnessed = Witnessed { has_partitions: network.is_some(), ..Witnessed::default() };
    let stop = CancellationToken::new();
    witnessed.began = clock::now();
    let mut streams = JoinSet::new();
    streams.spawn(load.run(args.seed, stop.clone()));
    let breaks = break_things(args, &subject, Misfortunes::new(args.seed, network), &mut witnessed);
    let broken = breaks.await;
    stop.cancel();
    witnessed.outcomes = streams.join_all().await.into_iter().flatten().collect();
    broken?;
    witnessed.duration = clock::now().since(witnessed.began);
    witnessed.at_rest = subject.comes_to_rest(RECOVERY).await;
    witnessed.leftovers = subject.leftovers().await;
    witnessed.contradictions = subject.contradictions().await;
    if let Ok(subject) = Arc::try_unwrap(subject) {
        subject.stop().await?;
    }
    witnessed.errors = folder.errors();
    let report = Report::of(args, &witnessed);
    match args.json {
        true => terminal::print(serde_json::to_string(&report).unwrap_or_default())?,
        false => terminal::print(report.text())?,
    }
    report.verdict().inspect_err(|_| folder.keep())
}

/// One misfortune after another. Before each, all workers serve, so that one of each role is left.
async fn break_things(
    args: &ChaosArgs,
    subject: &Subject,
    mut misfortunes: Misfortunes,
    witnessed: &mut Witnessed,
) -> Result<(), Failure> {
    let every = Duration::from_secs(u64::from(args.every.get()));
    let end = clock::now() + Duration::from_secs(u64::from(args.duration.get()));
    let progress = terminal::count_progress(u64::from(args.duration.get() / args.every.get()), "misfortunes");
    // A while without any, to see how it is without.
    let mut next = clock::now() + every;
    loop {
        tokio::time::sleep(next.since(clock::now())).await;
        witnessed.memory_kib.push((clock::now(), subject.gateway_memory_kib().await));
        if clock::now() >= end {
            progress.finish_and_clear();
            return Ok(());
        }
        next = clock::now() + every;
        let Some(workers) = subject.whole(RECOVERY).await else {
            witnessed.not_whole += 1;
            continue;
        };
        let Some((kind, victim)) = misfortunes.draw(&workers) else { continue };
        let (at, before) = (clock::now(), subject.replays().await);
        misfortunes.strike(kind, victim, subject).await?;
        tokio::time::sleep(SHOWS).await;
        witnessed.not_whole += u64::from(subject.whole(RECOVERY).await.is_none());
        let replays = subject.replays().await.zip(before).map(|(after, before)| after.saturating_sub(before));
        witnessed.strikes.push(Strike { kind, worker: victim.name.clone(), at, until: clock::now(), replays });
        progress.inc(1);
    }
}
