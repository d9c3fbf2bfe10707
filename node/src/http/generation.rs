//! One request's sequences on the cluster, merged into one row of pieces.
//!
//! **Invariant:** dropping a [`Generation`] aborts every sequence that it still runs.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use relevo_actors::gateway::SequenceStream;
use relevo_wire::{
    FinishReason, GenerateRequest, Instant64, RequestError, RequestId, SequenceId, StreamEvent, TenantId, Usage,
};

use super::api_error::ApiError;
use super::choice::{Choice, Echo, Piece};
use super::events::Header;
use super::objects::{PromptTokensDetails, TokenNames, Usage as UsageObject};
use super::request::{Plan, StreamOptions};
use super::traced::Traced;
use super::words::Words;
use super::{Backend, Service};

/// The workers keep the deadline; the gateway steps in if they are this late.
const DEADLINE_GRACE: Duration = Duration::from_secs(5);

/// The sequences of a request and the answers that they become.
pub(super) struct Generation {
    sequences: Vec<Sequence>,
    /// Events that came before the answer began.
    early: VecDeque<(usize, StreamEvent)>,
    /// The sequence that is asked next, so that none starves another.
    cursor: usize,
    prompt_tokens: u64,
    /// Answers for each prompt.
    n: usize,
    /// Ends the answer: the server closes, or the deadline is past.
    interrupt: Pin<Box<dyn Future<Output = ApiError> + Send>>,
    top_logprobs: bool,
    tokens_as_ids: bool,
    stream: Option<StreamOptions>,
    traced: Traced,
}

struct Sequence {
    /// `None` once it has ended.
    stream: Option<SequenceStream>,
    choice: Choice,
    /// Whether it still has to send the first piece: prompt text, or the end of an answer of no tokens.
    opening: Option<Opening>,
    usage: Usage,
    /// Why its answer has ended.
    finish: Option<FinishReason>,
}

/// What comes next of a request.
enum Step {
    Event(usize, StreamEvent),
    /// An answer that no sequence computes.
    Opening(usize),
    Broken(ApiError),
    Over,
}

/// What an answer begins with, before its first event.
struct Opening {
    echo: Option<Echo>,
    finish: Option<FinishReason>,
}

/// Who asked, and when his body was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) tenant: TenantId,
    pub(super) arrived: Instant64,
}

impl Generation {
    /// Hands all sequences to the cluster and waits for the first event, so that a refusal is still an HTTP status.
    pub(super) async fn start(
        service: &Service,
        (backend, header): (&Backend, &Header),
        plan: Plan,
        origin: Origin,
        traced: &Traced,
    ) -> Result<Self, ApiError> {
        let request = service.mint.request_id();
        traced.submitted(backend, header, request, &plan);
        let submitted = Self::submit(service, backend, plan, (request, origin), traced);
        let mut generation = submitted.inspect_err(|error| traced.failed(error))?;
        std::future::poll_fn(|context| generation.poll_admission(context)).await?;
        Ok(generation)
    }

