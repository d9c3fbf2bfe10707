//! The prefill role's decisions, pure: which sequences it has, where each is to be decoded, and whose lease it writes to.
//!
//! **Invariant:** every lease that was granted is either handed over or returned, once; a sequence that is gone answers nothing,
//! and does not come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use relevo_wire::{DeviceId, GenerateRequest, GrantedLease, HandOver, Instant64, LeaseId, NodeId, SequenceId, TokenId};

use crate::device::Destination;

/// How long a decode worker or the router may take to answer. They answer from memory; after this it counts as a refusal.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// How late an admission may come after the abort of its sequence, which another has sent: far longer than any message takes.
const LATE_ADMISSION: Duration = Duration::from_secs(10);

/// The prefill role of one device.
#[derive(Clone, Debug)]
pub struct PrefillCore {
    device: DeviceId,
    sequences: BTreeMap<SequenceId, Prefilling>,
    /// Aborted while unknown, and when: an admission of theirs may still be on its way, and nobody would abort it again.
    aborted: BTreeMap<SequenceId, Instant64>,
}

#[derive(Clone, Debug)]
struct Prefilling {
    request: Arc<GenerateRequest>,
    decode: DeviceId,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// With the engine; its decode side has not been asked for anything.
    Submitted,
    /// The decode side was asked.
    Asked { since: Instant64 },
    /// The router was asked for another decode side.
    Refused { since: Instant64 },
    /// Blocks are being pushed under this lease.
    Leased(LeaseId),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum PrefillEvent {
    /// The router sends a sequence.
    Admit {
        /// It.
        request: Arc<GenerateRequest>,
        /// Who decodes it.
        decode: DeviceId,
    },
    /// The engine is about to schedule its first chunk.
    LeaseWanted(SequenceId),
    /// The decode side has granted.
    Granted {
        /// For whom.
        sequence: SequenceId,
        /// Who grants.
        decode: DeviceId,
        /// What.
        lease: GrantedLease,
    },
    /// The decode side has refused, or is not there.
    LeaseRefused {
        /// For whom.
        sequence: SequenceId,
        /// Who refuses.
        decode: DeviceId,
    },
    /// The router has found another decode side.
    Redirect {
        /// For whom.
        sequence: SequenceId,
        /// Whom to ask.
        decode: DeviceId,
    },
    /// The context is computed and the first token is out.
    Finished {
        /// The sequence.
        sequence: SequenceId,
        /// The token, if one was wanted.
        first_token: Option<TokenId>,
        /// It goes on.
        continues: bool,
        /// Prompt tokens taken from the prefix cache.
        cached_tokens: u32,
    },
    /// A block could not be delivered.
    PushFailed {
        /// Whose.
        sequence: SequenceId,
        /// Under which lease.
        lease: LeaseId,
    },
    /// Nobody wants it any more.
    Abort(SequenceId),
    /// A node is gone, with its decode roles and its gateway.
    NodeLost(NodeId),
    /// The engine has let go of it.
    Ended(SequenceId),
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum PrefillEffect {
    /// To the engine.
    Prefill {
        /// The sequence.
        request: Arc<GenerateRequest>,
        /// Who decodes it.
        destination: Destination,
    },
    /// Let its layers through to the decode side, then tell the engine.
    UseLease {
        /// The sequence.
        sequence: SequenceId,
        /// Whose lease.
        decode: DeviceId,
        /// The lease.
        lease: GrantedLease,
    },
    /// To the engine: stop it. Layers of it go nowhere from here on.
    Abort(SequenceId),
    /// To the decode side: a lease, please.
    AskLease {
        /// Whom.
        decode: DeviceId,
        /// For whom.
        request: Arc<GenerateRequest>,
    },
    /// To the decode side: it is not needed (any more).
    ReturnLease {
        /// Whose.
        decode: DeviceId,
        /// The lease.
        lease: LeaseId,
    },
    /// To the decode side: all is pushed or under way; go on when it has arrived.
    HandOver {
        /// To whom.
        decode: DeviceId,
        /// What.
        hand_over: HandOver,
    },
    /// To the router: another decode side, please.
    Refused(SequenceId),
    /// To the router: its first token is out.
    Started(SequenceId),
    /// To the gateway: it cannot be completed here.
    Lost(SequenceId),
}

impl PrefillCore {
    /// Nothing to do yet.
    pub fn new(device: DeviceId) -> Self {
        Self { device, sequences: BTreeMap::new(), aborted: BTreeMap::new() }
    }

    /// Sequences that it has.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// They.
    pub fn sequences(&self) -> impl Iterator<Item = SequenceId> {
        self.sequences.keys().copied()
    }

    /// Handles one event.
    pub fn handle(&mut self, event: PrefillEvent, now: Instant64, effects: &mut Vec<PrefillEffect>) {
        match event {
            PrefillEvent::Admit { request, decode } => self.admit(request, decode, effects),
            PrefillEvent::LeaseWanted(sequence) => self.ask(sequence, None, now, effects),
            PrefillEvent::Redirect { sequence, decode } => self.ask(sequence, Some(decode), now, effects),
            PrefillEvent::Granted { sequence, decode, lease } => self.granted(sequence, decode, lease, effects),
            PrefillEvent::LeaseRefused { sequence, decode } => self.refused(sequence, decode, now, effects),
            PrefillEvent::Finished { sequence, first_token, continues, cached_tokens } => {
                let token = first_token.filter(|_| continues);
                self.finished(sequence, token, cached_tokens, effects);
            }
            PrefillEvent::PushFailed { sequence, lease } => {
                if self.sequences.get(&sequence).is_some_and(|found| found.stage == Stage::Leased(lease)) {
                    self.abort(sequence, effects);
                    effects.push(PrefillEffect::Lost(sequence));
                }
            }
            PrefillEvent::Abort(sequence) => {
                if !self.abort(sequence, effects) {
                    // It may have been handed over within the pool, or its admission is late, or died with an earlier actor.
                    self.aborted.insert(sequence, now);
                    effects.push(PrefillEffect::Abort(sequence));
                }
            }
            PrefillEvent::NodeLost(node) => self.node_lost(node, effects),
            PrefillEvent::Ended(sequence) => self.ended(sequence, effects),
            PrefillEvent::Tick => self.tick(now, effects),
        }
    }

    fn admit(&mut self, request: Arc<GenerateRequest>, decode: DeviceId, effects: &mut Vec<PrefillEffect>) {
        if self.sequences.contains_key(&request.sequence) || self.aborted.contains_key(&request.sequence) {
            return;
        }
        // Of one that ends with its first token nothing is decoded: no lease is asked for, and no block travels.
        let ends_here = request.max_tokens as usize <= request.generated.len() + 1;
        let is_local = decode == self.device || ends_here;
        let destination = if is_local { Destination::SamePool } else { Destination::Remote };
        let sequence = request.sequence;
        self.sequences.insert(sequence, Prefilling { request: Arc::clone(&request), decode, stage: Stage::Submitted });
        effects.push(PrefillEffect::Prefill { request, destination });
    }

    fn ask(&mut self, sequence: SequenceId, other: Option<DeviceId>, now: Instant64, effects: &mut Vec<PrefillEffect>) {
        let Some(found) = self.sequences.get_mut(&sequence) else { return };
        if matches!(found.stage, Stage::Leased(_)) {
            return;
        }
        found.decode = other.unwrap_or(found.decode);
        found.stage = Stage::Asked { since: now };
        effects.push(PrefillEffect::AskLease { decode: found.decode, request: Arc::clone(&found.request) });
    }

    fn granted(
        &mut self,
        sequence: SequenceId,
        decode: DeviceId,
        lease: GrantedLease,
        effects: &mut Vec<PrefillEffect>,
    ) {
        match self.sequences.get_mut(&sequence) {
            Some(found) if found.decode == decode && matches!(found.stage, Stage::Asked { .. }) => {
                found.stage = Stage::Leased(lease.lease);
                effects.push(PrefillEffect::UseLease { sequence, decode, lease });
            }
            _ => effects.push(PrefillEffect::ReturnLease { decode, lease: lease.lease }),
        }
    }

    fn refused(&mut self, sequence: SequenceId, decode: DeviceId, now: Instant64, effects: &mut Vec<PrefillEffect>) {
        let Some(found) = self.sequences.get_mut(&sequence) else { return };
        if found.decode == decode && matches!(found.stage, Stage::Asked { .. }) {
            found.stage = Stage::Refused { since: now };
            effects.push(PrefillEffect::Refused(sequence));
        }
    }

    fn finished(
        &mut self,
        sequence: SequenceId,
        token: Option<TokenId>,
        cached_tokens: u32,
        effects: &mut Vec<PrefillEffect>,
    ) {
        let Some(found) = self.sequences.remove(&sequence) else { return };
        effects.push(PrefillEffect::Started(sequence));
        let (Stage::Leased(lease), decode) = (found.stage, found.decode) else { return };
        effects.push(match token {
            Some(first_token) => {
                let hand_over = HandOver { sequence, lease, first_token, cached_tokens };
                PrefillEffect::HandOver { decode, hand_over }
            }
            None => PrefillEffect::ReturnLease { decode, lease },
        });
    }

    fn abort(&mut self, sequence: SequenceId, effects: &mut Vec<PrefillEffect>) -> bool {
        let Some(found) = self.sequences.remove(&sequence) else { return false };
        effects.push(PrefillEffect::Abort(sequence));
        if let Stage::Leased(lease) = found.stage {
            effects.push(PrefillEffect::ReturnLease { decode: found.decode, lease });
        }
        true
    }

    /// What a gateway asked for goes with it; what was to be decoded there is for its gateway to send again: most of it is found in the prefix cache.
    fn node_lost(&mut self, node: NodeId, effects: &mut Vec<PrefillEffect>) {
        let concerned = |(sequence, found): (&SequenceId, &Prefilling)| {
            let is_unwanted = sequence.request.gateway() == node;
            (is_unwanted || found.decode.node() == node).then_some((*sequence, is_unwanted))
        };
        let concerned: Vec<_> = self.sequences.iter().filter_map(concerned).collect();
        for (sequence, is_unwanted) in concerned {
            self.abort(sequence, effects);
            if !is_unwanted {
                effects.push(PrefillEffect::Lost(sequence));
            }
        }
    }

    /// It ended before its prefill did: an error, a deadline.
    fn ended(&mut self, sequence: SequenceId, effects: &mut Vec<PrefillEffect>) {
        if let Some(Prefilling { decode, stage: Stage::Leased(lease), .. }) = self.sequences.remove(&sequence) {
            effects.push(PrefillEffect::ReturnLease { decode, lease });
        }
    }

    fn tick(&mut self, now: Instant64, effects: &mut Vec<PrefillEffect>) {
        self.aborted.retain(|_, at| now.since(*at) < LATE_ADMISSION);
        self.give_up_waiting(now, effects);
    }

    /// An answer that does not come, from the decode side or from the router, went down with the one who owed it: the router is asked (again).
    fn give_up_waiting(&mut self, now: Instant64, effects: &mut Vec<PrefillEffect>) {
        for (&sequence, found) in &mut self.sequences {
            if let Stage::Asked { since } | Stage::Refused { since } = found.stage
                && now.since(since) >= ANSWER_PATIENCE
            {
                found.stage = Stage::Refused { since: now };
                effects.push(PrefillEffect::Refused(sequence));
            }
        }
    }
}

#[cfg(test)]
#[path = "core/tests.rs"]
mod tests;
