//! Rotary position embedding: which angles, and how a longer context stretches them.

use std::f64::consts::PI;

/// How a model rotates queries and keys (Su et al., arXiv:2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeDescription {
    /// Base of the angles.
    pub theta: f64,
    /// Elements of a head that rotate, even and at most `head_dim`; the rest pass.
    pub rotary_dim: usize,
    /// How the rows of q and k are ordered in the file: pairs are (2i, 2i+1) if set, (i, i + `rotary_dim`/2) otherwise.
    ///
    /// GGUF's `llama` architecture is permuted to pairs by its converter; everything else has halves.
    pub interleaved: bool,
    /// Stretching for contexts longer than the model was first trained on.
    pub scaling: RopeScaling,
}

/// How the angles are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by the same factor (Chen et al., arXiv:2306.15595).
    Linear {
        /// Angles are divided by it.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Low frequencies are divided by it.
        factor: f64,
        /// Wavelengths above `original_context / low_frequency_factor` are stretched in full.
        low_frequency_factor: f64,
        /// Wavelengths below `original_context / high_frequency_factor` are kept.
        high_frequency_factor: f64,
        /// Context of the first training.
        original_context: f64,
    },
    /// YaRN (Peng et al., arXiv:2309.00071).
    Yarn(Yarn),
}

/// YaRN's parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// Stretching of the low frequencies.
    pub factor: f64,
    /// Context of the first training.
    pub original_context: f64,
    /// Rotations within the original context above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations below which it is stretched in full.
    pub beta_slow: f64,
    /// Whether the ramp's ends are rounded outwards to whole pairs.
    pub truncate: bool,
    /// Multiplies sine and cosine.
    pub attention_factor: f64,
}

impl Yarn {
    /// What multiplies sine and cosine if the model does not say: `0.1 ln(factor) + 1`, section 3.4.
    pub fn default_attention_factor(factor: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * libm::log(factor) + 1.0 }
    }
}

impl RopeDescription {
    /// Angle per position of each rotated pair, scaling applied: `[rotary_dim / 2]`.
    ///
    /// Computed in f64 with `libm`'s functions (the same bits on every machine), rounded once. `factors` is the tensor
    /// [`super::Role::RopeFactors`], if the file has it: each angle is divided by its own factor, as llama.cpp does for Llama 3.1.
    pub fn inverse_frequencies(&self, factors: Option<&[f32]>) -> Vec<f32> {
        let num_pairs = self.rotary_dim / 2;
        (0..num_pairs)
            .map(|pair| {
                let plain = libm::pow(self.theta, -((2 * pair) as f64) / self.rotary_dim as f64);
                let scaled = self.scale(plain, pair);
                let factor = factors.and_then(|factors| factors.get(pair)).map_or(1.0, |&factor| f64::from(factor));
                (scaled / factor) as f32
            })
            .collect()
    }

    /// Multiplies sine and cosine: 1 but for YaRN.
    pub const fn attention_factor(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor as f32,
            _ => 1.0,
        }
    }

    fn scale(&self, plain: f64, pair: usize) -> f64 {
        match &self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor,
            &RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_context } => {
                let rotations = original_context * plain / (2.0 * PI);
                if rotations < low_frequency_factor {
                    plain / factor
                } else if rotations > high_frequency_factor {
                    plain
                } else {
                    let kept = (rotations - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
                    (1.0 - kept) * plain / factor + kept * plain
                }
            }
            RopeScaling::Yarn(yarn) => {
                let stretched = self.yarn_ramp(yarn, pair);
                plain / yarn.factor * stretched + plain * (1.0 - stretched)
            }
        }
    }

    /// How far a pair is stretched: 0 for the fast ones, 1 for the slow ones (arXiv:2309.00071, equations 17 to 20).
    fn yarn_ramp(&self, yarn: &Yarn, pair: usize) -> f64 {
        let dim = self.rotary_dim as f64;
        let pair_with = |rotations: f64| {
            dim * libm::log(yarn.original_context / (rotations * 2.0 * PI)) / (2.0 * libm::log(self.theta))
        };
        let (mut low, mut high) = (pair_with(yarn.beta_fast), pair_with(yarn.beta_slow));
        if yarn.truncate {
            (low, high) = (libm::floor(low), libm::ceil(high));
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if high == low {
            // As transformers does, to keep the division finite.
            high += 0.001;
        }
        ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}
