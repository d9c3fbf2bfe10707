//! The table *steps x blows*: for each step of a hand-over and each blow a scenario in which the one strikes at the other.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use relevo_actors::device::DeviceRole::{Decode, Prefill};
use relevo_actors::policy::hand_over::HandOverStep;
use relevo_actors::policy::routing::Disaggregate;
use relevo_wire::{DeviceRole, GenerateRequest, Instant64, RequestId, SamplingParams, SequenceId, TenantId};

use crate::draw::{LEASE, prompt};
use crate::scenario::{Ambush, Blow, DeviceSpec, Losses, NodeSpec, Party, RequestSpec, Scenario, node_id};

/// When the requests come: all links are up by then.
const OPENING: Duration = Duration::from_millis(300);

/// Requests of a cell; the first one's hand-over is watched, the others keep it company.
pub const CELL_REQUESTS: u64 = 4;

impl Blow {
    /// All that may strike a hand-over.
    pub fn all() -> Vec<Self> {
        use Party::{Coordinator, Decode, Gateway, Prefill};
        let kills = [Prefill, Decode, Gateway, Coordinator].map(Self::Kill);
        let roles = [Prefill, Decode].map(Self::KillRole);
        let pauses = [Prefill, Decode, Gateway, Coordinator].map(Self::Pause);
        let workers = [Self::Slow, Self::Drain, Self::Flip].into_iter().flat_map(|blow| [Prefill, Decode].map(blow));
        let pairs = [(Prefill, Decode), (Gateway, Prefill), (Gateway, Decode), (Coordinator, Prefill)];
        let cuts = pairs.into_iter().flat_map(|(one, other)| {
            [
                Self::CutBothWays(one, other),
                Self::CutOneWay(one, other),
                Self::CutOneWay(other, one),
                Self::Flap(one, other),
                Self::Flap(other, one),
            ]
        });
        kills.into_iter().chain(roles).chain(pauses).chain(workers).chain(cuts).collect()
    }

    /// Whether nothing that is under way may be lost by it: what is there finishes where it is.
    pub fn is_harmless(self) -> bool {
        match self {
            Self::Pause(_) | Self::Drain(_) | Self::Flip(_) => true,
            // Streams leave a device that decodes far more slowly than its peers.
            Self::Slow(party) => party != Party::Decode,
            Self::Kill(party) => party == Party::Coordinator,
            Self::KillRole(_) => false,
            Self::CutOneWay(one, other) | Self::CutBothWays(one, other) | Self::Flap(one, other) => {
                one == Party::Coordinator || other == Party::Coordinator
            }
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Gateway => "gateway",
            Self::Coordinator => "coordinator",
        })
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(party) => write!(f, "kill-{party}"),
            Self::KillRole(party) => write!(f, "kill-{party}-role"),
            Self::Pause(party) => write!(f, "pause-{party}"),
            Self::Slow(party) => write!(f, "slow-{party}"),
            Self::Drain(party) => write!(f, "drain-{party}"),
            Self::Flip(party) => write!(f, "flip-{party}"),
            Self::CutOneWay(from, to) => write!(f, "cut-{from}-to-{to}"),
            Self::CutBothWays(one, other) => write!(f, "cut-{one}-and-{other}"),
            Self::Flap(one, other) => write!(f, "flap-{one}-and-{other}"),
        }
    }
}

impl Scenario {
    /// The cell of the table in which this blow strikes a hand-over that has just come to this step.
    pub fn of_cell(step: HandOverStep, blow: Blow) -> Self {
        let node = |gateway, coordinator, devices| NodeSpec { gateway, coordinator, devices };
        let worker = |role| node(false, false, vec![device(role)]);
        let door = [node(true, false, Vec::new()), node(false, true, Vec::new())];
        let workers = [Prefill, Prefill, Decode, Decode].map(worker);
        let ambush = Ambush { request: RequestId::of(node_id(0), 1), step, blow };
        Self {
            seed: 1,
            nodes: door.into_iter().chain(workers).collect(),
            disaggregate: Disaggregate::Always,
            requests: (1..=CELL_REQUESTS).map(request).collect(),
            misfortunes: Vec::new(),
            ambush: Some(ambush),
            max_delay: Duration::from_millis(2),
            max_layer: Duration::from_millis(10),
            lease_term: LEASE,
            max_waiting: 64,
            losses: Losses::default(),
        }
    }
}

fn device(role: DeviceRole) -> DeviceSpec {
    DeviceSpec { roles: vec![role], able: vec![Prefill, Decode], num_blocks: 40, prefix_cache: true }
}

/// The first comes last, so that it finds the others under way; its prompt takes several chunks.
fn request(number: u64) -> RequestSpec {
    let request = GenerateRequest {
        sequence: SequenceId { request: RequestId::of(node_id(0), number), choice: 0, attempt: 0 },
        tenant: TenantId(0),
        prompt: prompt(number, 120 - 20 * (number - 1)),
        generated: Vec::new(),
        sampling: SamplingParams { temperature: 0.8, seed: number, ..SamplingParams::default() },
        stop_ids: Arc::from([]),
        max_tokens: 70,
        top_logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
    };
    let at = Instant64(0) + OPENING + Duration::from_millis(2 * (CELL_REQUESTS - number));
    RequestSpec { at, leaves: None, request }
}
