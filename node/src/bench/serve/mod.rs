//! `relevo bench serve`: a closed-loop load generator for OpenAI-compatible servers.
//!
//! N workers each keep one streaming request open; when it ends they send the next, until R are done. Every prompt is random, so that
//! no prefix cache helps; generation goes on past the end of sequence (`ignore_eos`), so that every request is of one length.

mod report;
mod workers;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;

use serde_json::Value;

use crate::cli::Failure;
use crate::http_client::{ApiClient, ClientError, ServerArgs};
use crate::terminal;

/// Arguments of `relevo bench serve`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "A request is good (goodput) if its time to first token and its mean time between tokens keep the --slo limits."
)]
pub struct ServeArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The model's name [default: the server's first]
    #[arg(long)]
    model: Option<String>,
    /// Requests open at a time
    #[arg(long, default_value = "8", value_name = "N")]
    concurrency: NonZeroUsize,
    /// Requests in all
    #[arg(long, default_value = "64", value_name = "R")]
    requests: NonZeroUsize,
    /// Tokens of a prompt (of a chat: words)
    #[arg(long, default_value = "128", value_name = "P")]
    prompt: NonZeroU32,
    /// Tokens to generate
    #[arg(long, default_value = "128", value_name = "G")]
    generate: NonZeroU32,
    /// Send chats of random words instead of completions of random token ids
    #[arg(long)]
    chat: bool,
    /// Random token ids are drawn below this
    #[arg(long, default_value = "30000", value_name = "N", value_parser = clap::value_parser!(u32).range(400..))]
    max_token_id: u32,
    /// Seed of the random prompts
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Time to first token that a good request keeps
    #[arg(long, value_name = "MS", value_parser = positive_ms)]
    slo_ttft_ms: Option<f64>,
    /// Mean time between tokens that a good request keeps
    #[arg(long, value_name = "MS", value_parser = positive_ms)]
    slo_itl_ms: Option<f64>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

fn positive_ms(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected milliseconds, such as 200".to_owned())?;
    if value > 0.0 && value.is_finite() { Ok(value) } else { Err("expected more than 0 ms".to_owned()) }
}

/// Loads the server and prints what was measured.
///
/// # Errors
/// The server cannot be reached, or no request succeeded.
pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let client = args.server.client()?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&client).await?,
    };
    let progress = terminal::count_progress(args.requests.get() as u64, "requests");
    let args = Arc::new(args);
    let measured = workers::run(&args, &client, &model, &progress).await;
    progress.finish_and_clear();
    let report = report::Report::of(&args, &model, &measured);
    for (kind, count) in &report.errors {
        terminal::say(format!("{count} of {} requests failed: {kind}", args.requests));
    }
    if report.completed == 0 {
        let reason = "no request succeeded".to_owned();
        return Err(ClientError::Malformed { base: client.base().to_owned(), reason }.into());
    }
    if args.json {
        let line = serde_json::to_string(&report).unwrap_or_default();
        return Ok(terminal::print(line)?);
    }
    Ok(terminal::print(report.table())?)
}

async fn first_model(client: &ApiClient) -> Result<String, ClientError> {
    let models: Value = client.get("/v1/models").await?;
    let name = models["data"][0]["id"].as_str().map(str::to_owned);
    name.ok_or_else(|| ClientError::Malformed {
        base: client.base().to_owned(),
        reason: "/v1/models lists no model; name one with --model".to_owned(),
    })
}
