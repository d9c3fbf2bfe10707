//! The verdict, when everything has come to rest: every stream got what its request yields alone, or an error that is its due.

use std::sync::Arc;

use relevo_actors::gateway::StreamOutcome;
use relevo_gpu::compute::{OutputRow, Piece, SampleRow, StepPlan};
use relevo_gpu::model::{Progress, StepModel};
use relevo_wire::{BlockIndex, GenerateRequest, RequestError, StreamEvent, TokenId};

use crate::checks::{Broken, ensure};
use crate::device::scripted;
use crate::gateway::Live;
use crate::scenario::{CONTEXT, RequestSpec};
use crate::world::World;

/// Engines that must have died for a request to count as poison.
const DEATHS_OF_POISON: u64 = 2;

impl World {
    /// At the end: every stream got what its request yields alone.
    pub(crate) fn look_back(&self) -> Result<(), Broken> {
        self.check_prefixes()?;
        for spec in &self.scenario.requests {
            let id = spec.request.sequence.request;
            if self.turned_away.contains(&id) {
                continue;
            }
            let streams = self.gateways.iter().map(|gateway| &gateway.streams);
            let Some(live) = streams.chain([&self.cut_off]).find_map(|streams| streams.get(&id)) else {
                return Err(Broken(format!("{id} was never taken in")));
            };
            let expected = alone(&spec.request);
            let (read, end) = (&live.read, live.core.end());
            ensure(expected.starts_with(&read.tokens), || format!("{id} got {:?} of {expected:?}", read.tokens))?;
            match end {
                Some(StreamOutcome::Finished(..)) => {
                    ensure(read.tokens == expected, || format!("{id} ended after {:?} of {expected:?}", read.tokens))?;
                    let wanted = spec.request.prompt_logprobs.map_or(0, |_| spec.request.prompt.len() - 1);
                    let found = read.num_prompt_logprobs;
                    ensure(found == wanted, || format!("{id} got {found} of {wanted} prompt log-probabilities"))?;
                    ensure(matches!(read.last, Some(StreamEvent::Finished { .. })), || {
                        format!("{id}: {:?}", read.last)
                    })?;
                }
                Some(StreamOutcome::Failed(error)) => {
                    self.excuse(spec, live, error)?;
                    ensure(matches!(read.last, Some(StreamEvent::Failed(_))), || format!("{id}: {:?}", read.last))?;
                }
                Some(StreamOutcome::Abandoned) => {
                    ensure(spec.leaves.is_some(), || format!("{id} is abandoned, and its client waits"))?;
                }
                // Its gateway died: its client sees the stream break off.
                None => ensure(self.cut_off.contains_key(&id), || format!("{id} has no end"))?,
            }
        }
        Ok(())
    }

    /// Failures are masked: what a client is told has its cause in the request or in the bounds of the cluster.
    fn excuse(&self, spec: &RequestSpec, live: &Live, error: &RequestError) -> Result<(), Broken> {
        let is_due = match error {
            RequestError::DeadlineExceeded => {
                spec.request.deadline.is_some_and(|deadline| live.ended.is_some_and(|ended| ended >= deadline))
            }
            RequestError::QueueFull { .. } => self.scenario.requests.len() > self.scenario.max_waiting,
            RequestError::Poisoned { .. } => self.tally.deaths >= DEATHS_OF_POISON,
            _ => false,
        };
        ensure(is_due, || format!("{} fails without need: {error}", live.core.sequence()))
    }
}

/// What a request yields on a device of its own: the whole context in one step, then a step for each token.
fn alone(request: &GenerateRequest) -> Vec<TokenId> {
    let num_blocks = u32::try_from(CONTEXT / 16).unwrap_or(u32::MAX);
    let mut model = scripted(num_blocks);
    let table: Vec<BlockIndex> = (0..num_blocks).map(BlockIndex).collect();
    let (num_prompt, stop_ids) = (request.prompt.len(), Arc::clone(&request.stop_ids));
    let mut tokens = request.prompt.to_vec();
    let mut start = 0;
    while tokens.len() - num_prompt < request.max_tokens as usize && tokens.len() < CONTEXT {
        // In pieces that the scripted model takes; only the last draws.
        let end = tokens.len().min(start + 64);
        let (prompt, generated) = tokens.split_at(num_prompt.min(tokens.len()));
        let sample = SampleRow { params: &request.sampling, choice: 0, prompt, generated, banned: &[] };
        let row = OutputRow { row: end - 1 - start, sample: Some(sample), ..OutputRow::default() };
        let outputs = if end == tokens.len() { vec![row] } else { Vec::new() };
        let plan =
            StepPlan { pieces: vec![Piece { tokens: &tokens[start..end], start, block_table: &table, outputs }] };
        let drawn = run(&mut model, &plan);
        start = end;
        if let Some(token) = drawn {
            tokens.push(token);
            if stop_ids.contains(&token) {
                break;
            }
        }
    }
    tokens.split_off(num_prompt)
}

fn run(model: &mut dyn StepModel, plan: &StepPlan<'_>) -> Option<TokenId> {
    model.begin_step(plan).ok()?;
    while model.advance().ok()? != Progress::Done {}
    model.finish_step().ok()?.first()?.token
}
