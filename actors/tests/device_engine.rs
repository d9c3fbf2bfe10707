//! The engine thread over its channels: what it delivers, how it stops, and what a fault leaves behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "the hands of tests, outside their functions")]

mod device_rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use device_rig::{limits, options, prompt, reference, request};
use relevo_actors::clock;
use relevo_actors::device::{
    Destination, DeviceCommand, DeviceEvent, EngineExit, EnginePorts, EngineStats, GrantedLease, SequenceOutcome,
    TokenBatch, start_engine,
};
use relevo_actors::traces::Traces;
use relevo_gpu::compute::{ComputeError, RowOutput, StepPlan};
use relevo_gpu::model::{Fault, KvMemory, Progress, ScriptedModel, StepModel};
use relevo_wire::{DeviceId, Epoch, GenerateRequest, KvLayout, LayerIndex, LeaseId, StreamEvent, TokenId};
use tokio::sync::{mpsc, oneshot, watch};

/// Nothing here takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

struct Hands {
    commands: mpsc::Sender<DeviceCommand>,
    events: mpsc::Receiver<DeviceEvent>,
    tokens: mpsc::Receiver<TokenBatch>,
    progress: Arc<AtomicU64>,
    stats: watch::Receiver<EngineStats>,
    exited: oneshot::Receiver<EngineExit>,
    thread: JoinHandle<()>,
}

fn start(model: Box<dyn StepModel>, epoch: u64, token_capacity: usize) -> Hands {
    let (commands, command_receiver) = mpsc::channel(64);
    let (event_sender, events) = mpsc::channel(64);
    let (token_sender, tokens) = mpsc::channel(token_capacity);
    let (stats_sender, stats) = watch::channel(EngineStats::default());
    let (started, _) = oneshot::channel();
    let (exit_sender, exited) = oneshot::channel();
    let progress = Arc::new(AtomicU64::new(0));
    let limits = limits(&ScriptedModel::new(options(model.kv_memory().num_blocks())));
    let ports = EnginePorts {
        device: DeviceId(0),
        epoch: Epoch(epoch),
        model,
        started,
        commands: command_receiver,
        events: event_sender,
        tokens: token_sender,
        progress: progress.clone(),
        stats: stats_sender,
        traces: Traces::default(),
        exited: exit_sender,
    };
    let thread = start_engine(ports, limits).unwrap();
    Hands { commands, events, tokens, progress, stats, exited, thread }
}

fn scripted() -> Box<dyn StepModel> {
    Box::new(ScriptedModel::new(options(64)))
}

impl Hands {
    fn prefill(&self, request: &GenerateRequest, destination: Destination) {
        self.order(DeviceCommand::Prefill { request: Arc::new(request.clone()), destination });
    }

    fn order(&self, command: DeviceCommand) {
        self.commands.try_send(command).unwrap();
    }

