//! From a model to the devices that run it: how much memory that takes, whether it is there, and the devices themselves.

use std::sync::Arc;

use relevo_actors::clock;
use relevo_actors::cluster::DeviceSpec;
use relevo_actors::device::{DeviceRole, STEP_OUTPUTS};
use relevo_actors::policy::prefix::PrefixIdentity;
use relevo_gpu::compute::ComputeError;
use relevo_gpu::cpu::{CpuDevice, CpuOptions, Isa};
use relevo_gpu::model::{
    MemoryPlan, Model, ModelOptions, Script as Rule, ScriptedModel, ScriptedOptions, ScriptedTimings, StepModel,
};
use relevo_gpu::weights::ModelFiles;
use relevo_transport::identity::LiveIdentity;
use relevo_wire::{BLOCK_TOKENS, ModelFacts, Role, blocks_for_tokens};

use super::context;
use super::facade::Source;
use super::machine::Machine;
use super::scripts::DeviceScript;
use crate::cli::Failure;
use crate::config::{CarrierChoice, Config, Device};

/// KV memory of a device where neither flag nor file says: room for 95,000 tokens of the default model.
const DEFAULT_KV_BYTES: u64 = 2 << 30;

/// Of the memory that is left beside weights and activations, what default KV memory may take: the rest is the operating system's cache.
const DEFAULT_KV_SHARE: u64 = 2;

/// KV memory of a scripted device where neither flag nor file says: for 65,536 tokens, or one request's, as far as they fit into
/// [`DEFAULT_KV_BYTES`].
const SCRIPTED_KV_BLOCKS: usize = 4096;

/// A device before it starts: what it will take, how it will run.
pub(super) struct PlannedDevice {
    pub(super) name: String,
    pub(super) roles: Vec<DeviceRole>,
    /// Positions of a request at most.
    pub(super) max_context: usize,
    /// Tokens that its KV blocks hold.
    pub(super) kv_tokens: usize,
    /// What a KV block takes, over all layers.
    pub(super) block_bytes: u64,
    pub(super) plan: MemoryPlan,
    engine: PlannedEngine,
    /// Absent where the prefix cache is switched off.
    prefix_identity: Option<PrefixIdentity>,
    /// Its KV pool lies in memory that other processes of the host can be let into.
    shares_kv: bool,
}

/// What runs on a device's engine thread.
#[derive(Clone)]
enum PlannedEngine {
    Cpu { files: Arc<ModelFiles>, options: ModelOptions, num_threads: usize, pin: bool },
    Scripted { rule: Arc<Rule>, options: ScriptedOptions, timings: ScriptedTimings },
}

/// Plans every device of the configuration and holds them against the machine's memory.
///
/// # Errors
/// The user's fault: a context longer than the model's or than the KV memory holds, or too little memory, with the figures.
pub(super) fn plan(config: &Config, source: &Source, machine: &Machine) -> Result<Vec<PlannedDevice>, Failure> {
    plan_with(config, source, machine, prefix_identity(config, source)?)
}

/// The same for a node, whose prefixes have the names that they have on all nodes.
///
/// # Errors
/// As [`plan`].
pub(super) fn plan_of_node(
    config: &Config,
    source: &Source,
    machine: &Machine,
    identity: &LiveIdentity,
) -> Result<Vec<PlannedDevice>, Failure> {
    let secret = identity.present().cluster_secret();
    let identity = PrefixIdentity { secret, content: model_facts(config, source).content };
    let mut planned = plan_with(config, source, machine, identity)?;
    for device in &mut planned {
        device.shares_kv = shares_kv(config, &device.roles);
    }
    Ok(planned)
}

/// Whether other processes may read a device's KV pool: what it costs (the system gives such memory no huge pages unless it is told to) is saved
/// where nothing is to be sent that way.
fn shares_kv(config: &Config, roles: &[DeviceRole]) -> bool {
    let prefills = config.node.roles.contains(&Role::Prefill) && roles.contains(&DeviceRole::Prefill);
    match config.transport.carrier {
        CarrierChoice::Shm => true,
        CarrierChoice::Auto => prefills,
        CarrierChoice::InProcess | CarrierChoice::Quic => false,
    }
}

