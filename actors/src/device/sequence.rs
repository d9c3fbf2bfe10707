//! One sequence on a device: its tokens, its blocks, and how far it has come.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use relevo_gpu::compute::RowOutput;
use relevo_wire::{
    BLOCK_TOKENS, BlockIndex, FinishReason, GenerateRequest, LeaseId, SequenceId, StreamEvent, TokenId, Usage,
    blocks_for_tokens,
};

use super::interface::{Destination, DeviceRole, SequenceOutcome};
use crate::policy::blocks::{BlockName, BlockPool, Registered};
use crate::policy::fairness::{Age, Waiting};
use crate::policy::hint_keys::HintChain;
use crate::policy::planner::ChunkWish;
use crate::policy::prefix::{PrefixKey, PrefixSalt};

/// A sequence in the hands of a `DeviceCore`.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: Arc<GenerateRequest>,
    /// Whose actor owns it now.
    pub(super) role: DeviceRole,
    pub(super) age: Age,
    /// The prompt, then what was generated, earlier attempts included.
    pub(super) tokens: Vec<TokenId>,
    /// Its blocks, in order.
    pub(super) table: Vec<BlockIndex>,
    /// Leading tokens whose keys and values are in the cache.
    pub(super) num_computed: usize,
    /// Prompt tokens that came out of the prefix cache when it was first scheduled.
    pub(super) cached_tokens: Option<u32>,
    pub(super) prefixes: Prefixes,
    /// Prompt tokens whose log-probabilities were emitted; the first token has none.
    pub(super) num_prompt_logprobs: usize,
    pub(super) stage: Stage,
    pub(super) push: Option<Push>,
    /// Rows that it has in the step in flight.
    pub(super) rows_in_step: usize,
    /// How it ends once the step in flight is done.
    pub(super) doom: Option<SequenceOutcome>,
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// In the queue; it has no blocks.
    Waiting,
    /// Out of the queue; its lease was asked for.
    AwaitingLease,
    /// It has blocks and a seat.
    Running,
}

/// The hand-over of a sequence that another device decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Push {
    /// Under which lease, once granted.
    pub(super) lease: Option<LeaseId>,
    /// Leading blocks that the other side has, or was sent in full.
    pub(super) num_sent: usize,
}

/// The names of a sequence's full blocks.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    /// `None` if the device has no prefix cache.
    pub(super) salt: Option<PrefixSalt>,
    /// Of the leading full blocks, as far as they were needed.
    pub(super) keys: Vec<PrefixKey>,
    /// Of the same blocks, for routers; `None` if the device has no prefix cache.
    pub(super) hints: Option<HintChain>,
    /// Leading blocks of the table that bear their names in the pool.
    pub(super) num_registered: usize,
    /// Leading blocks of which those beyond the registered ones are claimed: it is about to compute them.
    pub(super) num_claimed: usize,
    /// Leading blocks whose claim is over.
    pub(super) num_unclaimed: usize,
}

impl Sequence {
    pub(super) fn new(request: Arc<GenerateRequest>, destination: Destination, age: Age, capacity: usize) -> Self {
        let mut tokens = Vec::with_capacity(capacity.max(request.num_context_tokens()));
        tokens.extend_from_slice(&request.prompt);
        tokens.extend_from_slice(&request.generated);
        Self {
            request,
            role: DeviceRole::Prefill,
            age,
            tokens,
            table: Vec::with_capacity(blocks_for_tokens(capacity)),
            num_computed: 0,
            cached_tokens: None,
            prefixes: Prefixes::default(),
            num_prompt_logprobs: 0,
            stage: Stage::Waiting,
            push: (destination == Destination::Remote).then_some(Push { lease: None, num_sent: 0 }),
            rows_in_step: 0,
            doom: None,
        }
    }

    pub(super) fn id(&self) -> SequenceId {
        self.request.sequence
    }

    pub(super) fn num_prompt(&self) -> usize {
        self.request.prompt.len()
    }

    /// Tokens generated, those of earlier attempts included.
    pub(super) fn num_generated(&self) -> usize {
        self.tokens.len() - self.num_prompt()
    }

    /// Another token is wanted.
    pub(super) fn wants_token(&self) -> bool {
        self.num_generated() < self.request.max_tokens as usize
    }

    /// Only its last token is not in the cache yet: it needs one row.
    pub(super) fn is_one_short(&self) -> bool {
        self.num_computed + 1 == self.tokens.len()
    }

    /// Its next row starts or continues a prompt whose log-probabilities are wanted.
    pub(super) fn wants_prompt_logprobs(&self) -> bool {
        self.request.prompt_logprobs.is_some() && self.num_prompt_logprobs + 1 < self.num_prompt()
    }

