//! What the gateway counts of its streams, under vLLM's names where the meaning is the same.

use relevo_wire::{FinishReason, Instant64, RequestError, StreamEvent};

use super::core::{StreamCore, StreamOutcome};
use super::phases::PhaseTimes;

/// How a stream ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    Finished(FinishReason),
    Aborted,
    Failed,
}

impl From<&StreamOutcome> for StreamEnd {
    fn from(outcome: &StreamOutcome) -> Self {
        match outcome {
            StreamOutcome::Finished(reason, _) => Self::Finished(*reason),
            StreamOutcome::Failed(RequestError::DeadlineExceeded | RequestError::ShuttingDown) => Self::Aborted,
            StreamOutcome::Failed(_) => Self::Failed,
            StreamOutcome::Abandoned => Self::Aborted,
        }
    }
}

impl StreamEnd {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Stop) => "stop",
            Self::Finished(FinishReason::Length) => "length",
            Self::Aborted => "abort",
            Self::Failed => "error",
        }
    }
}

/// Handles of those that each token touches; the others are looked up by name once a stream.
pub(super) struct StreamMetrics {
    time_to_first_token: metrics::Histogram,
    inter_token_latency: metrics::Histogram,
    generation_tokens: metrics::Counter,
}

impl StreamMetrics {
    pub(super) fn new() -> Self {
        Self {
            time_to_first_token: metrics::histogram!("vllm:time_to_first_token_seconds"),
            inter_token_latency: metrics::histogram!("vllm:inter_token_latency_seconds"),
            generation_tokens: metrics::counter!("vllm:generation_tokens_total"),
        }
    }

    /// These events go out now; the stream's last token before them came at `previous`.
    pub(super) fn emitted(
        &self,
        times: &PhaseTimes,
        previous: Option<Instant64>,
        now: Instant64,
        emit: &[StreamEvent],
    ) {
        let num_tokens = emit.iter().filter(|event| matches!(event, StreamEvent::Token { .. })).count();
        if num_tokens == 0 {
            return;
        }
        self.generation_tokens.increment(num_tokens as u64);
        match (previous, times.time_to_first_token()) {
            (Some(previous), _) => self.inter_token_latency.record(now.since(previous).as_secs_f64()),
            (None, Some(time)) => self.time_to_first_token.record(time.as_secs_f64()),
            (None, None) => {}
        }
    }

    /// The stream is over.
    pub(super) fn ended(&self, core: &StreamCore, end: StreamEnd) {
        metrics::counter!("vllm:request_success_total", "finished_reason" => end.label()).increment(1);
        let times = core.times();
        let seconds = [
            ("vllm:request_queue_time_seconds", times.queue()),
            ("vllm:request_prefill_time_seconds", times.prefill()),
            ("vllm:request_decode_time_seconds", times.decode()),
            ("vllm:request_inference_time_seconds", times.prefill().zip(times.decode()).map(|(a, b)| a + b)),
            ("vllm:time_per_output_token_seconds", times.time_per_output_token()),
            ("vllm:e2e_request_latency_seconds", times.end_to_end()),
        ];
        for (name, time) in seconds {
            if let Some(time) = time {
                metrics::histogram!(name).record(time.as_secs_f64());
            }
        }
        let request = core.request();
        metrics::counter!("vllm:prompt_tokens_total").increment(request.prompt.len() as u64);
        metrics::histogram!("vllm:request_prompt_tokens").record(request.prompt.len() as f64);
        metrics::histogram!("vllm:request_generation_tokens").record(request.generated.len() as f64);
    }

    /// A stream was not even taken in.
    pub(super) fn refused(&self) {
        metrics::counter!("vllm:request_success_total", "finished_reason" => "error").increment(1);
    }

    pub(super) fn replayed(&self) {
        metrics::counter!("relevo_replays_total").increment(1);
    }

    pub(super) fn contradicted(&self) {
        metrics::counter!("relevo_contradicted_tokens_total").increment(1);
    }
}
