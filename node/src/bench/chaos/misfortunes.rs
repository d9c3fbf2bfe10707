//! What happens to a worker.

use std::time::Duration;

use relevo_wire::Instant64;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use super::namespace::{Direction, Network};
use super::subject::{Worker, failed};
use crate::bench::random::SplitMix64;
use crate::cli::Failure;

/// A pause that is no death.
const PAUSE: Duration = Duration::from_millis(300);

/// Shortest and longest time that a worker is stopped or cut off: longer than the silence after which it counts as lost.
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
        }
    }
}

const WITHOUT_NETWORK: [Kind; 4] = [Kind::Killed, Kind::Stopped, Kind::Paused, Kind::AskedToStop];
const WITH_NETWORK: [Kind; 7] =
    [Kind::Killed, Kind::Stopped, Kind::Paused, Kind::AskedToStop, Kind::CutOff, Kind::Deaf, Kind::Mute];

/// One that has happened.
#[derive(Clone, Debug)]
pub(super) struct Strike {
    pub(super) kind: Kind,
    pub(super) worker: String,
    pub(super) at: Instant64,
    /// When the cluster was whole again.
    pub(super) until: Instant64,
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

    /// Lets something happen to this worker, and returns when it is over.
    pub(super) async fn strike(&mut self, worker: &Worker) -> Result<Kind, Failure> {
        let kind = self.draw();
        match kind {
            Kind::Killed => signal(worker, Signal::KILL),
            Kind::AskedToStop => signal(worker, Signal::TERM),
            Kind::Paused => stop_for(worker, PAUSE).await,
            Kind::Stopped => stop_for(worker, self.absence()).await,
            Kind::CutOff | Kind::Deaf | Kind::Mute => self.cut(worker, kind).await?,
        }
        Ok(kind)
    }

    fn draw(&mut self) -> Kind {
        if self.next.is_empty() {
            self.next = if self.network.is_some() { WITH_NETWORK.to_vec() } else { WITHOUT_NETWORK.to_vec() };
        }
        let index = self.random.below(self.next.len() as u64) as usize;
        self.next.swap_remove(index)
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
