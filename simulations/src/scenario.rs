//! What a seed stands for: the nodes and their devices, the requests and the misfortunes of one run.

use std::time::Duration;

use relevo_actors::device::DeviceRole;
use relevo_actors::policy::hand_over::HandOverStep;
use relevo_actors::policy::routing::Disaggregate;
use relevo_wire::{GenerateRequest, Instant64, NodeId, RequestId};

/// Ids of the scripted vocabulary.
pub(crate) const VOCABULARY: u32 = 64;

/// Tokens that a sequence may have.
pub(crate) const CONTEXT: usize = 192;

/// When the last request has come and the last misfortune has struck, in milliseconds.
pub(crate) const ACT: u64 = 400;

/// Far longer than any run.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(3600);

/// Longest time that a misfortune lasts, in milliseconds: longer than it takes to notice it.
pub(crate) const LONGEST: u64 = 1500;

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it was drawn from.
    pub seed: u64,
    /// The cluster.
    pub nodes: Vec<NodeSpec>,
    /// Whether prefill and decode may be apart.
    pub disaggregate: Disaggregate,
    /// What is asked of it.
    pub requests: Vec<RequestSpec>,
    /// What goes wrong.
    pub misfortunes: Vec<(Instant64, Misfortune)>,
    /// What goes wrong when a hand-over comes to some step.
    pub ambush: Option<Ambush>,
    /// Longest delay of a message.
    pub max_delay: Duration,
    /// Longest time that a layer takes an engine.
    pub max_layer: Duration,
    /// Term of a lease that nothing renews.
    pub lease_term: Duration,
    /// Streams that may wait for workers.
    pub max_waiting: usize,
    /// What becomes of messages that may be lost, in a hundred.
    pub losses: Losses,
}

/// How many messages, of a hundred, meet with what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    /// Frames of blocks that are lost.
    pub lost_frames: u64,
    /// Heartbeats that are lost.
    pub lost_heartbeats: u64,
    /// Heartbeats that come late.
    pub late_heartbeats: u64,
    /// News of prefixes, and wishes for them, that are lost.
    pub lost_news: u64,
    /// News of prefixes that come twice.
    pub doubled_news: u64,
    /// News of prefixes that come late.
    pub late_news: u64,
}

/// One node: a process with what it plays.
#[derive(Clone, Debug, Default)]
pub struct NodeSpec {
    /// Clients ask it.
    pub gateway: bool,
    /// It publishes the map; one node of a cluster does.
    pub coordinator: bool,
    /// Its devices.
    pub devices: Vec<DeviceSpec>,
}

/// One device.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// What it does at first.
    pub roles: Vec<DeviceRole>,
    /// What it could do.
    pub able: Vec<DeviceRole>,
    /// Blocks of its pool.
    pub num_blocks: u32,
    /// It names and finds prefixes.
    pub prefix_cache: bool,
}

/// One request.
#[derive(Clone, Debug)]
pub struct RequestSpec {
    /// When it comes.
    pub at: Instant64,
    /// When its client goes away, if it does not wait.
    pub leaves: Option<Instant64>,
    /// What it wants.
    pub request: GenerateRequest,
}

/// What goes wrong. Devices are counted over all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfortune {
    /// The engine of a device fails, and its pool with it.
    Engine(usize),
    /// The engine of a device computes nothing in its next step, for so long; it is replaced if that is too long.
    Hang(usize, Duration),
    /// The actor of a role dies; its engine lives.
    Role(usize, DeviceRole),
    /// A device is given up, and joins again after so long.
    Leave(usize, Duration),
    /// A device's supervisor says nothing for so long.
    Silence(usize, Duration),
    /// A device takes [`SLOWNESS`] times as long for everything, for so long.
    Slow(usize, Duration),
    /// The router of a gateway dies.
    Router(usize),
    /// The coordinator's actor dies.
    Coordinator,
    /// The coordinator does nothing for so long.
    Sleep(Duration),
    /// A node's process is killed, and is started again after so long.
    Kill(usize, Duration),
    /// A node's process stands still for so long.
    Pause(usize, Duration),
    /// Nothing gets from the first node to the second for so long; the other way is not concerned.
    Cut(usize, usize, Duration),
    /// Nothing gets from either of two nodes to the other for so long.
    Part(usize, usize, Duration),
    /// Nothing gets from a node to any other, nor back, for so long.
    Isolate(usize, Duration),
    /// The link between two nodes ends, and nothing else.
    Flap(usize, usize),
    /// An operator drains a node, and undrains it after so long.
    Drain(usize, Duration),
    /// An operator gives the devices of a node this role.
    Flip(usize, DeviceRole),
}

