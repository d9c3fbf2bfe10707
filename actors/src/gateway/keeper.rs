//! The live streams: what the gateway must not lose when an actor dies.
//!
//! The table outlives every actor. Whoever learns of something (a token, a loss, a refusal) calls in directly, so that the news cannot be
//! lost in the mailbox of one that is being restarted; what follows from it is decided by the stream's [`StreamCore`].
//!
//! **Invariant:** no guard of the table is held while anything is sent to an actor or a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use relevo_wire::{DeviceId, GenerateRequest, NodeId, RequestError, RequestId, SequenceId, StreamEvent};
use tokio::sync::{Notify, mpsc};
use tracing::field::{Empty, display};

use super::core::{Afterwards, Loss, Phase, StreamCore, Verdict, accused};
use super::handle::{STREAM_CAPACITY, Submission};
use super::paces::{BatchPaces, PaceBook};
use super::placement::Placement;
use super::stream_metrics::{StreamEnd, StreamMetrics};
use crate::clock;
use crate::cluster::{Directory, Fill, fill_of};
use crate::device::{DeviceRole, TokenBatch};
use crate::policy::pace::Gaps;
use crate::router::RouterMessage;
use crate::traces::{Hop, Traces};

/// A stream's name over all its attempts: the request, and the choice.
type StreamKey = (RequestId, u32);

/// Every live stream of this gateway.
pub(crate) struct Keeper {
    streams: DashMap<StreamKey, Live>,
    num_live: AtomicUsize,
    max_live: usize,
    is_closing: AtomicBool,
    emptied: Notify,
    metrics: StreamMetrics,
    paces: PaceBook,
}

struct Live {
    core: StreamCore,
    events: mpsc::Sender<StreamEvent>,
    placement: Option<Placement>,
    /// Open while it waits for the router's decision.
    route: Hop,
}

/// A stream as a new router is told of it.
pub(crate) struct Kept {
    pub(crate) request: Arc<GenerateRequest>,
    pub(crate) placement: Option<Placement>,
    pub(crate) started: bool,
    pub(crate) suspect: bool,
}

/// What is to be done for a stream once its guard is dropped.
enum Chore {
    /// It is over and out of the table; its workers may still have it.
    Ended { sequence: SequenceId, abort: Option<Placement> },
    /// Its next attempt goes to the router.
    Replay { old: SequenceId, abort: Option<Placement>, request: Arc<GenerateRequest>, suspect: bool },
    /// Its attempt does not go on.
    Lost(SequenceId),
}

impl Keeper {
    /// Keeps at most `max_live` streams.
    pub(crate) fn new(max_live: usize) -> Self {
        Self {
            streams: DashMap::new(),
            num_live: AtomicUsize::new(0),
            max_live,
            is_closing: AtomicBool::new(false),
            emptied: Notify::new(),
            metrics: StreamMetrics::new(),
            paces: PaceBook::default(),
        }
    }

    /// Live streams, and how many there may be.
    pub(crate) fn depth(&self) -> Fill {
        (self.num_live.load(Ordering::Relaxed), self.max_live)
    }

    /// Events that the stream whose reader lags most has waiting, and how many it may.
    pub(crate) fn fullest_stream(&self) -> Fill {
        self.streams.iter().map(|live| fill_of(&live.events)).max().unwrap_or((0, STREAM_CAPACITY))
    }

    /// Takes a stream in and sends it to the router.
    pub(crate) fn admit(&self, directory: &Directory, submission: Submission) {
        let Submission { request, events, span } = submission;
        let request_for_router = Arc::new(request.clone());
        let refusal = if self.is_closing.load(Ordering::Acquire) {
            Some(RequestError::ShuttingDown)
        } else {
            self.insert(request, &events, |request| {
                directory.traces.begin(span, request);
                route_hop(&directory.traces, request.sequence)
            })
        };
        if let Some(error) = refusal {
            self.metrics.refused();
            // The channel is fresh: there is room, or nobody is there.
            let _ = events.try_send(StreamEvent::Failed(error));
            return;
        }
        submit(directory, request_for_router, false, false);
    }

