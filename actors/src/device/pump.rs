//! Carries an engine's news to those whose it is: layers past every mailbox to their pusher, the rest to the role actors and the supervisor.

use std::sync::Arc;

use relevo_wire::Epoch;
use tokio::sync::mpsc;

use super::interface::{DeviceEvent, DeviceRole, SequenceOutcome};
use super::port::DevicePort;
use super::supervisor::SupervisorMessage;
use crate::cluster::Directory;
use crate::decode::{DecodeEvent, DecodeMessage};
use crate::prefill::{PrefillEvent, PrefillMessage};

/// Runs until the engine's channel closes.
pub(super) async fn pump(
    directory: Arc<Directory>,
    port: Arc<DevicePort>,
    epoch: Epoch,
    mut events: mpsc::Receiver<DeviceEvent>,
) {
    let mut fault = (Vec::new(), None);
    while let Some(event) = events.recv().await {
        match event {
            DeviceEvent::LayerReady { sequence, lease, layer, first_block, blocks } => {
                port.routes.push(sequence, lease, layer, first_block, blocks).await;
            }
            DeviceEvent::Faulted { stepping, reason, .. } => fault = (stepping, Some(reason)),
            DeviceEvent::PrefixChanged { batch } => {
                directory.prefix_changed(port.id, epoch, batch);
            }
            event => route(&directory, &port, event),
        }
    }
    let (stepping, reason) = fault;
    // Fails if the supervisor has ended: its successor starts an engine anyway.
    let _ = port.supervisor.cast(SupervisorMessage::EngineEnded { epoch, stepping, reason });
}

fn route(directory: &Directory, port: &DevicePort, event: DeviceEvent) {
    let to_prefill = |event| port.prefill.cast(PrefillMessage::Event(event));
    let to_decode = |event| port.decode.cast(DecodeMessage::Event(event));
    // A role actor that is not there has lost its sequences: its supervisor sees to them.
    let _ = match event {
        DeviceEvent::LeaseWanted { sequence } => to_prefill(PrefillEvent::LeaseWanted(sequence)),
        DeviceEvent::PrefillFinished { sequence, first_token, continues, cached_tokens } => {
            to_prefill(PrefillEvent::Finished { sequence, first_token, continues, cached_tokens })
        }
        DeviceEvent::Reserved { lease, .. } => to_decode(DecodeEvent::Reserved(lease)),
        DeviceEvent::Refused { lease, .. } => to_decode(DecodeEvent::Refused(lease)),
        DeviceEvent::LeaseGone { lease } => {
            tracing::warn!(%lease, "a commit found its lease gone");
            true
        }
        DeviceEvent::HandedOver { num_blocks, .. } => {
            count_same_pool(port, num_blocks);
            true
        }
        DeviceEvent::Ended { sequence, role, outcome } => {
            if role == DeviceRole::Prefill {
                let _ = to_prefill(PrefillEvent::Ended(sequence));
            }
            // Aborted by those who replay it or want it no more, which this does not concern; or with a role whose actor died.
            if outcome == SequenceOutcome::Aborted {
                directory.lost(sequence);
            }
            true
        }
        DeviceEvent::LayerReady { .. }
        | DeviceEvent::PrefixChanged { .. }
        | DeviceEvent::Stopped
        | DeviceEvent::Faulted { .. } => true,
    };
}

/// The blocks change their owner and stay where they are: what is counted is their bytes, none of which is copied.
fn count_same_pool(port: &DevicePort, num_blocks: u32) {
    if let Some(kv) = port.kv_memory() {
        let num_bytes = u64::from(num_blocks) * kv.layout().block_bytes() as u64;
        metrics::counter!("relevo_kv_bytes_handed_over_total", "carrier" => "same-pool").increment(num_bytes);
    }
}