    fn submit(
        service: &Service,
        backend: &Backend,
        plan: Plan,
        (request, origin): (RequestId, Origin),
        traced: &Traced,
    ) -> Result<Self, ApiError> {
        let request_timeout = service.options.limits.request_timeout;
        let mut sequences = Vec::with_capacity(plan.prompts.len() * plan.n as usize);
        for prompt in &plan.prompts {
            for _ in 0..plan.n {
                let choice = Choice::new(Words::of(&backend.model), plan.stop_ids.clone(), &plan.stop_strings);
                let prompt_logprobs = plan.top_logprobs.filter(|_| plan.echo);
                // Nothing to compute: the prompt alone, or nothing at all.
                let idle = prompt.max_tokens == 0 && prompt_logprobs.is_none();
                let sequence = SequenceId { request, choice: u32::try_from(sequences.len()).unwrap_or(0), attempt: 0 };
                let stream = if idle {
                    None
                } else {
                    Some(backend.gateway.submit(GenerateRequest {
                        sequence,
                        tenant: origin.tenant,
                        prompt: prompt.tokens.clone(),
                        generated: Vec::new(),
                        sampling: plan.sampling.clone(),
                        stop_ids: plan.stop_ids.clone(),
                        max_tokens: prompt.max_tokens,
                        top_logprobs: plan.top_logprobs,
                        prompt_logprobs,
                        priority: 0,
                        deadline: Some(origin.arrived + request_timeout),
                    })?)
                };
                let echo = plan.echo.then(|| Echo {
                    text: prompt.text.clone(),
                    first_token: prompt_logprobs.and_then(|_| prompt.tokens.first().copied()),
                });
                let opening = Opening { echo, finish: idle.then_some(FinishReason::Length) };
                let usage = Usage::default();
                sequences.push(Sequence { stream, choice, opening: Some(opening), usage, finish: None });
            }
        }
        Ok(Self {
            sequences,
            early: VecDeque::new(),
            cursor: 0,
            prompt_tokens: plan.prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum(),
            n: plan.n as usize,
            interrupt: Box::pin(interrupt(service.closing.clone().cancelled_owned(), request_timeout + DEADLINE_GRACE)),
            top_logprobs: plan.top_logprobs.is_some(),
            tokens_as_ids: plan.tokens_as_ids,
            stream: plan.stream,
            traced: traced.clone(),
        })
    }

    /// Ready with the first event; with an error if one of those that are there is a refusal.
    fn poll_admission(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        for index in 0..self.sequences.len() {
            match self.poll_sequence(index, context) {
                Poll::Ready(Some(StreamEvent::Failed(error))) => return Poll::Ready(Err(self.fail(error.into()))),
                Poll::Ready(Some(event)) => self.early.push_back((index, event)),
                Poll::Ready(None) => return Poll::Ready(Err(self.fail(ApiError::internal()))),
                Poll::Pending => {}
            }
        }
        if !self.early.is_empty() || self.sequences.iter().all(|sequence| sequence.stream.is_none()) {
            return Poll::Ready(Ok(()));
        }
        self.interrupt.as_mut().poll(context).map(|error| Err(self.fail(error)))
    }

