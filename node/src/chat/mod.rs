//! `relevo chat`: a question, or a conversation, with a running server or with a model run right here.

mod conversation;

use std::io::BufRead;
use std::path::PathBuf;

use crate::cli::{Common, Failure};
use crate::http_client::ApiClient;
use crate::terminal;

use conversation::{Conversation, Settings};

/// Where a server is looked for.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// Arguments of `relevo chat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Without text it reads line after line; Ctrl-C ends an answer, Ctrl-D the conversation.")]
pub struct ChatArgs {
    /// The question
    text: Option<String>,
    /// The server [default: http://127.0.0.1:8080]
    #[arg(long)]
    url: Option<String>,
    /// The model's name
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
pub async fn run(args: ChatArgs, _common: &Common) -> Result<(), Failure> {
    let url = args.url.as_deref().unwrap_or(DEFAULT_URL);
    let client = ApiClient::new(url, args.api_key_file.as_deref())?;
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
