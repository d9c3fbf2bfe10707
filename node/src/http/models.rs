//! `GET /v1/models` and `GET /v1/models/{model}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;

use super::answer;
use super::api_error::ApiError;
use super::{ServedModel, Service};

/// OpenAI's `Model`, with vLLM's `max_model_len`.
#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    max_model_len: usize,
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

impl<'a> Model<'a> {
    fn new(name: &'a str, model: &ServedModel) -> Self {
        Self { id: name, object: "model", created: model.created, owned_by: "relevo", max_model_len: model.max_context }
    }
}

/// `GET /v1/models`: every name that is served.
pub(super) async fn list(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    let model = &service.backend()?.model;
    let data = model.names.iter().map(|name| Model::new(name, model)).collect();
    answer::json(&ModelList { object: "list", data })
}

/// `GET /v1/models/{model}`; a name may contain slashes.
pub(super) async fn retrieve(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let model = &service.backend()?.model;
    model.check_name(Some(&name))?;
    answer::json(&Model::new(&name, model))
}
