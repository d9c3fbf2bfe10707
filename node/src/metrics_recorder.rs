//! Where metrics gather in this process, and the buckets of its histograms. `docs/metrics.md` lists all of them.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// How often samples that wait are sorted into their buckets, so that they do not pile up where nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Seconds. vLLM's buckets for the time to first token, so that its dashboards draw the same curves, and 0.5 ms for a CPU's small models.
const SECONDS: [f64; 22] = [
    0.0005, 0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0,
];

/// Seconds between tokens and of steps: finer at the small end.
const SHORT_SECONDS: [f64; 18] =
    [0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 2.0, 10.0];

/// Tokens, rows, sequences: powers of two.
const COUNTS: [f64; 15] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 32768.0];

/// Installs the recorder of this process, once; later calls give the same one.
///
/// # Errors
/// Our bug: empty buckets, or another recorder was installed before.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(recorder) = RECORDER.get() {
        return Ok(recorder.clone());
    }
    let recorder = PrometheusBuilder::new()
        .set_buckets(&COUNTS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Full("vllm:inter_token_latency_seconds".to_owned()), &SHORT_SECONDS)?
        .set_buckets_for_metric(Matcher::Full("relevo_step_seconds".to_owned()), &SHORT_SECONDS)?
        .install_recorder()?;
    Ok(RECORDER.get_or_init(|| recorder).clone())
}

/// Keeps samples from piling up, for as long as it is polled.
pub async fn upkeep(recorder: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        recorder.run_upkeep();
    }
}
