//! What `relevo bench engine` prints.

use relevo_gpu::description::ModelDescription;
use relevo_wire::Numerics;

use super::limits::Bounds;
use super::{Measured, Workload};
use crate::terminal;

/// One line of JSON, or a table.
#[derive(Debug, serde::Serialize)]
pub(super) struct Outcome {
    model: String,
    quantisation: String,
    threads: usize,
    isa: &'static str,
    numerics: Numerics,
    prompt: usize,
    generate: usize,
    parallel: usize,
    repetitions: usize,
    /// Over all streams.
    prefill_tokens_per_second: f64,
    /// Over all streams.
    decode_tokens_per_second: f64,
    /// Standard deviation over the repetitions.
    prefill_deviation: f64,
    decode_deviation: f64,
    /// The machine's limit, and what it follows from.
    limit: Bounds,
}

impl Outcome {
    pub(super) fn of(model: &ModelDescription, workload: Workload, measured: Measured, limit: Bounds) -> Self {
        let Workload { prompt, generate, streams, repetitions, threads, isa, numerics } = workload;
        let rates = |tokens: usize, seconds: &[f64]| -> Vec<f64> {
            seconds.iter().map(|seconds| (tokens * streams) as f64 / seconds).collect()
        };
        let (prefill, prefill_deviation) = mean_and_deviation(&rates(prompt, &measured.prefill));
        let (decode, decode_deviation) = mean_and_deviation(&rates(generate, &measured.decode));
        Self {
            model: model.name.clone(),
            quantisation: model.quantisation.first().map_or_else(String::new, |share| share.ty.name().to_owned()),
            threads,
            isa: isa.name(),
            numerics,
            prompt,
            generate,
            parallel: streams,
            repetitions,
            prefill_tokens_per_second: prefill,
            decode_tokens_per_second: decode,
            prefill_deviation,
            decode_deviation,
            limit,
        }
    }

    pub(super) fn table(&self) -> String {
        let mut table = terminal::table(&["phase", "tokens", "tokens/s", "±", "limit", "reached"]);
        let phases = [
            ("prefill", self.prompt, self.prefill_tokens_per_second, self.prefill_deviation),
            ("decode", self.generate, self.decode_tokens_per_second, self.decode_deviation),
        ];
        let limits = [self.limit.prefill_tokens_per_second, self.limit.decode_tokens_per_second];
        for ((phase, tokens, rate, deviation), limit) in phases.into_iter().zip(limits) {
            table.add_row([
                phase.to_owned(),
                format!("{} × {tokens}", self.parallel),
                format!("{rate:.1}"),
                format!("{deviation:.1}"),
                format!("{limit:.0}"),
                format!("{:.1} %", 100.0 * rate / limit),
            ]);
        }
        let machine = &self.limit.machine;
        format!(
            "{} {}, {} threads, {}, {:?} numerics\n{table}\nlimit: {:.1} GB/s, {:.0} Gop/s in products, {:.0} Gop/s in attention; a decode step \
             moves {:.1} MB, a prompt takes {:.1} Gop",
            self.model,
            self.quantisation,
            self.threads,
            self.isa,
            self.numerics,
            machine.bytes_per_second / 1e9,
            machine.matmul_operations_per_second / 1e9,
            machine.attention_operations_per_second / 1e9,
            self.limit.decode.bytes() as f64 / 1e6,
            self.limit.prefill.operations() as f64 / 1e9,
        )
    }
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    (mean, variance.sqrt())
}
