//! `relevo bench engine`: the bare engine, without HTTP and actors, over the channels that the actors use.
//!
//! One stream: a prefill and a decode are two tests, each from an empty context after a warm-up, as `llama-bench` has them. Several: as many random
//! prompts are prefilled together and decoded together, and the rate is the aggregate over the decode phase, as `llama-batched-bench` has it.

mod actor_runner;
mod driver;
mod limits;
mod outcome;
mod requests;
mod runner;

use std::num::NonZeroUsize;
use std::sync::Arc;

use relevo_actors::device::{STEP_OUTPUTS, STEP_ROWS};
use relevo_gpu::cpu::Isa;
use relevo_gpu::model::ModelOptions;
use relevo_gpu::weights::ModelFiles;
use relevo_wire::{BLOCK_TOKENS, Numerics, blocks_for_tokens};

use crate::cli::{Common, Failure, variant};
use crate::up::Machine;
use crate::{model_store, terminal};
use driver::Driver;
use outcome::Outcome;

/// Repetitions of each test with one stream: `llama-bench`'s default.
const REPETITIONS: usize = 5;

/// Tokens of a warm-up's prompt and of its answer: enough to touch every weight and every buffer.
const WARM_UP: (usize, usize) = (64, 8);

/// Arguments of `relevo bench engine`.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineArgs {
    /// A model's name or path
    #[arg(long, default_value = "smollm2", value_name = "NAME|PATH")]
    model: String,
    /// Tokens of a prompt
    #[arg(long, default_value = "512", value_name = "P")]
    prompt: NonZeroUsize,
    /// Tokens to generate
    #[arg(long, default_value = "128", value_name = "G")]
    generate: NonZeroUsize,
    /// Streams at a time
    #[arg(long, default_value = "1", value_name = "N")]
    parallel: NonZeroUsize,
    /// Threads [default: those of `relevo up`, one for each core]
    #[arg(long, value_name = "T")]
    threads: Option<NonZeroUsize>,
    /// How exactly the model computes
    #[arg(long, default_value = "default", value_name = "default|exact", value_parser = variant::<Numerics>)]
    numerics: Numerics,
    /// Instruction set of the kernels [default: the fastest of this processor]
    #[arg(long, value_name = "NAME", value_parser = instruction_set)]
    isa: Option<Isa>,
    /// Runs of each test, of which the mean is given [default: 5 with one stream, 1 with several]
    #[arg(long, value_name = "R")]
    repetitions: Option<NonZeroUsize>,
    /// Measure through gateway, router, prefill and decode actor, as `relevo up` serves, but without HTTP; one stream
    #[arg(long, conflicts_with = "parallel")]
    through_actors: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

fn instruction_set(text: &str) -> Result<Isa, String> {
    text.parse().map_err(|error| format!("{error}"))
}

/// What is measured, and on what.
#[derive(Clone, Copy, Debug)]
struct Workload {
    prompt: usize,
    generate: usize,
    streams: usize,
    repetitions: usize,
    threads: usize,
    isa: Isa,
    numerics: Numerics,
}

/// Measures the engine and prints what came out.
///
/// # Errors
/// The user's fault: no such model, or a load that it cannot hold. Transient: too little memory.
pub(super) async fn run(args: EngineArgs, common: &Common) -> Result<(), Failure> {
    let files = Arc::new(model_store::open(&common.store()?.path_of(&args.model)?)?);
    let workload = Workload::of(&args);
    let options = workload.model_options(&files)?;
    let mut driver = if args.through_actors {
        Driver::through_actors(&files, options, workload).await?
    } else {
        Driver::bare(&files, options, workload)?
    };
    let measured = measure(&mut driver, workload, !args.json).await;
    driver.stop().await;
    let bounds = limits::bounds(&files, options, workload)?;
    let outcome = Outcome::of(files.description(), workload, measured?, bounds);
    if args.json {
        return Ok(terminal::print(serde_json::to_string(&outcome).unwrap_or_default())?);
    }
    Ok(terminal::print(outcome.table())?)
}

/// Seconds of each repetition.
#[derive(Clone, Debug, Default)]
struct Measured {
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

async fn measure(driver: &mut Driver, workload: Workload, is_watched: bool) -> Result<Measured, Failure> {
    let Workload { prompt, generate, streams, repetitions, .. } = workload;
    let progress = terminal::count_progress(repetitions as u64, "repetitions");
    if !is_watched {
        progress.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut measured = Measured::default();
    driver.warm_up(WARM_UP.0.min(prompt), WARM_UP.1.min(generate)).await?;
    for _ in 0..repetitions {
        if streams == 1 {
            measured.prefill.push(driver.prefill(prompt).await?.as_secs_f64());
            measured.decode.push(driver.decode(generate).await?.as_secs_f64());
        } else {
            let (prefill, decode) = driver.together(streams, prompt, generate).await?;
            measured.prefill.push(prefill.as_secs_f64());
            measured.decode.push(decode.as_secs_f64());
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(measured)
}

impl Workload {
    fn of(args: &EngineArgs) -> Self {
        let streams = args.parallel.get();
        Self {
            prompt: args.prompt.get(),
            generate: args.generate.get(),
            streams,
            repetitions: args.repetitions.map_or(if streams == 1 { REPETITIONS } else { 1 }, NonZeroUsize::get),
            threads: args.threads.map_or_else(|| Machine::facts().threads_for(1), NonZeroUsize::get),
            isa: args.isa.unwrap_or_else(Isa::detect),
            numerics: args.numerics,
        }
    }

    /// A pool that holds every stream to its end.
    fn model_options(&self, files: &ModelFiles) -> Result<ModelOptions, Failure> {
        let longest = self.prompt + runner::most_tokens(self.streams, self.prompt, self.generate);
        let most = files.description().max_context;
        if longest > most {
            let Self { prompt, generate, streams, .. } = self;
            return Err(Failure::Usage(format!(
                "{streams} streams of --prompt {prompt} and --generate {generate} reach {longest} tokens, the model's context holds {most}"
            )));
        }
        let blocks = blocks_for_tokens(longest) + 1;
        let max_outputs = STEP_OUTPUTS.max(self.streams);
        Ok(ModelOptions {
            numerics: self.numerics,
            max_rows: STEP_ROWS.max(self.streams + BLOCK_TOKENS),
            max_outputs,
            max_context: longest.next_multiple_of(BLOCK_TOKENS).min(most),
            kv_blocks: self.streams * blocks,
        })
    }
}
