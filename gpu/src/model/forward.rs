//! The forward pass of the dense models (Llama family, Mistral, Qwen2, Qwen3), written once over [`Compute`].
//!
//! One layer, with the residual stream `h` of `[rows, hidden]`:
//!
//! ```text
//! qkv  = norm(h) · Wqkvᵀ + b        rotate q and k, store k and v in the row's KV block
//! a    = attention(q, blocks)       over everything before, as the cache holds it
//! h   += a · Woᵀ + b
//! f    = silu(norm(h) · Wgateᵀ) * (norm(h) · Wupᵀ)
//! h   += f · Wdownᵀ
//! ```
//!
//! After the last layer's keys and values are stored, only the rows whose logits are wanted go on: a chunk in the middle of a prompt
//! needs none, and skips the last layer's attention and feed-forward part, the final norm and the output head.

use std::sync::Arc;

use relevo_wire::{KvLayout, LayerIndex};

use super::limits::StepLimits;
use super::load::{LayerWeights, LoadError, Loader, ModelOptions, Weights};
use super::step::{KvMemory, Progress, StepModel};
use crate::compute::{
    Attention, Compute, ComputeError, Epilogue, Matmul, RopeAndStore, Rounding, RowOutput, Rows, StepPlan,
};
use crate::description::ModelDescription;
use crate::weights::ModelFiles;

/// The output head's rounding goes into the logits as it is, where that of a layer is one of many contributions. To round finer costs little there: few
/// rows have an output, and one stream waits for memory.
const HEAD_ROUNDING: Rounding = Rounding::Twice;

/// A model on a device: weights, activations, KV pool.
pub struct Model<C: Compute> {
    device: C,
    shape: Shape,
    weights: Weights<C>,
    activations: Activations<C>,
    kv: Arc<C::KvPool>,
    limits: StepLimits,
    step: Option<RunningStep<C>>,
}

/// What of the description the forward pass asks for in every layer.
struct Shape {
    layout: KvLayout,
    num_heads: usize,
    norm_epsilon: f32,
    attention_scale: f32,
    sliding_windows: Vec<Option<usize>>,
}

/// One set for all layers, reserved once for the largest step.
struct Activations<C: Compute> {
    /// The residual stream, `[max_rows, hidden]`.
    hidden: C::Buffer,
    /// `[max_rows, (num_heads + 2 * num_kv_heads) * head_dim]`.
    qkv: C::Buffer,
    /// `[max_rows, num_heads * head_dim]`.
    attention: C::Buffer,
    /// `[max_rows, ffn]`.
    feed_forward: C::Buffer,
    /// What attention gave the output rows, `[max_outputs, num_heads * head_dim]`.
    output_attention: C::Buffer,
    /// The residual stream of the output rows, `[max_outputs, hidden]`.
    output_hidden: C::Buffer,
    /// `[max_outputs, vocab]`.
    logits: C::Buffer,
}

struct RunningStep<C: Compute> {
    step: C::Step,
    num_outputs: usize,
    next_layer: usize,
    is_done: bool,
}

impl<C: Compute> Model<C> {
    /// Puts a model's weights on `device` and reserves what its steps need.
    ///
    /// # Errors
    /// The file's fault (the tensor is named), the caller's (an option out of range), or transient: memory is short.
    pub fn load(mut device: C, files: &ModelFiles, options: ModelOptions) -> Result<Self, LoadError> {
        let description = files.description();
        options.check(description)?;
        let layout = description.kv_layout(options.numerics);
        let weights = Loader { files, device: &mut device, numerics: options.numerics }.weights()?;
        let activations = Activations::reserve(&mut device, description, options)?;
        let kv = device.alloc_kv_pool(layout, options.kv_blocks)?;
        let shape = Shape {
            layout,
            num_heads: description.num_heads,
            norm_epsilon: description.norm_epsilon,
            attention_scale: description.attention_scale,
            sliding_windows: description.sliding_windows.clone(),
        };
        let limits = StepLimits {
            max_rows: options.max_rows,
            max_outputs: options.max_outputs,
            max_context: options.max_context,
            num_blocks: options.kv_blocks,
            vocab_size: description.vocab_size,
        };
        Ok(Self { device, shape, weights, activations, kv, limits, step: None })
    }

