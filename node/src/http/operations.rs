//! Routes for operators: is it alive, does it serve, what does it do.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::Service;
use super::answer;
use super::api_error::ApiError;

#[derive(Serialize)]
struct Condition {
    status: &'static str,
}

/// `GET /health`: the process answers.
pub(super) async fn health() -> Result<Response, ApiError> {
    answer::json(&Condition { status: "ok" })
}

/// `GET /ready`: the model serves.
pub(super) async fn ready(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    service.backend()?;
    answer::json(&Condition { status: "ready" })
}

/// `GET /metrics` in Prometheus' text format.
pub(super) async fn metrics(State(service): State<Arc<Service>>) -> Response {
    answer::with_type(service.render_metrics(), "text/plain; version=0.0.4; charset=utf-8")
}

/// `GET /relevo/status`: the cluster's own account of itself.
pub(super) async fn status(State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    answer::json(&(service.backend()?.status)().await)
}
