//! What a device may hold and a step may do.

use relevo_gpu::model::StepModel;
use relevo_wire::BLOCK_TOKENS;

use crate::policy::hint_keys::HintKeyer;
use crate::policy::prefix::PrefixIdentity;
use crate::policy::prefix_news::MAX_BATCH_KEYS;

/// The bounds that a `DeviceCore` keeps to.
#[derive(Clone, Debug)]
pub struct CoreLimits {
    /// Blocks of the pool.
    pub num_blocks: u32,
    /// Layers of the model: each is pushed by itself.
    pub num_layers: u32,
    /// Tokens that a sequence may have by the model's nature or the operator's will; the pool may hold fewer.
    pub max_context: usize,
    /// Rows of a step at most.
    pub max_rows: usize,
    /// Rows of a step that decodes too: bounds how long a token of a running stream may take, since it waits for the prompt's chunk.
    pub max_mixed_rows: usize,
    /// Output rows of a step at most.
    pub max_outputs: usize,
    /// Sequences that run or hold a lease at most: each has a row in every step.
    pub max_running: usize,
    /// Sequences that wait at most.
    pub max_waiting: usize,
    /// Tokens for which a lease leaves room to every running sequence (or as many as it may still generate, if that is less).
    ///
    /// It stands for the time in which some of them end; beyond it preemption is the backstop. The full worst case (every stream to the end
    /// of its context) would leave most of a pool idle.
    pub headroom_tokens: usize,
    /// What names prefixes; `None` switches the prefix cache off.
    pub prefix_identity: Option<PrefixIdentity>,
    /// What names prefixes to routers: the cluster's, whatever it was tuned to.
    pub hint_keyer: HintKeyer,
    /// Blocks in a batch of news for routers at most.
    pub max_news_keys: usize,
}

/// Limits that contradict each other. The configuration's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// One of them is too small.
    #[error("{name} is {value}, expected at least {least}")]
    TooSmall {
        /// Which.
        name: &'static str,
        /// As given.
        value: usize,
        /// What the others ask for.
        least: usize,
    },
}

impl CoreLimits {
    /// Those of a model and its pool, and for the rest what `relevo up` takes.
    pub fn of_model(model: &dyn StepModel) -> Self {
        let (max_rows, max_outputs) = (model.max_rows(), model.max_outputs());
        Self {
            num_blocks: u32::try_from(model.kv_memory().num_blocks()).unwrap_or(u32::MAX),
            num_layers: model.kv_layout().num_layers,
            max_context: model.max_context(),
            max_rows,
            max_mixed_rows: max_rows.min(DEFAULT_MIXED_ROWS),
            max_outputs,
            max_running: DEFAULT_RUNNING.min(max_outputs).min(max_rows.saturating_sub(BLOCK_TOKENS)).max(1),
            max_waiting: DEFAULT_WAITING,
            headroom_tokens: DEFAULT_HEADROOM,
            prefix_identity: None,
            hint_keyer: HintKeyer::default(),
            max_news_keys: MAX_BATCH_KEYS,
        }
    }

    /// The tokens that a sequence can have in this pool.
    pub fn served_context(&self) -> usize {
        self.max_context.min(self.num_blocks as usize * BLOCK_TOKENS)
    }

    pub(super) fn checked(mut self) -> Result<Self, LimitsError> {
        let at_least = |name, value, least| match value >= least {
            true => Ok(()),
            false => Err(LimitsError::TooSmall { name, value, least }),
        };
        at_least("num_blocks", self.num_blocks as usize, 1)?;
        at_least("max_context", self.max_context, 1)?;
        at_least("max_running", self.max_running, 1)?;
        at_least("max_waiting", self.max_waiting, 1)?;
        at_least("max_news_keys", self.max_news_keys, 1)?;
        // Chunks end at multiples of 16: a step that decodes for everybody must still have room for one, else prompts starve.
        at_least("max_outputs", self.max_outputs, self.max_running.max(BLOCK_TOKENS))?;
        at_least("max_rows", self.max_rows, self.max_running + BLOCK_TOKENS)?;
        self.max_mixed_rows = self.max_mixed_rows.min(self.max_rows);
        at_least("max_mixed_rows", self.max_mixed_rows, BLOCK_TOKENS)?;
        Ok(self)
    }
}

/// Rows of a step that a model is loaded for: enough that reading the weights costs little beside the arithmetic, few enough that a step takes a
/// fraction of a second on a small machine.
pub const STEP_ROWS: usize = 512;

/// Output rows of a step that a model is loaded for: each takes a vocabulary of logits.
pub const STEP_OUTPUTS: usize = 128;

/// Half of a common prefill budget: on two CPU cores a chunk of this size takes as long as a few decode steps.
const DEFAULT_MIXED_ROWS: usize = 256;

/// What vLLM's `max_num_seqs` has been on small devices; a row each.
const DEFAULT_RUNNING: usize = 256;

/// Beyond this the router refuses with 429 before the device has to.
const DEFAULT_WAITING: usize = 4096;

/// About a page of text.
const DEFAULT_HEADROOM: usize = 256;
