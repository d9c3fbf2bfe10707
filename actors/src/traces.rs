//! A request's way through the cluster as spans: one for each hop, below the one that the request came with.
//!
//! `gateway` (the whole of a sequence) is the parent of `route`, `queue`, `prefill`, `land`, `push` and `decode`. They are of level `debug`, made
//! a handful of times for a sequence and never for a token; switched off they cost a look at the level. Each lies with what it tells of (a
//! stream, a route, a lease, an engine's sequence) and closes with it.

mod recent_spans;
mod request_trace;
mod span_ids;

use std::collections::HashMap;
use std::sync::Arc;

use dashmap::DashMap;
use relevo_wire::{DeviceId, GenerateRequest, RequestId, SequenceId};
use tracing::Span;
use tracing::field::Empty;

pub(crate) use recent_spans::MAX_SPANS_OF_ONE;
pub use recent_spans::{ClosedSpan, FieldValue, MAX_REQUESTS, RecentSpans};
pub use request_trace::{AskedNode, NodeSpans, PlacedSpan, RequestTrace};
pub(crate) use request_trace::{ClockReading, place};
pub use span_ids::{SpanIds, SpanPlace};

use crate::device::DeviceEvent;

/// The spans of the streams that are kept; cheap to clone. Those who work for a sequence hang theirs below.
#[derive(Clone, Debug, Default)]
pub struct Traces(Arc<DashMap<(RequestId, u32), Arc<Trace>>>);

/// A sequence's `gateway` span, and the one that it came with.
#[derive(Debug)]
struct Trace {
    request: Span,
    gateway: Span,
}

/// A span for one hop of a sequence.
///
/// It closes with its last clone, and within its parent: the JSON log gives as a span's ancestors those that are entered, and no others.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    trace: Option<Arc<Trace>>,
    span: Span,
}

impl Traces {
    /// A stream is taken in, on behalf of `parent`.
    pub(crate) fn begin(&self, parent: Span, request: &GenerateRequest) {
        let sequence = request.sequence;
        let gateway = tracing::debug_span!(
            parent: &parent,
            "gateway",
            %sequence,
            prompt_tokens = request.prompt.len(),
            max_tokens = request.max_tokens,
            finish = Empty,
            tokens = Empty,
        );
        if !gateway.is_disabled() {
            self.0.insert((sequence.request, sequence.choice), Arc::new(Trace { request: parent, gateway }));
        }
    }

    /// A hop of the stream, as a span below the one given.
    pub(crate) fn hop(&self, sequence: SequenceId, span: impl FnOnce(&Span) -> Span) -> Hop {
        let trace = self.of(sequence);
        let parent = trace.as_ref().map_or_else(Span::none, |trace| trace.gateway.clone());
        let span = span(&parent);
        Hop { trace, span }
    }

    /// Says something of the stream.
    pub(crate) fn say(&self, sequence: SequenceId, say: impl FnOnce()) {
        match self.of(sequence) {
            Some(trace) => trace.gateway.in_scope(say),
            None => say(),
        }
    }

    /// The stream is over: why, and after how many tokens.
    pub(crate) fn end(&self, sequence: SequenceId, finish: &str, num_tokens: usize) {
        if let Some((_, trace)) = self.0.remove(&(sequence.request, sequence.choice)) {
            trace.gateway.record("finish", finish).record("tokens", num_tokens);
        }
    }

    fn of(&self, sequence: SequenceId) -> Option<Arc<Trace>> {
        self.0.get(&(sequence.request, sequence.choice)).map(|trace| Arc::clone(&trace))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let gateway = std::mem::replace(&mut self.gateway, Span::none());
        self.request.in_scope(|| drop(gateway));
    }
}

impl Hop {
    /// Nothing is traced.
    pub(crate) fn none() -> Self {
        Self { trace: None, span: Span::none() }
    }

    /// Its span, to be entered.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        let span = std::mem::replace(&mut self.span, Span::none());
        if let Some(trace) = &self.trace {
            trace.gateway.in_scope(|| drop(span));
        }
    }
}