    /// The tokens of the only sequence, up to its last event.
    async fn stream(&mut self) -> Vec<TokenId> {
        let mut drawn = Vec::new();
        loop {
            let batch = patiently(self.tokens.recv()).await.unwrap();
            for (_, event) in batch.events {
                match event {
                    StreamEvent::Token { token, .. } => drawn.push(token),
                    StreamEvent::Prefilled { .. } => {}
                    StreamEvent::Finished { .. } => return drawn,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// The next event of a sequence or lease.
    async fn event(&mut self) -> DeviceEvent {
        loop {
            match patiently(self.events.recv()).await.unwrap() {
                DeviceEvent::PrefixChanged { .. } => {}
                event => return event,
            }
        }
    }

    async fn exit(self) -> Option<Box<dyn StepModel>> {
        let exit = patiently(self.exited).await.unwrap();
        self.thread.join().unwrap();
        exit.model
    }
}

async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap()
}

#[tokio::test]
async fn a_request_comes_back_as_its_tokens() {
    let mut hands = start(scripted(), 0, 64);
    let request = request(1, &prompt(1, 70), 25);
    hands.prefill(&request, Destination::SamePool);
    assert_eq!(hands.stream().await, reference(&request));
    assert!(matches!(hands.event().await, DeviceEvent::PrefillFinished { continues: true, .. }));
    assert!(matches!(hands.event().await, DeviceEvent::HandedOver { num_blocks: 5, .. }));
    assert!(matches!(hands.event().await, DeviceEvent::Ended { outcome: SequenceOutcome::Finished, .. }));
    assert!(hands.progress.load(Ordering::Relaxed) >= 2 * 26, "a count for each layer of each step");
    patiently(hands.stats.wait_for(|stats| stats.steps >= 26 && !stats.busy)).await.unwrap();
}

#[tokio::test]
async fn a_reader_who_lags_loses_nothing() {
    let mut hands = start(scripted(), 0, 1);
    let request = request(1, &prompt(1, 20), 200);
    hands.prefill(&request, Destination::SamePool);
    // The engine fills its channel and its outbox while nobody reads.
    patiently(hands.stats.wait_for(|stats| stats.steps > 20)).await.unwrap();
    assert_eq!(hands.stream().await, reference(&request));
}

#[tokio::test]
async fn a_panic_in_a_step_is_a_fault_and_the_next_epoch_serves_again() {
    let model = ScriptedModel::new(options(64)).with_hook(Box::new(|step, _| match step {
        3 => Fault::Panic(LayerIndex(1)),
        _ => Fault::None,
    }));
    let mut hands = start(Box::new(model), 7, 64);
    let request = request(1, &prompt(1, 20), 9);
    hands.prefill(&request, Destination::SamePool);
    let faulted = loop {
        match hands.event().await {
            DeviceEvent::Faulted { epoch, stepping, reason } => break (epoch, stepping, reason),
            DeviceEvent::Ended { .. } => panic!("it ended before the fault"),
            _ => {}
        }
    };
    assert_eq!((faulted.0, faulted.1), (Epoch(7), vec![request.sequence]));
    assert!(faulted.2.contains("scripted panic in layer 1"), "{}", faulted.2);
    let model = hands.exit().await.unwrap();
    let mut next = start(model, 8, 64);
    next.prefill(&request, Destination::SamePool);
    assert_eq!(next.stream().await, reference(&request));
}

#[tokio::test]
async fn a_device_error_is_a_fault() {
    let model = ScriptedModel::new(options(64)).with_hook(Box::new(|_, _| Fault::Fail(LayerIndex(0))));
    let mut hands = start(Box::new(model), 1, 64);
    hands.prefill(&request(1, &prompt(1, 20), 9), Destination::SamePool);
    assert!(matches!(hands.event().await, DeviceEvent::Faulted { .. }));
    assert!(hands.exit().await.is_some());
}

#[tokio::test]
async fn a_drained_engine_stops_after_its_last_sequence() {
    let mut hands = start(scripted(), 0, 64);
    let request = request(1, &prompt(1, 20), 9);
    hands.prefill(&request, Destination::SamePool);
    hands.order(DeviceCommand::Drain { deadline: clock::now() + PATIENCE });
    assert_eq!(hands.stream().await, reference(&request));
    while !matches!(hands.event().await, DeviceEvent::Stopped) {}
    assert!(hands.exit().await.is_some());
}

#[tokio::test]
async fn an_engine_without_commanders_stops() {
    let Hands { commands, exited, thread, .. } = start(scripted(), 0, 64);
    drop(commands);
    assert!(patiently(exited).await.unwrap().model.is_some());
    thread.join().unwrap();
}

#[tokio::test]
async fn blocks_stay_pinned_while_their_bytes_live() {
    let mut hands = start(scripted(), 0, 64);
    let request = request(1, &prompt(1, 40), 9);
    hands.prefill(&request, Destination::Remote);
    assert!(matches!(hands.event().await, DeviceEvent::LeaseWanted { .. }));
    let lease = GrantedLease { lease: LeaseId(4), epoch: Epoch(2), blocks: Vec::new(), num_present: 0 };
    hands.order(DeviceCommand::UseLease { sequence: request.sequence, lease });
    let mut in_flight = Vec::new();
    let mut layers = Vec::new();
    loop {
        match hands.event().await {
            DeviceEvent::LayerReady { lease: LeaseId(4), layer, first_block: 0, blocks, .. } => {
                layers.push(layer);
                in_flight.extend(blocks);
            }
            DeviceEvent::PrefillFinished { continues: true, .. } => {}
            DeviceEvent::Ended { outcome: SequenceOutcome::Pushed, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((layers, in_flight.len()), (vec![LayerIndex(0), LayerIndex(1)], 6));
    patiently(hands.stats.wait_for(|stats| stats.running == 0 && stats.kv_blocks.active == 3)).await.unwrap();
    let slice = in_flight[5].slice(1..2);
    drop(in_flight);
    patiently(hands.stats.wait_for(|stats| stats.kv_blocks.active == 3)).await.unwrap();
    drop(slice);
    patiently(hands.stats.wait_for(|stats| stats.kv_blocks.active == 0)).await.unwrap();
}

/// A model whose every layer but the first waits until it is let through.
struct Gated {
    inner: Box<dyn StepModel>,
    gate: std::sync::mpsc::Receiver<()>,
    num_layers_done: usize,
}

impl StepModel for Gated {
    fn kv_layout(&self) -> KvLayout {
        self.inner.kv_layout()
    }

    fn max_rows(&self) -> usize {
        self.inner.max_rows()
    }

    fn max_outputs(&self) -> usize {
        self.inner.max_outputs()
    }

    fn max_context(&self) -> usize {
        self.inner.max_context()
    }

    fn kv_memory(&self) -> Arc<dyn KvMemory> {
        self.inner.kv_memory()
    }

    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<(), ComputeError> {
        self.inner.begin_step(plan)
    }

    fn advance(&mut self) -> Result<Progress, ComputeError> {
        if self.num_layers_done > 0 {
            self.gate.recv_timeout(PATIENCE).map_err(|error| ComputeError::Device(error.to_string()))?;
        }
        self.num_layers_done += 1;
        self.inner.advance()
    }

    fn finish_step(&mut self) -> Result<Vec<RowOutput>, ComputeError> {
        self.inner.finish_step()
    }

    fn abandon_step(&mut self) {
        self.inner.abandon_step();
    }

    fn reset(&mut self) -> Result<(), ComputeError> {
        self.inner.reset()
    }
}

#[tokio::test]
async fn a_layer_leaves_while_the_next_one_is_computed() {
    let (open, gate) = std::sync::mpsc::sync_channel(2);
    let mut hands = start(Box::new(Gated { inner: scripted(), gate, num_layers_done: 0 }), 0, 64);
    let request = request(1, &prompt(1, 20), 9);
    hands.prefill(&request, Destination::Remote);
    assert!(matches!(hands.event().await, DeviceEvent::LeaseWanted { .. }));
    let lease = GrantedLease { lease: LeaseId(4), epoch: Epoch(2), blocks: Vec::new(), num_present: 0 };
    hands.order(DeviceCommand::UseLease { sequence: request.sequence, lease });
    for expected in 0..2 {
        // The step waits at its next layer, or for its end.
        match hands.event().await {
            DeviceEvent::LayerReady { layer: LayerIndex(layer), .. } => assert_eq!(layer, expected),
            other => panic!("{other:?}"),
        }
        open.send(()).unwrap();
    }
    assert!(matches!(hands.event().await, DeviceEvent::PrefillFinished { .. }));
}
