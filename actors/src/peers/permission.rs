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
        ControlMessage::Order(_) => sender.plays(Role::Gateway) || sender.plays(Role::Operator),
        ControlMessage::AskStatus => {
            sender.plays(Role::Gateway) || sender.plays(Role::Coordinator) || sender.plays(Role::Operator)
        }
    }
}
