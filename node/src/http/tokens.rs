//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use relevo_wire::TokenId;
use serde::Serialize;

use super::api_error::ApiError;
use super::body::read_json;
use super::generate::read_body;
use super::objects::TokenNames;
use super::words::Words;
use super::{Service, answer};

#[derive(Serialize)]
struct Tokenized<'a> {
    count: usize,
    max_model_len: usize,
    tokens: &'a [TokenId],
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<Cow<'a, str>>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// `POST /tokenize`
pub(super) async fn tokenize(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let model = &service.backend()?.model;
    let body = read_json(&service, request).await?;
    let plan = read_body(&service, body, |planner, body| planner.tokenize(body)).await?;
    let names = TokenNames { words: Words::of(model), as_ids: false };
    answer::json(&Tokenized {
        count: plan.tokens.len(),
        max_model_len: model.max_context,
        tokens: &plan.tokens,
        token_strs: plan.with_names.then(|| plan.tokens.iter().map(|&token| names.name(token)).collect()),
    })
}

/// `POST /detokenize`
pub(super) async fn detokenize(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    service.backend()?;
    let body = read_json(&service, request).await?;
    let prompt = read_body(&service, body, |planner, body| planner.detokenize(body)).await?;
    answer::json(&Detokenized { prompt })
}
