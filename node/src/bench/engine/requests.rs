//! What an engine is given to do: random prompts, the same in every run.

use std::sync::Arc;

use relevo_wire::{GenerateRequest, RequestId, SamplingParams, SequenceId, TenantId, TokenId};

/// Requests with prompts of random tokens, drawn greedily to their full length.
pub(super) struct Requests {
    random: Random,
    vocab_size: usize,
    num_made: u64,
}

impl Requests {
    /// For a model with this vocabulary.
    pub(super) fn new(vocab_size: usize) -> Self {
        Self { random: Random(1), vocab_size, num_made: 0 }
    }

    /// The next one.
    pub(super) fn next(&mut self, num_prompt: usize, num_tokens: usize) -> GenerateRequest {
        self.num_made += 1;
        let prompt: Arc<[TokenId]> = (0..num_prompt).map(|_| self.random.below(self.vocab_size)).collect();
        GenerateRequest {
            sequence: self.sequence(0),
            tenant: TenantId(0),
            prompt,
            generated: Vec::new(),
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            stop_ids: Arc::from([]),
            max_tokens: u32::try_from(num_tokens).unwrap_or(u32::MAX),
            top_logprobs: None,
            prompt_logprobs: None,
            priority: 0,
            deadline: None,
        }
    }

    /// Whom the request made last, or that many before it, is for.
    pub(super) fn sequence(&self, num_before: u64) -> SequenceId {
        SequenceId { request: RequestId(self.num_made - num_before), choice: 0, attempt: 0 }
    }
}

/// Random token ids, the same in every run: SplitMix64 (Steele et al., OOPSLA 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> TokenId {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let token = (z ^ (z >> 31)) % bound.max(1) as u64;
        TokenId::try_from(token).unwrap_or(0)
    }
}
