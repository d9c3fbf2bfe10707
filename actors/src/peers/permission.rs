//! Who may say what: the table role × message.
//!
//! **Invariant:** what is not in the table is not allowed.

use relevo_transport::identity::Name;
use relevo_wire::{ControlMessage, DeviceId, NodeId, Role, Roles, SequenceId, ToDecode, ToGateway, ToPrefill};

/// A peer as its certificate describes it: its devices may change their roles while it serves, and it may do whatever it could.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) node: NodeId,
    pub(super) name: Name,
    pub(super) roles: Roles,
}

impl Sender {
    fn plays(&self, role: Role) -> bool {
        self.roles.contains(role)
    }

    fn computes(&self) -> bool {
        self.plays(Role::Prefill) || self.plays(Role::Decode)
    }

    /// It is a gateway, and this one is its own.
    fn keeps(&self, sequence: SequenceId) -> bool {
        self.plays(Role::Gateway) && sequence.request.gateway() == self.node
    }

    fn prefills_on(&self, device: DeviceId) -> bool {
        self.plays(Role::Prefill) && self.owns(device)
    }

    fn decodes_on(&self, device: DeviceId) -> bool {
        self.plays(Role::Decode) && self.owns(device)
    }

    fn owns(&self, device: DeviceId) -> bool {
        device.node() == self.node
    }
}

/// Whether a peer with these roles may say this. Whether it says so of the right sequence at the right time is looked at by those who know.
pub(super) fn may_say(sender: &Sender, message: &ControlMessage) -> bool {
    match message {
        ControlMessage::Prefill(_, message) => match message {
            ToPrefill::Admit(request, _) => sender.keeps(request.sequence()),
            ToPrefill::Redirect(sequence, _) => sender.keeps(*sequence),
            ToPrefill::Granted(_, decode, _) | ToPrefill::Refused(_, decode) => sender.decodes_on(*decode),
        },
        ControlMessage::Decode(_, message) => match message {
            ToDecode::LeaseAsked(_, prefill) | ToDecode::WriterLost(prefill) => sender.prefills_on(*prefill),
            // Of whose lease, its landing knows.
            ToDecode::Returned(_) | ToDecode::HandedOver(_) => sender.plays(Role::Prefill),
        },
        ControlMessage::Abort(_, sequence) => sender.keeps(*sequence),
        ControlMessage::Gateway(message) => match message {
            ToGateway::Started(_) | ToGateway::Refused(_) | ToGateway::Undelivered(_) | ToGateway::Lost(_) => {
                sender.computes()
            }
            ToGateway::DeviceLost(device, _)
            | ToGateway::RoleLost(device, _)
            | ToGateway::PrefixChanged(device, _, _) => sender.computes() && sender.owns(*device),
        },
        ControlMessage::Map(_) | ControlMessage::SetRoles(_) | ControlMessage::SetDraining(_) => {
            sender.plays(Role::Coordinator)
        }
        ControlMessage::TellPrefixes(_) => sender.plays(Role::Gateway),
        ControlMessage::Left(device, _) => sender.computes() && sender.owns(*device),
        ControlMessage::Acquaintances(_) => sender.plays(Role::Gateway) || sender.computes(),
        ControlMessage::AskMemoryLink | ControlMessage::Probe(_) => sender.plays(Role::Prefill),
        ControlMessage::Order(_) | ControlMessage::MeasureLink(..) => {
            sender.plays(Role::Gateway) || sender.plays(Role::Operator)
        }
        ControlMessage::AskTrace(request) => sender.plays(Role::Gateway) && request.gateway() == sender.node,
        ControlMessage::AskStatus => {
            sender.plays(Role::Gateway) || sender.plays(Role::Coordinator) || sender.plays(Role::Operator)
        }
        // Of its own certificate and no other, whatever that is for.
        ControlMessage::Renew(_) => sender.roles.iter().next().is_some(),
    }
}

#[cfg(test)]
mod tests {
    use relevo_wire::{
        ClusterMap, DeviceRole, Epoch, GenerateRequest, GrantedLease, HandOver, Instant64, LeaseId, LinkBench, Order,
        PrefixBatch, PrefixChange, PrefixWords, RequestId, SamplingParams, SentRequest, Stepping, TenantId, ToProbe,
    };

    use super::*;

    const SENDER: NodeId = NodeId(5);
    const OTHER: NodeId = NodeId(6);

    fn sequence(gateway: NodeId) -> SequenceId {
        SequenceId { request: RequestId::of(gateway, 9), choice: 0, attempt: 0 }
    }

    fn request(gateway: NodeId) -> SentRequest {
        let request = GenerateRequest {
            sequence: sequence(gateway),
            tenant: TenantId(0),
            prompt: [1].into(),
            generated: Vec::new(),
            sampling: SamplingParams::default(),
            stop_ids: [].into(),
            max_tokens: 1,
            top_logprobs: None,
            prompt_logprobs: None,
            priority: 0,
            deadline: None,
        };
        SentRequest::new(&request, Instant64(0), None)
    }

