//! What must hold after each event, and at the end.

use std::fmt;
use std::sync::Arc;

use relevo_actors::gateway::{Phase, StreamOutcome};
use relevo_gpu::compute::{OutputRow, Piece, SampleRow, StepPlan};
use relevo_gpu::model::{Progress, StepModel};
use relevo_wire::{BlockIndex, GenerateRequest, Instant64, StreamEvent, TokenId};

use crate::device::scripted;
use crate::scenario::CONTEXT;
use crate::world::World;

/// A promise that a run has broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Of the scenario.
    pub seed: u64,
    /// In virtual time.
    pub at: Instant64,
    /// Which promise.
    pub promise: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, at, promise } = self;
        let at = at.0 as f64 / 1e6;
        write!(f, "seed {seed} at {at:.3} ms: {promise}\nreplay it with: cargo run -p relevo-simulations -- {seed}")
    }
}

impl std::error::Error for Failure {}

/// A promise, before it is known where it broke.
#[derive(Clone, Debug)]
pub(crate) struct Broken(pub(crate) String);

pub(crate) fn ensure(holds: bool, promise: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken(promise())) }
}

impl World {
    /// After each event.
    pub(crate) fn check(&self) -> Result<(), Broken> {
        for device in &self.devices {
            device.core.audit().map_err(|error| Broken(format!("{}: {error}", device.id)))?;
        }
        Ok(())
    }

    /// Whether everything has come to rest.
    pub(crate) fn is_quiet(&self) -> bool {
        self.num_arrived == self.scenario.requests.len()
            && self.streams.values().all(|live| live.core.phase() == Phase::Over)
            && self.devices.iter().all(|device| device.is_quiet() && !device.is_down)
            && self.router.num_waiting() + self.router.num_in_flight() == 0
    }

    /// What keeps it from rest.
    pub(crate) fn unrest(&self) -> String {
        let open = self.streams.values().filter(|live| live.core.phase() != Phase::Over);
        let open: Vec<_> = open.map(|live| (live.core.sequence(), live.core.phase(), live.placement)).collect();
        let devices = self.devices.iter().map(|device| {
            let (stats, prefills, leases) = (device.core.stats(), device.prefill.len(), device.decode.num_leases());
            format!("{} {:?}, {prefills} prefills, {leases} leases, inbox {:?}", device.id, stats, device.inbox)
        });
        let devices: Vec<_> = devices.collect();
        let router = (self.router.num_waiting(), self.router.num_in_flight());
        format!("it does not come to rest: router {router:?}, streams {open:?}, {devices:#?}")
    }

    /// At the end: every stream got what its request yields alone.
    pub(crate) fn look_back(&self) -> Result<(), Broken> {
        for spec in &self.scenario.requests {
            let id = spec.request.sequence.request;
            let Some(live) = self.streams.get(&id) else { return Err(Broken(format!("{id} was never taken in"))) };
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
                Some(StreamOutcome::Failed(_)) => {
                    ensure(matches!(read.last, Some(StreamEvent::Failed(_))), || format!("{id}: {:?}", read.last))?;
                }
                Some(StreamOutcome::Abandoned) => {}
                None => return Err(Broken(format!("{id} has no end"))),
            }
        }
        Ok(())
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
