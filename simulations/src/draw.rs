//! Draws scenarios: a seed's nodes, requests and misfortunes.

use std::sync::Arc;
use std::time::Duration;

use relevo_actors::device::DeviceRole;
use relevo_actors::policy::routing::Disaggregate;
use relevo_wire::{GenerateRequest, Instant64, RequestId, SamplingParams, SequenceId, TenantId, TokenId};

use crate::random::Random;
use crate::scenario::{
    ACT, CONTEXT, DeviceSpec, FOR_EVER, LONGEST, Losses, Misfortune, NodeSpec, RequestSpec, Scenario, VOCABULARY,
    node_id,
};

/// A pause that is no death: with half a heartbeat's lateness it stays below the silence that ends a link.
const SHORT_PAUSE: u64 = 350;

/// Term of a lease as real nodes have it.
pub(crate) const LEASE: Duration = Duration::from_secs(10);

/// One that is shorter than what may go wrong.
const SHORT_LEASE: Duration = Duration::from_millis(200);

pub(crate) fn scenario(seed: u64) -> Scenario {
    let mut random = Random::new(seed);
    let nodes = nodes(&mut random);
    let disaggregate = match random.between(0, 3) {
        0 => Disaggregate::Never,
        1 => Disaggregate::Always,
        _ => Disaggregate::Auto,
    };
    let gateways: Vec<usize> = (0..nodes.len()).filter(|&node| nodes[node].gateway).collect();
    let num_requests = random.between(3, 24);
    let requests = (1..=num_requests).map(|number| {
        let gateway = gateways[pick(&mut random, gateways.len())];
        request(&mut random, gateway, number)
    });
    let requests = requests.collect();
    let num_misfortunes = if random.chance(75) { random.between(1, 6) } else { 0 };
    let misfortunes = (0..num_misfortunes).map(|_| misfortune(&mut random, &nodes)).collect();
    let max_delay = Duration::from_micros(random.between(20, 8000));
    let lease_term = if random.chance(60) { SHORT_LEASE } else { LEASE };
    // Some engines are slow enough that sequences are still there when it is noticed who is lost.
    let max_layer = millis(if random.chance(25) { 10 } else { 2 });
    let max_waiting = if random.chance(10) { 4 } else { 64 };
    let losses = losses(&mut random);
    Scenario {
        seed,
        nodes,
        disaggregate,
        requests,
        misfortunes,
        ambush: None,
        max_delay,
        max_layer,
        lease_term,
        max_waiting,
        losses,
    }
}

fn losses(random: &mut Random) -> Losses {
    let mut of = |percent, most| if random.chance(percent) { random.between(1, most) } else { 0 };
    Losses {
        lost_frames: of(25, 10),
        lost_heartbeats: of(25, 40),
        late_heartbeats: of(25, 40),
        lost_news: of(30, 60),
        doubled_news: of(30, 60),
        late_news: of(30, 60),
    }
}

/// A cluster: everything on one node, or gateways, a coordinator and workers apart.
fn nodes(random: &mut Random) -> Vec<NodeSpec> {
    let devices = devices(random);
    let mut nodes = vec![NodeSpec { gateway: true, coordinator: true, devices: Vec::new() }];
    if random.chance(25) {
        nodes[0].devices = devices;
        return nodes;
    }
    if random.chance(50) {
        nodes[0].coordinator = false;
        nodes.push(NodeSpec { coordinator: true, ..NodeSpec::default() });
    }
    if random.chance(40) {
        nodes.push(NodeSpec { gateway: true, ..NodeSpec::default() });
    }
    // The first worker may share its process with the first gateway, or two workers with each other.
    let mut is_shared = random.chance(20);
    for device in devices {
        match nodes.last_mut().filter(|_| is_shared) {
            Some(node) => node.devices.push(device),
            None => nodes.push(NodeSpec { devices: vec![device], ..NodeSpec::default() }),
        }
        is_shared = random.chance(15);
    }
    nodes
}

fn devices(random: &mut Random) -> Vec<DeviceSpec> {
    use DeviceRole::{Decode, Prefill};
    let (prefill, decode, both) = (vec![Prefill], vec![Decode], vec![Prefill, Decode]);
    let roles = match random.between(0, 7) {
        0 => vec![both],
        1 => vec![prefill, decode],
        2 => vec![both.clone(), both],
        3 => vec![prefill.clone(), prefill, decode],
        4 => vec![prefill.clone(), prefill, decode.clone(), decode],
        5 => vec![prefill, decode.clone(), decode],
        _ => vec![both, decode.clone(), decode],
    };
    let (prefix_cache, is_able) = (random.chance(80), random.chance(50));
    let mut spec = |roles: Vec<DeviceRole>| {
        // At least one whole context, so that every request can be served; often not much more, so that they must make room.
        let num_blocks = CONTEXT as u64 / 16 + random.between(0, 36);
        let able = if is_able { vec![Prefill, Decode] } else { roles.clone() };
        DeviceSpec { roles, able, num_blocks: u32::try_from(num_blocks).unwrap_or(u32::MAX), prefix_cache }
    };
    roles.into_iter().map(&mut spec).collect()
}