    /// The device that it runs on.
    pub const fn device(&self) -> &C {
        &self.device
    }

    /// The same, to read out what it has counted.
    pub const fn device_mut(&mut self) -> &mut C {
        &mut self.device
    }

    /// Its bounds.
    pub const fn limits(&self) -> &StepLimits {
        &self.limits
    }

    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.weights.layers.len()
    }

    /// One layer of the step.
    fn run_layer(&mut self, running: &RunningStep<C>) {
        let (step, index) = (&running.step, running.next_layer);
        if index == 0 {
            self.device.embed(step, &self.weights.embedding, &mut self.activations.hidden);
        }
        let is_last = self.is_last(index);
        let Self { device, shape, weights, activations, kv, .. } = self;
        let mut pass = Pass { device, shape, step, kv, rope: &weights.rope };
        let weights = &weights.layers[index];
        pass.store_kv(index, weights, activations);
        if is_last {
            if running.num_outputs > 0 {
                pass.attend(index, activations);
                pass.gather_outputs(activations);
                let Activations { output_attention, output_hidden, feed_forward, .. } = activations;
                pass.finish_layer(weights, Rows::Outputs, output_attention, output_hidden, feed_forward);
            }
        } else {
            pass.attend(index, activations);
            let Activations { attention, hidden, feed_forward, .. } = activations;
            pass.finish_layer(weights, Rows::All, attention, hidden, feed_forward);
        }
    }

    /// Final norm, output head, and the start of sampling, for the output rows.
    fn run_head(&mut self, running: &RunningStep<C>) {
        let Self { device, shape, weights, activations, .. } = self;
        let op = Matmul {
            weight: weights.head.as_ref().unwrap_or(&weights.embedding),
            norm: Some((&weights.output_norm, shape.norm_epsilon)),
            bias: None,
            epilogue: Epilogue::Store,
            rows: Rows::Outputs,
            rounding: HEAD_ROUNDING,
        };
        device.matmul(&running.step, op, &activations.output_hidden, &mut activations.logits);
        device.sample(&running.step, &mut activations.logits);
    }
}

/// What the operations of a layer share.
struct Pass<'a, C: Compute> {
    device: &'a mut C,
    shape: &'a Shape,
    step: &'a C::Step,
    kv: &'a C::KvPool,
    rope: &'a crate::compute::Rope<C::Vector>,
}

impl<C: Compute> Pass<'_, C> {
    /// q, k and v of all rows; k and v go to their blocks, q stays.
    fn store_kv(&mut self, layer: usize, weights: &LayerWeights<C>, activations: &mut Activations<C>) {
        let op = Matmul {
            weight: &weights.qkv,
            norm: Some((&weights.attention_norm, self.shape.norm_epsilon)),
            bias: weights.qkv_bias.as_ref(),
            epilogue: Epilogue::Store,
            rows: Rows::All,
            rounding: Rounding::Once,
        };
        self.device.matmul(self.step, op, &activations.hidden, &mut activations.qkv);
        let op = RopeAndStore {
            layer: LayerIndex(layer as u32),
            num_heads: self.shape.num_heads,
            qk_norm: weights.qk_norm.as_ref().map(|(q, k)| (q, k, self.shape.norm_epsilon)),
            rope: self.rope,
        };
        self.device.rope_and_store_kv(self.step, op, &mut activations.qkv, self.kv);
    }

    fn attend(&mut self, layer: usize, activations: &mut Activations<C>) {
        let op = Attention {
            layer: LayerIndex(layer as u32),
            num_heads: self.shape.num_heads,
            scale: self.shape.attention_scale,
            sliding_window: self.shape.sliding_windows.get(layer).copied().flatten(),
        };
        self.device.paged_attention(self.step, &op, &activations.qkv, self.kv, &mut activations.attention);
    }

    fn gather_outputs(&mut self, activations: &mut Activations<C>) {
        let Activations { attention, hidden, output_attention, output_hidden, .. } = activations;
        self.device.gather_outputs(self.step, attention, output_attention);
        self.device.gather_outputs(self.step, hidden, output_hidden);
    }

    /// Output projection and feed-forward part, for all rows or the output rows.
    fn finish_layer(
        &mut self,
        weights: &LayerWeights<C>,
        rows: Rows,
        attention: &C::Buffer,
        hidden: &mut C::Buffer,
        feed_forward: &mut C::Buffer,
    ) {
        let (epilogue, rounding) = (Epilogue::Add, Rounding::Once);
        let bias = weights.attention_output_bias.as_ref();
        let output = Matmul { weight: &weights.attention_output, norm: None, bias, epilogue, rows, rounding };
        self.device.matmul(self.step, output, attention, hidden);
        let norm = Some((&weights.feed_forward_norm, self.shape.norm_epsilon));
        let gate_up =
            Matmul { weight: &weights.gate_up, norm, bias: None, epilogue: Epilogue::SiluMul, rows, rounding };
        self.device.matmul(self.step, gate_up, hidden, feed_forward);
        let down = Matmul { weight: &weights.down, norm: None, bias: None, epilogue, rows, rounding };
        self.device.matmul(self.step, down, feed_forward, hidden);
    }
}