    /// The next piece and the index of its answer; `None` after the last one. After an error it is over.
    pub(super) fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
        piece: &mut Piece,
    ) -> Poll<Option<Result<usize, ApiError>>> {
        loop {
            piece.clear();
            let (index, applied) = match std::task::ready!(self.poll_step(context)) {
                Step::Opening(index) => (index, self.apply(index, None, piece)),
                Step::Event(index, event) => (index, self.apply(index, Some(event), piece)),
                Step::Broken(error) => (0, Err(error)),
                Step::Over => return Poll::Ready(None),
            };
            if let Err(error) = applied {
                return Poll::Ready(Some(Err(self.fail(error))));
            }
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(index)));
            }
        }
    }

    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        if let Some((index, event)) = self.early.pop_front() {
            return Poll::Ready(Step::Event(index, event));
        }
        let num_sequences = self.sequences.len();
        let mut open = false;
        for step in 0..num_sequences {
            let index = (self.cursor + step) % num_sequences;
            let Some(sequence) = self.sequences.get(index) else { continue };
            if sequence.stream.is_none() {
                if sequence.opening.is_some() {
                    return Poll::Ready(Step::Opening(index));
                }
                continue;
            }
            open = true;
            if let Poll::Ready(event) = self.poll_sequence(index, context) {
                self.cursor = index + 1;
                // A stream that ends without a last word was cut off.
                return Poll::Ready(
                    event.map_or_else(|| Step::Broken(ApiError::internal()), |event| Step::Event(index, event)),
                );
            }
        }
        if open { self.interrupt.as_mut().poll(context).map(Step::Broken) } else { Poll::Ready(Step::Over) }
    }

    fn poll_sequence(&mut self, index: usize, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        match self.sequences.get_mut(index).and_then(|sequence| sequence.stream.as_mut()) {
            Some(stream) => stream.poll_next(context),
            None => Poll::Pending,
        }
    }

    /// Turns an event (or `None`: only the opening) of an answer into a piece.
    fn apply(&mut self, index: usize, event: Option<StreamEvent>, piece: &mut Piece) -> Result<(), ApiError> {
        let Some(sequence) = self.sequences.get_mut(index) else { return Ok(()) };
        if let Some(StreamEvent::Prefilled { cached_tokens }) = event {
            // An answer that a stop string ends hears of no other count.
            sequence.usage.cached_tokens = cached_tokens;
            return Ok(());
        }
        let opening = sequence.opening.take();
        if let Some(opening) = opening {
            if let Some(echo) = &opening.echo {
                sequence.choice.echo(echo, piece);
            }
            piece.finish = opening.finish;
        }
        match event {
            None | Some(StreamEvent::Prefilled { .. }) => {}
            Some(StreamEvent::PromptLogprobs { logprobs, .. }) => {
                sequence.choice.echo_logprobs(logprobs, piece);
            }
            Some(StreamEvent::Token { token, logprobs, .. }) => {
                sequence.choice.push(token, logprobs, piece);
                if piece.finish.is_some() {
                    // A stop string: the rest of the sequence is not wanted.
                    sequence.stream = None;
                    sequence.usage.completion_tokens = sequence.choice.num_tokens();
                }
            }
            Some(StreamEvent::Finished { reason, usage }) => {
                sequence.choice.finish(reason, piece);
                sequence.stream = None;
                sequence.usage = usage;
            }
            Some(StreamEvent::Failed(error)) => return Err(error.into()),
        }
        sequence.finish = piece.finish.or(sequence.finish);
        Ok(())
    }

    /// Aborts what still runs.
    fn fail(&mut self, error: ApiError) -> ApiError {
        self.traced.failed(&error);
        for sequence in &mut self.sequences {
            sequence.stream = None;
            sequence.opening = None;
        }
        self.early.clear();
        error
    }

    /// Answers of the request.
    pub(super) fn num_choices(&self) -> usize {
        self.sequences.len()
    }

    /// Whether log-probabilities were asked for.
    pub(super) fn wants_logprobs(&self) -> bool {
        self.top_logprobs
    }

    /// What its tokens are called.
    pub(super) fn token_names<'a>(&self, backend: &'a Backend) -> TokenNames<'a> {
        TokenNames { words: Words::of(&backend.model), as_ids: self.tokens_as_ids }
    }

    /// How to stream it.
    pub(super) fn stream_options(&self) -> Option<StreamOptions> {
        self.stream
    }

    /// Token counts; final once all pieces are out.
    pub(super) fn usage(&self) -> UsageObject {
        let all = || self.sequences.iter().map(|sequence| sequence.usage);
        let completion_tokens = all().map(|usage| u64::from(usage.completion_tokens)).sum();
        // A prompt counts once, however many answers it gets; the later ones find it in the cache.
        let cached_tokens = all().step_by(self.n.max(1)).map(|usage| u64::from(usage.cached_tokens)).sum();
        UsageObject {
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            total_tokens: self.prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        for sequence in &mut self.sequences {
            // Of one that did not come to its end, as many as came.
            sequence.usage.completion_tokens = sequence.usage.completion_tokens.max(sequence.choice.num_tokens());
        }
        let reasons = self.sequences.iter().filter_map(|sequence| sequence.finish);
        self.traced.ended(self.usage(), reasons);
    }
}

async fn interrupt(closing: impl Future<Output = ()>, timeout: Duration) -> ApiError {
    tokio::select! {
        () = closing => ApiError::shutting_down(),
        () = tokio::time::sleep(timeout) => RequestError::DeadlineExceeded.into(),
    }
}
