//! How full the bounded queues are: for the status when somebody asks, for the metrics a few times a second.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics::Label;
use relevo_wire::DeviceId;
use tokio::sync::{mpsc, watch};

use super::directory::Directory;
use super::links::Links;
use crate::device::{DevicePort, TokenBatch};
use crate::gateway::{Gateway, Submission};
use crate::status::QueueStatus;

/// How often the metrics are told: scrapes are seconds apart.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// Whoever looks at the queues. It keeps none of them open.
#[derive(Clone)]
pub(super) struct Queues {
    directory: Arc<Directory>,
    submissions: mpsc::WeakSender<Submission>,
    tokens: mpsc::WeakSender<TokenBatch>,
}

/// A queue as it stands.
struct Queue {
    name: &'static str,
    /// Whose it is; nothing if there is one in the process.
    device: Option<DeviceId>,
    /// Where what is in it goes, if there is one for each destination.
    to: Option<DeviceId>,
    fill: Fill,
}

/// Entries now and at most; of a queue that is not there, none.
pub(crate) type Fill = (usize, usize);

impl Queues {
    pub(super) fn new(directory: Arc<Directory>, gateway: &Gateway, tokens: &mpsc::Sender<TokenBatch>) -> Self {
        Self { directory, submissions: gateway.downgrade(), tokens: tokens.downgrade() }
    }

    /// All of them.
    pub(super) fn status(&self) -> Vec<QueueStatus> {
        self.look().iter().map(Queue::status).collect()
    }

    /// Tells the metrics until the cluster stops.
    pub(super) async fn report(self, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        loop {
            tokio::select! {
                // An error says that the cluster was dropped.
                _ = stop.wait_for(|stop| *stop) => return,
                _ = ticks.tick() => self.look().iter().for_each(Queue::report),
            }
        }
    }

    fn look(&self) -> Vec<Queue> {
        let Directory { keeper, router_waiting, limits, devices, links, .. } = &*self.directory;
        let one = |name, fill| Queue { name, device: None, to: None, fill };
        let mut queues = vec![
            one("submissions", fill_of_weak(&self.submissions)),
            one("streams", keeper.depth()),
            one("stream_events", keeper.fullest_stream()),
            one("router", (router_waiting.load(Ordering::Relaxed), limits.max_waiting)),
            one("tokens", fill_of_weak(&self.tokens)),
        ];
        queues.extend(devices.values().flat_map(|port| of_device(port, links)));
        queues
    }
}

fn of_device(port: &DevicePort, links: &Links) -> Vec<Queue> {
    let engine = port.engine().clone();
    let one = |name, fill| Queue { name, device: Some(port.id), to: None, fill };
    let mut queues = vec![
        one("engine_commands", engine.as_ref().map_or((0, 0), |engine| fill_of(&engine.commands))),
        one("engine_events", engine.as_ref().map_or((0, 0), |engine| fill_of_weak(&engine.events))),
        one("inbound_frames", links.fill(port.id)),
    ];
    let pushes = port.routes.queues().into_iter();
    queues.extend(pushes.map(|(to, fill)| Queue { to: Some(to), ..one("push_jobs", fill) }));
    queues
}

/// Entries that a channel holds, and may hold.
pub(crate) fn fill_of<T>(sender: &mpsc::Sender<T>) -> Fill {
    (sender.max_capacity() - sender.capacity(), sender.max_capacity())
}

/// The same, without keeping it open.
pub(crate) fn fill_of_weak<T>(sender: &mpsc::WeakSender<T>) -> Fill {
    sender.upgrade().map_or((0, 0), |sender| fill_of(&sender))
}

impl Queue {
    fn status(&self) -> QueueStatus {
        let device = self.device.map(|device| format!("{device}/")).unwrap_or_default();
        let to = self.to.map(|to| format!("/{to}")).unwrap_or_default();
        let (depth, capacity) = self.fill;
        QueueStatus { name: format!("{device}{}{to}", self.name), depth: depth as u64, capacity: capacity as u64 }
    }

    fn report(&self) {
        let number = |device: Option<DeviceId>| device.map(|device| device.0.to_string());
        let labels = [("queue", Some(self.name.to_owned())), ("device", number(self.device)), ("to", number(self.to))];
        let labels: Vec<_> = labels.into_iter().filter_map(|(key, value)| Some(Label::new(key, value?))).collect();
        let (depth, capacity) = self.fill;
        metrics::gauge!("relevo_queue_depth", labels.clone()).set(depth as f64);
        metrics::gauge!("relevo_queue_capacity", labels).set(capacity as f64);
    }
}
