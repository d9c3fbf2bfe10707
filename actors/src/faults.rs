//! Fault switches: how tests (and an operator who allows it) break a cluster on purpose.
//!
//! They come from `[testing]` in the configuration or are thrown at run time by [`crate::cluster::Cluster::inject`]; without any, each check
//! is one load of an atomic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use relevo_wire::TokenId;
use serde::{Deserialize, Serialize};

use crate::policy::hand_over::HandOverStep;

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// An actor panics when it handles its n-th message.
    PanicActor {
        /// Its name in the supervision tree, such as `device-0/prefill`.
        actor: String,
        /// Counted from 1, over all its restarts.
        message: u64,
    },
    /// Every reader goes away when an actor handles its n-th message.
    LoseReaders {
        /// The actor's name in the supervision tree.
        actor: String,
        /// Counted from 1, over all its restarts.
        message: u64,
    },
    /// A device's engine panics in its n-th step.
    PanicEngine {
        /// The device's name, such as `cpu0`.
        device: String,
        /// Counted from 1, over all its epochs.
        step: u64,
    },
    /// A device's engine fails in its n-th step, as a driver's error would make it.
    FailEngine {
        /// The device's name.
        device: String,
        /// Counted from 1, over all its epochs.
        step: u64,
    },
    /// A device's engine sleeps in its n-th step.
    HangEngine {
        /// The device's name.
        device: String,
        /// Counted from 1, over all its epochs.
        step: u64,
        /// How long.
        millis: u64,
    },
    /// Every engine panics whenever it steps a sequence that contains these tokens one after the other.
    Poison {
        /// The tokens.
        tokens: Vec<TokenId>,
    },
    /// The n-th frame between devices vanishes on its way.
    DropFrame {
        /// Counted from 1.
        frame: u64,
    },
    /// A byte of the n-th frame between devices changes on its way.
    CorruptFrame {
        /// Counted from 1.
        frame: u64,
    },
    /// The link that carries the n-th frame to another node breaks under it.
    BreakLink {
        /// Counted from 1.
        frame: u64,
    },
    /// The process ends without a word, as if killed, when a role actor of its takes this step of a hand-over for the n-th time.
    AbortAtHandOver {
        /// One that a role actor takes with a message: `admitted`, `lease-wanted`, `lease-asked`, `lease-granted` or `handed-over`.
        step: HandOverStep,
        /// Counted from 1.
        time: u64,
    },
    /// The n-th lease expires at once, whatever arrives under it.
    ExpireLease {
        /// Counted from 1.
        lease: u64,
    },
}

/// What an engine does instead of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepFault {
    /// It panics.
    Panic,
    /// It fails.
    Fail,
    /// It sleeps first.
    Hang(Duration),
}

/// What happens when an actor handles a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageFault {
    /// It panics.
    Panic,
    /// Every reader goes away.
    LoseReaders,
}

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// It vanishes.
    Drop,
    /// A byte changes.
    Corrupt,
    /// Its link breaks.
    Break,
}

/// The switches of one cluster.
#[derive(Debug, Default)]
pub struct FaultSwitches {
    armed: AtomicBool,
    state: Mutex<State>,
    num_frames: AtomicU64,
    num_leases: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    /// Counted while any fault is armed.
    messages: BTreeMap<String, u64>,
    steps: BTreeMap<String, u64>,
    hand_overs: BTreeMap<HandOverStep, u64>,
    /// Actors and engines to be killed by name, at their next message or step.
    doomed: BTreeSet<String>,
}

impl FaultSwitches {
    /// With these thrown from the start.
    pub fn new(faults: Vec<Fault>) -> Self {
        let armed = AtomicBool::new(!faults.is_empty());
        Self { armed, state: Mutex::new(State { faults, ..State::default() }), ..Self::default() }
    }

    /// Throws one more. Counts go on: a message, step or frame that is past does not come again.
    pub fn add(&self, fault: Fault) {
        self.state().faults.push(fault);
        self.armed.store(true, Ordering::Release);
    }

