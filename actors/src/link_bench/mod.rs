//! What the KV path to a node carries: one node pushes blocks of no sequence to another, over the link and the code that serve sequences, and beside them bytes
//! as they are. The nodes go on serving meanwhile; whatever else they do counts, too.

mod figures;
mod measure;
mod probe;

pub use figures::{LinkMeasurement, Ratio, Transfer};
pub(crate) use measure::measure;
pub(crate) use probe::LinkProbe;

use relevo_wire::{DeviceId, NodeId, RequestId, SequenceId};
use rustix::time::{ClockId, clock_gettime};

/// The place among a node's devices of the one that there is not, and to which blocks of no sequence go.
const PROBE_INDEX: u8 = u8::MAX;

/// Where a node takes blocks of no sequence, and where they come from.
pub(crate) const fn probe_device(node: NodeId) -> DeviceId {
    DeviceId::of(node, PROBE_INDEX)
}

/// What stands in their headers.
const fn probe_sequence(from: NodeId) -> SequenceId {
    SequenceId { request: RequestId::of(from, 0), choice: 0, attempt: 0 }
}

/// Processor time that this process has used so far, its own and the system's for it, in nanoseconds.
fn processor_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, rest) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or(0) * 1_000_000_000 + rest.unwrap_or(0)
}