    fn insert(
        &self,
        request: GenerateRequest,
        events: &mpsc::Sender<StreamEvent>,
        begin_trace: impl FnOnce(&GenerateRequest) -> Hop,
    ) -> Option<RequestError> {
        let num_live = self.num_live.fetch_add(1, Ordering::AcqRel);
        let full = || RequestError::QueueFull {
            num_waiting: num_live,
            limit: self.max_live,
            retry_after: Duration::from_secs(1),
        };
        if num_live >= self.max_live {
            self.num_live.fetch_sub(1, Ordering::AcqRel);
            return Some(full());
        }
        match self.streams.entry((request.sequence.request, request.sequence.choice)) {
            Entry::Vacant(entry) => {
                // Before anybody can see the stream, and end it.
                let route = begin_trace(&request);
                let core = StreamCore::new(request, clock::now());
                entry.insert(Live { core, events: events.clone(), placement: None, route });
                None
            }
            Entry::Occupied(_) => {
                tracing::error!(sequence = %request.sequence, "two live streams of one name: the request id was used twice");
                self.num_live.fetch_sub(1, Ordering::AcqRel);
                Some(full())
            }
        }
    }

    /// The router has found workers for it; `false` if it is gone, or this attempt is.
    pub(crate) fn placed(&self, sequence: SequenceId, placement: Placement) -> bool {
        let Some(mut live) = self.streams.get_mut(&key(sequence)) else { return false };
        if live.core.sequence() != sequence {
            return false;
        }
        live.placement = Some(placement);
        let route = std::mem::replace(&mut live.route, Hop::none());
        route.span().record("prefill", display(placement.prefill)).record("decode", display(placement.decode));
        live.core.dispatched(clock::now());
        true
    }

    /// Nobody was there to take it: the next router, should this one die, must place it again.
    pub(crate) fn undelivered(&self, sequence: SequenceId) {
        let live = self.streams.get_mut(&key(sequence)).filter(|live| live.core.sequence() == sequence);
        if let Some(mut live) = live {
            live.placement = None;
        }
    }

    /// What came out of a step of a node's device. What it says of sequences that are with others now is passed over.
    pub(crate) fn deliver(&self, directory: &Directory, batch: TokenBatch, from: NodeId) {
        let now = clock::now();
        let (mut emit, mut paces) = (Vec::new(), BatchPaces::default());
        for (sequence, event) in batch.events {
            let live = self.streams.get_mut(&key(sequence)).filter(|live| live.may_come_from(sequence, from));
            let chore = live.and_then(|mut live| {
                let (previous, decoded) = (live.core.times().last_token(), live.core.decoded());
                let verdict = live.core.handle(sequence.attempt, event, now, &mut emit);
                if let (Some(gaps), Some(placement)) = (live.core.gaps_since(decoded, now), live.placement) {
                    paces.add(placement.decode, gaps, &self.paces);
                }
                self.metrics.emitted(live.core.times(), previous, now, &emit);
                let is_read = live.send(&mut emit);
                self.after(directory, &mut live, (sequence, verdict), is_read)
            });
            if let Some(chore) = chore {
                self.carry_out(directory, chore);
            }
        }
        self.paces.enter(paces);
    }

    /// The pauses between the tokens of each decode device since this was last asked.
    pub(crate) fn take_paces(&self) -> Vec<(DeviceId, Gaps)> {
        self.paces.take()
    }

    fn after(
        &self,
        directory: &Directory,
        live: &mut Live,
        (sequence, verdict): (SequenceId, Verdict),
        is_read: bool,
    ) -> Option<Chore> {
        match verdict {
            Verdict::Over => return Some(Chore::Ended { sequence, abort: None }),
            Verdict::Lost => return Some(Chore::Lost(sequence)),
            Verdict::Contradicted => {
                let say = || tracing::error!(%sequence, "a worker repeated a token differently");
                directory.traces.say(sequence, say);
                self.metrics.contradicted();
            }
            Verdict::Continues | Verdict::Started => {}
        }
        (!is_read).then(|| {
            live.core.abandon(clock::now());
            Chore::Ended { sequence: live.core.sequence(), abort: live.placement }
        })
    }

    /// This attempt cannot go on where it is.
    pub(crate) fn lost(&self, directory: &Directory, sequence: SequenceId, loss: Loss) {
        let chore = self.streams.get_mut(&key(sequence)).and_then(|mut live| {
            let abort = live.placement;
            match live.core.lost(sequence, loss) {
                Afterwards::Nothing => None,
                Afterwards::Replay { request, suspect } => {
                    live.placement = None;
                    live.route = route_hop(&directory.traces, request.sequence);
                    Some(Chore::Replay { old: sequence, abort, request, suspect })
                }
                Afterwards::Fail(error) => {
                    live.fail(error);
                    Some(Chore::Ended { sequence, abort })
                }
            }
        });
        if let Some(chore) = chore {
            self.carry_out(directory, chore);
        }
    }

