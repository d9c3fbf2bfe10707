//! A tensor inside a mapped file.

/// How a tensor's elements are stored. Block layouts are ggml's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[allow(non_camel_case_types, reason = "the field's own names")]
pub enum TensorType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
    /// 32 × 4 bit, f16 scale.
    Q4_0,
    /// 32 × 4 bit, f16 scale and minimum.
    Q4_1,
    /// 32 × 5 bit, f16 scale.
    Q5_0,
    /// 32 × 5 bit, f16 scale and minimum.
    Q5_1,
    /// 32 × 8 bit, f16 scale.
    Q8_0,
    /// 256 × 4 bit in 8 groups with 6-bit scales and minima.
    Q4_K,
    /// 256 × 5 bit in 8 groups with 6-bit scales and minima.
    Q5_K,
    /// 256 × 6 bit in 16 groups with 8-bit scales.
    Q6_K,
}

impl TensorType {
    /// Elements of one block, and its bytes.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }
}

/// A tensor, borrowed from the mapped file; its length has been checked against its shape and type.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name in the file, for messages.
    pub name: &'a str,
    /// Element type.
    pub ty: TensorType,
    /// Row-major; the last is contiguous. A matrix is `[num_outputs, num_inputs]`.
    pub shape: &'a [usize],
    /// The elements, little-endian; not necessarily aligned.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}
