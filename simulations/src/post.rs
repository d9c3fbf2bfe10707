//! Where messages go, as in a real node: to an actor of the same process, or over a link to the node that has it; and what a node does with
//! what its peers say.

use relevo_actors::decode::DecodeEvent;
use relevo_actors::device::{DeviceCommand, DeviceRole};
use relevo_actors::gateway::Loss;
use relevo_actors::prefill::PrefillEvent;
use relevo_actors::router::RouterEvent;
use relevo_wire::{ClusterMap, DeviceId, SequenceId, Stepping, ToGateway};

use crate::agenda::Place;
use crate::checks::Broken;
use crate::coordinating::Word;
use crate::device::role_index;
use crate::scenario::node_id;
use crate::world::{Happening, World};

/// What a node says to another's actors.
pub(crate) enum Errand {
    Prefill(usize, PrefillEvent),
    Decode(usize, DecodeEvent),
    Abort(usize, SequenceId),
    TellPrefixes(usize),
    Gateway(ToGateway),
    Map(ClusterMap),
    Coordinator(Word),
    Obey(relevo_actors::coordinator::NodeOrder),
}

impl World {
    /// Says something to a node that is another; false if there is no link.
    #[must_use]
    pub(crate) fn run_errand(&mut self, from: Place, to: Place, errand: Errand) -> bool {
        let (from_node, node) = (self.node_of(from), self.node_of(to));
        self.post(from, to, Happening::Errand { node, from: from_node, errand: Box::new(errand) })
    }

    /// False if nobody is there.
    #[must_use]
    pub(crate) fn tell_prefill(&mut self, device: usize, from: Place, event: PrefillEvent) -> bool {
        let to = Place::Prefill(device);
        if self.node_of(from) != self.devices[device].node {
            return self.run_errand(from, to, Errand::Prefill(device, event));
        }
        let (state, index) = (&self.devices[device], role_index(DeviceRole::Prefill));
        let (is_there, life) = (state.has_actor[index], state.lives[index]);
        if is_there {
            self.say(from, to, Happening::Prefill { device, life, event });
        }
        is_there
    }

    /// False if nobody is there.
    #[must_use]
    pub(crate) fn tell_decode(&mut self, device: usize, from: Place, event: DecodeEvent) -> bool {
        let to = Place::Decode(device);
        if self.node_of(from) != self.devices[device].node {
            return self.run_errand(from, to, Errand::Decode(device, event));
        }
        let (state, index) = (&self.devices[device], role_index(DeviceRole::Decode));
        let (is_there, life) = (state.has_actor[index], state.lives[index]);
        if is_there {
            self.say(from, to, Happening::Decode { device, life, event });
        }
        is_there
    }

    /// Stops a sequence wherever it is on this device; a node that cannot be reached has let go of it.
    pub(crate) fn abort_from(&mut self, gateway: usize, device: DeviceId, sequence: SequenceId) {
        let (device, from) = (self.index_of(device), Place::Gateway(gateway));
        if self.node_of(from) == self.devices[device].node {
            self.abort_on(device, from, sequence);
        } else {
            let _ = self.run_errand(from, Place::Supervisor(device), Errand::Abort(device, sequence));
        }
    }

    /// Through the role actors, and past them in case they die with it in their mailbox.
    fn abort_on(&mut self, device: usize, from: Place, sequence: SequenceId) {
        let _ = self.order(device, DeviceCommand::Abort { sequence });
        let _ = self.tell_prefill(device, from, PrefillEvent::Abort(sequence));
        let _ = self.tell_decode(device, from, DecodeEvent::Abort(sequence));
    }

    /// Whether what a device says of a sequence gets to its gateway.
    pub(crate) fn reaches_gateway(&self, device: usize, sequence: SequenceId) -> bool {
        let node = self.devices[device].node;
        self.nodes[node].reachable().contains(&sequence.request.gateway())
    }

