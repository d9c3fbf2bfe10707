//! `relevo chat`: a question, or a conversation, with a running server or with a model run right here.

mod conversation;

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::{Common, Failure};
use crate::http_client::{ApiClient, ClientError};
use crate::terminal;
use crate::up::LocalServer;

use conversation::{Conversation, Settings};

/// Where a server is looked for.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// How long a server on this machine may take to say that it is there.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Arguments of `relevo chat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Without text it reads line after line; Ctrl-C ends an answer, Ctrl-D the conversation.")]
pub struct ChatArgs {
    /// The question
    text: Option<String>,
    /// The server [default: http://127.0.0.1:8080 if one answers there, else the model is run right here]
    #[arg(long)]
    url: Option<String>,
    /// Run the model right here, whoever answers at the default address
    #[arg(long, conflicts_with = "url")]
    local: bool,
    /// The model's name [default: what the server serves; smollm2 right here]
    #[arg(long)]
    model: Option<String>,
    /// A file whose first line is an API key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// What the model is told before the conversation begins
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 takes the most likely token each time, up to 2
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Makes answers repeatable
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Asks and prints, until there is nothing more to ask.
///
/// # Errors
/// See [`Failure`].
pub async fn run(args: ChatArgs, common: &Common) -> Result<(), Failure> {
    let client = ApiClient::new(args.url.as_deref().unwrap_or(DEFAULT_URL), args.api_key_file.as_deref())?;
    if args.url.is_some() || (!args.local && is_there(&client).await?) {
        return talk(client, args).await;
    }
    let store = common.store()?;
    let starting = LocalServer::start(args.model.as_deref(), &store);
    let server = tokio::select! {
        server = starting => server?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
    };
    let client = ApiClient::new(&server.url(), None)?;
    let talked = talk(client, args).await;
    server.stop().await?;
    talked
}

/// Whether a server that serves answers there.
async fn is_there(client: &ApiClient) -> Result<bool, ClientError> {
    match tokio::time::timeout(PROBE_DEADLINE, client.get::<serde_json::Value>("/v1/models")).await {
        Err(_) | Ok(Err(ClientError::Connect { .. })) => Ok(false),
        Ok(Err(error)) => Err(error),
        Ok(Ok(_)) => Ok(true),
    }
}

async fn talk(client: ApiClient, args: ChatArgs) -> Result<(), Failure> {
    let settings =
        Settings { model: args.model, max_tokens: args.max_tokens, temperature: args.temperature, seed: args.seed };
    let conversation = Conversation::new(client, settings, args.system.as_deref());
    match args.text {
        Some(text) => ask_once(conversation, &text).await,
        None => converse(conversation).await,
    }
}

async fn ask_once(mut conversation: Conversation, text: &str) -> Result<(), Failure> {
    tokio::select! {
        answered = conversation.ask(text) => answered,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    }
}

async fn converse(mut conversation: Conversation) -> Result<(), Failure> {
    let prompt = if terminal::stdout_is_terminal() { "> " } else { "" };
    loop {
        terminal::print_piece(prompt)?;
        let line = tokio::select! {
            line = read_line() => line?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else {
            if !prompt.is_empty() {
                terminal::print("")?;
            }
            return Ok(());
        };
        if line.trim().is_empty() {
            continue;
        }
        tokio::select! {
            answered = conversation.ask(line.trim()) => answered?,
            _ = tokio::signal::ctrl_c() => terminal::print("")?,
        }
    }
}

/// A line of stdin, `None` at its end. It is read on a thread of its own, which ends with the process if nobody types any more.
async fn read_line() -> Result<Option<String>, Failure> {
    let reading = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|count| (count > 0).then_some(line))
    });
    let line = reading.await.map_err(std::io::Error::other).and_then(|line| line);
    line.map_err(|source| Failure::System { doing: "cannot read stdin".to_owned(), source })
}
