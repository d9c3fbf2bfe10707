//! What a seed stands for: the devices, the requests and the misfortunes of one run.

use std::sync::Arc;
use std::time::Duration;

use relevo_actors::device::DeviceRole;
use relevo_actors::policy::routing::Disaggregate;
use relevo_wire::{GenerateRequest, Instant64, RequestId, SamplingParams, SequenceId, TenantId, TokenId};

use crate::random::Random;

/// Ids of the scripted vocabulary.
pub(crate) const VOCABULARY: u32 = 64;

/// Tokens that a sequence may have.
pub(crate) const CONTEXT: usize = 192;

/// When the last request has come and the last misfortune has struck, in milliseconds.
const ACT: u64 = 400;

/// Far longer than any run.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Longest time that a misfortune lasts, in milliseconds: longer than it takes to notice it.
const LONGEST: u64 = 1500;

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it was drawn from.
    pub seed: u64,
    /// The cluster.
    pub devices: Vec<DeviceSpec>,
    /// Whether prefill and decode may be apart.
    pub disaggregate: Disaggregate,
    /// What is asked of it.
    pub requests: Vec<RequestSpec>,
    /// What goes wrong.
    pub misfortunes: Vec<(Instant64, Misfortune)>,
    /// Longest delay of a message.
    pub max_delay: Duration,
    /// Streams that may wait for workers.
    pub max_waiting: usize,
    /// Frames of blocks that are lost, in a hundred.
    pub lost_frames: u64,
    /// Heartbeats that are lost, in a hundred.
    pub lost_heartbeats: u64,
    /// Heartbeats that come late, in a hundred.
    pub late_heartbeats: u64,
    /// News of prefixes, and wishes for them, that are lost, in a hundred.
    pub lost_news: u64,
    /// News of prefixes that come twice, in a hundred.
    pub doubled_news: u64,
    /// News of prefixes that come late, in a hundred.
    pub late_news: u64,
}

/// One device.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// What it does.
    pub roles: Vec<DeviceRole>,
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

/// What goes wrong.
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
    /// What a device says to the coordinator is lost for so long.
    Silence(usize, Duration),
    /// The router dies.
    Router,
    /// The coordinator dies.
    Coordinator,
    /// The coordinator does nothing for so long.
    Sleep(Duration),
}

impl Misfortune {
    /// How long others suffer from it.
    fn duration(self) -> Duration {
        match self {
            Self::Hang(_, lasts) => lasts.min(millis(LONGEST)),
            Self::Leave(_, lasts) | Self::Silence(_, lasts) | Self::Sleep(lasts) => lasts,
            Self::Engine(_) | Self::Role(..) | Self::Router | Self::Coordinator => Duration::ZERO,
        }
    }
}

impl Scenario {
    /// Draws one.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let devices = devices(&mut random);
        let disaggregate = match random.between(0, 3) {
            0 => Disaggregate::Never,
            1 => Disaggregate::Always,
            _ => Disaggregate::Auto,
        };
        let num_requests = random.between(3, 24);
        let requests = (1..=num_requests).map(|id| request(&mut random, id)).collect();
        let num_misfortunes = if random.chance(70) { random.between(1, 5) } else { 0 };
        let misfortunes = (0..num_misfortunes).map(|_| misfortune(&mut random, &devices)).collect();
        let max_delay = Duration::from_micros(random.between(20, 8000));
        let lost_frames = if random.chance(25) { random.between(1, 10) } else { 0 };
        let max_waiting = if random.chance(10) { 4 } else { 64 };
        let lost_heartbeats = if random.chance(25) { random.between(1, 40) } else { 0 };
        let late_heartbeats = if random.chance(25) { random.between(1, 40) } else { 0 };
        let mut of_news = || if random.chance(30) { random.between(1, 60) } else { 0 };
        let (lost_news, doubled_news, late_news) = (of_news(), of_news(), of_news());
        Self {
            seed,
            devices,
            disaggregate,
            requests,
            misfortunes,
            max_delay,
            max_waiting,
            lost_frames,
            lost_heartbeats,
            late_heartbeats,
            lost_news,
            doubled_news,
            late_news,
        }
    }

    /// What it is, in a few lines.
    pub fn summary(&self) -> String {
        crate::account::scenario(self)
    }

    /// From when on nothing goes wrong any more, and nobody comes or goes.
    pub fn calm(&self) -> Instant64 {
        let ends = self.misfortunes.iter().map(|&(at, misfortune)| at + misfortune.duration());
        ends.fold(Instant64(0) + millis(ACT), Instant64::max)
    }
}