    /// A node tells the gateway of a sequence something; its own at once.
    pub(crate) fn tell_gateway(&mut self, from: Place, sequence: SequenceId, word: ToGateway) -> Result<(), Broken> {
        // A gateway that is gone has no use for it.
        let Some(gateway) = self.gateway_of(sequence.request) else { return Ok(()) };
        let node = self.node_of(from);
        if self.gateways[gateway].node == node {
            return self.hear_word(gateway, node, from, word);
        }
        let _ = self.run_errand(from, Place::Gateway(gateway), Errand::Gateway(word));
        Ok(())
    }

    /// The same to all gateways.
    fn tell_gateways(&mut self, from: Place, word: &ToGateway) -> Result<(), Broken> {
        let node = self.node_of(from);
        for gateway in 0..self.gateways.len() {
            if self.gateways[gateway].node == node {
                self.hear_word(gateway, node, from, word.clone())?;
            } else {
                let _ = self.run_errand(from, Place::Gateway(gateway), Errand::Gateway(word.clone()));
            }
        }
        Ok(())
    }

    /// It does not go on here: its gateway is to send it again.
    pub(crate) fn say_lost(&mut self, from: Place, sequence: SequenceId) -> Result<(), Broken> {
        self.tell_gateway(from, sequence, ToGateway::Lost(sequence))
    }

    /// A device's pool is gone.
    pub(crate) fn say_device_lost(&mut self, device: usize, stepping: Stepping) -> Result<(), Broken> {
        let id = self.devices[device].id;
        self.tell_gateways(Place::Supervisor(device), &ToGateway::DeviceLost(id, stepping))
    }

    /// A role's actor is gone, and the engine has let go of what it owned.
    pub(crate) fn say_role_lost(&mut self, device: usize, role: DeviceRole) -> Result<(), Broken> {
        let (id, from) = (self.devices[device].id, Place::Supervisor(device));
        self.tell_gateways(from, &ToGateway::RoleLost(id, role))?;
        if role == DeviceRole::Prefill {
            // What it had yet to push under leases of theirs does not come.
            let map = &self.nodes[self.devices[device].node].map;
            let able = map.devices.iter().filter(|entry| entry.facts.able.contains(&DeviceRole::Decode));
            for decode in able.map(|entry| entry.facts.device).collect::<Vec<_>>() {
                let decode = self.index_of(decode);
                let _ = self.tell_decode(decode, from, DecodeEvent::WriterLost(id));
            }
        }
        Ok(())
    }

    /// What a gateway is told by a device, of its own node or of another. What comes too late for a sequence is passed over.
    fn hear_word(&mut self, gateway: usize, from: usize, place: Place, word: ToGateway) -> Result<(), Broken> {
        let is_own = self.gateways[gateway].node == from;
        let is_with = |sequence| is_own || self.is_with(gateway, sequence, from);
        match word {
            ToGateway::Lost(sequence) if is_with(sequence) => self.lost(gateway, sequence, Loss::Elsewhere),
            ToGateway::Started(sequence) if is_with(sequence) => {
                self.send_to_router(gateway, place, RouterEvent::Started(sequence));
                Ok(())
            }
            ToGateway::Refused(sequence) if is_with(sequence) => {
                self.send_to_router(gateway, place, RouterEvent::Refused(sequence));
                Ok(())
            }
            ToGateway::Undelivered(sequence) if is_with(sequence) => {
                let life = self.gateways[gateway].router_life;
                self.say(place, Place::Router(gateway), Happening::Undelivered { gateway, life, sequence });
                Ok(())
            }
            ToGateway::DeviceLost(device, stepping) => self.device_lost(gateway, device, &stepping),
            ToGateway::RoleLost(device, role) => self.role_lost(gateway, device, role),
            ToGateway::PrefixChanged(device, epoch, batch) => {
                self.send_to_router(gateway, place, RouterEvent::PrefixChanged { device, epoch, batch });
                Ok(())
            }
            ToGateway::Lost(_) | ToGateway::Started(_) | ToGateway::Refused(_) | ToGateway::Undelivered(_) => Ok(()),
        }
    }

