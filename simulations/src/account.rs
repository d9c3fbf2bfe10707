//! What happens, in words: a line for each event, so that a run can be read, and compared byte for byte with its replay.

use relevo_actors::coordinator::{ClusterMap, CoordinatorEvent, Heartbeat};
use relevo_actors::decode::DecodeEvent;
use relevo_actors::device::DeviceCommand;
use relevo_actors::policy::prefix_news::PrefixWords;
use relevo_actors::prefill::PrefillEvent;
use relevo_actors::router::RouterEvent;
use relevo_wire::{SequenceId, StreamEvent, ToGateway};

use crate::coordinating::Word;
use crate::engine::Frame;
use crate::post::Errand;
use crate::scenario::{Scenario, node_id};
use crate::world::Happening;

/// What a seed stands for.
pub(crate) fn scenario(scenario: &Scenario) -> String {
    let Scenario { seed, nodes, disaggregate, requests, misfortunes, max_delay, losses, .. } = scenario;
    let (num_nodes, num_requests) = (nodes.len(), requests.len());
    let mut lines = vec![format!(
        "seed {seed}: {num_nodes} nodes, {num_requests} requests, disaggregation {disaggregate:?}, messages take up to {max_delay:?}, \
         of a hundred {} frames are lost, {} heartbeats lost, {} late, {} news of prefixes lost, {} doubled, {} late",
        losses.lost_frames,
        losses.lost_heartbeats,
        losses.late_heartbeats,
        losses.lost_news,
        losses.doubled_news,
        losses.late_news
    )];
    let mut num_devices = 0;
    for (index, node) in nodes.iter().enumerate() {
        let roles = [node.gateway.then_some("gateway"), node.coordinator.then_some("coordinator")];
        let roles: Vec<_> = roles.into_iter().flatten().collect();
        lines.push(format!("  node-{index}, {}: {}", node_id(index), roles.join(", ")));
        for spec in &node.devices {
            let cache = if spec.prefix_cache { "with" } else { "without" };
            let (roles, able) = (&spec.roles, &spec.able);
            lines.push(format!("    the world's {num_devices}th device: {roles:?}, able to {able:?}, {} blocks, {cache} a prefix cache", spec.num_blocks));
            num_devices += 1;
        }
    }
    lines.extend(misfortunes.iter().map(|(at, what)| format!("  at {} ms: {what:?}", at.0 / 1_000_000)));
    lines.extend(scenario.ambush.iter().map(|ambush| format!("  {ambush:?}")));
    lines.join("\n")
}

/// What is about to happen; nothing for what happens all the time.
pub(crate) fn happening(happening: &Happening, scenario: &Scenario) -> Option<String> {
    Some(match happening {
        Happening::Tick
        | Happening::CoordinatorTick
        | Happening::NodeTick(_)
        | Happening::NodeBeat(_)
        | Happening::PeerBeat { .. }
        | Happening::Beat(_)
        | Happening::Released(_)
        | Happening::LooksAgain { .. }
        | Happening::Unpin { .. } => return None,
        Happening::Arrives(index) => {
            let request = &scenario.requests[*index].request;
            let (num_prompt, most) = (request.prompt.len(), request.max_tokens);
            format!("{} arrives: {num_prompt} prompt tokens, {most} to generate at most", request.sequence)
        }
        Happening::Leaves(index) => {
            format!("the client of {} goes away", scenario.requests[*index].request.sequence.request)
        }
        Happening::Strikes(misfortune) => format!("MISFORTUNE: {misfortune:?}"),
        Happening::Boots(node) => format!("node-{node} is started again"),
        Happening::Wants { node, wish } => format!("an operator wants {wish:?} of node-{node}"),
        Happening::Signal { node, signal } => format!("node-{node}: {signal:?}"),
        Happening::Errand { node, from, errand } => format!("node-{node}, from node-{from}: {}", errand_text(errand)?),
        Happening::Begins { device, .. } => format!("device-{device} begins anew"),
        Happening::Returns { device } => format!("device-{device} comes back"),
        Happening::EngineEnded { device, epoch, .. } => {
            format!("device-{device} hears that its engine of {epoch} ended")
        }
        Happening::RoleEnded { device, role, .. } => format!("device-{device} hears that its {role:?} actor ended"),
        Happening::Resumes { device, epoch } => format!("the engine of device-{device}, {epoch}, goes on"),
        Happening::Coordinator { word: Word::Event(event), .. } => format!("coordinator: {}", coordinator(event)?),
        Happening::Coordinator { word: Word::Beat { .. }, .. } => return None,
        Happening::Router { gateway, event, .. } => format!("router-{gateway}: {}", router(event)?),
        Happening::Undelivered { gateway, sequence, .. } => {
            format!("router-{gateway}: {sequence} comes back undelivered")
        }
        Happening::Prefill { device, event, .. } => format!("device-{device}/prefill: {}", prefill(event)?),
        Happening::Decode { device, event, .. } => format!("device-{device}/decode: {}", decode(event)?),
        Happening::Order { device, command, .. } => format!("device-{device}/engine: {}", order(command)),
        Happening::Engine { device, epoch } => format!("device-{device}/engine: computes in {epoch}"),
        Happening::Tokens { gateway, events, .. } => format!("gateway-{gateway}: {}", tokens(events)),
        Happening::Frame(frame) => format!("device-{}: {} arrives", frame.to, blocks(frame)),
        Happening::Written(frame) => format!("device-{}: {} is written", frame.to, blocks(frame)),
        Happening::NotTaken { device, sequence } => format!("device-{device}: blocks of {sequence} were not taken"),
    })
}

