//! What is driven: the engine over its own channels, or a cluster around it.

use std::sync::Arc;
use std::time::Duration;

use relevo_actors::cluster::DeviceSpec;
use relevo_actors::device::{CoreLimits, DeviceRole, STEP_OUTPUTS};
use relevo_gpu::compute::ComputeError;
use relevo_gpu::cpu::{CpuDevice, CpuOptions};
use relevo_gpu::model::{LoadError, Model, ModelOptions, StepModel};
use relevo_gpu::weights::ModelFiles;

use super::Workload;
use super::actor_runner::ActorRunner;
use super::runner::Runner;
use crate::cli::Failure;

/// An engine, with or without what serves it.
pub(super) enum Driver {
    Bare(Runner),
    ThroughActors(ActorRunner),
}

impl Driver {
    pub(super) fn bare(files: &ModelFiles, options: ModelOptions, workload: Workload) -> Result<Self, Failure> {
        let model = load(files, options, workload)?;
        let mut limits = CoreLimits::of_model(&*model);
        limits.max_running = workload.streams.max(limits.max_running.min(STEP_OUTPUTS));
        Ok(Self::Bare(Runner::start(model, limits, files.description().vocab_size)?))
    }

    pub(super) async fn through_actors(
        files: &Arc<ModelFiles>,
        options: ModelOptions,
        workload: Workload,
    ) -> Result<Self, Failure> {
        let of_device = Arc::clone(files);
        let load = move || load(&of_device, options, workload).map_err(|error| ComputeError::Device(error.to_string()));
        let device = DeviceSpec::new("cpu0", &[DeviceRole::Prefill, DeviceRole::Decode], load);
        Ok(Self::ThroughActors(ActorRunner::start(device, files.description().vocab_size).await?))
    }

    /// Takes a prompt of `num_prompt` tokens and draws `num_tokens`, untimed.
    pub(super) async fn warm_up(&mut self, num_prompt: usize, num_tokens: usize) -> Result<(), Failure> {
        match self {
            Self::Bare(runner) => runner.together(1, num_prompt, num_tokens).await.map(drop),
            Self::ThroughActors(runner) => {
                runner.prefill(num_prompt).await?;
                runner.decode(num_tokens).await.map(drop)
            }
        }
    }

    /// Time from the order to the first token after a prompt of `num_tokens`.
    pub(super) async fn prefill(&mut self, num_tokens: usize) -> Result<Duration, Failure> {
        match self {
            Self::Bare(runner) => runner.prefill(num_tokens).await,
            Self::ThroughActors(runner) => runner.prefill(num_tokens).await,
        }
    }

    /// Time from the order to the last of `num_tokens` tokens, the first of them drawn from a context of one.
    pub(super) async fn decode(&mut self, num_tokens: usize) -> Result<Duration, Failure> {
        match self {
            Self::Bare(runner) => runner.decode(num_tokens).await,
            Self::ThroughActors(runner) => runner.decode(num_tokens).await,
        }
    }

    /// Times of several streams' prefill and decode: see [`Runner::together`].
    pub(super) async fn together(
        &mut self,
        streams: usize,
        prompt: usize,
        generate: usize,
    ) -> Result<(Duration, Duration), Failure> {
        match self {
            Self::Bare(runner) => runner.together(streams, prompt, generate).await,
            Self::ThroughActors(_) => {
                Err(Failure::Usage("--through-actors measures one stream: leave --parallel out".to_owned()))
            }
        }
    }

    pub(super) async fn stop(self) {
        match self {
            Self::Bare(mut runner) => runner.stop(),
            Self::ThroughActors(runner) => runner.stop().await,
        }
    }
}

fn load(files: &ModelFiles, options: ModelOptions, workload: Workload) -> Result<Box<dyn StepModel>, LoadError> {
    let device = CpuDevice::new(CpuOptions { num_threads: workload.threads, pin: true, isa: workload.isa })?;
    Ok(Box::new(Model::load(device, files, options)?))
}
