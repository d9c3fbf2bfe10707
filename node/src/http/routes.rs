//! Every route, with the role that it needs.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use super::api_error::ApiError;
use super::guard::{Guard, guard};
use super::{Service, generate, models, openapi, operations, tokens};

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Anybody: probes of a load balancer carry no key.
    Public,
    /// Whoever has a key, where keys are set.
    Client,
    /// A client on the machine itself: who changes the cluster stands where it is administered.
    Operator,
}

/// A route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// As the router writes it.
    pub(super) path: &'static str,
    /// Who may call it.
    pub(super) role: Role,
    /// What it does.
    pub(super) endpoint: Endpoint,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Health,
    Ready,
    Metrics,
    Status,
    Order,
    BenchLink,
    Trace,
    Models,
    Model,
    Chat,
    Completion,
    Tokenize,
    Detokenize,
    OpenApi,
}

/// All of them.
pub(super) const ROUTES: &[Route] = &[
    Route { path: "/health", role: Role::Public, endpoint: Endpoint::Health },
    Route { path: "/ready", role: Role::Public, endpoint: Endpoint::Ready },
    Route { path: "/metrics", role: Role::Client, endpoint: Endpoint::Metrics },
    Route { path: "/relevo/status", role: Role::Client, endpoint: Endpoint::Status },
    Route { path: "/relevo/order", role: Role::Operator, endpoint: Endpoint::Order },
    Route { path: "/relevo/bench/link", role: Role::Operator, endpoint: Endpoint::BenchLink },
    Route { path: "/relevo/trace/{*request}", role: Role::Operator, endpoint: Endpoint::Trace },
    Route { path: "/v1/models", role: Role::Client, endpoint: Endpoint::Models },
    Route { path: "/v1/models/{*model}", role: Role::Client, endpoint: Endpoint::Model },
    Route { path: "/v1/chat/completions", role: Role::Client, endpoint: Endpoint::Chat },
    Route { path: "/v1/completions", role: Role::Client, endpoint: Endpoint::Completion },
    Route { path: "/tokenize", role: Role::Client, endpoint: Endpoint::Tokenize },
    Route { path: "/detokenize", role: Role::Client, endpoint: Endpoint::Detokenize },
    Route { path: "/openapi.json", role: Role::Client, endpoint: Endpoint::OpenApi },
];

impl Endpoint {
    fn handler(self) -> MethodRouter<Arc<Service>> {
        match self {
            Self::Health => get(operations::health),
            Self::Ready => get(operations::ready),
            Self::Metrics => get(operations::metrics),
            Self::Status => get(operations::status),
            Self::Order => post(operations::order),
            Self::BenchLink => post(operations::bench_link),
            Self::Trace => get(operations::trace),
            Self::Models => get(models::list),
            Self::Model => get(models::retrieve),
            Self::Chat => post(generate::chat),
            Self::Completion => post(generate::completion),
            Self::Tokenize => post(tokens::tokenize),
            Self::Detokenize => post(tokens::detokenize),
            Self::OpenApi => get(openapi::document),
        }
    }
}

/// The role that a matched path needs. What no route declares is for clients.
pub(super) fn role_of(path: Option<&str>) -> Role {
    ROUTES.iter().find(|route| Some(route.path) == path).map_or(Role::Client, |route| route.role)
}

/// All routes behind the guard. `check_names`: the address is a loopback's.
pub(super) fn router(service: Arc<Service>, check_names: bool) -> Router {
    let guarded = Guard { service: Arc::clone(&service), check_names };
    ROUTES
        .iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.endpoint.handler()))
        .fallback(|request: Request| async move { ApiError::unknown_url(request.method(), request.uri().path()) })
        .method_not_allowed_fallback(|request: Request| async move {
            ApiError::wrong_method(request.method(), request.uri().path())
        })
        .layer(from_fn_with_state(guarded, guard))
        .with_state(service)
}