/// What a node hands on, as far as it is not told when it gets there.
fn errand_text(errand: &Errand) -> Option<String> {
    Some(match errand {
        Errand::Prefill(..) | Errand::Decode(..) | Errand::Gateway(ToGateway::PrefixChanged(..)) => return None,
        Errand::Coordinator(_) | Errand::TellPrefixes(_) => return None,
        Errand::Abort(device, sequence) => format!("device-{device} is to stop {sequence}"),
        Errand::Gateway(word) => format!("{word:?}"),
        Errand::Map(seen) => format!("sees {}", map(seen)),
        Errand::Obey(order) => format!("{order:?}"),
    })
}

/// A map, in a line.
pub(crate) fn map(map: &ClusterMap) -> String {
    let entries = map.devices.iter().map(|entry| {
        let facts = &entry.facts;
        format!("{} {} {:?}", facts.device, facts.epoch, entry.standing)
    });
    format!("{} of term {}: [{}]", map.version, map.term, entries.collect::<Vec<_>>().join(", "))
}

fn coordinator(event: &CoordinatorEvent) -> Option<String> {
    Some(match event {
        CoordinatorEvent::Tick | CoordinatorEvent::MapSeen(_) => return None,
        CoordinatorEvent::Node(entry) => format!("{} joins", entry.name),
        CoordinatorEvent::Order(order) => format!("an operator wants {order:?}"),
        CoordinatorEvent::Left { device, epoch } => format!("{device} left after {epoch}"),
        CoordinatorEvent::Heartbeat(Heartbeat { facts, serving, progress, busy, map, .. }) => {
            let state = if *serving { "serves" } else { "does not serve" };
            let load = if *busy { "busy" } else { "idle" };
            let (device, epoch, (term, version)) = (facts.device, facts.epoch, map);
            format!("{device} {state} in {epoch}, {load} at {progress}, and has seen {version} of term {term}")
        }
    })
}

fn router(event: &RouterEvent) -> Option<String> {
    Some(match event {
        RouterEvent::Tick | RouterEvent::Paced(_) => return None,
        RouterEvent::Submit { request, suspect, .. } => {
            let manner = if *suspect { "alone, as a suspect" } else { "" };
            format!("{} wants workers {manner}", request.sequence)
        }
        RouterEvent::Placed { request, prefill, decode, .. } => {
            format!("{} is with {prefill} and {decode}", request.sequence)
        }
        RouterEvent::Started(sequence) => format!("{sequence} has its first token"),
        RouterEvent::Ended(sequence) => format!("{sequence} is over"),
        RouterEvent::Refused(sequence) => format!("{sequence} was refused a lease"),
        RouterEvent::Map(seen) => format!("sees {}", map(seen)),
        RouterEvent::Reachable(nodes) => format!("reaches {nodes:?}"),
        RouterEvent::PrefixChanged { device, epoch, batch } => {
            let what = match &batch.words {
                PrefixWords::Changed(_) if batch.is_mark() => return None,
                PrefixWords::Changed(change) => {
                    format!("{} blocks more and {} less", change.added.len(), change.removed.len())
                }
                PrefixWords::Snapshot { keys, is_last, .. } => {
                    format!("{} blocks{}", keys.len(), if *is_last { ", which is all" } else { ", and more" })
                }
            };
            format!("{device}, {epoch}, says its word {}: it holds {what}", batch.seq)
        }
    })
}