/// The hops of the sequences on one engine.
///
/// **Invariant:** it holds a span only of sequences that the engine has; each goes with [`DeviceEvent::Ended`].
#[derive(Debug)]
pub(crate) struct EngineHops {
    device: DeviceId,
    traces: Traces,
    open: HashMap<SequenceId, (Stage, Hop)>,
    /// Of these, how many wait for their first chunk.
    num_queued: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// From the order to its first chunk.
    Queue,
    /// From there until the context is computed and the first token drawn.
    Prefill,
    /// From the hand-over to the end.
    Decode,
}

impl EngineHops {
    pub(crate) fn new(device: DeviceId, traces: Traces) -> Self {
        Self { device, traces, open: HashMap::new(), num_queued: 0 }
    }

    /// The engine was told to prefill it.
    pub(crate) fn queued(&mut self, sequence: SequenceId) {
        if is_on() && !self.open.contains_key(&sequence) {
            self.enter(sequence, Stage::Queue);
        }
    }

    /// Rows of these sequences' prompts are in the step that begins: whoever waited is prefilled now. Without any, a step costs nothing.
    pub(crate) fn prefilling(&mut self, sequences: impl Iterator<Item = SequenceId>) {
        if self.num_queued == 0 {
            return;
        }
        for sequence in sequences {
            if matches!(self.open.get(&sequence), Some((Stage::Queue, _))) {
                self.enter(sequence, Stage::Prefill);
            }
        }
    }

    /// It came with its blocks, and decodes.
    pub(crate) fn committed(&mut self, sequence: SequenceId) {
        if is_on() {
            self.enter(sequence, Stage::Decode);
        }
    }

    /// The engine tells of it.
    pub(crate) fn told(&mut self, event: &DeviceEvent) {
        match event {
            DeviceEvent::HandedOver { sequence, .. } if is_on() => self.enter(*sequence, Stage::Decode),
            DeviceEvent::Ended { sequence, .. } => self.leave(*sequence),
            _ => {}
        }
    }

    /// The hop before, if there is one, is left first.
    fn enter(&mut self, sequence: SequenceId, stage: Stage) {
        self.leave(sequence);
        let device = self.device;
        let hop = self.traces.hop(sequence, |parent| match stage {
            Stage::Queue => tracing::debug_span!(parent: parent, "queue", %sequence, %device),
            Stage::Prefill => tracing::debug_span!(parent: parent, "prefill", %sequence, %device),
            Stage::Decode => tracing::debug_span!(parent: parent, "decode", %sequence, %device),
        });
        self.num_queued += usize::from(stage == Stage::Queue);
        self.open.insert(sequence, (stage, hop));
    }

    fn leave(&mut self, sequence: SequenceId) {
        if let Some((stage, _)) = self.open.remove(&sequence) {
            self.num_queued -= usize::from(stage == Stage::Queue);
        }
    }
}

fn is_on() -> bool {
    tracing::span_enabled!(tracing::Level::DEBUG, sequence)
}

#[cfg(test)]
mod tests {
    use relevo_wire::{SamplingParams, TenantId};

    use super::*;

    #[test]
    fn nothing_is_kept_while_nobody_listens() {
        let sequence = SequenceId { request: RequestId(1), choice: 0, attempt: 0 };
        let request = GenerateRequest {
            sequence,
            tenant: TenantId(0),
            prompt: Arc::from([1]),
            generated: Vec::new(),
            sampling: SamplingParams::default(),
            stop_ids: Arc::from([]),
            max_tokens: 1,
            top_logprobs: None,
            prompt_logprobs: None,
            priority: 0,
            deadline: None,
        };
        let traces = Traces::default();
        traces.begin(Span::current(), &request);
        let mut hops = EngineHops::new(DeviceId(0), traces.clone());
        hops.queued(sequence);
        hops.prefilling([sequence].into_iter());
        hops.committed(sequence);
        hops.told(&DeviceEvent::HandedOver { sequence, num_blocks: 1 });
        assert!(traces.0.is_empty() && hops.open.is_empty());
    }
}