fn request(random: &mut Random, gateway: usize, number: u64) -> RequestSpec {
    let at = Instant64(0) + millis(random.between(0, ACT / 2));
    let kind = random.between(0, 4);
    let len = random.between(1, 120);
    let sampled = random.chance(40);
    let sampling = SamplingParams {
        temperature: if sampled { 0.8 } else { 0.0 },
        seed: random.next(),
        ..SamplingParams::default()
    };
    let stop_ids: Arc<[TokenId]> = if random.chance(20) { Arc::from([token(random.next())]) } else { Arc::from([]) };
    let request = GenerateRequest {
        sequence: SequenceId { request: RequestId::of(node_id(gateway), number), choice: 0, attempt: 0 },
        tenant: TenantId(u32::try_from(random.between(0, 3)).unwrap_or(0)),
        prompt: prompt(kind, len),
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

/// Prompts of one kind begin alike.
pub(crate) fn prompt(kind: u64, len: u64) -> Arc<[TokenId]> {
    (0..len).map(|place| token(place * (7 + kind) + kind * 13 + place / 9)).collect()
}

/// Some concern a device or an actor, some a node or what lies between two.
fn misfortune(random: &mut Random, nodes: &[NodeSpec]) -> (Instant64, Misfortune) {
    let devices: Vec<&DeviceSpec> = nodes.iter().flat_map(|node| &node.devices).collect();
    let device = pick(random, devices.len());
    let able = &devices[device].able;
    let role = able[pick(random, able.len())];
    let lasts = millis(random.between(1, LONGEST));
    let of_a_node = nodes.len() > 1 && random.chance(60);
    let misfortune = match random.between(0, 14) {
        kind if of_a_node => of_node(random, nodes, kind, lasts),
        0..2 => Misfortune::Engine(device),
        2 => Misfortune::Hang(device, lasts),
        3 => Misfortune::Hang(device, FOR_EVER),
        4..6 => Misfortune::Role(device, role),
        6 => Misfortune::Leave(device, lasts),
        7 => Misfortune::Silence(device, lasts),
        8 => Misfortune::Router(pick(random, nodes.iter().filter(|node| node.gateway).count())),
        9 => Misfortune::Coordinator,
        10 => Misfortune::Sleep(lasts),
        11 => Misfortune::Slow(device, lasts),
        _ => order(random, nodes, lasts),
    };
    (Instant64(0) + millis(random.between(1, ACT)), misfortune)
}

fn of_node(random: &mut Random, nodes: &[NodeSpec], kind: u64, lasts: Duration) -> Misfortune {
    let node = pick(random, nodes.len());
    let other = (node + 1 + pick(random, nodes.len() - 1)) % nodes.len();
    match kind {
        0..4 => Misfortune::Kill(node, lasts),
        4..6 => Misfortune::Pause(node, millis(random.between(1, SHORT_PAUSE))),
        6 => Misfortune::Pause(node, lasts),
        7..9 => Misfortune::Cut(node, other, lasts),
        9..11 => Misfortune::Part(node, other, lasts),
        11 => Misfortune::Isolate(node, lasts),
        _ => Misfortune::Flap(node, other),
    }
}

/// An operator changes something, which is none.
fn order(random: &mut Random, nodes: &[NodeSpec], lasts: Duration) -> Misfortune {
    let workers: Vec<usize> = (0..nodes.len()).filter(|&node| !nodes[node].devices.is_empty()).collect();
    let node = workers[pick(random, workers.len())];
    let devices = &nodes[node].devices;
    let role = if random.chance(50) { DeviceRole::Prefill } else { DeviceRole::Decode };
    if random.chance(50) && devices.iter().all(|device| device.able.contains(&role)) {
        Misfortune::Flip(node, role)
    } else {
        Misfortune::Drain(node, lasts)
    }
}

fn pick(random: &mut Random, len: usize) -> usize {
    usize::try_from(random.between(0, len as u64)).unwrap_or(0)
}

fn token(number: u64) -> TokenId {
    u32::try_from(number % u64::from(VOCABULARY)).unwrap_or(0)
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}