    /// Every message, of a sequence or device of `whose`, with the roles of which one is needed.
    fn messages(whose: NodeId) -> Vec<(ControlMessage, Vec<Role>)> {
        use Role::{Coordinator, Decode, Gateway, Operator, Prefill};
        let (theirs, here, sequence) = (DeviceId::of(whose, 0), DeviceId::of(NodeId(1), 0), sequence(whose));
        let lease = GrantedLease { lease: LeaseId(1), epoch: Epoch(1), blocks: Vec::new(), num_present: 0 };
        let hand_over = HandOver { sequence, lease: LeaseId(1), first_token: 0, cached_tokens: 0 };
        let batch = PrefixBatch { from_seq: 0, seq: 0, words: PrefixWords::Changed(PrefixChange::default()) };
        let prefill = |message| ControlMessage::Prefill(here, message);
        let decode = |message| ControlMessage::Decode(here, message);
        let gateway = ControlMessage::Gateway;
        vec![
            (prefill(ToPrefill::Admit(request(whose), here)), vec![Gateway]),
            (prefill(ToPrefill::Redirect(sequence, here)), vec![Gateway]),
            (prefill(ToPrefill::Granted(sequence, theirs, lease)), vec![Decode]),
            (prefill(ToPrefill::Refused(sequence, theirs)), vec![Decode]),
            (decode(ToDecode::LeaseAsked(request(whose), theirs)), vec![Prefill]),
            (decode(ToDecode::Returned(LeaseId(1))), vec![Prefill]),
            (decode(ToDecode::HandedOver(hand_over)), vec![Prefill]),
            (decode(ToDecode::WriterLost(theirs)), vec![Prefill]),
            (ControlMessage::Abort(here, sequence), vec![Gateway]),
            (gateway(ToGateway::Started(sequence)), vec![Prefill, Decode]),
            (gateway(ToGateway::Refused(sequence)), vec![Prefill, Decode]),
            (gateway(ToGateway::Undelivered(sequence)), vec![Prefill, Decode]),
            (gateway(ToGateway::Lost(sequence)), vec![Prefill, Decode]),
            (gateway(ToGateway::DeviceLost(theirs, Stepping::Nothing)), vec![Prefill, Decode]),
            (gateway(ToGateway::RoleLost(theirs, DeviceRole::Prefill)), vec![Prefill, Decode]),
            (gateway(ToGateway::PrefixChanged(theirs, Epoch(1), batch)), vec![Prefill, Decode]),
            (ControlMessage::Map(ClusterMap::default()), vec![Coordinator]),
            (ControlMessage::Left(theirs, Epoch(1)), vec![Prefill, Decode]),
            (ControlMessage::Acquaintances(Vec::new()), vec![Gateway, Prefill, Decode]),
            (ControlMessage::Order(Order::Drain("x".to_owned())), vec![Gateway, Operator]),
            (ControlMessage::SetRoles(vec![DeviceRole::Decode]), vec![Coordinator]),
            (ControlMessage::SetDraining(true), vec![Coordinator]),
            (ControlMessage::TellPrefixes(here), vec![Gateway]),
            (ControlMessage::AskStatus, vec![Gateway, Coordinator, Operator]),
            (ControlMessage::Renew(Vec::new()), Role::ALL.to_vec()),
            (ControlMessage::AskMemoryLink, vec![Prefill]),
            (ControlMessage::Probe(ToProbe::Again), vec![Prefill]),
            (ControlMessage::MeasureLink(NodeId(1), LinkBench { block_kib: None, rounds: 1 }), vec![Gateway, Operator]),
            (ControlMessage::AskTrace(sequence.request), vec![Gateway]),
        ]
    }

    fn sender(roles: impl IntoIterator<Item = Role>) -> Sender {
        Sender { node: SENDER, name: "sender".parse().unwrap(), roles: roles.into_iter().collect() }
    }

    #[test]
    fn each_message_is_taken_from_those_roles_and_from_no_other() {
        for (message, needed) in messages(SENDER) {
            for role in Role::ALL {
                assert_eq!(may_say(&sender([role]), &message), needed.contains(&role), "{role}: {message:?}");
            }
            assert!(!may_say(&sender([]), &message), "{message:?}");
        }
    }

    #[test]
    fn nobody_speaks_for_another_node_whatever_its_roles() {
        let concerns_no_node = |message: &ControlMessage| {
            matches!(
                message,
                // Of leases and sequences that those who have them know to be the sender's or not.
                ControlMessage::Decode(_, ToDecode::Returned(_) | ToDecode::HandedOver(_))
                    | ControlMessage::Gateway(
                        ToGateway::Started(_) | ToGateway::Refused(_) | ToGateway::Undelivered(_) | ToGateway::Lost(_)
                    )
                    | ControlMessage::Map(_)
                    | ControlMessage::Acquaintances(_)
                    | ControlMessage::Order(_)
                    | ControlMessage::SetRoles(_)
                    | ControlMessage::SetDraining(_)
                    | ControlMessage::TellPrefixes(_)
                    | ControlMessage::AskStatus
                    | ControlMessage::Renew(_)
                    | ControlMessage::AskMemoryLink
                    | ControlMessage::MeasureLink(..)
                    | ControlMessage::Probe(_)
            )
        };
        for (message, _) in messages(OTHER) {
            assert_eq!(may_say(&sender(Role::ALL), &message), concerns_no_node(&message), "{message:?}");
        }
    }
}
