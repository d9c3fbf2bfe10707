//! A request on its way to another node: as [`GenerateRequest`], but with the time that is left instead of a moment of a clock that the other
//! side does not have.

use std::sync::Arc;
use std::time::Duration;

use crate::control::within;
use crate::{GenerateRequest, Instant64, MessageError, SamplingParams, SequenceId, TenantId, TokenId, TraceContext};

/// Longest prompt, and most tokens to generate.
const MAX_TOKENS: usize = 1 << 20;

/// Most ids that end a generation, and most biases.
const MAX_IDS: usize = 1 << 18;

/// Most alternatives of a token.
const MAX_ALTERNATIVES: u8 = 20;

/// One sequence to generate, as it travels.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct SentRequest {
    sequence: SequenceId,
    tenant: TenantId,
    prompt: Vec<TokenId>,
    generated: Vec<TokenId>,
    sampling: SentSampling,
    stop_ids: Vec<TokenId>,
    max_tokens: u32,
    top_logprobs: Option<u8>,
    prompt_logprobs: Option<u8>,
    priority: i32,
    time_left: Option<Duration>,
    trace: Option<TraceContext>,
}

#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct SentSampling {
    temperature: f32,
    top_p: f32,
    top_k: u32,
    min_p: f32,
    seed: u64,
    frequency_penalty: f32,
    presence_penalty: f32,
    repetition_penalty: f32,
    logit_bias: Vec<(TokenId, f32)>,
}

impl SentRequest {
    /// Tokens that it carries: those of its prompt, and those that were generated before.
    pub fn num_tokens(&self) -> usize {
        self.prompt.len() + self.generated.len()
    }

    /// As it leaves now. `trace`: the one that it came with.
    pub fn new(request: &GenerateRequest, now: Instant64, trace: Option<TraceContext>) -> Self {
        let sampling = &request.sampling;
        Self {
            sequence: request.sequence,
            tenant: request.tenant,
            prompt: request.prompt.to_vec(),
            generated: request.generated.clone(),
            sampling: SentSampling {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                top_k: sampling.top_k,
                min_p: sampling.min_p,
                seed: sampling.seed,
                frequency_penalty: sampling.frequency_penalty,
                presence_penalty: sampling.presence_penalty,
                repetition_penalty: sampling.repetition_penalty,
                logit_bias: sampling.logit_bias.to_vec(),
            },
            stop_ids: request.stop_ids.to_vec(),
            max_tokens: request.max_tokens,
            top_logprobs: request.top_logprobs,
            prompt_logprobs: request.prompt_logprobs,
            priority: request.priority,
            time_left: request.deadline.map(|deadline| deadline.since(now)),
            trace,
        }
    }

    /// Whose it is.
    pub fn sequence(&self) -> SequenceId {
        self.sequence
    }

    /// The trace that it came with, so that what is done for it here belongs to it, too.
    pub fn trace(&self) -> Option<TraceContext> {
        self.trace
    }

    /// As it arrives now; the way here is not counted.
    pub fn into_request(self, now: Instant64) -> GenerateRequest {
        let sampling = self.sampling;
        GenerateRequest {
            sequence: self.sequence,
            tenant: self.tenant,
            prompt: Arc::from(self.prompt),
            generated: self.generated,
            sampling: SamplingParams {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                top_k: sampling.top_k,
                min_p: sampling.min_p,
                seed: sampling.seed,
                frequency_penalty: sampling.frequency_penalty,
                presence_penalty: sampling.presence_penalty,
                repetition_penalty: sampling.repetition_penalty,
                logit_bias: Arc::from(sampling.logit_bias),
            },
            stop_ids: Arc::from(self.stop_ids),
            max_tokens: self.max_tokens,
            top_logprobs: self.top_logprobs,
            prompt_logprobs: self.prompt_logprobs,
            priority: self.priority,
            deadline: self.time_left.map(|left| now + left),
        }
    }

    /// Whether a gateway that keeps the rules could have sent it.
    pub(crate) fn check(&self) -> Result<(), MessageError> {
        within("the prompt's length", (1..=MAX_TOKENS).contains(&self.prompt.len()))?;
        within("max_tokens", self.max_tokens as usize <= MAX_TOKENS)?;
        within("the number of generated tokens", self.generated.len() <= self.max_tokens as usize)?;
        within("the number of stop ids", self.stop_ids.len() <= MAX_IDS)?;
        let alternatives = [self.top_logprobs, self.prompt_logprobs];
        within("the number of alternatives", alternatives.into_iter().flatten().all(|top| top <= MAX_ALTERNATIVES))?;
        within("the trace's ids", self.trace.is_none_or(TraceContext::is_valid))?;
        self.sampling.check()
    }
}

impl SentSampling {
    fn check(&self) -> Result<(), MessageError> {
        within("temperature", (0.0..=2.0).contains(&self.temperature))?;
        within("top_p", self.top_p > 0.0 && self.top_p <= 1.0)?;
        within("min_p", (0.0..=1.0).contains(&self.min_p))?;
        within("frequency_penalty", (-2.0..=2.0).contains(&self.frequency_penalty))?;
        within("presence_penalty", (-2.0..=2.0).contains(&self.presence_penalty))?;
        within("repetition_penalty", self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite())?;
        within("the number of biases", self.logit_bias.len() <= MAX_IDS)?;
        within("logit_bias", self.logit_bias.iter().all(|(_, bias)| (-100.0..=100.0).contains(bias)))?;
        within("logit_bias", self.logit_bias.is_sorted_by_key(|(token, _)| *token))
    }
}
