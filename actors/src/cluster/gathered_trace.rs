//! A request's spans, gathered from all nodes.

use std::sync::Arc;
use std::time::Duration;

use relevo_wire::{ControlMessage, ControlReply, NodeEntry, NodeId, RequestId};
use tokio::task::JoinSet;

use super::directory::Directory;
use crate::clock;
use crate::traces::{
    AskedNode, ClockReading, ClosedSpan, FieldValue, MAX_SPANS_OF_ONE, NodeSpans, PlacedSpan, RequestTrace, place,
};

/// How long another node may take to tell what it has done for a request.
const PATIENCE: Duration = Duration::from_millis(500);

/// The trace of the request that a client or the cluster knows by this name; none if nothing is kept of one, or another gateway has minted it.
pub(super) async fn trace(directory: &Arc<Directory>, name: &str) -> Option<RequestTrace> {
    let request = directory.spans.find(name).or_else(|| name.parse().ok())?;
    if request.gateway() != directory.node {
        return None;
    }
    let (mut nodes, mut told) = (Vec::new(), Vec::new());
    let here = directory.spans.of(request);
    nodes.push(ClockReading::default().tell(directory.name.clone()));
    told.push((directory.name.clone(), ClockReading::default(), here));
    for (name, answer) in others(directory, request).await {
        match answer {
            Some((clock, spans)) => {
                nodes.push(clock.tell(name.clone()));
                told.push((name, clock, spans));
            }
            None => nodes.push(AskedNode { name, ..AskedNode::default() }),
        }
    }
    let mut spans = place(told);
    name_nodes(&mut spans, &directory.map().nodes);
    let trace_id = directory.span_ids.trace_id(request, directory.spans.context(request));
    let trace = RequestTrace { request: request.to_string(), trace_id: format!("{trace_id:032x}"), nodes, spans };
    // One that has just begun has no spans yet, but a name.
    (!trace.spans.is_empty() || directory.spans.find(name) == Some(request)).then_some(trace)
}

/// Calls nodes by their names where a span speaks of others' devices.
fn name_nodes(spans: &mut [PlacedSpan], nodes: &[NodeEntry]) {
    for value in spans.iter_mut().flat_map(|span| span.fields.values_mut()) {
        let FieldValue::Text(text) = value else { continue };
        let device = text.split_once('@').filter(|(device, _)| device.starts_with("device-"));
        let named = device.and_then(|(device, number)| {
            let node = nodes.iter().find(|entry| entry.node.to_string() == number)?;
            Some(format!("{} {device}", node.name))
        });
        if let Some(named) = named {
            *text = named;
        }
    }
}

/// The other nodes of the map, by name, with what each says, if it does.
async fn others(
    directory: &Arc<Directory>,
    request: RequestId,
) -> Vec<(String, Option<(ClockReading, Vec<ClosedSpan>)>)> {
    let mut asking = JoinSet::new();
    for entry in directory.map().nodes.iter().filter(|entry| entry.node != directory.node) {
        let (directory, node, name) = (Arc::clone(directory), entry.node, entry.name.clone());
        asking.spawn(async move { (name, ask(&directory, node, request).await) });
    }
    let mut answers = asking.join_all().await;
    answers.sort_by(|(one, _), (other, _)| one.cmp(other));
    answers
}

async fn ask(directory: &Directory, node: NodeId, request: RequestId) -> Option<(ClockReading, Vec<ClosedSpan>)> {
    let (asked, began) = (directory.spans.unix_ns(), clock::now());
    let answer = directory.peers.ask(node, &ControlMessage::AskTrace(request), PATIENCE).await;
    let round_trip = u64::try_from(clock::now().since(began).as_nanos()).unwrap_or(u64::MAX);
    let Ok(ControlReply::Trace(json)) = answer else { return None };
    let NodeSpans { unix_ns, mut spans } = serde_json::from_str(&json).ok()?;
    // What a node says of others' matters is not taken over.
    spans.retain(|span| span.sequence.request == request);
    spans.truncate(MAX_SPANS_OF_ONE);
    Some((ClockReading::of_answer(asked, unix_ns, round_trip), spans))
}

impl Directory {
    /// What this process keeps of a request.
    pub(crate) fn spans_of(&self, request: RequestId) -> NodeSpans {
        NodeSpans { unix_ns: self.spans.unix_ns(), spans: self.spans.of(request) }
    }
}