fn plan_with(
    config: &Config,
    source: &Source,
    machine: &Machine,
    identity: PrefixIdentity,
) -> Result<Vec<PlannedDevice>, Failure> {
    let mut available = machine.available_bytes;
    let mut planned = Vec::new();
    for (index, config_device) in config.devices.iter().enumerate() {
        let share = Share { available, num_devices: (config.devices.len() - index) as u64 };
        let mut device = match source {
            Source::Files(files) => plan_cpu(config, index, files, machine, &share)?,
            Source::Scripts(scripts) => plan_scripted(config, index, scripts.of_device(index), &share)?,
        };
        device.prefix_identity = config_device.prefix_cache.then(|| identity.clone());
        device.plan.check(available).map_err(|source| Failure::Memory { device: device.name.clone(), source })?;
        available -= device.plan.total_bytes();
        planned.push(device);
    }
    context::fit(&mut planned, config.model.max_context_tokens)?;
    Ok(planned)
}

/// What the keys of this process's prefix caches depend on. The secret lives as long as the caches do: it is drawn anew at each start.
fn prefix_identity(config: &Config, source: &Source) -> Result<PrefixIdentity, Failure> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Failure::Usage(format!("the operating system gives no random numbers: {error}")))?;
    Ok(PrefixIdentity { secret, content: model_facts(config, source).content })
}

/// What nodes must agree on to work on one sequence.
pub(super) fn model_facts(config: &Config, source: &Source) -> ModelFacts {
    match source {
        Source::Files(files) => {
            let (numerics, description) = (config.model.numerics, files.description());
            let (layout, digest) = (description.kv_layout(numerics), files.digest());
            ModelFacts { content: format!("{} {digest} {numerics:?} {layout:?}", description.name), layout }
        }
        Source::Scripts(scripts) => {
            let script = &scripts.of_device(0).script;
            let layout = script.layout();
            ModelFacts { content: format!("{} {:?} {layout:?}", script.name, script.tokens), layout }
        }
    }
}

/// What is left for this device and those after it.
struct Share {
    available: u64,
    num_devices: u64,
}

impl Share {
    /// What default KV memory may take beside what else the device needs.
    fn default_kv_bytes(&self, beside: u64) -> u64 {
        let left = (self.available / self.num_devices).saturating_sub(beside);
        DEFAULT_KV_BYTES.min(left / DEFAULT_KV_SHARE)
    }
}

/// The positions of a request, as configured or as many as the model has.
fn max_context(config: &Config, model: usize) -> Result<usize, Failure> {
    match config.model.max_context_tokens {
        Some(tokens) if tokens as usize > model => {
            Err(Failure::Usage(format!("max_context_tokens is {tokens}, the model was made for {model}")))
        }
        Some(tokens) => Ok(tokens as usize),
        None => Ok(model),
    }
}

/// As many blocks as fit, at least one: what that one is too large for is said by the plan's check.
fn num_blocks(kv_bytes: u64, block_bytes: u64) -> usize {
    usize::try_from((kv_bytes / block_bytes).max(1)).unwrap_or(usize::MAX)
}

/// KV memory that the file or a flag asks for.
fn asked_kv_bytes(device: &Device) -> Option<u64> {
    device.kv_memory_mib.map(|mib| u64::from(mib) << 20)
}

fn plan_cpu(
    config: &Config,
    index: usize,
    files: &Arc<ModelFiles>,
    machine: &Machine,
    share: &Share,
) -> Result<PlannedDevice, Failure> {
    let (device, description) = (&config.devices[index], files.description());
    let numerics = config.model.numerics;
    let max_context = max_context(config, description.max_context)?;
    let max_rows = device.max_step_tokens as usize;
    let block_bytes = description.kv_layout(numerics).block_bytes() as u64;
    let plan_of = |kv_blocks| {
        let max_outputs = STEP_OUTPUTS.min(max_rows);
        let options = ModelOptions { numerics, max_rows, max_outputs, max_context, kv_blocks };
        MemoryPlan::new(files, options).map(|plan| (options, plan)).map_err(Failure::Load)
    };
    let kv_bytes = match asked_kv_bytes(device) {
        Some(bytes) => bytes,
        None => share.default_kv_bytes(plan_of(1)?.1.total_bytes()),
    };
    let (options, plan) = plan_of(num_blocks(kv_bytes, block_bytes))?;
    let num_devices = config.devices.len();
    let num_threads = device.threads.map_or_else(|| machine.threads_for(num_devices), |threads| threads as usize);
    let files = Arc::clone(files);
    Ok(PlannedDevice {
        name: format!("cpu{index}"),
        roles: device.roles.clone(),
        max_context,
        kv_tokens: options.kv_blocks.saturating_mul(BLOCK_TOKENS),
        block_bytes,
        plan,
        engine: PlannedEngine::Cpu {
            files,
            options,
            num_threads,
            pin: num_devices == 1 && !config.node.shares_machine,
        },
        prefix_identity: None,
        shares_kv: false,
    })
}

