//! Random matrices that are written in a file's encoding from known codes and scales, block layouts as ggml's `ggml-common.h` defines them.
//!
//! The encoder goes the other way than the code under test, so that a misread layout cannot agree with itself.

use half::{bf16, f16};
use relevo_gpu::weights::{TensorType, TensorView};

/// xorshift64*, good enough for test data.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// In -1 to 1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.below(1 << 24) as f32 / (1u32 << 23) as f32) - 1.0
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    fn f16(&mut self, magnitude: f32) -> f16 {
        f16::from_f32(self.float() * magnitude)
    }
}

/// A matrix in its file's bytes, and what they mean: `weight = scale * code + min`, or a plain float.
pub(crate) struct Encoded {
    pub(crate) ty: TensorType,
    pub(crate) shape: [usize; 2],
    pub(crate) bytes: Vec<u8>,
    /// Without the type's offset; empty for float types.
    pub(crate) codes: Vec<i32>,
    /// One for each 16 weights.
    pub(crate) scales: Vec<f32>,
    /// One for each 32 weights.
    pub(crate) minima: Vec<f32>,
    /// The weights.
    pub(crate) weights: Vec<f32>,
}

impl Encoded {
    pub(crate) fn random(ty: TensorType, n: usize, k: usize, random: &mut Random) -> Self {
        let (block, _) = ty.block();
        let mut this = Self {
            ty,
            shape: [n, k],
            bytes: Vec::new(),
            codes: Vec::new(),
            scales: Vec::new(),
            minima: Vec::new(),
            weights: Vec::new(),
        };
        for _ in 0..n * k / block {
            match ty {
                TensorType::F32 | TensorType::F16 | TensorType::BF16 => this.push_float(random),
                TensorType::Q4_K | TensorType::Q5_K => this.push_super_block(random),
                TensorType::Q6_K => this.push_q6_k(random),
                _ => this.push_block(random),
            }
        }
        if this.weights.is_empty() {
            this.weights = (0..n * k)
                .map(|i| {
                    let product = this.scales[i / 16] * this.codes[i] as f32;
                    if this.has_minima() { product + this.minima[i / 32] } else { product }
                })
                .collect();
        }
        this
    }

    pub(crate) fn has_minima(&self) -> bool {
        matches!(self.ty, TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K)
    }

    pub(crate) fn is_float(&self) -> bool {
        self.codes.is_empty()
    }

    pub(crate) fn view(&self) -> TensorView<'_> {
        TensorView { name: "test.weight", ty: self.ty, shape: &self.shape, data: &self.bytes }
    }

    fn push_float(&mut self, random: &mut Random) {
        let value = random.float();
        let (bytes, value) = match self.ty {
            TensorType::F32 => (value.to_le_bytes().to_vec(), value),
            TensorType::F16 => (f16::from_f32(value).to_le_bytes().to_vec(), f16::from_f32(value).to_f32()),
            _ => (bf16::from_f32(value).to_le_bytes().to_vec(), bf16::from_f32(value).to_f32()),
        };
        self.bytes.extend(bytes);
        self.weights.push(value);
    }

    /// The types of 32: scale, minimum if it has one, fifth bits if it has them, then two codes a byte (i and i + 16), or one.
    fn push_block(&mut self, random: &mut Random) {
        let (bits, offset) = match self.ty {
            TensorType::Q4_0 => (4, 8),
            TensorType::Q4_1 => (4, 0),
            TensorType::Q5_0 => (5, 16),
            TensorType::Q5_1 => (5, 0),
            _ => (8, 128),
        };
        let codes: Vec<u8> = (0..32).map(|_| random.below(1 << bits) as u8).collect();
        let (scale, min) = (random.f16(0.1), random.f16(0.5));
        self.bytes.extend(scale.to_le_bytes());
        if self.has_minima() {
            self.bytes.extend(min.to_le_bytes());
        }
        if bits == 5 {
            let fifth = codes.iter().enumerate().fold(0u32, |all, (i, code)| all | u32::from(code >> 4) << i);
            self.bytes.extend(fifth.to_le_bytes());
        }
        if bits == 8 {
            self.bytes.extend(codes.iter().map(|&code| (i32::from(code) - 128) as i8 as u8));
        } else {
            self.bytes.extend((0..16).map(|i| codes[i] & 15 | (codes[i + 16] & 15) << 4));
        }
        self.codes.extend(codes.iter().map(|&code| i32::from(code) - offset));
        self.scales.extend([scale.to_f32(); 2]);
        self.minima.push(min.to_f32());
    }

    /// Q4_K and Q5_K: `d`, `dmin`, eight 6-bit scales and minima in 12 bytes, fifth bits, codes (32 low halves, 32 high halves, four times).
    fn push_super_block(&mut self, random: &mut Random) {
        let five = self.ty == TensorType::Q5_K;
        let codes: Vec<u8> = (0..256).map(|_| random.below(if five { 32 } else { 16 }) as u8).collect();
        let (d, dmin) = (random.f16(0.02), random.f16(0.02));
        let (scales, minima): (Vec<u8>, Vec<u8>) =
            (0..8).map(|_| (random.below(64) as u8, random.below(64) as u8)).unzip();
        self.bytes.extend(d.to_le_bytes());
        self.bytes.extend(dmin.to_le_bytes());
        self.bytes.extend((0..4).map(|i| scales[i] | scales[i + 4] >> 4 << 6));
        self.bytes.extend((0..4).map(|i| minima[i] | minima[i + 4] >> 4 << 6));
        self.bytes.extend((0..4).map(|i| scales[i + 4] & 15 | minima[i + 4] << 4));
        if five {
            self.bytes.extend((0..32).map(|i| (0..8).fold(0, |all, j| all | codes[j * 32 + i] >> 4 << j)));
        }
        for pair in codes.chunks(64) {
            self.bytes.extend((0..32).map(|i| pair[i] & 15 | (pair[i + 32] & 15) << 4));
        }
        self.codes.extend(codes.iter().map(|&code| i32::from(code)));
        for (scale, min) in scales.iter().zip(&minima) {
            self.scales.extend([d.to_f32() * f32::from(*scale); 2]);
            self.minima.push(-(dmin.to_f32() * f32::from(*min)));
        }
    }

    /// Q6_K: 128 bytes of low halves, 64 bytes of upper bits, 16 signed scales, `d`.
    fn push_q6_k(&mut self, random: &mut Random) {
        let codes: Vec<u8> = (0..256).map(|_| random.below(64) as u8).collect();
        let d = random.f16(0.002);
        let scales: Vec<i8> = (0..16).map(|_| random.below(256) as u8 as i8).collect();
        for half in codes.chunks(128) {
            self.bytes.extend((0..64).map(|i| half[i] & 15 | (half[i + 64] & 15) << 4));
        }
        for half in codes.chunks(128) {
            self.bytes.extend((0..32).map(|i| (0..4).fold(0, |all, j| all | half[j * 32 + i] >> 4 << (2 * j))));
        }
        self.bytes.extend(scales.iter().map(|&scale| scale as u8));
        self.bytes.extend(d.to_le_bytes());
        self.codes.extend(codes.iter().map(|&code| i32::from(code) - 32));
        self.scales.extend(scales.iter().map(|&scale| d.to_f32() * f32::from(scale)));
        self.minima.extend([0.0; 8]);
    }
}
