//! The key-value part of a GGUF file, read in place: values stay in the file, only their places are kept.

use std::collections::HashMap;
use std::ops::Range;

use super::FormatError;
use super::bytes::Cursor;

/// Arrays of arrays of … this deep; real files have one level.
const MAX_ARRAY_DEPTH: usize = 4;

/// The type of a value, by GGUF's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// Unsigned, this many bytes.
    Unsigned(usize),
    /// Signed, this many bytes.
    Signed(usize),
    /// IEEE, 4 or 8 bytes.
    Float(usize),
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8.
    String,
    /// Elements of one type.
    Array,
}

impl ValueType {
    const fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float(4),
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float(8),
            _ => return None,
        })
    }

    /// Least bytes that one value takes in the file.
    const fn min_bytes(self) -> usize {
        match self {
            Self::Unsigned(bytes) | Self::Signed(bytes) | Self::Float(bytes) => bytes,
            Self::Bool => 1,
            Self::String => 8,
            Self::Array => 12,
        }
    }

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool => "a boolean",
            Self::String => "a string",
            Self::Array => "an array",
        }
    }
}

/// Where one value lies.
#[derive(Clone, Debug)]
struct Place {
    ty: ValueType,
    bytes: Range<usize>,
}

/// The keys of a GGUF file, in the file's order, and where their values lie.
#[derive(Clone, Debug, Default)]
pub struct MetadataIndex {
    keys: Vec<String>,
    places: HashMap<String, Place>,
}

impl MetadataIndex {
    /// Reads `count` pairs and checks every byte of them, nested strings included.
    pub(super) fn parse(cursor: &mut Cursor<'_>, data: &[u8], count: u64) -> Result<Self, FormatError> {
        let mut index = Self::default();
        for number in 0..count {
            let key = cursor.string(&|| format!("key {number}"))?.to_owned();
            let ty = value_type(cursor, &key)?;
            let start = cursor.offset();
            skip_value(cursor, ty, &key, 0)?;
            let place = Place { ty, bytes: start..cursor.offset() };
            if ty == ValueType::Bool {
                check_bools(data.get(place.bytes.clone()).unwrap_or_default(), &key)?;
            }
            if index.places.insert(key.clone(), place).is_some() {
                return Err(FormatError::DuplicateKey { key });
            }
            index.keys.push(key);
        }
        Ok(index)
    }

    /// Joins the index with the bytes it was made from.
    pub const fn with_data<'a>(&'a self, data: &'a [u8]) -> Metadata<'a> {
        Metadata { index: self, data }
    }
}

fn value_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, FormatError> {
    let id = cursor.u32(&|| format!("the type of key {key}"))?;
    ValueType::from_id(id)
        .ok_or_else(|| FormatError::Value { key: key.to_owned(), reason: format!("value type {id}, expected 0 to 12") })
}

fn skip_value(cursor: &mut Cursor<'_>, ty: ValueType, key: &str, depth: usize) -> Result<(), FormatError> {
    let what = || format!("the value of key {key}");
    match ty {
        ValueType::String => cursor.string(&what).map(drop),
        ValueType::Array => skip_array(cursor, key, depth),
        scalar => cursor.bytes(scalar.min_bytes() as u64, &what).map(drop),
    }
}

fn skip_array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<(), FormatError> {
    if depth >= MAX_ARRAY_DEPTH {
        let reason = format!("arrays nested deeper than {MAX_ARRAY_DEPTH}");
        return Err(FormatError::Value { key: key.to_owned(), reason });
    }
    let element = value_type(cursor, key)?;
    let count = cursor.u64(&|| format!("the length of key {key}"))?;
    let most = (cursor.remaining() / element.min_bytes()) as u64;
    if count > most {
        return Err(FormatError::Count { what: format!("elements of key {key}"), count, most });
    }
    match element {
        ValueType::String | ValueType::Array => {
            (0..count).try_for_each(|_| skip_value(cursor, element, key, depth + 1))
        }
        // Cannot overflow: `most` bounds it by the bytes that are left.
        scalar => {
            let bytes = cursor.bytes(count * scalar.min_bytes() as u64, &|| format!("the elements of key {key}"))?;
            if scalar == ValueType::Bool { check_bools(bytes, key) } else { Ok(()) }
        }
    }
}

