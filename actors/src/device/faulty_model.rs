//! A model that obeys the fault switches: what the engine drives when faults are allowed.

use std::sync::Arc;

use relevo_gpu::compute::{ComputeError, RowOutput, StepPlan};
use relevo_gpu::model::{KvMemory, Progress, StepModel};
use relevo_wire::{KvLayout, TokenId};

use crate::faults::{FaultSwitches, StepFault};

/// Any model, broken on demand.
pub(crate) struct FaultyModel {
    inner: Box<dyn StepModel>,
    faults: Arc<FaultSwitches>,
    device: String,
    engine: String,
}

impl FaultyModel {
    /// `device`: its name, such as `cpu0`; `engine`: its engine's name in the supervision tree.
    pub(crate) fn new(inner: Box<dyn StepModel>, faults: Arc<FaultSwitches>, device: String, engine: String) -> Self {
        Self { inner, faults, device, engine }
    }
}

impl StepModel for FaultyModel {
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

    fn adopt_thread(&mut self) {
        self.inner.adopt_thread();
    }

    fn kv_memory(&self) -> Arc<dyn KvMemory> {
        self.inner.kv_memory()
    }

    #[expect(clippy::panic, clippy::disallowed_methods, reason = "this is what the switches are for")]
    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<(), ComputeError> {
        match self.faults.on_step(&self.device, &self.engine, |tokens| steps_run(plan, tokens)) {
            Some(StepFault::Panic) => panic!("fault switch: {} panics", self.engine),
            Some(StepFault::Fail) => return Err(ComputeError::Device("fault switch".into())),
            Some(StepFault::Hang(time)) => std::thread::sleep(time),
            None => {}
        }
        self.inner.begin_step(plan)
    }

    fn advance(&mut self) -> Result<Progress, ComputeError> {
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

/// Whether one piece of the step holds this run of tokens.
fn steps_run(plan: &StepPlan<'_>, run: &[TokenId]) -> bool {
    !run.is_empty() && plan.pieces.iter().any(|piece| piece.tokens.windows(run.len()).any(|window| window == run))
}
