//! Where messages go: to an actor of this process, or over a link to the node that has it. Those who send need not know.

use std::sync::Arc;
use std::time::Duration;

use relevo_transport::identity::Name;
use relevo_wire::{
    Beat, ClusterMap, ControlMessage, DeviceId, DeviceRole, Epoch, GenerateRequest, NodeId, PrefixBatch, Role,
    SentRequest, SequenceId, Stepping, ToDecode, ToGateway, ToPrefill, TokenBatch,
};
use tokio::time::timeout;

use super::directory::Directory;
use crate::clock;
use crate::coordinator::CoordinatorMessage;
use crate::decode::{DecodeEvent, DecodeMessage};
use crate::device::DeviceCommand;
use crate::gateway::Loss;
use crate::peers::{MeshMessage, Peer};
use crate::prefill::{PrefillEvent, PrefillMessage};
use crate::router::RouterMessage;

/// How long an engine waits for a gateway that does not read its tokens: then it is cut off.
const TOKEN_PATIENCE: Duration = Duration::from_secs(1);

impl Directory {
    /// Tells a device's prefill role; `false` if it cannot be reached.
    #[must_use]
    pub(crate) fn to_prefill(&self, device: DeviceId, event: PrefillEvent) -> bool {
        if let Some(port) = self.device(device) {
            return port.prefill.cast(PrefillMessage::Event(event));
        }
        let message = match event {
            PrefillEvent::Admit { request, decode } => ToPrefill::Admit(self.sent(&request), decode),
            PrefillEvent::Redirect { sequence, decode } => ToPrefill::Redirect(sequence, decode),
            PrefillEvent::Granted { sequence, decode, lease } => ToPrefill::Granted(sequence, decode, lease),
            PrefillEvent::LeaseRefused { sequence, decode } => ToPrefill::Refused(sequence, decode),
            // The others are said by those of the same device.
            _ => return false,
        };
        self.peers.send(device.node(), &ControlMessage::Prefill(device, message))
    }

    /// Tells a device's decode role; `false` if it cannot be reached.
    #[must_use]
    pub(crate) fn to_decode(&self, device: DeviceId, event: DecodeEvent) -> bool {
        if let Some(port) = self.device(device) {
            return port.decode.cast(DecodeMessage::Event(event));
        }
        let message = match event {
            DecodeEvent::LeaseAsked { request, prefill } => ToDecode::LeaseAsked(self.sent(&request), prefill),
            DecodeEvent::Returned(lease) => ToDecode::Returned(lease),
            DecodeEvent::HandedOver(hand_over) => ToDecode::HandedOver(hand_over),
            DecodeEvent::WriterLost(prefill) => ToDecode::WriterLost(prefill),
            // As above.
            _ => return false,
        };
        self.peers.send(device.node(), &ControlMessage::Decode(device, message))
    }

    /// A request as it leaves now.
    fn sent(&self, request: &GenerateRequest) -> SentRequest {
        SentRequest::new(request, clock::now(), self.spans.context(request.sequence.request))
    }

    /// A request as it has come now.
    pub(crate) fn received(&self, request: SentRequest) -> Arc<GenerateRequest> {
        if let Some(trace) = request.trace() {
            self.spans.join(request.sequence().request, trace);
        }
        Arc::new(request.into_request(clock::now()))
    }

    /// Stops a sequence wherever it is on this device.
    pub(crate) fn abort(&self, device: DeviceId, sequence: SequenceId) {
        match self.device(device) {
            Some(port) => port.abort(sequence),
            // A node that cannot be reached has let go of it.
            None => drop(self.peers.send(device.node(), &ControlMessage::Abort(device, sequence))),
        }
    }

    /// Its gateway is to send it again: it does not go on here.
    pub(crate) fn lost(&self, sequence: SequenceId) {
        match self.is_mine(sequence) {
            true => self.keeper.lost(self, sequence, Loss::Elsewhere),
            false => self.to_gateway(sequence, ToGateway::Lost(sequence)),
        }
    }