impl<C: Compute> Activations<C> {
    fn reserve(device: &mut C, description: &ModelDescription, options: ModelOptions) -> Result<Self, ComputeError> {
        let (max_rows, max_outputs) = (options.max_rows, options.max_outputs);
        let (hidden, query) = (description.hidden_size, description.num_heads * description.head_dim);
        let key_value = 2 * description.num_kv_heads * description.head_dim;
        Ok(Self {
            hidden: device.alloc(max_rows, hidden)?,
            qkv: device.alloc(max_rows, query + key_value)?,
            attention: device.alloc(max_rows, query)?,
            feed_forward: device.alloc(max_rows, description.ffn_size)?,
            output_attention: device.alloc(max_outputs, query)?,
            output_hidden: device.alloc(max_outputs, hidden)?,
            logits: device.alloc(max_outputs, description.vocab_size)?,
        })
    }
}

impl<C: Compute> StepModel for Model<C> {
    fn kv_layout(&self) -> KvLayout {
        self.shape.layout
    }

    fn max_rows(&self) -> usize {
        self.limits.max_rows
    }

    fn max_outputs(&self) -> usize {
        self.limits.max_outputs
    }

    fn max_context(&self) -> usize {
        self.limits.max_context
    }

    fn kv_memory(&self) -> Arc<dyn KvMemory> {
        self.kv.clone()
    }

    fn adopt_thread(&mut self) {
        self.device.adopt_thread();
    }

    fn begin_step(&mut self, plan: &StepPlan<'_>) -> Result<(), ComputeError> {
        if self.step.is_some() {
            return Err(ComputeError::Plan("a step is in flight".into()));
        }
        self.limits.check(plan)?;
        let step = self.device.begin_step(plan)?;
        let num_outputs = plan.pieces.iter().map(|piece| piece.outputs.len()).sum();
        self.step = Some(RunningStep { step, num_outputs, next_layer: 0, is_done: false });
        Ok(())
    }

    fn advance(&mut self) -> Result<Progress, ComputeError> {
        // Taken, so that a step whose device panics is gone.
        let mut running = match self.step.take() {
            Some(running) if !running.is_done => running,
            other => {
                self.step = other;
                return Err(ComputeError::Plan("no step to advance".into()));
            }
        };
        let progress = if running.next_layer < self.weights.layers.len() {
            self.run_layer(&running);
            let layer = LayerIndex(running.next_layer as u32);
            running.next_layer += 1;
            Progress::LayerDone(layer)
        } else {
            if running.num_outputs > 0 {
                self.run_head(&running);
            }
            running.is_done = true;
            Progress::Done
        };
        self.step = Some(running);
        Ok(progress)
    }

    fn finish_step(&mut self) -> Result<Vec<RowOutput>, ComputeError> {
        match self.step.take_if(|running| running.is_done) {
            Some(running) => self.device.finish(running.step),
            None => Err(ComputeError::Plan("no step is done".into())),
        }
    }

    fn abandon_step(&mut self) {
        self.step = None;
    }

    fn reset(&mut self) -> Result<(), ComputeError> {
        self.step = None;
        self.kv = self.device.alloc_kv_pool(self.shape.layout, self.limits.num_blocks)?;
        Ok(())
    }
}
