//! Typed look-ups in a GGUF file's metadata, with errors that name the key.

use super::DescriptionError;
use crate::weights::{Array, Metadata, Value};

/// A file's keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys<'a> {
    metadata: Metadata<'a>,
}

impl<'a> Keys<'a> {
    pub(crate) const fn new(metadata: Metadata<'a>) -> Self {
        Self { metadata }
    }

    pub(crate) const fn metadata(&self) -> Metadata<'a> {
        self.metadata
    }

    /// The error for a value of the wrong type.
    pub(crate) fn wrong_type(&self, key: &str, expected: &'static str) -> DescriptionError {
        let found = self.metadata.value(key).map_or("missing", |value| value.type_name());
        DescriptionError::WrongType { key: key.to_owned(), found: found.to_owned(), expected }
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, DescriptionError> {
        match self.metadata.value(key) {
            None => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| self.wrong_type(key, expected)),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, DescriptionError> {
        self.typed(key, "a string", |value| value.as_str())
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, DescriptionError> {
        self.typed(key, "a boolean", |value| if let Value::Bool(value) = value { Some(value) } else { None })
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, DescriptionError> {
        self.typed(key, "a number", |value| value.as_f64())
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<Array<'a>>, DescriptionError> {
        self.typed(key, "an array", |value| if let Value::Array(array) = value { Some(array) } else { None })
    }

    /// A count, or a list of counts (one for each layer) that are all the same.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, DescriptionError> {
        let convert = |value: Value<'_>| value.as_u64().and_then(|count| usize::try_from(count).ok());
        match self.metadata.value(key) {
            Some(Value::Array(array)) => {
                let mut counts = array.iter().map(convert);
                let first = counts.next().flatten();
                if first.is_some() && counts.all(|count| count == first) {
                    return Ok(first);
                }
                let what = format!("key {key}, which differs from layer to layer,");
                Err(DescriptionError::NotServed { what, reason: "every layer must have the same shape".to_owned() })
            }
            _ => self.typed(key, "a whole number", convert),
        }
    }

    pub(crate) fn required_count(&self, key: &str) -> Result<usize, DescriptionError> {
        self.count(key)?.ok_or_else(|| DescriptionError::MissingKey { key: key.to_owned() })
    }
}
