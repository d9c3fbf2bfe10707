//! An answer as server-sent events.
//!
//! **Invariant:** a stream ends with `data: [DONE]`, or with an event named `error` after which the connection closes.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::api_error::ApiError;
use super::choice::Piece;
use super::generation::Generation;
use super::guard::report_panic;
use super::objects::{ChatChunk, ChatChunkChoice, ChatDelta, Completion, CompletionChoice};
use super::request::Format;
use super::{Backend, Service, answer};

/// Pieces that are ready together leave together, up to this size.
const COALESCE_BYTES: usize = 16 << 10;

/// What all objects of one answer carry.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) format: Format,
}

/// Answers with a stream. `last_answer` is cancelled after an error: the connection then ends with this answer.
pub(super) fn respond(
    service: Arc<Service>,
    generation: Generation,
    header: Header,
    last_answer: CancellationToken,
) -> Response {
    let mut events = EventStream {
        begun: vec![false; generation.num_choices()],
        service,
        span: Span::current(),
        generation,
        header,
        last_answer,
        buffer: BytesMut::new(),
        piece: Piece::default(),
        over: false,
    };
    let body = Body::from_stream(stream::poll_fn(move |context| events.poll(context)));
    let mut response = answer::with_type(body, "text/event-stream; charset=utf-8");
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would otherwise collect events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct EventStream {
    service: Arc<Service>,
    /// The request's: what happens while its stream runs is logged under it.
    span: Span,
    generation: Generation,
    header: Header,
    last_answer: CancellationToken,
    buffer: BytesMut,
    piece: Piece,
    /// Which answers have sent their first chunk.
    begun: Vec<bool>,
    over: bool,
}

impl EventStream {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        let _entered = self.span.clone().entered();
        while !self.over && self.buffer.len() < COALESCE_BYTES {
            // A panic ends this stream and nothing else.
            match catch_unwind(AssertUnwindSafe(|| self.poll_one(context))) {
                Ok(Poll::Ready(Ok(()))) => {}
                Ok(Poll::Ready(Err(error))) => self.fail(&error),
                Ok(Poll::Pending) => break,
                Err(panic) => self.fail(&report_panic(panic.as_ref())),
            }
        }
        if !self.buffer.is_empty() {
            return Poll::Ready(Some(Ok(self.buffer.split().freeze())));
        }
        if self.over { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Writes the next piece into the buffer.
    fn poll_one(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        let index = match std::task::ready!(self.generation.poll_piece(context, &mut self.piece)) {
            Some(Ok(index)) => index,
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => return Poll::Ready(self.end()),
        };
        let service = Arc::clone(&self.service);
        let Some(backend) = service.opened() else { return Poll::Ready(Err(ApiError::internal())) };
        Poll::Ready(match self.header.format {
            Format::Chat => self.chat_piece(index, backend),
            Format::Completion => self.completion_piece(index, backend),
        })
    }

    fn chat_piece(&mut self, index: usize, backend: &Backend) -> Result<(), ApiError> {
        let names = self.generation.token_names(backend);
        let Self { piece, buffer, header, .. } = self;
        let usage = self.generation.stream_options().and_then(|options| options.include_usage.then_some(None));
        let mut write = |delta, logprobs, finish_reason| {
            write_event(
                buffer,
                &ChatChunk {
                    id: &header.id,
                    object: "chat.completion.chunk",
                    created: header.created,
                    model: backend.model.name(),
                    choices: &[ChatChunkChoice { index, delta, logprobs, finish_reason }],
                    usage,
                },
            )
        };
        if let Some(begun) = self.begun.get_mut(index).filter(|begun| !**begun) {
            *begun = true;
            write(ChatDelta { role: Some("assistant"), content: Some("") }, None, None)?;
        }
        if !piece.text.is_empty() || !piece.entries.is_empty() {
            let logprobs = (!piece.entries.is_empty()).then(|| names.chat(&piece.entries));
            write(ChatDelta { role: None, content: Some(&piece.text) }, logprobs, None)?;
        }
        if piece.finish.is_some() {
            write(ChatDelta::default(), None, piece.finish)?;
        }
        Ok(())
    }

    fn completion_piece(&mut self, index: usize, backend: &Backend) -> Result<(), ApiError> {
        let names = self.generation.token_names(backend);
        let piece = &self.piece;
        let logprobs = (!piece.entries.is_empty()).then(|| names.completion(&piece.entries));
        write_event(
            &mut self.buffer,
            &Completion {
                id: &self.header.id,
                object: "text_completion",
                created: self.header.created,
                model: backend.model.name(),
                choices: &[CompletionChoice { index, text: &piece.text, logprobs, finish_reason: piece.finish }],
                usage: self.generation.stream_options().and_then(|options| options.include_usage.then_some(None)),
            },
        )
    }

    /// The token counts, if asked for, and the end.
    fn end(&mut self) -> Result<(), ApiError> {
        self.over = true;
        let service = Arc::clone(&self.service);
        let backend = service.opened().ok_or_else(ApiError::internal)?;
        let (id, created, model) = (&*self.header.id, self.header.created, backend.model.name());
        if self.generation.stream_options().is_some_and(|options| options.include_usage) {
            let usage = Some(Some(self.generation.usage()));
            match self.header.format {
                Format::Chat => {
                    let object = "chat.completion.chunk";
                    write_event(&mut self.buffer, &ChatChunk { id, object, created, model, choices: &[], usage })?;
                }
                Format::Completion => {
                    let object = "text_completion";
                    write_event(&mut self.buffer, &Completion { id, object, created, model, choices: &[], usage })?;
                }
            }
        }
        self.buffer.put_slice(b"data: [DONE]\n\n");
        Ok(())
    }

    fn fail(&mut self, error: &ApiError) {
        tracing::debug!(status = error.status().as_u16(), "a stream ends with an error");
        self.over = true;
        self.buffer.put_slice(b"event: error\n");
        // Writing an error of strings into memory cannot fail; the event's name alone would say it too.
        let _ = write_event(&mut self.buffer, &error.body());
        self.last_answer.cancel();
    }
}

/// `data: {…}` and an empty line. JSON has no raw line breaks.
fn write_event(buffer: &mut BytesMut, value: &impl Serialize) -> Result<(), ApiError> {
    buffer.put_slice(b"data: ");
    serde_json::to_writer((&mut *buffer).writer(), value).map_err(|error| {
        tracing::error!(%error, "an event cannot be written as JSON");
        ApiError::internal()
    })?;
    buffer.put_slice(b"\n\n");
    Ok(())
}