fn prefill(event: &PrefillEvent) -> Option<String> {
    Some(match event {
        PrefillEvent::Tick => return None,
        PrefillEvent::Admit { request, decode } => format!("{} is admitted, {decode} decodes it", request.sequence),
        PrefillEvent::LeaseWanted(sequence) => format!("{sequence} wants a lease"),
        PrefillEvent::Granted { sequence, decode, lease } => {
            format!("{decode} grants {} of {} blocks to {sequence}", lease.lease, lease.blocks.len())
        }
        PrefillEvent::LeaseRefused { sequence, decode } => format!("{decode} refuses {sequence} a lease"),
        PrefillEvent::Redirect { sequence, decode } => format!("{sequence} is to ask {decode}"),
        PrefillEvent::Finished { sequence, first_token, continues, .. } => {
            format!("{sequence} is computed, its token is {first_token:?}, it goes on: {continues}")
        }
        PrefillEvent::PushFailed { sequence, lease } => format!("{sequence} could not push under {lease}"),
        PrefillEvent::Abort(sequence) => format!("{sequence} is aborted"),
        PrefillEvent::NodeLost(node) => format!("node {node} is lost"),
        PrefillEvent::Ended(sequence) => format!("{sequence} ended"),
    })
}

fn decode(event: &DecodeEvent) -> Option<String> {
    Some(match event {
        DecodeEvent::Tick => return None,
        DecodeEvent::LeaseAsked { request, prefill } => format!("{prefill} asks a lease for {}", request.sequence),
        DecodeEvent::Reserved(lease) => format!("{} is reserved, {} blocks", lease.lease, lease.blocks.len()),
        DecodeEvent::Refused(lease) => format!("{lease} is refused"),
        DecodeEvent::Arrived { lease, .. } => format!("something arrived under {lease}"),
        DecodeEvent::Complete(lease) => format!("{lease} has all its blocks"),
        DecodeEvent::HandedOver(hand_over) => format!("{} is handed over, {}", hand_over.sequence, hand_over.lease),
        DecodeEvent::Returned(lease) => format!("{lease} is returned"),
        DecodeEvent::WritersGone(lease) => format!("{lease} has no writers left"),
        DecodeEvent::Expire(lease) => format!("{lease} is made to expire"),
        DecodeEvent::Abort(sequence) => format!("{sequence} is aborted"),
        DecodeEvent::NodeLost(node) => format!("node {node} is lost"),
        DecodeEvent::WriterLost(device) => format!("the prefill role of {device} is lost"),
    })
}

fn order(command: &DeviceCommand) -> String {
    match command {
        DeviceCommand::Prefill { request, destination } => format!("prefill {}, {destination:?}", request.sequence),
        DeviceCommand::UseLease { sequence, lease } => format!("push {sequence} under {}", lease.lease),
        DeviceCommand::Reserve { lease, request } => format!("reserve {lease} for {}", request.sequence),
        DeviceCommand::Commit { lease, first_token, .. } => format!("commit {lease}, first token {first_token}"),
        DeviceCommand::Release { lease } => format!("release {lease}"),
        DeviceCommand::Abort { sequence } => format!("abort {sequence}"),
        DeviceCommand::AbortAll { role } => format!("abort all of {role:?}"),
        DeviceCommand::AbortGateway { gateway } => format!("abort all of gateway {gateway}"),
        DeviceCommand::TellPrefixes => "tell all prefixes".to_owned(),
        DeviceCommand::Drain { .. } => "drain".to_owned(),
    }
}

fn tokens(events: &[(SequenceId, StreamEvent)]) -> String {
    let text = |(sequence, event): &(SequenceId, StreamEvent)| match event {
        StreamEvent::Token { index, token, .. } => format!("{sequence} token {index} is {token}"),
        StreamEvent::PromptLogprobs { first, logprobs } => {
            format!("{sequence} log-probabilities of {} prompt tokens from {first} on", logprobs.len())
        }
        StreamEvent::Prefilled { cached_tokens } => format!("{sequence} prefilled, {cached_tokens} from the cache"),
        StreamEvent::Finished { reason, usage } => {
            format!("{sequence} finished by {reason:?} after {}", usage.completion_tokens)
        }
        StreamEvent::Failed(error) => format!("{sequence} failed: {error}"),
    };
    events.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn blocks(frame: &Frame) -> String {
    let Frame { sequence, lease, layer, first_block, blocks, .. } = frame;
    format!("layer {} of {sequence}, {} blocks from {first_block} on, under {lease},", layer.0, blocks.len())
}
