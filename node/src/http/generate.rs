//! `POST /v1/chat/completions` and `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use relevo_actors::clock;
use tokio_util::sync::CancellationToken;

use super::api_error::ApiError;
use super::body::{JsonBody, read_json};
use super::choice::Piece;
use super::events::{self, Header};
use super::generation::{Generation, Origin};
use super::guard::Caller;
use super::listener::LastAnswer;
use super::objects::{ChatChoice, ChatCompletion, ChatMessage, Completion, CompletionChoice};
use super::request::{Format, Planner};
use super::traced::{RequestName, Traced};
use super::{Backend, Service, answer};
use crate::wall_clock::unix_seconds;

/// A body up to this size is read where it arrives: a few hundred microseconds of parsing and tokenising. A larger one
/// goes to a thread of its own, so that it delays nobody's tokens.
const INLINE_BODY_BYTES: usize = 16 << 10;

/// `POST /v1/chat/completions`
pub(super) async fn chat(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    generate(service, request, Format::Chat).await
}

/// `POST /v1/completions`
pub(super) async fn completion(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    generate(service, request, Format::Completion).await
}

async fn generate(service: Arc<Service>, request: Request, format: Format) -> Result<Response, ApiError> {
    let backend = service.backend()?;
    let caller = request.extensions().get::<Caller>().copied().ok_or_else(ApiError::internal)?;
    let last_answer =
        request.extensions().get::<LastAnswer>().map_or_else(CancellationToken::new, |last| last.0.clone());
    let traced = Traced::begin(request.headers(), request.extensions().get::<RequestName>());
    let body = read_json(&service, request).await?;
    let origin = Origin { tenant: caller.tenant, arrived: clock::now() };
    let plan = read_body(&service, body, move |planner, body| planner.read(format, body)).await?;
    let prefix = if format == Format::Chat { "chatcmpl" } else { "cmpl" };
    let header = Header { id: service.mint.object_id(prefix), created: unix_seconds(), format };
    let generation = Generation::start(&service, (backend, &header), plan, origin, &traced).await?;
    if generation.stream_options().is_some() {
        return Ok(events::respond(Arc::clone(&service), generation, header, last_answer));
    }
    collect(generation, &header, backend).await
}

/// Parses, checks and tokenises a body, where it arrives or on a thread of its own.
pub(super) async fn read_body<T: Send + 'static>(
    service: &Arc<Service>,
    body: JsonBody,
    read: impl FnOnce(&Planner<'_>, &[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let body_len = body.bytes.len();
    let read = move |service: &Service| read(&service.planner()?, &body.bytes);
    if body_len <= INLINE_BODY_BYTES {
        return read(service);
    }
    let permit = Arc::clone(&service.heavy_bodies).acquire_owned().await.map_err(|_| ApiError::shutting_down())?;
    let service = Arc::clone(service);
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        read(&service)
    });
    task.await.map_err(|error| {
        tracing::error!(%error, "a body could not be read");
        ApiError::internal()
    })?
}

/// Waits for all answers and writes them in one piece.
async fn collect(mut generation: Generation, header: &Header, backend: &Backend) -> Result<Response, ApiError> {
    let mut wholes: Vec<Piece> = Vec::new();
    wholes.resize_with(generation.num_choices(), Piece::default);
    let mut piece = Piece::default();
    while let Some(index) =
        std::future::poll_fn(|context| generation.poll_piece(context, &mut piece)).await.transpose()?
    {
        if let Some(whole) = wholes.get_mut(index) {
            whole.text.push_str(&piece.text);
            whole.entries.append(&mut piece.entries);
            whole.finish = piece.finish.or(whole.finish);
        }
    }
    match header.format {
        Format::Chat => write_chat(&generation, &wholes, header, backend),
        Format::Completion => write_completion(&generation, &wholes, header, backend),
    }
}

fn write_chat(
    generation: &Generation,
    wholes: &[Piece],
    header: &Header,
    backend: &Backend,
) -> Result<Response, ApiError> {
    let names = generation.token_names(backend);
    let choices: Result<Vec<_>, ApiError> = wholes
        .iter()
        .enumerate()
        .map(|(index, piece)| {
            Ok(ChatChoice {
                index,
                message: ChatMessage { role: "assistant", content: &piece.text, refusal: None },
                logprobs: generation.wants_logprobs().then(|| names.chat(&piece.entries)),
                finish_reason: piece.finish.ok_or_else(ApiError::internal)?,
            })
        })
        .collect();
    answer::json(&ChatCompletion {
        id: &header.id,
        object: "chat.completion",
        created: header.created,
        model: backend.model.name(),
        choices: choices?,
        usage: generation.usage(),
    })
}

fn write_completion(
    generation: &Generation,
    wholes: &[Piece],
    header: &Header,
    backend: &Backend,
) -> Result<Response, ApiError> {
    let names = generation.token_names(backend);
    let choices: Vec<_> = wholes
        .iter()
        .enumerate()
        .map(|(index, piece)| CompletionChoice {
            index,
            text: &piece.text,
            logprobs: generation.wants_logprobs().then(|| names.completion(&piece.entries)),
            finish_reason: piece.finish,
        })
        .collect();
    answer::json(&Completion {
        id: &header.id,
        object: "text_completion",
        created: header.created,
        model: backend.model.name(),
        choices: &choices,
        usage: Some(Some(generation.usage())),
    })
}
