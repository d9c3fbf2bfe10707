//! The process's metrics, read as a scraper reads them.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::{Mutex, MutexGuard};

/// Counters are the process's: tests that read them take turns.
static TURN: Mutex<()> = Mutex::const_new(());

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Keeps other tests of this process from counting, and installs the recorder. To be called before a cluster starts.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().await;
    RECORDER.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap());
    turn
}

/// What counters have gone up by since some moment.
pub(crate) struct Since(String);

impl Since {
    /// From here on.
    pub(crate) fn now() -> Self {
        Self(rendered())
    }

    /// The sum over all counters of this name that carry the label.
    pub(crate) fn count(&self, name: &str, label: &str) -> u64 {
        sum(&rendered(), name, label) - sum(&self.0, name, label)
    }

    /// KV bytes handed over by this carrier.
    pub(crate) fn handed_over(&self, carrier: &str) -> u64 {
        self.count("relevo_kv_bytes_handed_over_total", &format!("carrier=\"{carrier}\""))
    }
}

fn rendered() -> String {
    RECORDER.get().expect("a turn was taken").render()
}

/// Adds up the lines `name{labels} value`.
fn sum(text: &str, name: &str, label: &str) -> u64 {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let named = lines.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name) && series.contains(label)).then_some(value)
    });
    named.map(|value| value.parse::<u64>().unwrap()).sum()
}
