//! A tensor inside a mapped file.

use super::FormatError;

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
    /// All of them, for messages.
    pub const SERVED: &'static str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K";

    /// Its name, as GGUF tools write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Whether elements are stored one by one, without blocks and scales.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

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

/// A type as a file names it: one that is served, or one that is only known by name and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// Has kernels.
    Served(TensorType),
    /// Has none; tensors of it can be listed, not read.
    Other {
        /// Its name.
        name: &'static str,
        /// Elements of one block, and its bytes.
        block: (usize, usize),
    },
}

impl StoredType {
    /// Elements of one block, and its bytes.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::Served(ty) => ty.block(),
            Self::Other { block, .. } => block,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Served(ty) => ty.name(),
            Self::Other { name, .. } => name,
        }
    }
}

/// An entry of a file's tensor list; everything in it has been checked against the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Element type.
    pub ty: StoredType,
    /// Row-major; the last is contiguous.
    pub shape: Vec<usize>,
    /// Where its bytes begin in the file.
    pub offset: usize,
    /// How many there are: what shape and type ask for.
    pub byte_len: usize,
}

impl TensorEntry {
    /// Checks shape, type and place against each other and against `file_len`.
    ///
    /// `offset` counts from `data_start`, as both formats have it.
    pub(super) fn checked(
        name: String,
        ty: StoredType,
        shape: Vec<usize>,
        offset: u64,
        data: std::ops::Range<usize>,
    ) -> Result<Self, FormatError> {
        let fail = |name: String, reason: String| Err(FormatError::Tensor { name, reason });
        let Some(byte_len) = byte_len(ty, &shape) else {
            let (elements, _) = ty.block();
            let type_name = ty.name();
            let reason = format!(
                "shape {shape:?} is not possible for {type_name}: every dimension must be at least 1, the last a \
                 multiple of {elements}, and the size below 2^63 bytes"
            );
            return fail(name, reason);
        };
        let begin = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(data.start));
        let end = begin.and_then(|begin| begin.checked_add(byte_len));
        match (begin, end) {
            (Some(offset), Some(end)) if end <= data.end => Ok(Self { name, ty, shape, offset, byte_len }),
            _ => {
                let available = data.len();
                fail(
                    name,
                    format!("{byte_len} bytes at offset {offset} lie beyond the file's {available} bytes of data"),
                )
            }
        }
    }
}

/// Bytes that a shape takes, or `None` if there is no such tensor.
fn byte_len(ty: StoredType, shape: &[usize]) -> Option<usize> {
    let (elements, bytes) = ty.block();
    let row = shape.last().copied().unwrap_or(1);
    if row % elements != 0 || shape.contains(&0) {
        return None;
    }
    let num_elements = shape.iter().try_fold(1_usize, |product, &dimension| product.checked_mul(dimension))?;
    let byte_len = (num_elements / elements).checked_mul(bytes)?;
    (isize::try_from(byte_len).is_ok() && isize::try_from(num_elements).is_ok()).then_some(byte_len)
}

/// Refuses two tensors that share a byte, or a name.
pub(super) fn check_apart(tensors: &[TensorEntry]) -> Result<(), FormatError> {
    let mut names = std::collections::HashSet::new();
    for tensor in tensors {
        if !names.insert(tensor.name.as_str()) {
            return Err(FormatError::DuplicateTensor { name: tensor.name.clone() });
        }
    }
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if let [before, after] = pair
            && before.offset + before.byte_len > after.offset
        {
            let reason = format!("its bytes overlap those of {}", before.name);
            return Err(FormatError::Tensor { name: after.name.clone(), reason });
        }
    }
    Ok(())
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
