//! What an engine counts and measures, under vLLM's names where the meaning is vLLM's.
//!
//! Handles are taken once: recording is a few atomic stores a step. The process's recorder must be installed before an engine starts.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use relevo_wire::{DeviceId, Instant64};

use super::core::{CoreCounters, StepShape};
use super::interface::EngineStats;
use crate::clock;

/// One engine's handles.
pub(super) struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    leases: Gauge,
    usage: Gauge,
    /// Free, cached, active, leased.
    blocks: [Gauge; 4],
    counters: [CoreCounter; 9],
    counted: CoreCounters,
    iteration_tokens: Histogram,
    sequences: Histogram,
    prefill_rows: Histogram,
    decode_rows: Histogram,
    plan_seconds: Histogram,
    prefill_seconds: Histogram,
    decode_seconds: Histogram,
    mixed_seconds: Histogram,
    emit_seconds: Histogram,
}

/// A counter of the process, and which of the core's it follows.
type CoreCounter = (Counter, fn(&CoreCounters) -> u64);

/// The moments of a step.
pub(super) struct StepTimes {
    started: Instant64,
    planned: Instant64,
    computed: Instant64,
    emitted: Instant64,
}

impl StepTimes {
    pub(super) fn start() -> Self {
        let now = clock::now();
        Self { started: now, planned: now, computed: now, emitted: now }
    }

    pub(super) fn planned(&mut self) {
        self.planned = clock::now();
    }

    pub(super) fn computed(&mut self) {
        self.computed = clock::now();
    }

    pub(super) fn emitted(mut self) -> Self {
        self.emitted = clock::now();
        self
    }
}

impl EngineMetrics {
    pub(super) fn new(device: DeviceId) -> Self {
        let device = device.0.to_string();
        let phase =
            |phase: &'static str| histogram!("relevo_step_seconds", "device" => device.clone(), "phase" => phase);
        let blocks = |state: &'static str| gauge!("relevo_kv_blocks", "device" => device.clone(), "state" => state);
        let rows = |kind: &'static str| histogram!("relevo_batch_rows", "device" => device.clone(), "kind" => kind);
        Self {
            running: gauge!("vllm:num_requests_running", "engine" => device.clone()),
            waiting: gauge!("vllm:num_requests_waiting", "engine" => device.clone()),
            leases: gauge!("relevo_leases", "device" => device.clone()),
            usage: gauge!("vllm:kv_cache_usage_perc", "engine" => device.clone()),
            blocks: ["free", "cached", "active", "leased"].map(blocks),
            counters: Self::counters(&device),
            counted: CoreCounters::default(),
            iteration_tokens: histogram!("vllm:iteration_tokens_total", "engine" => device.clone()),
            sequences: histogram!("relevo_batch_sequences", "device" => device.clone()),
            prefill_rows: rows("prefill"),
            decode_rows: rows("decode"),
            plan_seconds: phase("plan"),
            prefill_seconds: phase("prefill"),
            decode_seconds: phase("decode"),
            mixed_seconds: phase("mixed"),
            emit_seconds: phase("emit"),
        }
    }

    fn counters(device: &str) -> [CoreCounter; 9] {
        let vllm = |name: &'static str| counter!(name, "engine" => device.to_owned());
        let own = |name: &'static str| counter!(name, "device" => device.to_owned());
        [
            (own("relevo_prompt_tokens_computed_total"), |it| it.prompt_tokens),
            (own("relevo_tokens_drawn_total"), |it| it.generated_tokens),
            (vllm("vllm:num_preemptions_total"), |it| it.preemptions),
            (vllm("vllm:prefix_cache_queries_total"), |it| it.prefix_query_tokens),
            (vllm("vllm:prefix_cache_hits_total"), |it| it.prefix_hit_tokens),
            (own("relevo_steps_total"), |it| it.steps),
            (own("relevo_leases_granted_total"), |it| it.leases_granted),
            (own("relevo_leases_refused_total"), |it| it.leases_refused),
            (own("relevo_lease_orders_too_late_total"), |it| it.leases_gone),
        ]
    }

    /// What holds now.
    pub(super) fn record_state(&mut self, stats: EngineStats, counters: CoreCounters) {
        let blocks = stats.kv_blocks;
        let used = blocks.active + blocks.leased;
        let all = used + blocks.free + blocks.cached;
        self.running.set(stats.running as f64);
        self.waiting.set(stats.waiting as f64);
        self.leases.set(stats.leases as f64);
        self.usage.set(used as f64 / all.max(1) as f64);
        for (gauge, count) in self.blocks.iter().zip([blocks.free, blocks.cached, blocks.active, blocks.leased]) {
            gauge.set(count as f64);
        }
        for (counter, value) in &self.counters {
            // The core counts from zero in each epoch, the process's counters go on.
            counter.increment(value(&counters) - value(&self.counted));
        }
        self.counted = counters;
    }

    /// What a step was, and where its time went.
    pub(super) fn record_step(&self, shape: StepShape, times: StepTimes) {
        let computing = match (shape.prefill_rows, shape.decode_rows) {
            (_, 0) => &self.prefill_seconds,
            (0, _) => &self.decode_seconds,
            _ => &self.mixed_seconds,
        };
        self.plan_seconds.record(times.planned.since(times.started));
        computing.record(times.computed.since(times.planned));
        self.emit_seconds.record(times.emitted.since(times.computed));
        self.iteration_tokens.record((shape.prefill_rows + shape.decode_rows) as f64);
        self.sequences.record(shape.sequences as f64);
        self.prefill_rows.record(shape.prefill_rows as f64);
        self.decode_rows.record(shape.decode_rows as f64);
    }
}
