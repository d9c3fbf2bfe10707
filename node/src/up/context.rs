//! The longest context that the devices' KV memory holds.

use relevo_gpu::model::MemoryPlan;
use relevo_gpu::weights::ModelFiles;
use relevo_wire::BLOCK_TOKENS;

use super::loading::PlannedDevice;
use crate::cli::Failure;

/// Shortens every device's context to what the smallest KV memory holds, so that "the rest of the context", which an answer may take by default, is
/// never more than can be served.
///
/// # Errors
/// The user's fault: `asked` for a longer one.
pub(super) fn fit(planned: &mut [PlannedDevice], asked: Option<u32>, files: &ModelFiles) -> Result<(), Failure> {
    let held = |device: &PlannedDevice| device.options.kv_blocks.saturating_mul(BLOCK_TOKENS);
    let Some(smallest) = planned.iter().min_by_key(|device| held(device)) else { return Ok(()) };
    let tokens = held(smallest);
    if let Some(asked) = asked.filter(|&asked| asked as usize > tokens) {
        let block_bytes = files.description().kv_layout(smallest.options.numerics).block_bytes() as u64;
        let mib = (u64::from(asked).div_ceil(BLOCK_TOKENS as u64) * block_bytes).div_ceil(1 << 20);
        let name = &smallest.name;
        return Err(Failure::Usage(format!(
            "max_context_tokens is {asked}, the KV memory of {name} holds {tokens} tokens: give it {mib} MiB (--kv-memory {mib}MiB, or its \
             kv_memory_mib), or a shorter context"
        )));
    }
    for device in planned.iter_mut().filter(|device| device.options.max_context > tokens) {
        device.options.max_context = tokens;
        device.plan = MemoryPlan::new(files, device.options).map_err(Failure::Load)?;
    }
    Ok(())
}
