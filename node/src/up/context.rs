//! The longest context that the devices' KV memory holds.

use relevo_wire::blocks_for_tokens;

use super::loading::PlannedDevice;
use crate::cli::Failure;

/// Shortens every device's context to what the smallest KV memory holds, so that "the rest of the context", which an answer may take by default, is
/// never more than can be served.
///
/// # Errors
/// The user's fault: `asked` for a longer one.
pub(super) fn fit(planned: &mut [PlannedDevice], asked: Option<u32>) -> Result<(), Failure> {
    let Some(smallest) = planned.iter().min_by_key(|device| device.kv_tokens) else { return Ok(()) };
    let tokens = smallest.kv_tokens;
    if let Some(asked) = asked.filter(|&asked| asked as usize > tokens) {
        let num_blocks = blocks_for_tokens(asked as usize) as u64;
        let mib = num_blocks.saturating_mul(smallest.block_bytes).div_ceil(1 << 20);
        let name = &smallest.name;
        return Err(Failure::Usage(format!(
            "max_context_tokens is {asked}, the KV memory of {name} holds {tokens} tokens: give it {mib} MiB (--kv-memory {mib}MiB, or its \
             kv_memory_mib), or a shorter context"
        )));
    }
    planned.iter_mut().filter(|device| device.max_context > tokens).try_for_each(|device| device.shorten(tokens))
}