fn plan_scripted(
    config: &Config,
    index: usize,
    script: &DeviceScript,
    share: &Share,
) -> Result<PlannedDevice, Failure> {
    let device = &config.devices[index];
    let max_context = max_context(config, script.script.max_context_tokens as usize)?;
    let max_rows = device.max_step_tokens as usize;
    let bare = ScriptedOptions { max_rows, max_outputs: STEP_OUTPUTS.min(max_rows), max_context, ..script.options() };
    let block_bytes = bare.block_memory_bytes();
    let kv_bytes = asked_kv_bytes(device).unwrap_or_else(|| {
        let num_wanted = SCRIPTED_KV_BLOCKS.max(blocks_for_tokens(max_context)) as u64;
        share.default_kv_bytes(0).min(num_wanted.saturating_mul(block_bytes))
    });
    let options = ScriptedOptions { num_blocks: num_blocks(kv_bytes, block_bytes), ..bare };
    Ok(PlannedDevice {
        name: format!("scripted{index}"),
        roles: device.roles.clone(),
        max_context,
        kv_tokens: options.num_blocks.saturating_mul(BLOCK_TOKENS),
        block_bytes,
        plan: options.memory_plan(),
        engine: PlannedEngine::Scripted { rule: Arc::new(script.rule()), options, timings: script.timings() },
        prefix_identity: None,
        shares_kv: false,
    })
}

impl PlannedDevice {
    /// The device as the cluster starts it. Its model is loaded when the engine starts; files stay mapped for the next epoch.
    pub(super) fn spec(&self) -> DeviceSpec {
        let (engine, shares_kv) = (self.engine.clone(), self.shares_kv);
        let mut spec = DeviceSpec::new(self.name.clone(), &self.roles, move || engine.load(shares_kv));
        let identity = self.prefix_identity.clone();
        spec.tune = Arc::new(move |mut limits| {
            limits.prefix_identity = identity.clone();
            limits
        });
        spec
    }

    /// Takes requests of fewer positions.
    ///
    /// # Errors
    /// The file's fault, as when it was planned.
    pub(super) fn shorten(&mut self, tokens: usize) -> Result<(), Failure> {
        self.max_context = tokens;
        match &mut self.engine {
            PlannedEngine::Cpu { files, options, .. } => {
                options.max_context = tokens;
                self.plan = MemoryPlan::new(files, *options).map_err(Failure::Load)?;
            }
            PlannedEngine::Scripted { options, .. } => options.max_context = tokens,
        }
        Ok(())
    }

    /// What computes, in a few words.
    pub(super) fn hardware(&self) -> String {
        match &self.engine {
            PlannedEngine::Cpu { num_threads: 1, .. } => format!("{}, 1 thread", Isa::detect()),
            PlannedEngine::Cpu { num_threads, .. } => format!("{}, {num_threads} threads", Isa::detect()),
            PlannedEngine::Scripted { .. } => "a script".to_owned(),
        }
    }
}

impl PlannedEngine {
    fn load(&self, shares_kv: bool) -> Result<Box<dyn StepModel>, ComputeError> {
        match self {
            Self::Cpu { files, options, num_threads, pin } => {
                let mut device =
                    CpuDevice::new(CpuOptions { num_threads: *num_threads, pin: *pin, isa: Isa::detect() })?;
                if shares_kv {
                    device.share_kv();
                }
                let model =
                    Model::load(device, files, *options).map_err(|error| ComputeError::Device(error.to_string()))?;
                Ok(Box::new(model))
            }
            Self::Scripted { rule, options, timings } => {
                let model = ScriptedModel::new(*options).with_script(Arc::clone(rule));
                let model = if shares_kv { model.with_shared_kv()? } else { model };
                Ok(Box::new(model.with_timings(*timings, clock::now)))
            }
        }
    }
}
