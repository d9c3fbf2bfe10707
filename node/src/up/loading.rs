//! From a model's files to the devices that run it: how much memory that takes, whether it is there, and the devices themselves.

use std::sync::Arc;

use relevo_actors::cluster::DeviceSpec;
use relevo_actors::device::{DeviceRole, STEP_OUTPUTS};
use relevo_actors::policy::prefix::PrefixIdentity;
use relevo_gpu::compute::ComputeError;
use relevo_gpu::cpu::{CpuDevice, CpuOptions, Isa};
use relevo_gpu::model::{MemoryPlan, Model, ModelOptions, StepModel};
use relevo_gpu::weights::ModelFiles;

use super::context;
use super::machine::Machine;
use crate::cli::Failure;
use crate::config::{Config, Device};

/// KV memory of a device where neither flag nor file says: room for 95,000 tokens of the default model.
const DEFAULT_KV_BYTES: u64 = 2 << 30;

/// Of the memory that is left beside weights and activations, what default KV memory may take: the rest is the operating system's cache.
const DEFAULT_KV_SHARE: u64 = 2;

/// A device before it starts: what it will take, how it will run.
pub(super) struct PlannedDevice {
    pub(super) name: String,
    pub(super) roles: Vec<DeviceRole>,
    pub(super) num_threads: usize,
    pub(super) options: ModelOptions,
    pub(super) plan: MemoryPlan,
    /// Absent where the prefix cache is switched off.
    prefix_identity: Option<PrefixIdentity>,
}

/// Plans every device of the configuration and holds them against the machine's memory.
///
/// # Errors
/// The user's fault: a context longer than the model's or than the KV memory holds, or too little memory, with the figures.
pub(super) fn plan(config: &Config, files: &ModelFiles, machine: &Machine) -> Result<Vec<PlannedDevice>, Failure> {
    let mut available = machine.available_bytes;
    let identity = prefix_identity(config, files)?;
    let mut planned = Vec::new();
    for (index, config_device) in config.devices.iter().enumerate() {
        let shared_out = Share { available, num_devices: (config.devices.len() - index) as u64 };
        let mut device = plan_device(config, config_device, index, files, machine, &shared_out)?;
        device.prefix_identity = config_device.prefix_cache.then(|| identity.clone());
        device.plan.check(available).map_err(|source| Failure::Memory { device: device.name.clone(), source })?;
        available -= device.plan.total_bytes();
        planned.push(device);
    }
    context::fit(&mut planned, config.model.max_context_tokens, files)?;
    Ok(planned)
}

/// What the keys of this process's prefix caches depend on. The secret lives as long as the caches do: it is drawn anew at each start.
fn prefix_identity(config: &Config, files: &ModelFiles) -> Result<PrefixIdentity, Failure> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Failure::Usage(format!("the operating system gives no random numbers: {error}")))?;
    let numerics = config.model.numerics;
    let description = files.description();
    let content = format!("{} {numerics:?} {:?}", description.name, description.kv_layout(numerics));
    Ok(PrefixIdentity { secret, content })
}

/// What is left for this device and those after it.
struct Share {
    available: u64,
    num_devices: u64,
}

fn plan_device(
    config: &Config,
    device: &Device,
    index: usize,
    files: &ModelFiles,
    machine: &Machine,
    share: &Share,
) -> Result<PlannedDevice, Failure> {
    let description = files.description();
    let numerics = config.model.numerics;
    let max_context = match config.model.max_context_tokens {
        Some(tokens) if tokens as usize > description.max_context => {
            return Err(Failure::Usage(format!(
                "max_context_tokens is {tokens}, the model was made for {}",
                description.max_context
            )));
        }
        Some(tokens) => tokens as usize,
        None => description.max_context,
    };
    let max_rows = device.max_step_tokens as usize;
    let block_bytes = description.kv_layout(numerics).block_bytes() as u64;
    let options = |kv_blocks: u64| ModelOptions {
        numerics,
        max_rows,
        max_outputs: STEP_OUTPUTS.min(max_rows),
        max_context,
        kv_blocks: usize::try_from(kv_blocks.max(1)).unwrap_or(usize::MAX),
    };
    let plan_of = |kv_blocks| {
        let options = options(kv_blocks);
        MemoryPlan::new(files, options).map(|plan| (options, plan)).map_err(Failure::Load)
    };
    let kv_bytes = match device.kv_memory_mib {
        Some(mib) => u64::from(mib) << 20,
        None => {
            let (_, bare) = plan_of(1)?;
            let left = (share.available / share.num_devices).saturating_sub(bare.total_bytes());
            DEFAULT_KV_BYTES.min(left / DEFAULT_KV_SHARE)
        }
    };
    let (options, plan) = plan_of(kv_bytes / block_bytes)?;
    let num_threads =
        device.threads.map_or_else(|| machine.threads_for(config.devices.len()), |threads| threads as usize);
    Ok(PlannedDevice {
        name: format!("cpu{index}"),
        roles: device.roles.clone(),
        num_threads,
        options,
        plan,
        prefix_identity: None,
    })
}

impl PlannedDevice {
    /// The device as the cluster starts it. Its model is loaded when the engine starts; the files stay mapped for the next epoch.
    pub(super) fn spec(&self, files: &Arc<ModelFiles>, pin: bool) -> DeviceSpec {
        let (files, options, num_threads) = (Arc::clone(files), self.options, self.num_threads);
        let load = move || -> Result<Box<dyn StepModel>, ComputeError> {
            let device = CpuDevice::new(CpuOptions { num_threads, pin, isa: Isa::detect() })?;
            let model =
                Model::load(device, &files, options).map_err(|error| ComputeError::Device(error.to_string()))?;
            Ok(Box::new(model))
        };
        let mut spec = DeviceSpec::new(self.name.clone(), &self.roles, load);
        let identity = self.prefix_identity.clone();
        spec.tune = Arc::new(move |mut limits| {
            limits.prefix_identity = identity.clone();
            limits
        });
        spec
    }
}
