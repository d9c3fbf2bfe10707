//! What happens to a worker: what breaks, and what an operator does meanwhile.

use std::time::Duration;

use relevo_wire::Instant64;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use super::namespace::{Direction, Network};
use super::subject::{Subject, Worker, failed};
use super::upkeep;
use crate::bench::random::SplitMix64;
use crate::cli::Failure;

/// A pause that is no death.
const PAUSE: Duration = Duration::from_millis(300);

/// Shortest and longest time that a worker is stopped or cut off, drained or in its other role: longer than the silence after which it counts as lost.
const ABSENCE_MS: (u64, u64) = (1000, 3000);

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// SIGKILL.
    Killed,
    /// SIGSTOP, and SIGCONT after it was given up.
    Stopped,
    /// The same for 300 ms.
    Paused,
    /// SIGTERM.
    AskedToStop,
    /// Nothing reaches it, and nothing of it reaches others.
    CutOff,
    /// Nothing reaches it.
    Deaf,
    /// Nothing of it reaches others.
    Mute,
    /// An operator drains it, and ends that.
    Drained,
    /// An operator gives it the other role, and its own again.
    Flipped,
    /// An operator puts a new certificate into its folder.
    Renewed,
}

impl Kind {
    /// Of workers to whom it happened.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Stopped => "stopped",
            Self::Paused => "paused for 300 ms",
            Self::AskedToStop => "asked to stop",
            Self::CutOff => "cut off",
            Self::Deaf => "deaf",
            Self::Mute => "mute",
            Self::Drained => "drained",
            Self::Flipped => "given the other role and back",
            Self::Renewed => "given a new certificate",
        }
    }

    /// Whether no stream may be sent again for it: what a drained worker has it finishes, and a certificate is for the next handshake.
    pub(super) const fn is_smooth(self) -> bool {
        matches!(self, Self::Drained | Self::Renewed)
    }

    const fn needs_network(self) -> bool {
        matches!(self, Self::CutOff | Self::Deaf | Self::Mute)
    }

    /// Whether it can happen to this one of the workers, all of which serve. Somebody who plays its role must be left where that is the point.
    fn may_strike(self, worker: &Worker, workers: &[Worker]) -> bool {
        let is_left = workers.iter().any(|other| other.name != worker.name && other.roles == worker.roles);
        self != Self::Flipped || (is_left && upkeep::flip(worker).is_some())
    }
}

const ALL: [Kind; 10] = [
    Kind::Killed,
    Kind::Stopped,
    Kind::Paused,
    Kind::AskedToStop,
    Kind::CutOff,
    Kind::Deaf,
    Kind::Mute,
    Kind::Drained,
    Kind::Flipped,
    Kind::Renewed,
];

/// One that has happened.
#[derive(Clone, Debug)]
pub(super) struct Strike {
    pub(super) kind: Kind,
    pub(super) worker: String,
    pub(super) at: Instant64,
    /// When the cluster was whole again.
    pub(super) until: Instant64,
    /// Streams that went on elsewhere meanwhile; nothing if they could not be counted.
    pub(super) replays: Option<u64>,
}

/// Draws them by seed.
pub(super) struct Misfortunes {
    random: SplitMix64,
    network: Option<Network>,
    /// Each kind once, in an order of chance, before any comes again.
    next: Vec<Kind>,
}

impl Misfortunes {
    pub(super) fn new(seed: u64, network: Option<Network>) -> Self {
        Self { random: SplitMix64::new(seed), network, next: Vec::new() }
    }