/// How much longer a slow device takes than its peers.
pub const SLOWNESS: u32 = 5;

/// Misfortunes that wait for one sequence to come to a step of its hand-over.
#[derive(Clone, Debug)]
pub struct Ambush {
    /// Whose hand-over, in its first attempt.
    pub request: RequestId,
    /// Which step.
    pub step: HandOverStep,
    /// What strikes.
    pub blow: Blow,
}

/// What strikes a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// A party's process is killed and started again.
    Kill(Party),
    /// The actor of the role that it plays dies, and nothing else.
    KillRole(Party),
    /// It stands still for less time than makes a death.
    Pause(Party),
    /// It takes longer than its peers.
    Slow(Party),
    /// An operator drains it.
    Drain(Party),
    /// An operator gives it the role that it does not play.
    Flip(Party),
    /// Nothing gets from the first to the second.
    CutOneWay(Party, Party),
    /// Nothing gets from either to the other.
    CutBothWays(Party, Party),
    /// The link between them ends.
    Flap(Party, Party),
}

/// Who has a part in a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The node that runs the prompt.
    Prefill,
    /// The node that decodes.
    Decode,
    /// The node that keeps the stream.
    Gateway,
    /// The node that publishes the map.
    Coordinator,
}

impl Misfortune {
    /// How long others suffer from it.
    fn duration(self) -> Duration {
        match self {
            Self::Hang(_, lasts) => lasts.min(Duration::from_millis(LONGEST)),
            Self::Leave(_, lasts)
            | Self::Silence(_, lasts)
            | Self::Slow(_, lasts)
            | Self::Sleep(lasts)
            | Self::Kill(_, lasts)
            | Self::Pause(_, lasts)
            | Self::Cut(_, _, lasts)
            | Self::Part(_, _, lasts)
            | Self::Isolate(_, lasts)
            | Self::Drain(_, lasts) => lasts,
            Self::Engine(_)
            | Self::Role(..)
            | Self::Router(_)
            | Self::Coordinator
            | Self::Flap(..)
            | Self::Flip(..) => Duration::ZERO,
        }
    }
}

/// The number of the node at this place of the scenario.
pub(crate) fn node_id(index: usize) -> NodeId {
    NodeId(u32::try_from(index + 1).unwrap_or(u32::MAX))
}

/// Its name.
pub(crate) fn node_name(index: usize) -> String {
    format!("node-{index}")
}

impl Scenario {
    /// Draws one.
    pub fn of_seed(seed: u64) -> Self {
        crate::draw::scenario(seed)
    }

    /// What the program is given to play it again.
    pub fn replay(&self) -> String {
        self.ambush.as_ref().map_or_else(|| self.seed.to_string(), |it| format!("{} {}", it.step, it.blow))
    }

    /// What it is, in a few lines.
    pub fn summary(&self) -> String {
        crate::account::scenario(self)
    }

    /// From when on nothing goes wrong any more, and nobody comes or goes.
    pub fn calm(&self) -> Instant64 {
        let ends = self.misfortunes.iter().map(|&(at, misfortune)| at + misfortune.duration());
        // A hand-over that nothing has disturbed yet comes to its last step in less time than that.
        let ambush = Duration::from_millis(if self.ambush.is_some() { ACT + LONGEST } else { 0 });
        ends.fold(Instant64(0) + Duration::from_millis(ACT), Instant64::max) + ambush
    }
}