    /// Its first token is out.
    pub(crate) fn started(&self, sequence: SequenceId) {
        match self.is_mine(sequence) {
            true => drop(self.router.cast(RouterMessage::Started(sequence))),
            false => self.to_gateway(sequence, ToGateway::Started(sequence)),
        }
    }

    /// Its decode role has no room.
    pub(crate) fn refused(&self, sequence: SequenceId) {
        match self.is_mine(sequence) {
            true => drop(self.router.cast(RouterMessage::Refused(sequence))),
            false => self.to_gateway(sequence, ToGateway::Refused(sequence)),
        }
    }

    /// Nobody was here to take it.
    pub(crate) fn undelivered(&self, sequence: SequenceId) {
        match self.is_mine(sequence) {
            true => drop(self.router.cast(RouterMessage::Undelivered(sequence))),
            false => self.to_gateway(sequence, ToGateway::Undelivered(sequence)),
        }
    }

    /// A device's pool is gone.
    pub(crate) fn device_lost(&self, device: DeviceId, stepping: &Stepping) {
        self.keep_lost(device, stepping);
        let message = ControlMessage::Gateway(ToGateway::DeviceLost(device, stepping.clone()));
        self.peers.send_to_all(Role::Gateway, &message);
    }

    /// A role's actor is gone, and the engine has let go of what it owned.
    pub(crate) fn role_lost(&self, device: DeviceId, role: DeviceRole) {
        self.keeper.role_lost(self, device, role);
        self.peers.send_to_all(Role::Gateway, &ControlMessage::Gateway(ToGateway::RoleLost(device, role)));
        if role == DeviceRole::Prefill {
            // What it had yet to push under leases of theirs does not come.
            for decode in self.map().devices.iter().filter(|entry| entry.facts.able.contains(&DeviceRole::Decode)) {
                let _ = self.to_decode(decode.facts.device, DecodeEvent::WriterLost(device));
            }
        }
    }

    /// What a device's prefix cache holds has changed. A router that is not there will know less than it could.
    pub(crate) fn prefix_changed(&self, device: DeviceId, epoch: Epoch, batch: PrefixBatch) {
        if !self.peers.playing(Role::Gateway).is_empty() {
            let message = ToGateway::PrefixChanged(device, epoch, batch.clone());
            self.peers.send_to_all(Role::Gateway, &ControlMessage::Gateway(message));
        }
        let _ = self.router.cast(RouterMessage::PrefixChanged { device, epoch, batch });
    }

    /// A router wants to know all that a device holds in its prefix cache; it asks again if nobody tells.
    pub(crate) fn tell_prefixes(&self, device: DeviceId) {
        match self.device(device) {
            Some(port) => drop(port.command(DeviceCommand::TellPrefixes)),
            None => drop(self.peers.send(device.node(), &ControlMessage::TellPrefixes(device))),
        }
    }

    /// A device is given up.
    pub(crate) fn left(&self, device: DeviceId, epoch: Epoch) {
        let _ = self.coordinator.cast(CoordinatorMessage::Left { device, epoch });
        self.peers.send_to_all(Role::Coordinator, &ControlMessage::Left(device, epoch));
    }

    /// What a step has produced goes to those who want it.
    pub(crate) async fn hand_out(&self, batch: TokenBatch) {
        let is_mine = |(sequence, _): &(SequenceId, _)| self.is_mine(*sequence);
        if batch.events.iter().all(is_mine) {
            return self.keeper.deliver(self, batch, self.node);
        }
        for (gateway, batch) in by_gateway(batch) {
            if gateway == self.node {
                self.keeper.deliver(self, batch, self.node);
            } else if let Some(peer) = self.peers.find(gateway)
                && timeout(TOKEN_PATIENCE, peer.tokens.send(batch)).await.is_err()
            {
                tracing::warn!(peer = %peer.name, "a gateway does not read its tokens, and is cut off");
                peer.connection.close("it does not read its tokens");
            }
        }
    }