    /// What happens next, and to which of the workers, all of which serve.
    pub(super) fn draw<'w>(&mut self, workers: &'w [Worker]) -> Option<(Kind, &'w Worker)> {
        let strikes_some = |kind: &Kind| workers.iter().any(|worker| kind.may_strike(worker, workers));
        self.next.retain(strikes_some);
        if self.next.is_empty() {
            let has_network = self.network.is_some();
            self.next =
                ALL.into_iter().filter(|kind| has_network || !kind.needs_network()).filter(strikes_some).collect();
        }
        if self.next.is_empty() {
            return None;
        }
        let index = self.random.below(self.next.len() as u64) as usize;
        let kind = self.next.swap_remove(index);
        let victims: Vec<_> = workers.iter().filter(|worker| kind.may_strike(worker, workers)).collect();
        let victim = victims[self.random.below(victims.len() as u64) as usize];
        Some((kind, victim))
    }

    /// Lets it happen to this worker, and returns when it is over.
    pub(super) async fn strike(&mut self, kind: Kind, worker: &Worker, subject: &Subject) -> Result<(), Failure> {
        match kind {
            Kind::Killed => signal(worker, Signal::KILL),
            Kind::AskedToStop => signal(worker, Signal::TERM),
            Kind::Paused => stop_for(worker, PAUSE).await,
            Kind::Stopped => stop_for(worker, self.absence()).await,
            Kind::CutOff | Kind::Deaf | Kind::Mute => self.cut(worker, kind).await?,
            Kind::Drained => upkeep::drain_for(subject, worker, self.absence()).await?,
            Kind::Flipped => upkeep::flip_for(subject, worker, self.absence()).await?,
            Kind::Renewed => upkeep::renew(subject, worker).await?,
        }
        Ok(())
    }

    fn absence(&mut self) -> Duration {
        let (least, most) = ABSENCE_MS;
        Duration::from_millis(least + self.random.below(most - least))
    }

    async fn cut(&mut self, worker: &Worker, kind: Kind) -> Result<(), Failure> {
        let directions: &[Direction] = match kind {
            Kind::Deaf => &[Direction::To],
            Kind::Mute => &[Direction::From],
            _ => &[Direction::To, Direction::From],
        };
        let absence = self.absence();
        let Some(network) = &self.network else { return Ok(()) };
        let cut = async {
            for &direction in directions {
                network.cut(worker.port, direction).await?;
            }
            sleep(absence).await;
            network.mend().await
        };
        cut.await.map_err(|source| failed("cannot cut a worker off", source))
    }
}

async fn stop_for(worker: &Worker, time: Duration) {
    signal(worker, Signal::STOP);
    sleep(time).await;
    signal(worker, Signal::CONT);
}

/// One that has just died needs none.
fn signal(worker: &Worker, signal: Signal) {
    if let Some(pid) = i32::try_from(worker.pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn worker(name: &str, roles: &[&str]) -> Worker {
        Worker { name: name.to_owned(), pid: 0, port: 0, roles: roles.iter().map(|&role| role.to_owned()).collect() }
    }

    /// A round of draws among these workers.
    fn round(workers: &[Worker], num_kinds: usize) -> Vec<(Kind, String)> {
        let mut misfortunes = Misfortunes::new(1, None);
        let draw = |_| misfortunes.draw(workers).map(|(kind, victim)| (kind, victim.name.clone())).unwrap();
        (0..num_kinds).map(draw).collect()
    }

    #[test]
    fn each_kind_comes_once_before_any_comes_again() {
        let workers = [
            worker("prefill-0", &["prefill"]),
            worker("prefill-1", &["prefill"]),
            worker("decode-0", &["decode"]),
            worker("decode-1", &["decode"]),
        ];
        let drawn = round(&workers, 14);
        for round in [&drawn[..7], &drawn[7..]] {
            let kinds: BTreeSet<_> = round.iter().map(|(kind, _)| *kind).collect();
            assert_eq!(kinds.len(), 7, "without a network: {round:?}");
        }
    }

    #[test]
    fn a_role_is_changed_where_somebody_is_left_who_plays_it() {
        let lonely =
            [worker("prefill-0", &["prefill"]), worker("decode-0", &["decode"]), worker("decode-1", &["decode"])];
        let flipped: Vec<_> =
            round(&lonely, 70).into_iter().filter(|(kind, _)| *kind == Kind::Flipped).map(|(_, name)| name).collect();
        assert!(flipped.len() == 10 && flipped.iter().all(|name| name.starts_with("decode")), "{flipped:?}");
        let both = [worker("worker-0", &["decode", "prefill"]), worker("worker-1", &["decode", "prefill"])];
        assert!(round(&both, 12).iter().all(|(kind, _)| *kind != Kind::Flipped), "an order gives one role only");
    }
}