    /// A node hands on what a peer says. What is for one who is not there is answered for him, or dropped.
    pub(crate) fn take_errand(&mut self, node: usize, from: usize, errand: Errand) -> Result<(), Broken> {
        let here = Place::Node(node);
        match errand {
            Errand::Prefill(device, event) => self.take_for_prefill(device, here, event)?,
            Errand::Decode(device, event) => self.take_for_decode(device, here, event),
            Errand::Abort(device, sequence) => self.abort_on(device, here, sequence),
            Errand::TellPrefixes(device) => _ = self.order(device, DeviceCommand::TellPrefixes),
            Errand::Gateway(word) => {
                if let Some(gateway) = self.gateway_on(node) {
                    self.hear_word(gateway, from, here, word)?;
                }
            }
            Errand::Map(map) => self.adopt(node, map),
            Errand::Coordinator(word) => self.tell_coordinator(here, word),
            Errand::Obey(order) => self.obey(node, &order),
        }
        Ok(())
    }

    fn take_for_prefill(&mut self, device: usize, here: Place, event: PrefillEvent) -> Result<(), Broken> {
        if self.tell_prefill(device, here, event.clone()) {
            return Ok(());
        }
        match event {
            PrefillEvent::Admit { request, .. } => {
                let sequence = request.sequence;
                self.tell_gateway(here, sequence, ToGateway::Undelivered(sequence))
            }
            PrefillEvent::Granted { decode, lease, .. } => {
                let decode = self.index_of(decode);
                let _ = self.tell_decode(decode, here, DecodeEvent::Returned(lease.lease));
                Ok(())
            }
            // An actor that has died has lost the sequence, which its supervisor says.
            _ => Ok(()),
        }
    }

    fn take_for_decode(&mut self, device: usize, here: Place, event: DecodeEvent) {
        if !self.tell_decode(device, here, event.clone())
            && let DecodeEvent::LeaseAsked { request, prefill } = event
        {
            let (decode, prefill) = (self.devices[device].id, self.index_of(prefill));
            let refused = PrefillEvent::LeaseRefused { sequence: request.sequence, decode };
            let _ = self.tell_prefill(prefill, here, refused);
        }
    }

    /// A peer is gone, with its devices, its gateway and what they wanted.
    pub(crate) fn peer_lost(&mut self, node: usize, peer: usize) -> Result<(), Broken> {
        let (here, lost) = (Place::Node(node), node_id(peer));
        self.tell_router_who_is_there(node);
        for device in self.nodes[node].devices.clone() {
            let _ = self.tell_prefill(device, here, PrefillEvent::NodeLost(lost));
            let _ = self.tell_decode(device, here, DecodeEvent::NodeLost(lost));
            let _ = self.order(device, DeviceCommand::AbortGateway { gateway: lost });
        }
        match self.gateway_on(node) {
            Some(gateway) => self.node_lost(gateway, lost),
            None => Ok(()),
        }
    }

    pub(crate) fn tell_router_who_is_there(&mut self, node: usize) {
        if let Some(gateway) = self.gateway_on(node) {
            let reachable = self.nodes[node].reachable();
            self.send_to_router(gateway, Place::Node(node), RouterEvent::Reachable(reachable));
        }
    }

    pub(crate) fn tell_router_of_map(&mut self, node: usize, map: ClusterMap) {
        if let Some(gateway) = self.gateway_on(node) {
            self.send_to_router(gateway, Place::Node(node), RouterEvent::Map(map));
        }
    }

    pub(crate) fn send_to_router(&mut self, gateway: usize, from: Place, event: RouterEvent) {
        let life = self.gateways[gateway].router_life;
        self.say(from, Place::Router(gateway), Happening::Router { gateway, life, event });
    }
}