    /// A peer says that it lives.
    pub(crate) fn heard(&self, node: NodeId, beat: Beat) {
        if self.plays(Role::Coordinator) {
            let _ = self.coordinator.cast(CoordinatorMessage::Beat { node, beat });
        }
    }

    /// The coordinator has published.
    pub(crate) fn adopt(&self, map: ClusterMap) {
        let nodes = map.nodes.clone();
        if self.publish(map.clone()) {
            // The router first, as with a coordinator of this process.
            let _ = self.router.cast(RouterMessage::Map(map));
            let _ = self.mesh.cast(MeshMessage::Learn(nodes));
        }
    }

    /// A peer can be reached.
    pub(crate) fn peer_found(&self, peer: &Peer) {
        if self.plays(Role::Coordinator) {
            let _ = self.coordinator.cast(CoordinatorMessage::Node(peer.entry()));
        } else if peer.roles.contains(Role::Coordinator) {
            // It may have just begun, and where others do not look for it. If the link ends by this, the next one brings it again.
            let _ = peer.remote.send(&ControlMessage::Acquaintances(self.map().nodes));
        }
        // One that is being restarted looks when it begins.
        let _ = self.router.cast(RouterMessage::PeersChanged);
    }

    /// A peer is gone, with its devices, its gateway and what they wanted.
    pub(crate) fn peer_lost(&self, name: &Name) {
        let node = NodeId::of_name(name.as_str());
        self.links.forget(name);
        self.link_probe.part_from(node);
        // One that is being restarted looks when it begins.
        let _ = self.router.cast(RouterMessage::PeersChanged);
        for port in self.devices.values() {
            let _ = port.prefill.cast(PrefillMessage::Event(PrefillEvent::NodeLost(node)));
            let _ = port.decode.cast(DecodeMessage::Event(DecodeEvent::NodeLost(node)));
            let _ = port.command(DeviceCommand::AbortGateway { gateway: node });
        }
        self.keeper.node_lost(self, node);
    }

    /// The devices play these roles, as far as they are able to.
    pub(crate) fn set_roles(&self, roles: &[DeviceRole]) {
        for port in self.devices.values() {
            port.set_roles(roles);
        }
        self.beat_now();
    }

    /// The devices take nothing new, or do so again.
    pub(crate) fn set_draining(&self, draining: bool) {
        for port in self.devices.values() {
            port.set_draining(draining);
        }
        self.beat_now();
    }

    fn beat_now(&self) {
        for port in self.devices.values() {
            let _ = port.supervisor.cast(crate::device::SupervisorMessage::Heartbeat);
        }
    }

    /// Whether what is said of a sequence gets to its gateway.
    pub(crate) fn reaches_gateway(&self, sequence: SequenceId) -> bool {
        self.is_mine(sequence) || self.peers.find(sequence.request.gateway()).is_some()
    }

    fn to_gateway(&self, sequence: SequenceId, message: ToGateway) {
        // A gateway that is gone has no use for it.
        let _ = self.peers.send(sequence.request.gateway(), &ControlMessage::Gateway(message));
    }

    /// Whether the gateway of this process keeps it.
    fn is_mine(&self, sequence: SequenceId) -> bool {
        sequence.request.gateway() == self.node
    }
}

/// A batch's events by their gateways, each in order. There are few gateways.
fn by_gateway(batch: TokenBatch) -> Vec<(NodeId, TokenBatch)> {
    let mut batches: Vec<(NodeId, TokenBatch)> = Vec::new();
    for event in batch.events {
        let gateway = event.0.request.gateway();
        match batches.iter_mut().find(|(known, _)| *known == gateway) {
            Some((_, batch)) => batch.events.push(event),
            None => batches.push((gateway, TokenBatch { events: vec![event] })),
        }
    }
    batches
}
