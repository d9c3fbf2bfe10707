//! Hands on what a peer says, to those whose business it is.

use std::sync::Arc;
use std::time::Duration;

use relevo_transport::identity::PeerIdentity;
use relevo_wire::{
    ControlMessage, ControlReply, DeviceId, LeaseId, LinkBench, NodeId, Order, Renewed, Stepping, ToDecode, ToGateway,
    ToPrefill,
};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::permission::Sender;
use crate::cluster::Directory;
use crate::coordinator::CoordinatorMessage;
use crate::decode::{DecodeEvent, DecodeMessage};
use crate::device::DevicePort;
use crate::gateway::Loss;
use crate::link_bench;
use crate::peers::MeshMessage;
use crate::prefill::{PrefillEvent, PrefillMessage};
use crate::router::RouterMessage;

/// How long the coordinator's actor may take to say whether it does as an operator wants.
const ORDER_PATIENCE: Duration = Duration::from_secs(1);

/// Carries out what a peer may say. What comes too late, or for one who is not there, is dropped: whoever it was for has let go of it.
pub(super) async fn take(directory: &Arc<Directory>, sender: &Sender, message: ControlMessage) -> ControlReply {
    match message {
        ControlMessage::Prefill(device, message) => to_prefill(directory, device, message),
        ControlMessage::Decode(device, message) => to_decode(directory, sender, device, message),
        ControlMessage::Abort(device, sequence) => {
            if let Some(port) = directory.device(device) {
                port.abort(sequence);
            }
        }
        ControlMessage::Gateway(message) => to_gateway(directory, sender, message),
        ControlMessage::Map(map) => directory.adopt(map),
        ControlMessage::Acquaintances(nodes) => {
            let _ = directory.mesh.cast(MeshMessage::Told(nodes));
        }
        ControlMessage::Left(device, epoch) => {
            let _ = directory.coordinator.cast(CoordinatorMessage::Left { device, epoch });
        }
        ControlMessage::Order(order) => return obey(directory, order).await,
        ControlMessage::SetRoles(roles) => directory.set_roles(&roles),
        ControlMessage::SetDraining(draining) => directory.set_draining(draining),
        ControlMessage::TellPrefixes(device) => directory.tell_prefixes(device),
        ControlMessage::AskStatus => return told(&directory.node_report(), ControlReply::Status),
        ControlMessage::AskTrace(request) => return told(&directory.spans_of(request), ControlReply::Trace),
        ControlMessage::Renew(request) => return renew(directory, sender, request).await,
        ControlMessage::AskMemoryLink => return invite(directory, sender),
        ControlMessage::Probe(_) if directory.devices.is_empty() => {
            return ControlReply::Refused("it has no device".to_owned());
        }
        ControlMessage::Probe(step) => return directory.link_probe.take(sender.node, step).await,
        ControlMessage::MeasureLink(to, wish) => return measure(directory, to, wish).await,
    }
    ControlReply::Taken
}

fn to_prefill(directory: &Directory, device: DeviceId, message: ToPrefill) {
    let tell = |event| directory.device(device).is_some_and(|port| port.prefill.cast(PrefillMessage::Event(event)));
    match message {
        ToPrefill::Admit(request, decode) => {
            let request = directory.received(request);
            let sequence = request.sequence;
            if !tell(PrefillEvent::Admit { request, decode }) {
                directory.undelivered(sequence);
            }
        }
        // An actor that has died has lost the sequence, which its supervisor says.
        ToPrefill::Redirect(sequence, decode) => _ = tell(PrefillEvent::Redirect { sequence, decode }),
        ToPrefill::Granted(sequence, decode, lease) => {
            let id = lease.lease;
            if !tell(PrefillEvent::Granted { sequence, decode, lease }) {
                let _ = directory.to_decode(decode, DecodeEvent::Returned(id));
            }
        }
        ToPrefill::Refused(sequence, decode) => _ = tell(PrefillEvent::LeaseRefused { sequence, decode }),
    }
}

fn to_decode(directory: &Directory, sender: &Sender, device: DeviceId, message: ToDecode) {
    let port = directory.device(device);
    let tell = |event| port.is_some_and(|port| port.decode.cast(DecodeMessage::Event(event)));
    match message {
        ToDecode::LeaseAsked(request, prefill) => {
            let request = directory.received(request);
            let sequence = request.sequence;
            if !tell(DecodeEvent::LeaseAsked { request, prefill }) {
                let _ = directory.to_prefill(prefill, PrefillEvent::LeaseRefused { sequence, decode: device });
            }
        }
        ToDecode::WriterLost(prefill) => _ = tell(DecodeEvent::WriterLost(prefill)),
        ToDecode::Returned(lease) => {
            if port.is_some_and(|port| may_end(port, sender, lease)) {
                let _ = tell(DecodeEvent::Returned(lease));
            }
        }
        ToDecode::HandedOver(hand_over) => {
            if port.is_some_and(|port| may_end(port, sender, hand_over.lease)) {
                let _ = tell(DecodeEvent::HandedOver(hand_over));
            }
        }
    }
}