fn devices(random: &mut Random) -> Vec<DeviceSpec> {
    use DeviceRole::{Decode, Prefill};
    let (prefill, decode, both) = (vec![Prefill], vec![Decode], vec![Prefill, Decode]);
    let roles = match random.between(0, 5) {
        0 => vec![both],
        1 => vec![prefill, decode],
        2 => vec![both.clone(), both],
        3 => vec![prefill.clone(), prefill, decode],
        _ => vec![both, decode.clone(), decode],
    };
    let prefix_cache = random.chance(80);
    let mut spec = |roles| {
        // At least one whole context, so that every request can be served; often not much more, so that they must make room.
        let num_blocks = CONTEXT as u64 / 16 + random.between(0, 36);
        DeviceSpec { roles, num_blocks: u32::try_from(num_blocks).unwrap_or(u32::MAX), prefix_cache }
    };
    roles.into_iter().map(&mut spec).collect()
}

fn request(random: &mut Random, id: u64) -> RequestSpec {
    let at = Instant64(0) + millis(random.between(0, ACT / 2));
    let kind = random.between(0, 4);
    let len = random.between(1, 120);
    // Prompts of one kind begin alike.
    let prompt: Vec<TokenId> = (0..len).map(|place| token(place * (7 + kind) + kind * 13 + place / 9)).collect();
    let sampled = random.chance(40);
    let sampling = SamplingParams {
        temperature: if sampled { 0.8 } else { 0.0 },
        seed: random.next(),
        ..SamplingParams::default()
    };
    let stop_ids: Arc<[TokenId]> = if random.chance(20) { Arc::from([token(random.next())]) } else { Arc::from([]) };
    let request = GenerateRequest {
        sequence: SequenceId { request: RequestId(id), choice: 0, attempt: 0 },
        tenant: TenantId(u32::try_from(random.between(0, 3)).unwrap_or(0)),
        prompt: prompt.into(),
        generated: Vec::new(),
        sampling,
        stop_ids,
        max_tokens: u32::try_from(random.between(1, 60)).unwrap_or(1),
        top_logprobs: random.chance(10).then_some(2),
        prompt_logprobs: random.chance(10).then_some(1),
        priority: if random.chance(20) { 1 } else { 0 },
        deadline: random.chance(15).then(|| at + millis(random.between(1, ACT))),
    };
    // Some go before their request has reached anybody.
    let patience = if random.chance(50) { 10 } else { ACT / 2 };
    let leaves = random.chance(20).then(|| at + millis(random.between(0, patience)));
    RequestSpec { at, leaves, request }
}

fn misfortune(random: &mut Random, devices: &[DeviceSpec]) -> (Instant64, Misfortune) {
    let index = |random: &mut Random, len: usize| usize::try_from(random.between(0, len as u64)).unwrap_or(0);
    let device = index(random, devices.len());
    let roles = &devices[device].roles;
    let role = roles[index(random, roles.len())];
    let lasts = millis(random.between(1, LONGEST));
    let misfortune = match random.between(0, 12) {
        0..3 => Misfortune::Engine(device),
        3 => Misfortune::Hang(device, lasts),
        4 => Misfortune::Hang(device, FOR_EVER),
        5..7 => Misfortune::Role(device, role),
        7 => Misfortune::Leave(device, lasts),
        8 => Misfortune::Silence(device, lasts),
        9 => Misfortune::Router,
        10 => Misfortune::Coordinator,
        _ => Misfortune::Sleep(lasts),
    };
    (Instant64(0) + millis(random.between(1, ACT)), misfortune)
}

fn token(number: u64) -> TokenId {
    u32::try_from(number % u64::from(VOCABULARY)).unwrap_or(0)
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}
