//! The header of a GGUF file, versions 2 and 3 (ggml's `docs/gguf.md`).
//!
//! **Invariant:** nothing is allocated from a count that the rest of the file could not hold, and every tensor that
//! comes out lies within the file and apart from the others.

use super::bytes::Cursor;
use super::metadata::{Metadata, MetadataIndex};
use super::tensor::{self, StoredType, TensorEntry, TensorType};
use super::{FormatError, Value};

/// What a file without `general.alignment` is aligned to.
const DEFAULT_ALIGNMENT: u64 = 32;
/// A page of any machine; more is a mistake, or malice.
const MAX_ALIGNMENT: u64 = 1 << 16;
/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMENSIONS: u32 = 4;
/// Least bytes of an entry: a key's (empty name, type, one byte), and a tensor's (empty name, no dimensions, type, offset).
const MIN_KEY_BYTES: usize = 13;
const MIN_TENSOR_BYTES: usize = 24;
/// Far above any model; each key and tensor takes several times its bytes of memory here.
const MAX_KEYS: usize = 1 << 16;
const MAX_TENSORS: usize = 1 << 18;

/// A GGUF file's keys and tensors.
#[derive(Clone, Debug)]
pub struct GgufHeader {
    /// 2 or 3; they differ in nothing that concerns a little-endian file.
    pub version: u32,
    /// The tensors, in the file's order.
    pub tensors: Vec<TensorEntry>,
    metadata: MetadataIndex,
}

impl GgufHeader {
    /// Reads the header of a whole file.
    ///
    /// # Errors
    /// The file's fault: anything that breaks the format or points outside of `data`.
    pub fn parse(data: &[u8]) -> Result<Self, FormatError> {
        let mut cursor = Cursor::new(data, 0);
        let version = parse_version(&mut cursor)?;
        let num_tensors = parse_count(&mut cursor, "tensors", MIN_TENSOR_BYTES, MAX_TENSORS)?;
        let num_keys = parse_count(&mut cursor, "keys", MIN_KEY_BYTES, MAX_KEYS)?;
        let metadata = MetadataIndex::parse(&mut cursor, data, num_keys)?;
        let alignment = alignment(metadata.with_data(data))?;
        let announced =
            (0..num_tensors).map(|number| Announced::parse(&mut cursor, number)).collect::<Result<Vec<_>, _>>()?;
        let data_start = cursor.offset().next_multiple_of(alignment as usize);
        let data_range = data_start..data.len().max(data_start);
        let tensors = announced
            .into_iter()
            .map(|announced| announced.check(alignment, data_range.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        tensor::check_apart(&tensors)?;
        Ok(Self { version, tensors, metadata })
    }

    /// The keys and values; `data` is what [`GgufHeader::parse`] was given.
    pub const fn metadata<'a>(&'a self, data: &'a [u8]) -> Metadata<'a> {
        self.metadata.with_data(data)
    }
}

fn parse_version(cursor: &mut Cursor<'_>) -> Result<u32, FormatError> {
    let magic = cursor.bytes(4, &|| "the magic number".to_owned())?;
    if magic != b"GGUF" {
        return Err(FormatError::Magic { found: magic.to_vec() });
    }
    match cursor.u32(&|| "the version".to_owned())? {
        version @ (2 | 3) => Ok(version),
        swapped if matches!(swapped.swap_bytes(), 1..=3) => Err(FormatError::BigEndian),
        found => Err(FormatError::Version { found }),
    }
}

fn parse_count(cursor: &mut Cursor<'_>, what: &str, min_bytes: usize, limit: usize) -> Result<u64, FormatError> {
    let count = cursor.u64(&|| format!("the number of {what}"))?;
    let most = (cursor.remaining() / min_bytes).min(limit) as u64;
    if count > most {
        return Err(FormatError::Count { what: what.to_owned(), count, most });
    }
    Ok(count)
}

fn alignment(metadata: Metadata<'_>) -> Result<u64, FormatError> {
    const KEY: &str = "general.alignment";
    match metadata.value(KEY).map(|value| (value, value.as_u64())) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, Some(alignment))) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(alignment),
        Some((value, _)) => {
            let found =
                if let Value::Unsigned(found) = value { found.to_string() } else { value.type_name().to_owned() };
            let reason = format!("is {found}, expected a power of two up to {MAX_ALIGNMENT}");
            Err(FormatError::Value { key: KEY.to_owned(), reason })
        }
    }
}

