//! Routes for operators: is it alive, does it serve, what does it do.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use relevo_actors::traces::MAX_REQUESTS;
use relevo_wire::{DeviceRole, LinkBench, MAX_BLOCK_KIB, MAX_ROUNDS, Order};
use serde::{Deserialize, Serialize};

use super::Service;
use super::answer;
use super::api_error::ApiError;
use super::body::read_json;

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

/// `GET /relevo/trace/{request}`: what was done for a request, on all nodes. A client's own id may contain slashes.
pub(super) async fn trace(State(service): State<Arc<Service>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let trace = (service.backend()?.trace)(name.clone()).await;
    answer::json(&trace.ok_or_else(|| ApiError::unknown_request(&name, MAX_REQUESTS))?)
}

/// The body of a wish to have a link measured.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkToMeasure {
    node: String,
    from: Option<String>,
    block_kib: Option<u32>,
    #[serde(default = "default_rounds")]
    rounds: u32,
}

/// Enough to see how far they differ.
const fn default_rounds() -> u32 {
    12
}

/// `POST /relevo/bench/link`: what the KV path to a node carries; takes some seconds.
pub(super) async fn bench_link(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let backend = service.backend()?;
    let body = read_json(&service, request).await?;
    let body: LinkToMeasure = serde_json::from_slice(&body.bytes).map_err(|_| {
        ApiError::bad_json(r#"Expected {"node": NODE}, and if you like "from": NODE, "block_kib": N and "rounds": N."#)
    })?;
    let LinkToMeasure { node, from, block_kib, rounds } = body;
    let fits = block_kib.is_none_or(|block_kib| (1..=MAX_BLOCK_KIB).contains(&block_kib));
    if !fits || !(1..=MAX_ROUNDS).contains(&rounds) {
        let message = format!("\"block_kib\" is between 1 and {MAX_BLOCK_KIB}, \"rounds\" between 1 and {MAX_ROUNDS}.");
        return Err(ApiError::bad_json(message));
    }
    let measured = (backend.measure_link)(node, from, LinkBench { block_kib, rounds }).await;
    answer::json(&measured.map_err(ApiError::order_refused)?)
}

/// The body of an order: `{"drain": "NODE"}`, `{"undrain": "NODE"}` or `{"role": "decode", "node": "NODE"}`.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum OrderBody {
    Drain { drain: String },
    Undrain { undrain: String },
    Role { role: DeviceRole, node: String },
}

/// `POST /relevo/order`: an operator's order, carried out by the coordinator.
pub(super) async fn order(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let backend = service.backend()?;
    let body = read_json(&service, request).await?;
    let body: OrderBody = serde_json::from_slice(&body.bytes).map_err(|_| {
        ApiError::bad_json(
            r#"Expected {"drain": NODE}, {"undrain": NODE} or {"role": "prefill"|"decode", "node": NODE}."#,
        )
    })?;
    let order = match body {
        OrderBody::Drain { drain } => Order::Drain(drain),
        OrderBody::Undrain { undrain } => Order::Undrain(undrain),
        OrderBody::Role { role, node } => Order::SetRole(node, role),
    };
    (backend.order)(order).await.map_err(ApiError::order_failed)?;
    answer::json(&Condition { status: "ok" })
}
