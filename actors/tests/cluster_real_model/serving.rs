//! How a real model is served, and what it is asked.

use std::path::Path;
use std::sync::Arc;

use relevo_actors::cluster::{ClusterOptions, DeviceSpec};
use relevo_actors::device::{CoreLimits, DeviceRole};
use relevo_actors::policy::prefix::PrefixIdentity;
use relevo_gpu::compute::ComputeError;
use relevo_gpu::cpu::{CpuDevice, CpuOptions, Isa};
use relevo_gpu::model::{Model, ModelOptions, StepModel};
use relevo_gpu::weights::ModelFiles;
use relevo_wire::{
    GenerateRequest, KvLayout, Numerics, RequestId, SamplingParams, SequenceId, TenantId, TokenId, blocks_for_tokens,
};

use crate::default_model::default_model;
use crate::gate::{Gate, Gated};
use crate::world::{self, Layout};

/// How it is done; none of it may show in an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) layout: Layout,
    pub(crate) num_threads: usize,
    pub(crate) isa: Isa,
    /// Rows of a step, decode rows and prompt chunk together.
    pub(crate) step_rows: usize,
    /// Blocks of each device's pool.
    pub(crate) kv_blocks: usize,
    pub(crate) prefix_cache: bool,
}

/// The plainest manner: everything in one place, whole prompts, one after the other.
pub(crate) fn plain() -> Manner {
    Manner {
        layout: Layout::Combined,
        num_threads: 1,
        isa: Isa::detect(),
        step_rows: 512,
        kv_blocks: 512,
        prefix_cache: false,
    }
}

/// A model, and how long its answers are in these tests.
pub(crate) struct Subject {
    files: Arc<ModelFiles>,
    numerics: Numerics,
    pub(crate) max_tokens: u32,
}

impl Subject {
    /// A checkpoint of random weights.
    pub(crate) fn tiny(name: &str, numerics: Numerics) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu/tests/goldens/tiny").join(name);
        Self { files: Arc::new(ModelFiles::open(&folder).unwrap()), numerics, max_tokens: 40 }
    }

    /// The model that `relevo up` serves, quantised as it is. Shorter answers: it has a thousand times the weights.
    pub(crate) fn default_model(max_tokens: u32) -> Self {
        let files = Arc::new(ModelFiles::open(&default_model()).unwrap());
        Self { files, numerics: Numerics::Default, max_tokens }
    }

    fn vocab_size(&self) -> u32 {
        u32::try_from(self.files.description().vocab_size).unwrap()
    }

    fn kv_layout(&self) -> KvLayout {
        self.files.description().kv_layout(self.numerics)
    }

    /// Bytes of so many tokens' blocks.
    pub(crate) fn kv_bytes(&self, num_blocks: usize) -> u64 {
        (num_blocks * self.kv_layout().block_bytes()) as u64
    }

    /// Bytes of the blocks that these prompts fill or begin.
    pub(crate) fn prompt_bytes(&self, questions: &[GenerateRequest]) -> u64 {
        self.kv_bytes(questions.iter().map(|question| blocks_for_tokens(question.prompt.len())).sum())
    }

    /// A cluster's options, with a gate in the way of one device.
    pub(crate) fn options(&self, manner: Manner, gate: Option<(&str, &Arc<Gate>)>) -> ClusterOptions {
        world::options_with(manner.layout, |name, roles| {
            let gate = gate.filter(|(device, _)| *device == name).map(|(_, gate)| Arc::clone(gate));
            self.device(manner, name, roles, gate)
        })
    }

    fn device(&self, manner: Manner, name: &str, roles: &[DeviceRole], gate: Option<Arc<Gate>>) -> DeviceSpec {
        let files = Arc::clone(&self.files);
        let options = ModelOptions {
            numerics: self.numerics,
            max_rows: manner.step_rows,
            max_outputs: manner.step_rows.min(64),
            max_context: files.description().max_context.min(256),
            kv_blocks: manner.kv_blocks,
        };
        let load = move || -> Result<Box<dyn StepModel>, ComputeError> {
            let device = CpuDevice::new(CpuOptions { num_threads: manner.num_threads, pin: false, isa: manner.isa })?;
            let model =
                Model::load(device, &files, options).map_err(|error| ComputeError::Device(error.to_string()))?;
            Ok(match &gate {
                Some(gate) => Box::new(Gated { model, gate: Arc::clone(gate) }),
                None => Box::new(model),
            })
        };
        let mut spec = DeviceSpec::new(name, roles, load);
        let identity = PrefixIdentity { secret: [7; 32], content: "one model".into() };
        let prefix_identity = manner.prefix_cache.then_some(identity);
        spec.tune = Arc::new(move |limits| CoreLimits { prefix_identity: prefix_identity.clone(), ..limits });
        spec
    }

    /// Prompts of these lengths, no two of which begin alike; each answered greedily (even ids) and, another one, by drawing (odd ids).
    pub(crate) fn questions(&self, lengths: &[usize]) -> Vec<GenerateRequest> {
        (0..2 * lengths.len() as u64).map(|id| self.question(id, &self.prompt(id, lengths[id as usize / 2]))).collect()
    }

    /// A question that begins with these tokens, and goes on as no other.
    pub(crate) fn beginning_with(&self, id: u64, head: &[TokenId]) -> GenerateRequest {
        self.question(id, &[head, &self.prompt(id, 33)].concat())
    }

    fn prompt(&self, id: u64, length: usize) -> Vec<TokenId> {
        let token =
            |place: u64| ((place * place * 31 + place * 504 + id * 263 + 11) % u64::from(self.vocab_size())) as u32;
        (0..length as u64).map(token).collect()
    }

    fn question(&self, id: u64, prompt: &[TokenId]) -> GenerateRequest {
        GenerateRequest {
            sequence: SequenceId { request: RequestId(id), choice: 0, attempt: 0 },
            tenant: TenantId(0),
            prompt: Arc::from(prompt),
            generated: Vec::new(),
            sampling: if id.is_multiple_of(2) { greedy() } else { drawing(id) },
            stop_ids: Arc::from([]),
            max_tokens: self.max_tokens,
            top_logprobs: Some(2),
            prompt_logprobs: None,
            priority: 0,
            deadline: None,
        }
    }
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// Everything that a draw can depend on.
fn drawing(seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: 0.9,
        top_p: 0.95,
        top_k: 50,
        min_p: 0.01,
        seed,
        frequency_penalty: 0.3,
        presence_penalty: 0.2,
        repetition_penalty: 1.1,
        logit_bias: Arc::from([(7, 0.5), (100, -1.0)]),
    }
}
