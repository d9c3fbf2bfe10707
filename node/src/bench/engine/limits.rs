//! The machine's limit for a workload: what its steps have to move and to compute, at the rates that this machine reaches.

use relevo_gpu::compute::{OutputRow, Piece, SampleRow, StepPlan};
use relevo_gpu::cost::{Cost, CostDevice, Roofline, StepCost};
use relevo_gpu::cpu::measure_roofline;
use relevo_gpu::model::{LoadError, Model, ModelOptions};
use relevo_gpu::weights::ModelFiles;
use relevo_wire::{BlockIndex, SamplingParams, TokenId, blocks_for_tokens};

use super::Workload;

/// The limits of both phases.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Bounds {
    /// What the machine reaches.
    pub(super) machine: Roofline,
    /// Of the prefill of one prompt.
    pub(super) prefill: Cost,
    /// Of one decode step of all streams in the middle of their generation.
    pub(super) decode: Cost,
    pub(super) prefill_tokens_per_second: f64,
    pub(super) decode_tokens_per_second: f64,
}

/// Counts a workload's cost with the forward pass that serves, and measures the machine.
///
/// # Errors
/// Those of loading the model, which has been loaded before.
pub(super) fn bounds(files: &ModelFiles, options: ModelOptions, workload: Workload) -> Result<Bounds, LoadError> {
    let mut model = Model::load(CostDevice::new(), files, options)?;
    let machine = measure_roofline(workload.threads, workload.isa, files.description().weight_bytes)?;
    let Workload { prompt, generate, streams, .. } = workload;
    let mut prefill_seconds = 0.0;
    let mut prefill = Cost::default();
    for start in (0..prompt).step_by(options.max_rows) {
        let end = (start + options.max_rows).min(prompt);
        let cost = step_cost(&mut model, 1, (start, end), end == prompt)?;
        prefill_seconds += cost.roofline_seconds(machine);
        prefill = sum(prefill, cost);
    }
    let context = if streams == 1 { generate / 2 } else { prompt + generate / 2 };
    let decode = step_cost(&mut model, streams, (context, context + 1), true)?;
    Ok(Bounds {
        machine,
        prefill,
        decode,
        prefill_tokens_per_second: prompt as f64 / prefill_seconds,
        decode_tokens_per_second: streams as f64 / decode.roofline_seconds(machine),
    })
}

/// Cost of a step in which each stream computes its tokens `start..end`, and draws one if `samples`.
fn step_cost(
    model: &mut Model<CostDevice>,
    streams: usize,
    (start, end): (usize, usize),
    samples: bool,
) -> Result<Cost, LoadError> {
    let tokens: Vec<TokenId> = vec![0; end - start];
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let num_blocks = blocks_for_tokens(end);
    let blocks = |stream: usize| (stream * num_blocks..(stream + 1) * num_blocks).map(block).collect();
    let tables: Vec<Vec<BlockIndex>> = (0..streams).map(blocks).collect();
    let row = || OutputRow {
        row: end - start - 1,
        sample: Some(SampleRow { params: &params, choice: 0, prompt: &[], generated: &[], banned: &[] }),
        ..OutputRow::default()
    };
    let pieces = tables.iter().map(|table| Piece {
        tokens: &tokens,
        start,
        block_table: table,
        outputs: if samples { vec![row()] } else { Vec::new() },
    });
    Ok(StepCost::of(model, &StepPlan { pieces: pieces.collect() })?.total())
}

fn block(index: usize) -> BlockIndex {
    BlockIndex(u32::try_from(index).unwrap_or(u32::MAX))
}

fn sum(a: Cost, b: Cost) -> Cost {
    Cost {
        weight_bytes: a.weight_bytes + b.weight_bytes,
        kv_bytes_read: a.kv_bytes_read + b.kv_bytes_read,
        kv_bytes_written: a.kv_bytes_written + b.kv_bytes_written,
        activation_bytes: a.activation_bytes + b.activation_bytes,
        matmul_operations: a.matmul_operations + b.matmul_operations,
        attention_operations: a.attention_operations + b.attention_operations,
    }
}
