//! What the handlers share: the options, the way into the cluster, and the model that it serves.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use relevo_actors::cluster::OrderFailure;
use relevo_actors::gateway::Gateway;
use relevo_actors::link_bench::LinkMeasurement;
use relevo_actors::status::ClusterStatus;
use relevo_actors::traces::{RecentSpans, RequestTrace};
use relevo_wire::{LinkBench, Order, TokenId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::HttpOptions;
use super::api_error::ApiError;
use super::body::BodyBudget;
use super::mint::Mint;
use super::request::Planner;
use super::words::longest_token;
use crate::text::ModelText;

/// Large bodies that are parsed and tokenised at one time. Each takes a core for up to seconds, and memory for its
/// parsed JSON of up to sixteen times its size.
const MAX_HEAVY_BODIES: usize = 2;

/// Reads the cluster's status.
pub type StatusReader = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ClusterStatus> + Send>> + Send + Sync>;

/// Gathers what was done for a request, by one of its names.
pub type TraceReader = Box<dyn Fn(String) -> Pin<Box<dyn Future<Output = Option<RequestTrace>> + Send>> + Send + Sync>;

/// Hands an operator's order to the coordinator; an error is in words for the operator.
pub(super) type OrderTaker =
    Box<dyn Fn(Order) -> Pin<Box<dyn Future<Output = Result<(), OrderFailure>> + Send>> + Send + Sync>;

/// Has a link measured: to the first node, from the second if it is said which.
pub(super) type LinkMeter = Box<
    dyn Fn(String, Option<String>, LinkBench) -> Pin<Box<dyn Future<Output = Result<LinkMeasurement, String>> + Send>>
        + Send
        + Sync,
>;

/// What the HTTP gateway serves. It may be shared with [`super::serve`] before there is a model: `/ready` says 503 until
/// [`Service::open`].
pub struct Service {
    pub(super) options: HttpOptions,
    pub(super) mint: Mint,
    /// Cancelled when open answers must end now.
    pub(super) closing: CancellationToken,
    pub(super) body_budget: Arc<BodyBudget>,
    /// Bodies that are read on threads of their own.
    pub(super) heavy_bodies: Arc<Semaphore>,
    render_metrics: Box<dyn Fn() -> String + Send + Sync>,
    opened: OnceLock<Opened>,
    draining: AtomicBool,
}

/// The cluster, and what is worth computing once of its model.
struct Opened {
    backend: Backend,
    longest_token: usize,
}

/// The cluster and its model.
pub struct Backend {
    /// The way into the cluster.
    pub gateway: Gateway,
    /// What it serves.
    pub model: ServedModel,
    /// What it says of itself.
    pub status: StatusReader,
    /// Where the spans of its requests are kept.
    pub spans: Arc<RecentSpans>,
    /// What was done for one of them, here and elsewhere.
    pub trace: TraceReader,
    /// Carries out what an operator wants, or says why not.
    pub order: OrderTaker,
    /// Says what a link carries, or why it cannot be measured.
    pub measure_link: LinkMeter,
}

/// A model as clients see it.
#[derive(Debug)]
pub struct ServedModel {
    /// The names that it is served under, the one that answers carry first; never empty.
    pub names: Vec<String>,
    /// Seconds since 1970 at which it was loaded.
    pub created: u64,
    /// Most tokens of prompt and answer together.
    pub max_context: usize,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Ids that end a generation.
    pub end_ids: Arc<[TokenId]>,
    /// The token that begins a document, if the model has one.
    pub start_id: Option<TokenId>,
    /// Its tokenizer and chat template, as far as it has them; without, it takes and gives token ids only.
    pub text: ModelText,
}

impl Service {
    /// A service without a model yet. `render_metrics` gives the text of `/metrics`.
    pub fn new(options: HttpOptions, render_metrics: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self {
            mint: Mint::new(options.gateway),
            options,
            closing: CancellationToken::new(),
            body_budget: Arc::default(),
            heavy_bodies: Arc::new(Semaphore::new(MAX_HEAVY_BODIES)),
            render_metrics: Box::new(render_metrics),
            opened: OnceLock::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// Begins to serve; a second call changes nothing.
    pub fn open(&self, backend: Backend) {
        let longest_token = longest_token(&backend.model.text);
        // A second call would be a bug of ours that harms nobody.
        let _ = self.opened.set(Opened { backend, longest_token });
    }

    /// Takes nothing new from now on.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// The cluster and its model.
    pub(super) fn backend(&self) -> Result<&Backend, ApiError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(ApiError::shutting_down());
        }
        self.opened().ok_or_else(ApiError::not_ready)
    }

    /// The same, also for answers that are under way when the server stops.
    pub(super) fn opened(&self) -> Option<&Backend> {
        self.opened.get().map(|opened| &opened.backend)
    }

    /// What bodies are checked against.
    pub(super) fn planner(&self) -> Result<Planner<'_>, ApiError> {
        let model = &self.backend()?.model;
        let longest_token = self.opened.get().map_or(1, |opened| opened.longest_token);
        Ok(Planner { model, mint: &self.mint, limits: &self.options.limits, longest_token })
    }

    pub(super) fn render_metrics(&self) -> String {
        (self.render_metrics)()
    }
}

impl ServedModel {
    /// Whether a request that names `name` (or nothing) means this model.
    pub(super) fn check_name(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if !self.names.iter().any(|known| known == name) => Err(ApiError::unknown_model(name)),
            _ => Ok(()),
        }
    }

    /// The name that answers carry.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("options", &self.options).finish_non_exhaustive()
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("model", &self.model).finish_non_exhaustive()
    }
}
