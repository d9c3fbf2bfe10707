//! The one actor that a peer can reach here: it sees to it that a message comes from that peer, is one, and is allowed; then it hands it on.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, pg};
use ractor_cluster::RactorClusterMessage;
use relevo_wire::{ControlMessage, ControlReply, MAX_CONTROL_BYTES, MessageError, ToProbe};
use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;
use subtle::ConstantTimeEq;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::inbound;
use super::permission::{Sender, may_say};
use super::remote_ref::SECRET_BYTES;
use crate::cluster::Directory;

/// The facade of one link.
pub(super) struct FacadeActor;

/// Its messages: what comes over a session of `ractor_cluster`.
#[derive(RactorClusterMessage)]
pub(super) enum FacadeMessage {
    /// The link's secret, then an archived [`ControlMessage`]; the answer is an archived [`ControlReply`].
    #[rpc]
    Deliver(Vec<u8>, RpcReplyPort<Vec<u8>>),
}

/// What it is started with.
pub(super) struct FacadeArguments {
    pub(super) directory: Arc<Directory>,
    /// Who is at the other end.
    pub(super) sender: Sender,
    /// By which the peer finds it.
    pub(super) group: String,
    pub(super) secret: [u8; SECRET_BYTES],
    /// Becomes true when the peer can be reached. Nothing is taken of it before: what it wants done would be done, and the answer lost.
    pub(super) is_reachable: watch::Receiver<bool>,
    /// Told when the peer breaks the rules.
    pub(super) failed: mpsc::Sender<String>,
}

pub(super) struct FacadeState {
    arguments: FacadeArguments,
    /// The certificate that is being signed for the peer; ends with the link.
    renewing: JoinSet<()>,
    /// The measurement that it takes part in; ends with the link.
    measuring: JoinSet<()>,
}

impl Actor for FacadeActor {
    type Msg = FacadeMessage;
    type State = FacadeState;
    type Arguments = FacadeArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        pg::join(arguments.group.clone(), vec![myself.get_cell()]);
        Ok(FacadeState { arguments, renewing: JoinSet::new(), measuring: JoinSet::new() })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        FacadeMessage::Deliver(sealed, reply): Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // Somebody else's message is no fault of the peer whose facade this is, and gets no answer.
        let Some(message) = unseal(&sealed, &state.arguments.secret) else {
            metrics::counter!("relevo_messages_refused_total", "reason" => "wrong_secret").increment(1);
            return Ok(());
        };
        // A link that does not come up ends, and this actor with it.
        if state.arguments.is_reachable.wait_for(|is_reachable| *is_reachable).await.is_err() {
            return Ok(());
        }
        match read(message) {
            Ok(message) => state.take(message, reply).await,
            Err(error) => answer(reply, &state.arguments.forbid("malformed", &error.to_string())),
        }
        Ok(())
    }
}

impl FacadeState {
    async fn take(&mut self, message: ControlMessage, reply: RpcReplyPort<Vec<u8>>) {
        let FacadeArguments { directory, sender, .. } = &self.arguments;
        if !may_say(sender, &message) {
            return answer(reply, &self.arguments.forbid("not_allowed", "it says what its roles do not allow"));
        }
        // They wait for a disk, for memory or for another node, and nothing else is to wait for them.
        let slow = match message {
            ControlMessage::Renew(_) => &mut self.renewing,
            ControlMessage::MeasureLink(..) | ControlMessage::Probe(ToProbe::Open(..)) => &mut self.measuring,
            message => return answer(reply, &inbound::take(directory, sender, message).await),
        };
        while slow.try_join_next().is_some() {}
        if !slow.is_empty() {
            return answer(reply, &ControlReply::Refused("the one before is not done yet".to_owned()));
        }
        let (directory, sender) = (Arc::clone(directory), sender.clone());
        slow.spawn(async move { answer(reply, &inbound::take(&directory, &sender, message).await) });
    }
}

fn answer(reply: RpcReplyPort<Vec<u8>>, answer: &ControlReply) {
    match rkyv::to_bytes::<RkyvError>(answer) {
        // A session that has ended needs no answer.
        Ok(answer) => drop(reply.send(answer.into_vec())),
        Err(error) => tracing::error!(%error, "an answer cannot be archived"),
    }
}

impl FacadeArguments {
    fn forbid(&self, label: &'static str, reason: &str) -> ControlReply {
        metrics::counter!("relevo_messages_refused_total", "reason" => label).increment(1);
        tracing::warn!(peer = %self.sender.name, reason, "a message is refused, and its link ends");
        let _ = self.failed.try_send(reason.to_owned());
        ControlReply::Forbidden
    }
}

fn unseal<'a>(sealed: &'a [u8], secret: &[u8; SECRET_BYTES]) -> Option<&'a [u8]> {
    let (shown, message) = sealed.split_at_checked(SECRET_BYTES)?;
    bool::from(shown.ct_eq(secret)).then_some(message)
}

/// Reads a message and checks its numbers.
fn read(bytes: &[u8]) -> Result<ControlMessage, MessageError> {
    if bytes.len() > MAX_CONTROL_BYTES {
        return Err(MessageError::TooLong { byte_len: bytes.len() });
    }
    let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    let message = rkyv::from_bytes::<ControlMessage, RkyvError>(&aligned)
        .map_err(|error| MessageError::Malformed(error.to_string()))?;
    message.check()?;
    Ok(message)
}
