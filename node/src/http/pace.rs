//! How fast answers come, in the metrics that vLLM's dashboards read.

use metrics::Histogram;
use relevo_actors::clock;
use relevo_wire::{FinishReason, Instant64, Usage};

/// Times one request.
pub(super) struct Pace {
    model: String,
    arrived: Instant64,
    /// When each answer's last token came.
    last: Vec<Option<Instant64>>,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
}

impl Pace {
    /// A request that arrived (its body was read) at `arrived`.
    pub(super) fn new(model: &str, arrived: Instant64, num_choices: usize) -> Self {
        let model = model.to_owned();
        Self {
            time_to_first_token: metrics::histogram!("vllm:time_to_first_token_seconds", "model_name" => model.clone()),
            inter_token_latency: metrics::histogram!("vllm:inter_token_latency_seconds", "model_name" => model.clone()),
            last: vec![None; num_choices],
            model,
            arrived,
        }
    }

    /// A token of an answer came.
    pub(super) fn token(&mut self, choice_index: usize) {
        let now = clock::now();
        let Some(last) = self.last.get_mut(choice_index) else { return };
        match last.replace(now) {
            None => self.time_to_first_token.record(now.since(self.arrived)),
            Some(last) => self.inter_token_latency.record(now.since(last)),
        }
    }

    /// An answer is complete.
    pub(super) fn finished(&mut self, reason: FinishReason, usage: Usage) {
        let reason = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        };
        let model = &self.model;
        metrics::counter!("vllm:request_success_total", "model_name" => model.clone(), "finished_reason" => reason)
            .increment(1);
        metrics::counter!("vllm:prompt_tokens_total", "model_name" => model.clone())
            .increment(usage.prompt_tokens.into());
        metrics::counter!("vllm:generation_tokens_total", "model_name" => model.clone())
            .increment(usage.completion_tokens.into());
        metrics::histogram!("vllm:e2e_request_latency_seconds", "model_name" => model.clone())
            .record(clock::now().since(self.arrived));
    }

    /// The request failed.
    pub(super) fn failed(&mut self) {
        metrics::counter!("relevo_requests_failed_total", "model_name" => self.model.clone()).increment(1);
    }
}