fn check_bools(bytes: &[u8], key: &str) -> Result<(), FormatError> {
    match bytes.iter().find(|&&byte| byte > 1) {
        Some(byte) => {
            Err(FormatError::Value { key: key.to_owned(), reason: format!("boolean {byte}, expected 0 or 1") })
        }
        None => Ok(()),
    }
}

/// A GGUF file's keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Metadata<'a> {
    index: &'a MetadataIndex,
    data: &'a [u8],
}

impl<'a> Metadata<'a> {
    /// The keys, in the file's order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.index.keys.iter().map(String::as_str)
    }

    /// The value of a key, if the file has it.
    pub fn value(&self, key: &str) -> Option<Value<'a>> {
        let place = self.index.places.get(key)?;
        let mut cursor = Cursor::new(self.data.get(..place.bytes.end)?, place.bytes.start);
        read_value(&mut cursor, place.ty)
    }
}

/// A value, read in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Unsigned, of any width.
    Unsigned(u64),
    /// Signed, of any width.
    Signed(i64),
    /// Float; f32 is widened.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// Text.
    String(&'a str),
    /// Elements, read when iterated.
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// The name of its type in messages.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
        }
    }

    /// It as an unsigned integer, whatever its width and sign.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// It as a number, integers included.
    pub const fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Float(value) => Some(value),
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            _ => None,
        }
    }

    /// It as text.
    pub const fn as_str(&self) -> Option<&'a str> {
        match *self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }
}

/// An array, read in place. Iterating it costs a walk over its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a> {
    element: ValueType,
    num_elements: usize,
    data: &'a [u8],
    start: usize,
}

impl PartialEq for Array<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.element == other.element && self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.num_elements
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.num_elements == 0
    }

    /// The type of the elements.
    pub const fn element_type(&self) -> ValueType {
        self.element
    }

    /// The elements.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut cursor = Cursor::new(self.data, self.start);
        let element = self.element;
        (0..self.num_elements).map_while(move |_| read_value(&mut cursor, element))
    }
}

/// Reads a value that [`MetadataIndex::parse`] has checked; `None` cannot happen then.
fn read_value<'a>(cursor: &mut Cursor<'a>, ty: ValueType) -> Option<Value<'a>> {
    let what = || String::new();
    match ty {
        ValueType::String => cursor.string(&what).ok().map(Value::String),
        ValueType::Array => read_array(cursor).map(Value::Array),
        scalar => {
            let bytes = cursor.bytes(scalar.min_bytes() as u64, &what).ok()?;
            Some(read_scalar(bytes, scalar))
        }
    }
}

fn read_scalar<'a>(bytes: &[u8], ty: ValueType) -> Value<'a> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    match ty {
        ValueType::Signed(byte_len) => {
            // Shifts the sign to the top and back down.
            let unused_bits = 64 - 8 * byte_len as u32;
            Value::Signed((unsigned << unused_bits).cast_signed() >> unused_bits)
        }
        ValueType::Float(4) => Value::Float(f64::from(f32::from_bits(unsigned as u32))),
        ValueType::Float(_) => Value::Float(f64::from_bits(unsigned)),
        ValueType::Bool => Value::Bool(unsigned != 0),
        _ => Value::Unsigned(unsigned),
    }
}

fn read_array<'a>(cursor: &mut Cursor<'a>) -> Option<Array<'a>> {
    let what = || String::new();
    let element = ValueType::from_id(cursor.u32(&what).ok()?)?;
    let num_elements = usize::try_from(cursor.u64(&what).ok()?).ok()?;
    let array = Array { element, num_elements, data: cursor.data(), start: cursor.offset() };
    match element {
        ValueType::String | ValueType::Array => {
            for _ in 0..num_elements {
                read_value(cursor, element)?;
            }
        }
        scalar => drop(cursor.bytes((num_elements * scalar.min_bytes()) as u64, &what).ok()?),
    }
    Some(array)
}