/// Whether the lease is the sender's, or is over: then whoever gave it up is told so.
fn may_end(port: &DevicePort, sender: &Sender, lease: LeaseId) -> bool {
    let is_its = port.landing.prefill_of(lease).is_none_or(|prefill| prefill.node() == sender.node);
    if !is_its {
        tracing::warn!(peer = %sender.name, %lease, "a peer would end a lease that is not its own");
    }
    is_its
}

fn to_gateway(directory: &Directory, sender: &Sender, message: ToGateway) {
    let keeper = &directory.keeper;
    let router = |message| {
        // A router that has died is told of all streams when it is back.
        let _ = directory.router.cast(message);
    };
    match message {
        ToGateway::Started(sequence) if keeper.is_with(sequence, sender.node) => {
            router(RouterMessage::Started(sequence));
        }
        ToGateway::Refused(sequence) if keeper.is_with(sequence, sender.node) => {
            router(RouterMessage::Refused(sequence));
        }
        ToGateway::Undelivered(sequence) if keeper.is_with(sequence, sender.node) => {
            router(RouterMessage::Undelivered(sequence));
        }
        ToGateway::Lost(sequence) if keeper.is_with(sequence, sender.node) => {
            keeper.lost(directory, sequence, Loss::Elsewhere);
        }
        // Of a sequence that has gone elsewhere meanwhile.
        ToGateway::Started(_) | ToGateway::Refused(_) | ToGateway::Undelivered(_) | ToGateway::Lost(_) => {}
        ToGateway::DeviceLost(device, stepping) => directory.keep_lost(device, &stepping),
        ToGateway::RoleLost(device, role) => keeper.role_lost(directory, device, role),
        ToGateway::PrefixChanged(device, epoch, batch) => {
            router(RouterMessage::PrefixChanged { device, epoch, batch });
        }
    }
}

async fn obey(directory: &Directory, order: Order) -> ControlReply {
    match directory.obey(order, ORDER_PATIENCE).await {
        Ok(()) => ControlReply::Taken,
        Err(reason) => ControlReply::Refused(reason),
    }
}

async fn renew(directory: &Directory, sender: &Sender, request: Vec<u8>) -> ControlReply {
    // By the certificate of the connection that the message came over.
    let Some(peer) = directory.peers.find(sender.node) else {
        return ControlReply::Refused("the link has ended".to_owned());
    };
    match directory.renew(peer.connection.peer().clone(), request).await {
        Ok(renewed) => ControlReply::Renewed(renewed),
        Err(reason) => ControlReply::Refused(reason),
    }
}

async fn measure(directory: &Arc<Directory>, to: NodeId, wish: LinkBench) -> ControlReply {
    match link_bench::measure(directory, to, wish).await {
        Ok(measurement) => told(&measurement, ControlReply::Measured),
        Err(reason) => ControlReply::Refused(reason),
    }
}

fn told(what: &impl Serialize, reply: fn(String) -> ControlReply) -> ControlReply {
    match serde_json::to_string(what) {
        Ok(json) => reply(json),
        Err(error) => ControlReply::Refused(error.to_string()),
    }
}

/// A peer without a link is not let in: nobody would let go of it when it is gone.
fn invite(directory: &Directory, sender: &Sender) -> ControlReply {
    match directory.peers.find(sender.node) {
        Some(peer) => directory.links.invite(&peer),
        None => ControlReply::Refused("the link to it is not up yet".to_owned()),
    }
}

impl Directory {
    /// Has the authority sign a node's next certificate, if this process has it at hand.
    ///
    /// # Errors
    /// Why it does not, in words for the node's operator.
    pub(crate) async fn renew(&self, node: PeerIdentity, request: Vec<u8>) -> Result<Renewed, String> {
        let Some(renewer) = self.renewer.clone() else {
            return Err("the coordinator has no authority at hand: set node.authority there".to_owned());
        };
        let signed = tokio::task::spawn_blocking(move || renewer(&node, &request)).await;
        signed.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// An operator's order, for the coordinator of this process.
    ///
    /// # Errors
    /// Why it is not carried out, in words for the operator.
    pub(crate) async fn obey(&self, order: Order, patience: Duration) -> Result<(), String> {
        let (reply, answered) = oneshot::channel();
        if !self.coordinator.cast(CoordinatorMessage::Order { order, reply }) {
            return Err("the coordinator is being restarted: try again".to_owned());
        }
        match timeout(patience, answered).await {
            Ok(Ok(answer)) => answer,
            _ => Err("the coordinator did not answer in time: try again".to_owned()),
        }
    }

    /// A device's pool is gone: its sequences of this gateway are sent again.
    pub(crate) fn keep_lost(&self, device: DeviceId, stepping: &Stepping) {
        match stepping {
            Stepping::Nothing => self.keeper.device_lost(self, device, &[]),
            Stepping::These(sequences) => self.keeper.device_lost(self, device, sequences),
            Stepping::AllThatRun => self.keeper.device_lost(self, device, &self.keeper.running_on(device)),
        }
    }
}