    /// The router, or nobody, will serve it.
    pub(crate) fn reject(&self, directory: &Directory, sequence: SequenceId, error: RequestError) {
        let chore = self.streams.get_mut(&key(sequence)).filter(|live| live.core.sequence() == sequence);
        let chore = chore.map(|mut live| {
            live.fail(error);
            Chore::Ended { sequence, abort: live.placement }
        });
        if let Some(chore) = chore {
            self.carry_out(directory, chore);
        }
    }

    /// A device's pool is gone with everything on it. `stepping`: the sequences of its last step, if that is what killed it.
    pub(crate) fn device_lost(&self, directory: &Directory, device: DeviceId, stepping: &[SequenceId]) {
        let suspects = stepping.iter().filter_map(|&sequence| {
            let live = self.streams.get(&key(sequence))?;
            (live.core.sequence() == sequence).then(|| (sequence, live.core.is_on_trial()))
        });
        let suspects: Vec<_> = suspects.collect();
        let accused = accused(suspects.iter().copied());
        let lost = self.select_placed(|placement, phase| placement.needs_pool(phase, device));
        for sequence in lost {
            let loss = if accused.contains(&sequence) { Loss::Stepping } else { Loss::Elsewhere };
            self.lost(directory, sequence, loss);
        }
    }

    /// A node cannot be reached any more: whatever of its devices a sequence needs is gone for it.
    pub(crate) fn node_lost(&self, directory: &Directory, node: NodeId) {
        let needs = |placement: Placement, phase| placement.needs_node(phase, node);
        for sequence in self.select_placed(needs) {
            self.lost(directory, sequence, Loss::Elsewhere);
        }
    }

    /// Whether this attempt is with a device of that node.
    pub(crate) fn is_with(&self, sequence: SequenceId, node: NodeId) -> bool {
        self.streams.get(&key(sequence)).is_some_and(|live| {
            live.core.sequence() == sequence && live.placement.is_some_and(|placement| placement.is_on(node))
        })
    }

    /// A role's actor died, and the engine has let go of what it owned.
    pub(crate) fn role_lost(&self, directory: &Directory, device: DeviceId, role: DeviceRole) {
        let lost = self.select_placed(|placement, phase| placement.needs_actor(phase, device, role));
        for sequence in lost {
            self.lost(directory, sequence, Loss::Elsewhere);
        }
    }

    /// Everything on this device and decoding, or under way to it.
    pub(crate) fn running_on(&self, device: DeviceId) -> Vec<SequenceId> {
        self.select_placed(|placement, phase| placement.steps_on(phase, device))
    }

    /// Whether it has to prove itself alone.
    pub(crate) fn is_on_trial(&self, sequence: SequenceId) -> bool {
        self.streams.get(&key(sequence)).is_some_and(|live| live.core.is_on_trial())
    }

    /// What time alone brings about: deadlines that have passed, readers that have gone without a token showing it.
    pub(crate) fn sweep(&self, directory: &Directory) {
        let now = clock::now();
        for sequence in self.select(|live| live.events.is_closed()) {
            self.abandon(directory, sequence);
        }
        for sequence in self.select(|live| live.core.is_late(now)) {
            self.reject(directory, sequence, RequestError::DeadlineExceeded);
        }
    }

    fn abandon(&self, directory: &Directory, sequence: SequenceId) {
        let chore = self.streams.get_mut(&key(sequence)).map(|mut live| {
            live.core.abandon(clock::now());
            Chore::Ended { sequence: live.core.sequence(), abort: live.placement }
        });
        if let Some(chore) = chore {
            self.carry_out(directory, chore);
        }
    }

    /// As if every reader had gone.
    pub(crate) fn abandon_all(&self, directory: &Directory) {
        self.select(|_| true).into_iter().for_each(|sequence| self.abandon(directory, sequence));
    }

    /// All streams, for a router that has just begun.
    pub(crate) fn snapshot(&self) -> Vec<Kept> {
        let mut kept: Vec<_> = self.streams.iter().map(|live| live.keep()).collect();
        kept.sort_by_key(|kept| kept.request.sequence);
        kept
    }

