//! A gate in a model's way: a step waits at it until the test has done what it wants to do meanwhile.

use std::sync::{Arc, Condvar, Mutex};

use relevo_gpu::compute::{ComputeError, RowOutput, StepPlan};
use relevo_gpu::model::{KvMemory, Progress, StepModel};
use relevo_wire::KvLayout;

use crate::world::PATIENCE;

/// Closed before one step of one device; open from when the test says so.
pub(crate) struct Gate {
    /// Steps that pass before it.
    num_free: usize,
    state: Mutex<State>,
    opened: Condvar,
}

#[derive(Default)]
struct State {
    num_steps: usize,
    is_open: bool,
}

impl Gate {
    /// Lets `num_free` steps pass.
    pub(crate) fn after(num_free: usize) -> Arc<Self> {
        Arc::new(Self { num_free, state: Mutex::default(), opened: Condvar::new() })
    }

    /// Whether a step waits at it, or has.
    pub(crate) fn is_reached(&self) -> bool {
        self.state.lock().unwrap().num_steps > self.num_free
    }

    /// Lets everything pass.
    pub(crate) fn open(&self) {
        self.state.lock().unwrap().is_open = true;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.num_steps += 1;
        if state.num_steps > self.num_free {
            let (state, _) = self.opened.wait_timeout_while(state, PATIENCE, |state| !state.is_open).unwrap();
            assert!(state.is_open, "nobody opens the gate");
        }
    }
}

/// A model behind a gate.
pub(crate) struct Gated<M> {
    pub(crate) model: M,
    pub(crate) gate: Arc<Gate>,
}

impl<M: StepModel> StepModel for Gated<M> {
    fn kv_layout(&self) -> KvLayout {
        self.model.kv_layout()
    }

    fn max_rows(&self) -> usize {
        self.model.max_rows()
    }

    fn max_outputs(&self) -> usize {
        self.model.max_outputs()
    }

    fn max_context(&self) -> usize {
        self.model.max_context()
    }

    fn kv_memory(&self) -> Arc<dyn KvMemory> {
        self.model.kv_memory()
    }

    fn adopt_thread(&mut self) {
        self.model.adopt_thread();
    }

    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<(), ComputeError> {
        self.gate.pass();
        self.model.begin_step(plan)
    }

    fn advance(&mut self) -> Result<Progress, ComputeError> {
        self.model.advance()
    }

    fn finish_step(&mut self) -> Result<Vec<RowOutput>, ComputeError> {
        self.model.finish_step()
    }

    fn abandon_step(&mut self) {
        self.model.abandon_step();
    }

    fn reset(&mut self) -> Result<(), ComputeError> {
        self.model.reset()
    }
}
