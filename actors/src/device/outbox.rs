//! What the engine has to say and its channels have no room for yet.

use std::collections::VecDeque;

use relevo_wire::{SequenceId, StreamEvent};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::interface::{DeviceEvent, TokenBatch};

/// Stream events kept back before the engine pauses: a few steps of a full batch.
const MAX_STREAM_EVENTS: usize = 1024;

/// Events kept back before the engine pauses: a few chunks' layers.
const MAX_EVENTS: usize = 256;

/// Kept back, in order.
///
/// **Invariant:** tokens leave before the events that follow from them, so that a sequence's tokens reach the gateway in the order of their
/// cause even when another device draws the next one.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    tokens: TokenBatch,
    events: VecDeque<DeviceEvent>,
}

impl Outbox {
    pub(super) fn emit(&mut self, sequence: SequenceId, event: StreamEvent) {
        self.tokens.events.push((sequence, event));
    }

    pub(super) fn tell(&mut self, event: DeviceEvent) {
        self.events.push_back(event);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.events.is_empty() && self.events.is_empty()
    }

    /// More is kept back than should be: no further step until it is gone.
    pub(super) fn is_congested(&self) -> bool {
        self.tokens.events.len() > MAX_STREAM_EVENTS || self.events.len() > MAX_EVENTS
    }

    /// Sends what there is room for, without waiting; true if nothing is left. A receiver that is gone gets nothing more.
    pub(super) fn flush(&mut self, tokens: &Sender<TokenBatch>, events: &Sender<DeviceEvent>) -> bool {
        if !self.tokens.events.is_empty() {
            // The next batch is likely as large as this one.
            let next = TokenBatch { events: Vec::with_capacity(self.tokens.events.len()) };
            if let Err(TrySendError::Full(batch)) = tokens.try_send(std::mem::replace(&mut self.tokens, next)) {
                self.tokens = batch;
                return false;
            }
        }
        while let Some(event) = self.events.pop_front() {
            if let Err(TrySendError::Full(event)) = events.try_send(event) {
                self.events.push_front(event);
                return false;
            }
        }
        true
    }
}