    /// Lets the actor (or the engine, `device-0/engine`) of this name panic at the next thing that it does.
    pub fn doom(&self, name: &str) {
        self.state().doomed.insert(name.to_owned());
        self.armed.store(true, Ordering::Release);
    }

    /// To be called by each actor for each message that is not the clock's.
    pub fn on_message(&self, actor: &str) -> Option<MessageFault> {
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state();
        let count = state.messages.entry(actor.to_owned()).or_default();
        *count += 1;
        let count = *count;
        if state.doomed.remove(actor) {
            return Some(MessageFault::Panic);
        }
        state.faults.iter().find_map(|fault| match fault {
            Fault::PanicActor { actor: name, message } if name == actor && *message == count => {
                Some(MessageFault::Panic)
            }
            Fault::LoseReaders { actor: name, message } if name == actor && *message == count => {
                Some(MessageFault::LoseReaders)
            }
            _ => None,
        })
    }

    /// To be called before each step with the engine's name (`device-0/engine`) and whether a sequence contains a run of tokens.
    pub fn on_step(&self, device: &str, engine: &str, contains: impl Fn(&[TokenId]) -> bool) -> Option<StepFault> {
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state();
        let count = state.steps.entry(device.to_owned()).or_default();
        *count += 1;
        let count = *count;
        if state.doomed.remove(engine) {
            return Some(StepFault::Panic);
        }
        state.faults.iter().find_map(|fault| match fault {
            Fault::PanicEngine { device: name, step } if name == device && *step == count => Some(StepFault::Panic),
            Fault::FailEngine { device: name, step } if name == device && *step == count => Some(StepFault::Fail),
            Fault::HangEngine { device: name, step, millis } if name == device && *step == count => {
                Some(StepFault::Hang(Duration::from_millis(*millis)))
            }
            Fault::Poison { tokens } if contains(tokens) => Some(StepFault::Panic),
            _ => None,
        })
    }

    /// To be called for each frame that is sent.
    pub fn on_frame(&self) -> Option<FrameFault> {
        let count = self.num_frames.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        self.state().faults.iter().find_map(|fault| match fault {
            Fault::DropFrame { frame } if *frame == count => Some(FrameFault::Drop),
            Fault::CorruptFrame { frame } if *frame == count => Some(FrameFault::Corrupt),
            Fault::BreakLink { frame } if *frame == count => Some(FrameFault::Break),
            _ => None,
        })
    }

    /// To be called for each step of a hand-over that a role actor takes: whether the process is to end there.
    pub fn on_hand_over(&self, step: HandOverStep) -> bool {
        if !self.armed.load(Ordering::Acquire) {
            return false;
        }
        let mut state = self.state();
        let count = state.hand_overs.entry(step).or_default();
        *count += 1;
        let present = (step, *count);
        let is_it = |fault: &Fault| matches!(fault, Fault::AbortAtHandOver { step, time } if (*step, *time) == present);
        state.faults.iter().any(is_it)
    }

    /// To be called for each lease that is granted: whether it is to expire early.
    pub fn on_lease(&self) -> bool {
        let count = self.num_leases.fetch_add(1, Ordering::Relaxed) + 1;
        self.armed.load(Ordering::Acquire)
            && self.state().faults.iter().any(|fault| matches!(fault, Fault::ExpireLease { lease } if *lease == count))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_ends_when_a_step_of_a_hand_over_is_taken_for_that_time_and_no_other() {
        let (step, other) = (HandOverStep::LeaseGranted, HandOverStep::Admitted);
        let switches = FaultSwitches::new(vec![Fault::AbortAtHandOver { step, time: 2 }]);
        let steps = [step, other, other, step, step];
        assert_eq!(steps.map(|step| switches.on_hand_over(step)), [false, false, false, true, false]);
        assert!(!FaultSwitches::default().on_hand_over(step));
    }
}