/// A tensor as the list announces it; nothing of it has been checked but that it is there.
struct Announced {
    name: String,
    type_id: u32,
    shape: Vec<u64>,
    offset: u64,
}

impl Announced {
    fn parse(cursor: &mut Cursor<'_>, number: u64) -> Result<Self, FormatError> {
        let name = cursor.string(&|| format!("the name of tensor {number}"))?.to_owned();
        let num_dimensions = cursor.u32(&|| format!("the number of dimensions of tensor {name}"))?;
        if num_dimensions > MAX_DIMENSIONS {
            let reason = format!("{num_dimensions} dimensions, expected {MAX_DIMENSIONS} at most");
            return Err(FormatError::Tensor { name, reason });
        }
        let mut shape = (0..num_dimensions)
            .map(|_| cursor.u64(&|| format!("the shape of tensor {name}")))
            .collect::<Result<Vec<_>, _>>()?;
        // The file has the contiguous dimension first.
        shape.reverse();
        let type_id = cursor.u32(&|| format!("the type of tensor {name}"))?;
        let offset = cursor.u64(&|| format!("the offset of tensor {name}"))?;
        Ok(Self { name, type_id, shape, offset })
    }

    fn check(self, alignment: u64, data: std::ops::Range<usize>) -> Result<TensorEntry, FormatError> {
        let Self { name, type_id, shape, offset } = self;
        let Some(ty) = stored_type(type_id) else {
            let reason = format!("type {type_id} is not one of ggml's");
            return Err(FormatError::Tensor { name, reason });
        };
        if offset % alignment != 0 {
            let reason = format!("offset {offset} is not a multiple of the file's alignment, {alignment}");
            return Err(FormatError::Tensor { name, reason });
        }
        let Ok(shape) = shape.iter().map(|&dimension| usize::try_from(dimension)).collect() else {
            let reason = format!("shape {shape:?} is larger than this machine's memory");
            return Err(FormatError::Tensor { name, reason });
        };
        TensorEntry::checked(name, ty, shape, offset, data)
    }
}

/// ggml's `enum ggml_type`.
const fn stored_type(id: u32) -> Option<StoredType> {
    let (name, block) = match id {
        0 => return Some(StoredType::Served(TensorType::F32)),
        1 => return Some(StoredType::Served(TensorType::F16)),
        2 => return Some(StoredType::Served(TensorType::Q4_0)),
        3 => return Some(StoredType::Served(TensorType::Q4_1)),
        6 => return Some(StoredType::Served(TensorType::Q5_0)),
        7 => return Some(StoredType::Served(TensorType::Q5_1)),
        8 => return Some(StoredType::Served(TensorType::Q8_0)),
        12 => return Some(StoredType::Served(TensorType::Q4_K)),
        13 => return Some(StoredType::Served(TensorType::Q5_K)),
        14 => return Some(StoredType::Served(TensorType::Q6_K)),
        30 => return Some(StoredType::Served(TensorType::BF16)),
        9 => ("Q8_1", (32, 36)),
        10 => ("Q2_K", (256, 84)),
        11 => ("Q3_K", (256, 110)),
        15 => ("Q8_K", (256, 292)),
        16 => ("IQ2_XXS", (256, 66)),
        17 => ("IQ2_XS", (256, 74)),
        18 => ("IQ3_XXS", (256, 98)),
        19 => ("IQ1_S", (256, 50)),
        20 => ("IQ4_NL", (32, 18)),
        21 => ("IQ3_S", (256, 110)),
        22 => ("IQ2_S", (256, 82)),
        23 => ("IQ4_XS", (256, 136)),
        24 => ("I8", (1, 1)),
        25 => ("I16", (1, 2)),
        26 => ("I32", (1, 4)),
        27 => ("I64", (1, 8)),
        28 => ("F64", (1, 8)),
        29 => ("IQ1_M", (256, 56)),
        34 => ("TQ1_0", (256, 54)),
        35 => ("TQ2_0", (256, 66)),
        39 => ("MXFP4", (32, 17)),
        _ => return None,
    };
    Some(StoredType::Other { name, block })
}
