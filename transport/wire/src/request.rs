//! A request as the cluster sees it (token ids in, token ids out) and what comes back.

use std::sync::Arc;
use std::time::Duration;

use crate::{Instant64, SequenceId, TenantId, TokenId};

/// How exactly a model computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Numerics {
    /// int8 activations for quantised weights (twice eight bits before the output head), f32 for float weights, f16 KV.
    #[default]
    Default,
    /// f32 activations and f32 KV.
    Exact,
}

/// One sequence to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// Whose choice of which request, in which attempt.
    pub sequence: SequenceId,
    /// Whose prefix cache it may hit.
    pub tenant: TenantId,
    /// The prompt, never empty.
    pub prompt: Arc<[TokenId]>,
    /// Tokens that earlier attempts have emitted: prefilled again, not emitted again.
    pub generated: Vec<TokenId>,
    /// How the next token is drawn.
    pub sampling: SamplingParams,
    /// Ids that end the generation; the ending id is emitted as the last token.
    pub stop_ids: Arc<[TokenId]>,
    /// Most tokens to generate, `generated` included; 0 only together with `prompt_logprobs`.
    pub max_tokens: u32,
    /// For each generated token: its log-probability and that of this many alternatives (0 to 20).
    pub top_logprobs: Option<u8>,
    /// The same for each prompt token but the first. Skips the prefix-cache look-up.
    pub prompt_logprobs: Option<u8>,
    /// Higher goes first.
    pub priority: i32,
    /// When its answer is worth nothing any more.
    pub deadline: Option<Instant64>,
}

impl GenerateRequest {
    /// Tokens that must be in the KV cache before the next new one is drawn.
    pub fn num_context_tokens(&self) -> usize {
        self.prompt.len() + self.generated.len()
    }
}

/// How a token is drawn. Ranges are checked by the gateway; the defaults change nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; at most 2.
    pub temperature: f32,
    /// Nucleus, in (0, 1].
    pub top_p: f32,
    /// Most candidates; 0 keeps all.
    pub top_k: u32,
    /// Least probability, as a fraction of the best one's; in `[0, 1]`.
    pub min_p: f32,
    /// Key of the counter-based generator, together with (choice, position).
    pub seed: u64,
    /// OpenAI's, in `[-2, 2]`: times the count of the token among the generated.
    pub frequency_penalty: f32,
    /// OpenAI's, in `[-2, 2]`: once if the token was generated.
    pub presence_penalty: f32,
    /// Keskar et al., arXiv:1909.05858 section 4.1: over prompt and generated tokens; 1 is none.
    pub repetition_penalty: f32,
    /// Added to the logits, sorted by id, in `[-100, 100]`.
    pub logit_bias: Arc<[(TokenId, f32)]>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Arc::from([]),
        }
    }
}

/// Log-probabilities of the raw model (natural logarithm, before temperature, penalties and bias) at one position.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct TokenLogprobs {
    /// The token that stands there.
    pub token: TokenId,
    /// Its log-probability.
    pub logprob: f32,
    /// Its place among all tokens, 0 = most likely.
    pub rank: u32,
    /// The most likely tokens, best first, ties to the lower id.
    pub top: Vec<(TokenId, f32)>,
}

/// What a sequence sends back, in order.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum StreamEvent {
    /// Log-probabilities of prompt tokens `first..`, a piece for each chunk; `first >= 1`.
    PromptLogprobs {
        /// Index into the prompt of the first entry.
        first: u32,
        /// One for each prompt token.
        logprobs: Vec<TokenLogprobs>,
    },
    /// The context is computed: comes right before the first token, once, however often the sequence is replayed.
    Prefilled {
        /// Prompt tokens taken from the prefix cache.
        cached_tokens: u32,
    },
    /// The next token.
    Token {
        /// Index among the generated tokens, those of earlier attempts counted.
        index: u32,
        /// The token.
        token: TokenId,
        /// If asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The last event of a sequence that went well.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The last event of one that did not.
    Failed(RequestError),
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// A stop id (or, at the gateway, a stop string).
    Stop,
    /// `max_tokens` or the context is full.
    Length,
}

/// Token counts of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, taken from the prefix cache.
    pub cached_tokens: u32,
    /// Tokens generated, over all attempts.
    pub completion_tokens: u32,
}

/// Why the cluster did not serve a sequence.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, thiserror::Error)]
pub enum RequestError {
    /// Back-pressure: 429.
    #[error("{num_waiting} requests wait already, the limit is {limit}")]
    QueueFull {
        /// Waiting now.
        num_waiting: usize,
        /// Most that may wait.
        limit: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// The caller's fault: 400.
    #[error("prompt and max_tokens need {num_tokens} tokens, the context holds {max_context}")]
    ContextTooLong {
        /// Asked for.
        num_tokens: usize,
        /// Of the model as served.
        max_context: usize,
    },
    /// It would never fit into the pool of any device: 400.
    #[error("the request needs {num_blocks} KV blocks, the pool has {pool_blocks}")]
    KvPoolTooSmall {
        /// Needed.
        num_blocks: usize,
        /// Of the pool.
        pool_blocks: usize,
    },
    /// Its deadline went by: 504.
    #[error("the deadline passed before the answer was complete")]
    DeadlineExceeded,
    /// Two workers died stepping it: 500.
    #[error("{num_deaths} workers failed while they ran this request")]
    Poisoned {
        /// Workers lost to it.
        num_deaths: u32,
    },
    /// Nobody can serve it now: 503.
    #[error("no worker can take the request now")]
    NoWorker {
        /// When to try again.
        retry_after: Duration,
    },
    /// The server stops: 503.
    #[error("the server is shutting down")]
    ShuttingDown,
}