    pub(super) fn wish(&self) -> ChunkWish {
        ChunkWish {
            start: self.num_computed,
            end: self.tokens.len(),
            outputs_for_each_row: self.wants_prompt_logprobs(),
        }
    }

    /// Prompt tokens whose log-probabilities come out of these rows: a row tells of the token after its own.
    pub(super) fn targets(&self, start: usize, rows: usize) -> Range<usize> {
        if self.request.prompt_logprobs.is_none() {
            return 0..0;
        }
        let end = (start + rows + 1).min(self.num_prompt());
        (self.num_prompt_logprobs + 1).max(start + 1).min(end)..end
    }

    /// Takes the log-probabilities of the next prompt tokens; `None` if an output lacks them.
    pub(super) fn take_prompt_logprobs(&mut self, outputs: impl Iterator<Item = RowOutput>) -> Option<StreamEvent> {
        let first = u32::try_from(self.num_prompt_logprobs + 1).unwrap_or(u32::MAX);
        let logprobs: Vec<_> = outputs.map(|output| output.logprobs).collect::<Option<_>>()?;
        self.num_prompt_logprobs += logprobs.len();
        Some(StreamEvent::PromptLogprobs { first, logprobs })
    }

    /// Who runs goes by this order: higher priority, then the older.
    pub(super) fn rank(&self) -> (Reverse<i32>, Age) {
        (Reverse(self.request.priority), self.age)
    }

    /// Blocks that it lacks to hold all its tokens.
    pub(super) fn num_missing_blocks(&self) -> usize {
        blocks_for_tokens(self.tokens.len()).saturating_sub(self.table.len())
    }

    /// Blocks that it lacks to hold what it will have when `headroom` more tokens are generated, or it is at its end.
    pub(super) fn num_future_blocks(&self, headroom: usize, max_context: usize) -> usize {
        let left = (self.request.max_tokens as usize).saturating_sub(self.num_generated());
        let left = if self.push.is_some() { 0 } else { left.min(headroom) };
        blocks_for_tokens((self.tokens.len() + left).min(max_context)).saturating_sub(self.table.len())
    }

    pub(super) fn waiting(&self, slot: usize) -> Waiting {
        Waiting { priority: self.request.priority, tenant: self.request.tenant, age: self.age, slot }
    }

    /// Names every full block of its tokens.
    pub(super) fn name_blocks(&mut self) {
        if let Some((salt, hints)) = self.prefixes.salt.as_ref().zip(self.prefixes.hints.as_mut()) {
            salt.extend(&mut self.prefixes.keys, &self.tokens);
            hints.extend(&self.tokens);
        }
    }

    /// Makes the blocks that are full by now known to the pool. Where another block has the same prefix already, this sequence uses that one
    /// from here on (they hold the same bits), so that a named block's predecessors are named blocks too.
    pub(super) fn register_blocks(&mut self, pool: &mut BlockPool) {
        let num_full = self.num_computed / BLOCK_TOKENS;
        if self.prefixes.salt.is_none() || self.prefixes.num_registered >= num_full {
            return;
        }
        self.name_blocks();
        let (blocks, _) = self.tokens.as_chunks::<BLOCK_TOKENS>();
        let hints = self.prefixes.hints.as_ref().map_or(&[][..], HintChain::keys);
        let names = self.prefixes.keys.iter().zip(hints).map(|(&key, &hint)| BlockName { key, hint });
        let named = self.table.iter_mut().zip(names).zip(blocks);
        for ((own, name), tokens) in named.take(num_full).skip(self.prefixes.num_registered) {
            if let Registered::Duplicate(holder) = pool.register(*own, name, self.request.tenant, tokens) {
                pool.retain(holder);
                pool.release(*own);
                *own = holder;
            }
        }
        self.prefixes.num_registered = num_full;
    }

    /// Gives its blocks back; what was computed is forgotten (or found again in the prefix cache).
    pub(super) fn release_blocks(&mut self, pool: &mut BlockPool) {
        pool.release_table(&mut self.table);
        self.num_computed = 0;
        self.prefixes.num_registered = 0;
    }

    /// Takes a token that was drawn; the reason to end, if it is the last.
    pub(super) fn accept(&mut self, token: TokenId, max_context: usize) -> Option<FinishReason> {
        self.tokens.push(token);
        if self.request.stop_ids.contains(&token) {
            return Some(FinishReason::Stop);
        }
        (!self.wants_token() || self.tokens.len() >= max_context).then_some(FinishReason::Length)
    }

    pub(super) fn usage(&self) -> Usage {
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        Usage {
            prompt_tokens: count(self.num_prompt()),
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: count(self.num_generated()),
        }
    }
}