    /// Takes nothing new from here on.
    pub(crate) fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
    }

    /// Waits until no stream is left, at most for `patience`; the rest fail with `ShuttingDown`.
    pub(crate) async fn drain(&self, directory: &Directory, patience: Duration) {
        let emptied = async {
            loop {
                let emptied = self.emptied.notified();
                if self.num_live.load(Ordering::Acquire) == 0 {
                    return;
                }
                emptied.await;
            }
        };
        let _ = tokio::time::timeout(patience, emptied).await;
        for sequence in self.select(|_| true) {
            self.reject(directory, sequence, RequestError::ShuttingDown);
        }
    }

    /// The present attempts of those who have workers, where these and the phase match.
    fn select_placed(&self, matches: impl Fn(Placement, Phase) -> bool) -> Vec<SequenceId> {
        self.select(|live| live.placement.is_some_and(|placement| matches(placement, live.core.phase())))
    }

    /// The present attempts of the streams that match, in order, so that what follows does not depend on the table's.
    fn select(&self, matches: impl Fn(&Live) -> bool) -> Vec<SequenceId> {
        let mut found: Vec<_> =
            self.streams.iter().filter(|live| matches(live)).map(|live| live.core.sequence()).collect();
        found.sort_unstable();
        found
    }

    fn carry_out(&self, directory: &Directory, chore: Chore) {
        match chore {
            Chore::Lost(sequence) => self.lost(directory, sequence, Loss::Elsewhere),
            Chore::Ended { sequence, abort } => {
                if let Some((_, live)) = self.streams.remove(&key(sequence)) {
                    self.metrics.ended(&live.core, live.end());
                    directory.traces.end(sequence, live.end().label(), live.core.request().generated.len());
                    if self.num_live.fetch_sub(1, Ordering::AcqRel) == 1 {
                        self.emptied.notify_waiters();
                    }
                }
                abort_everywhere(directory, sequence, abort);
                let _ = directory.router.cast(RouterMessage::Ended(sequence));
            }
            Chore::Replay { old, abort, request, suspect } => {
                let generated = request.generated.len();
                let say = || tracing::warn!(sequence = %old, generated, suspect, "lost its worker, is replayed");
                directory.traces.say(old, say);
                self.metrics.replayed();
                abort_everywhere(directory, old, abort);
                let _ = directory.router.cast(RouterMessage::Ended(old));
                submit(directory, request, true, suspect);
            }
        }
    }
}

impl Live {
    /// Whether `node` may speak of this attempt: of an older one, or of one that is placed nowhere, anybody may, and nothing comes of it.
    fn may_come_from(&self, sequence: SequenceId, node: NodeId) -> bool {
        sequence != self.core.sequence() || self.placement.is_none_or(|placement| placement.is_on(node))
    }

    /// Sends and empties `emit`; `false` if nobody reads, or reads too slowly.
    fn send(&self, emit: &mut Vec<StreamEvent>) -> bool {
        let mut is_read = true;
        for event in emit.drain(..) {
            is_read &= self.events.try_send(event).is_ok();
        }
        is_read
    }

    fn fail(&mut self, error: RequestError) {
        let mut emit = Vec::new();
        self.core.fail(error, clock::now(), &mut emit);
        self.send(&mut emit);
    }

    fn keep(&self) -> Kept {
        Kept {
            request: Arc::new(self.core.request().clone()),
            placement: self.placement.filter(|_| self.core.phase() != Phase::Queued),
            started: matches!(self.core.phase(), Phase::HandingOver | Phase::Decoding),
            suspect: self.core.is_on_trial(),
        }
    }

    fn end(&self) -> StreamEnd {
        self.core.end().map_or(StreamEnd::Aborted, StreamEnd::from)
    }
}

fn route_hop(traces: &Traces, sequence: SequenceId) -> Hop {
    traces.hop(
        sequence,
        |parent| tracing::debug_span!(parent: parent, "route", %sequence, prefill = Empty, decode = Empty),
    )
}

fn key(sequence: SequenceId) -> StreamKey {
    (sequence.request, sequence.choice)
}

/// A router that is not there will ask for all streams when it is back.
fn submit(directory: &Directory, request: Arc<GenerateRequest>, admitted: bool, suspect: bool) {
    let _ = directory.router.cast(RouterMessage::Submit { request, admitted, suspect });
}

fn abort_everywhere(directory: &Directory, sequence: SequenceId, placement: Option<Placement>) {
    let Some(Placement { prefill, decode }) = placement else { return };
    for device in std::collections::BTreeSet::from([prefill, decode]) {
        directory.abort(device, sequence);
    }
}
