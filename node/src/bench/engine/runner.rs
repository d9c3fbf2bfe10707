//! Drives an engine over its channels, as a device's supervisor does, and takes the times.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use relevo_actors::clock;
use relevo_actors::device::{
    CoreLimits, Destination, DeviceCommand, DeviceEvent, EnginePorts, EngineStats, TokenBatch, start_engine,
};
use relevo_actors::traces::Traces;
use relevo_gpu::model::StepModel;
use relevo_wire::{DeviceId, Epoch, Instant64, StreamEvent};
use tokio::sync::{mpsc, oneshot, watch};

use super::requests::Requests;
use crate::cli::Failure;

/// Places in each channel; the reader is never far behind.
const CHANNEL_CAPACITY: usize = 1024;

/// An engine and the ends of its channels.
pub(super) struct Runner {
    commands: Option<mpsc::Sender<DeviceCommand>>,
    events: mpsc::Receiver<DeviceEvent>,
    tokens: mpsc::Receiver<TokenBatch>,
    thread: Option<JoinHandle<()>>,
    requests: Requests,
    /// Ends that nobody has waited for yet.
    num_ended: usize,
}

/// Tokens that a stream may draw at most: those of the decode phase, and those that it draws while others are still in their prefill
/// (a step gives at least 128 rows to prompts, and one token to each stream that decodes).
pub(super) fn most_tokens(streams: usize, prompt: usize, generate: usize) -> usize {
    if streams == 1 { generate + 1 } else { generate + 2 + (streams * prompt).div_ceil(128) }
}

impl Runner {
    pub(super) fn start(model: Box<dyn StepModel>, limits: CoreLimits, vocab_size: usize) -> Result<Self, Failure> {
        let (commands, command_receiver) = mpsc::channel(CHANNEL_CAPACITY);
        let (event_sender, events) = mpsc::channel(CHANNEL_CAPACITY);
        let (token_sender, tokens) = mpsc::channel(CHANNEL_CAPACITY);
        let ports = EnginePorts {
            device: DeviceId(0),
            epoch: Epoch(0),
            model,
            started: oneshot::channel().0,
            commands: command_receiver,
            events: event_sender,
            tokens: token_sender,
            progress: Arc::new(AtomicU64::new(0)),
            stats: watch::channel(EngineStats::default()).0,
            traces: Traces::default(),
            exited: oneshot::channel().0,
        };
        let thread = start_engine(ports, limits)?;
        let requests = Requests::new(vocab_size);
        Ok(Self { commands: Some(commands), events, tokens, thread: Some(thread), requests, num_ended: 0 })
    }

    /// Time from the order to the first token after a prompt of `num_tokens`.
    pub(super) async fn prefill(&mut self, num_tokens: usize) -> Result<Duration, Failure> {
        let start = clock::now();
        self.submit(num_tokens, 1)?;
        let end = self.await_tokens(1, false).await?;
        self.await_ends(1).await?;
        Ok(end.since(start))
    }

    /// Time from the order to the last of `num_tokens` tokens, the first of them drawn from a context of one.
    pub(super) async fn decode(&mut self, num_tokens: usize) -> Result<Duration, Failure> {
        let start = clock::now();
        self.submit(1, num_tokens)?;
        let end = self.await_tokens(num_tokens, false).await?;
        self.await_ends(1).await?;
        Ok(end.since(start))
    }

    /// Prefills prompts together, then decodes: the time until every stream has its first token, and the time in which they draw
    /// `streams * generate` more.
    pub(super) async fn together(
        &mut self,
        streams: usize,
        prompt: usize,
        generate: usize,
    ) -> Result<(Duration, Duration), Failure> {
        let start = clock::now();
        for _ in 0..streams {
            self.submit(prompt, most_tokens(streams, prompt, generate))?;
        }
        let all_prefilled = self.await_tokens(streams, true).await?;
        let end = self.await_tokens(streams * generate, false).await?;
        for back in 0..streams as u64 {
            let sequence = self.requests.sequence(back);
            self.order(DeviceCommand::Abort { sequence })?;
        }
        self.await_ends(streams).await?;
        Ok((all_prefilled.since(start), end.since(all_prefilled)))
    }

    /// Ends the engine and waits for its thread.
    pub(super) fn stop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so in its own words.
            _ = thread.join();
        }
    }

    fn submit(&mut self, num_prompt: usize, num_tokens: usize) -> Result<(), Failure> {
        let request = self.requests.next(num_prompt, num_tokens);
        self.order(DeviceCommand::Prefill { request: Arc::new(request), destination: Destination::SamePool })
    }

    fn order(&self, command: DeviceCommand) -> Result<(), Failure> {
        let sent = self.commands.as_ref().map(|commands| commands.try_send(command));
        if let Some(Ok(())) = sent { Ok(()) } else { Err(engine_failed("it takes no orders")) }
    }

    /// Waits for `count` tokens; with `first_only`, for those with index 0.
    async fn await_tokens(&mut self, count: usize, first_only: bool) -> Result<Instant64, Failure> {
        let mut left = count;
        loop {
            let batch = tokio::select! {
                batch = self.tokens.recv() => batch.ok_or_else(|| engine_failed("it has stopped"))?,
                event = self.events.recv() => {
                    self.hear(event)?;
                    continue;
                }
            };
            for (_, event) in &batch.events {
                match event {
                    StreamEvent::Token { index, .. } if !first_only || *index == 0 => left = left.saturating_sub(1),
                    StreamEvent::Failed(error) => return Err(engine_failed(&error.to_string())),
                    _ => {}
                }
            }
            if left == 0 {
                return Ok(clock::now());
            }
        }
    }

    /// Waits until `count` sequences are over, so that the next test begins with an idle engine and an empty pool.
    async fn await_ends(&mut self, count: usize) -> Result<(), Failure> {
        while self.num_ended < count {
            tokio::select! {
                Some(_) = self.tokens.recv() => {}
                event = self.events.recv() => self.hear(event)?,
            }
        }
        self.num_ended -= count;
        Ok(())
    }

    fn hear(&mut self, event: Option<DeviceEvent>) -> Result<(), Failure> {
        match event {
            Some(DeviceEvent::Ended { .. }) => self.num_ended += 1,
            Some(DeviceEvent::Faulted { reason, .. }) => return Err(engine_failed(&reason)),
            Some(_) => {}
            None => return Err(engine_failed("it has stopped")),
        }
        Ok(())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(super) fn engine_failed(reason: &str) -> Failure {
    Failure::Engine { reason: reason.to_owned() }
}
