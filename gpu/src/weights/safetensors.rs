//! The header of a safetensors file: `u64` length, JSON, then the data.
//!
//! Our own reader and not the crate `safetensors` (0.8), which is safe with hostile headers but takes the last of two tensors of one
//! name, and mostly does not say which tensor it refuses; tests hold the two against each other.
//!
//! **Invariant:** every tensor that comes out lies within the file and apart from the others.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::FormatError;
use super::bytes::Cursor;
use super::tensor::{self, StoredType, TensorEntry, TensorType};

/// The format's own limit on its header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// More than any framework has; a shape longer than that is malice.
const MAX_DIMENSIONS: usize = 8;

/// Reads the header of a whole file: its tensors, in the header's order.
///
/// # Errors
/// The file's fault: anything that breaks the format or points outside of `data`.
pub fn parse_safetensors(data: &[u8]) -> Result<Vec<TensorEntry>, FormatError> {
    let mut cursor = Cursor::new(data, 0);
    let header_len = cursor.u64(&|| "the header's length".to_owned())?;
    if header_len > MAX_HEADER_BYTES {
        let what = "bytes of header".to_owned();
        return Err(FormatError::Count { what, count: header_len, most: MAX_HEADER_BYTES });
    }
    let json = cursor.bytes(header_len, &|| "the header".to_owned())?;
    let header: Header =
        serde_json::from_slice(json).map_err(|error| FormatError::Header { reason: error.to_string() })?;
    let data_range = cursor.offset()..data.len();
    let tensors = header
        .0
        .into_iter()
        .map(|(name, announced)| announced.check(name, data_range.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    tensor::check_apart(&tensors)?;
    Ok(tensors)
}

/// A tensor as the header announces it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Announced {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Announced {
    fn check(self, name: String, data: std::ops::Range<usize>) -> Result<TensorEntry, FormatError> {
        let Some(ty) = stored_type(&self.dtype) else {
            let reason = format!("type {:?} is not one of safetensors'", self.dtype);
            return Err(FormatError::Tensor { name, reason });
        };
        let shape: Result<Vec<usize>, _> = self.shape.iter().map(|&dimension| usize::try_from(dimension)).collect();
        let (Ok(shape), ..=MAX_DIMENSIONS) = (shape, self.shape.len()) else {
            let reason = format!("more than {MAX_DIMENSIONS} dimensions, or one beyond this machine's memory");
            return Err(FormatError::Tensor { name, reason });
        };
        let (begin, end) = self.data_offsets;
        let entry = TensorEntry::checked(name, ty, shape, begin, data)?;
        if end.checked_sub(begin) != Some(entry.byte_len as u64) {
            let reason = format!(
                "data_offsets {begin} to {end} do not hold {} bytes, which shape {:?} of {} needs",
                entry.byte_len,
                entry.shape,
                ty.name()
            );
            return Err(FormatError::Tensor { name: entry.name, reason });
        }
        Ok(entry)
    }
}

fn stored_type(dtype: &str) -> Option<StoredType> {
    let (name, bytes) = match dtype {
        "F32" => return Some(StoredType::Served(TensorType::F32)),
        "F16" => return Some(StoredType::Served(TensorType::F16)),
        "BF16" => return Some(StoredType::Served(TensorType::BF16)),
        "BOOL" => ("BOOL", 1),
        "U8" => ("U8", 1),
        "I8" => ("I8", 1),
        "F8_E4M3" => ("F8_E4M3", 1),
        "F8_E5M2" => ("F8_E5M2", 1),
        "F8_E8M0" => ("F8_E8M0", 1),
        "U16" => ("U16", 2),
        "I16" => ("I16", 2),
        "U32" => ("U32", 4),
        "I32" => ("I32", 4),
        "U64" => ("U64", 8),
        "I64" => ("I64", 8),
        "F64" => ("F64", 8),
        _ => return None,
    };
    Some(StoredType::Other { name, block: (1, bytes) })
}

/// The header's pairs in order, `__metadata__` left out; a map would hide a name that is there twice.
struct Header(Vec<(String, Announced)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with an entry for each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut pairs = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        continue;
                    }
                    let announced = map
                        .next_value()
                        .map_err(|error| serde::de::Error::custom(format_args!("tensor {name}: {error}")))?;
                    pairs.push((name, announced));
                }
                Ok(Header(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
