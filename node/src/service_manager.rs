//! What the service manager is told, if it asked to be (systemd's `Type=notify`): that the process has begun, what it does, that it stops, and
//! that it lives (`WatchdogSec=`). Elsewhere all of it does nothing.

use std::time::Duration;

use relevo_actors::cluster::Cluster;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// How often it is told what the process does, where no watchdog wants more.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Signs of life in the time after which a watchdog kills.
const SIGNS: u32 = 4;

/// Says that the process has begun: its devices compute. A gateway may still wait for others; that its status tells, and `/ready`.
fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Says that the process has begun, and from then on what it does and that it lives; a cluster that is not well gives no sign of life, so that
/// the watchdog ends the process and the service manager starts it again. Never ends.
pub async fn keep_informed(cluster: &Cluster) {
    ready();
    let watchdog = watchdog();
    let mut ticks = interval(watchdog.map_or(TELL_EVERY, |patience| TELL_EVERY.min(patience / SIGNS)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    loop {
        ticks.tick().await;
        if watchdog.is_some() && cluster.is_well() {
            tell(&[NotifyState::Watchdog]);
        }
        let status = status(cluster);
        if status != told {
            tell(&[NotifyState::Status(&status)]);
            told = status;
        }
    }
}

/// Says that the process has begun, and from then on that it lives, for one that only watches others. Never ends.
pub async fn keep_alive() {
    ready();
    let Some(patience) = watchdog() else { return std::future::pending().await };
    let mut ticks = interval(patience / SIGNS);
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// How long it may give no sign of life; none if nobody watches.
fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|patience| *patience >= Duration::from_millis(1))
}

/// Says that the process ends its streams, and then itself.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn status(cluster: &Cluster) -> String {
    match (cluster.reaches_coordinator(), cluster.is_ready()) {
        (false, _) => "looks for the coordinator".to_owned(),
        (true, false) => "waits for a prefill and a decode worker".to_owned(),
        (true, true) => format!("{} devices serve", cluster.serving().len()),
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
