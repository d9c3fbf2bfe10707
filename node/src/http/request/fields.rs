//! The fields of a request body: which there are, what they may hold, and how a wrong one is called by its name.
//!
//! **Invariant:** a field's bounds stand in one place, its [`Field`]; the check and `/openapi.json` both read it there.

use serde_json::{Map, Value};

use crate::http::api_error::ApiError;

/// A field that a request may carry. `null` is the same as absence everywhere.
#[derive(Debug)]
pub(in crate::http) struct Field {
    /// Its key.
    pub(in crate::http) name: &'static str,
    /// What it may hold.
    pub(in crate::http) kind: Kind,
    /// What it does.
    pub(in crate::http) doc: &'static str,
}

/// What a field may hold. All bounds are inclusive.
#[derive(Debug)]
pub(in crate::http) enum Kind {
    Boolean,
    Integer {
        min: i64,
        max: i64,
    },
    Number {
        min: f64,
        max: f64,
    },
    Text {
        max_chars: usize,
    },
    OneOf(&'static [&'static str]),
    /// Read by a parser of its own, which takes this JSON schema.
    Structured(fn() -> Value),
    /// Known, not served yet. Values that ask for nothing pass.
    NotYet {
        what: &'static str,
        harmless: fn(&Value) -> bool,
    },
}

impl Field {
    pub(super) const fn boolean(name: &'static str, doc: &'static str) -> Self {
        Self { name, kind: Kind::Boolean, doc }
    }

    pub(super) const fn integer(name: &'static str, min: i64, max: i64, doc: &'static str) -> Self {
        Self { name, kind: Kind::Integer { min, max }, doc }
    }

    pub(super) const fn number(name: &'static str, min: f64, max: f64, doc: &'static str) -> Self {
        Self { name, kind: Kind::Number { min, max }, doc }
    }

    pub(super) const fn text(name: &'static str, max_chars: usize, doc: &'static str) -> Self {
        Self { name, kind: Kind::Text { max_chars }, doc }
    }

    pub(super) const fn one_of(name: &'static str, values: &'static [&'static str], doc: &'static str) -> Self {
        Self { name, kind: Kind::OneOf(values), doc }
    }

    pub(super) const fn structured(name: &'static str, schema: fn() -> Value, doc: &'static str) -> Self {
        Self { name, kind: Kind::Structured(schema), doc }
    }

    /// A field of OpenAI's that gets a 400 saying "not yet".
    pub(super) const fn not_yet(name: &'static str, what: &'static str) -> Self {
        Self::not_yet_unless(name, what, |_| false)
    }

    /// As [`Field::not_yet`], but for values that `harmless` says ask for nothing.
    pub(super) const fn not_yet_unless(name: &'static str, what: &'static str, harmless: fn(&Value) -> bool) -> Self {
        Self { name, kind: Kind::NotYet { what, harmless }, doc: "Not supported yet." }
    }

    fn check(&self, value: &Value, path: &str) -> Result<(), ApiError> {
        match self.kind {
            Kind::Boolean if !value.is_boolean() => Err(wrong_type(path, "a boolean", value)),
            Kind::Integer { min, max } => check_integer(value, min, max, path).map(drop),
            Kind::Number { min, max } => check_number(value, min, max, path).map(drop),
            Kind::Text { max_chars } => check_text(value, max_chars, path).map(drop),
            Kind::OneOf(values) => {
                let text = value.as_str().ok_or_else(|| wrong_type(path, "a string", value))?;
                if values.contains(&text) { Ok(()) } else { Err(wrong_value(path, text, values)) }
            }
            Kind::NotYet { what, harmless } if !harmless(value) => Err(ApiError::not_yet(path, what)),
            Kind::Boolean | Kind::Structured(_) | Kind::NotYet { .. } => Ok(()),
        }
    }
}

/// An object whose keys are all known and whose plain values all keep their bounds.
pub(in crate::http) struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: String,
}

impl<'a> Fields<'a> {
    /// Checks `map` against the fields of all lists of `known`. `prefix` goes before each name in errors, such as `messages[0].`.
    pub(super) fn new(
        map: &'a Map<String, Value>,
        known: &[&[&'static Field]],
        prefix: impl Into<String>,
    ) -> Result<Self, ApiError> {
        let prefix = prefix.into();
        for (name, value) in map {
            let path = || format!("{prefix}{name}");
            let Some(field) = all(known).find(|field| field.name == name) else {
                return Err(unknown(&path(), name, known));
            };
            if !value.is_null() {
                field.check(value, &path())?;
            }
        }
        Ok(Self { map, prefix })
    }

    /// The value of a field, if it is there and not null.
    pub(super) fn value(&self, field: &Field) -> Option<&'a Value> {
        self.map.get(field.name).filter(|value| !value.is_null())
    }

    /// As [`Fields::value`], an error if it is not there.
    pub(super) fn required(&self, field: &Field) -> Result<&'a Value, ApiError> {
        self.value(field).ok_or_else(|| {
            let path = self.path(field);
            let message = format!("Missing required parameter: '{path}'.");
            ApiError::invalid(path, "missing_required_parameter", message)
        })
    }

    pub(super) fn boolean(&self, field: &Field) -> Option<bool> {
        self.value(field).and_then(Value::as_bool)
    }

    pub(super) fn integer(&self, field: &Field) -> Option<i64> {
        self.value(field).and_then(Value::as_i64)
    }

    pub(super) fn number(&self, field: &Field) -> Option<f64> {
        self.value(field).and_then(Value::as_f64)
    }

    pub(super) fn text(&self, field: &Field) -> Option<&'a str> {
        self.value(field).and_then(Value::as_str)
    }

    /// How errors call a field.
    pub(super) fn path(&self, field: &Field) -> String {
        format!("{}{}", self.prefix, field.name)
    }
}

/// The JSON object that a body holds.
pub(super) fn parse_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(ApiError::bad_json(format!(
            "The body of your request must be a JSON object, but it is {} instead.",
            kind_of(&other)
        ))),
        Err(error) => Err(ApiError::bad_json(format!("We could not parse the JSON body of your request: {error}."))),
    }
}

/// `value` as an integer within bounds.
pub(super) fn check_integer(value: &Value, min: i64, max: i64, path: &str) -> Result<i64, ApiError> {
    let number = match value {
        Value::Number(number) if !number.is_f64() => number,
        other => return Err(wrong_type(path, "an integer", other)),
    };
    // What is no i64 is a u64 beyond it.
    let integer = number.as_i64().unwrap_or(i64::MAX);
    if integer < min {
        return Err(out_of_bounds(path, "integer", Bound::Min, min, number));
    }
    if integer > max || number.as_i64().is_none() {
        return Err(out_of_bounds(path, "integer", Bound::Max, max, number));
    }
    Ok(integer)
}

/// `value` as a number within bounds.
pub(super) fn check_number(value: &Value, min: f64, max: f64, path: &str) -> Result<f64, ApiError> {
    let number = value.as_f64().ok_or_else(|| wrong_type(path, "a decimal", value))?;
    if number < min {
        return Err(out_of_bounds(path, "decimal", Bound::Min, min, value));
    }
    if number > max {
        return Err(out_of_bounds(path, "decimal", Bound::Max, max, value));
    }
    Ok(number)
}

/// `value` as a text of bounded length.
pub(super) fn check_text<'a>(value: &'a Value, max_chars: usize, path: &str) -> Result<&'a str, ApiError> {
    let text = value.as_str().ok_or_else(|| wrong_type(path, "a string", value))?;
    // A character has a byte at least: only a text of many bytes is counted.
    if text.len() > max_chars && text.chars().count() > max_chars {
        return Err(ApiError::invalid(
            path,
            "string_above_max_length",
            format!(
                "Invalid '{path}': string too long. Expected a string with maximum length {max_chars}, but got a string \
                 with length {} instead.",
                text.chars().count()
            ),
        ));
    }
    Ok(text)
}

/// `value` as an array with `1..=max` items.
pub(super) fn check_array<'a>(value: &'a Value, max: usize, path: &str) -> Result<&'a [Value], ApiError> {
    let items = value.as_array().ok_or_else(|| wrong_type(path, "an array", value))?;
    if items.is_empty() {
        return Err(ApiError::invalid(
            path,
            "empty_array",
            format!(
                "Invalid '{path}': empty array. Expected an array with minimum length 1, but got an empty array instead."
            ),
        ));
    }
    if items.len() > max {
        return Err(ApiError::invalid(
            path,
            "array_above_max_length",
            format!(
                "Invalid '{path}': array too long. Expected an array with maximum length {max}, but got an array with \
                 length {} instead.",
                items.len()
            ),
        ));
    }
    Ok(items)
}

/// `value` as an object.
pub(super) fn check_object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, ApiError> {
    value.as_object().ok_or_else(|| wrong_type(path, "an object", value))
}

/// 400: `path` holds another type than `expected`.
pub(super) fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    let found = kind_of(found);
    ApiError::invalid(
        path,
        "invalid_type",
        format!("Invalid type for '{path}': expected {expected}, but got {found} instead."),
    )
}

/// 400: `path` holds none of the values that it may.
pub(super) fn wrong_value(path: &str, found: &str, supported: &[&str]) -> ApiError {
    let found: String = found.chars().take(100).collect();
    let supported: Vec<String> = supported.iter().map(|value| format!("'{value}'")).collect();
    ApiError::invalid(
        path,
        "invalid_value",
        format!("Invalid value for '{path}': '{found}'. Supported values are: {}.", supported.join(", ")),
    )
}

/// The fields of all lists.
pub(in crate::http) fn all(known: &[&[&'static Field]]) -> impl Iterator<Item = &'static Field> {
    known.iter().copied().flatten().copied()
}

fn unknown(path: &str, name: &str, known: &[&[&'static Field]]) -> ApiError {
    let path: String = path.chars().take(200).collect();
    let near = all(known).map(|field| field.name).find(|known| differ_by_a_slip(known, name));
    let hint = near.map(|near| format!(" Did you mean '{near}'?")).unwrap_or_default();
    let message = format!("Unknown parameter: '{path}'.{hint}");
    ApiError::invalid(path, "unknown_parameter", message)
}

/// Whether one letter was added, left out or mistaken.
fn differ_by_a_slip(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > 1 {
        return false;
    }
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let tail = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    head + tail + 1 >= a.len().max(b.len())
}

#[derive(Clone, Copy)]
enum Bound {
    Min,
    Max,
}

fn out_of_bounds(
    path: &str,
    kind: &str,
    bound: Bound,
    limit: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> ApiError {
    let (code, words, sign) = match (kind, bound) {
        ("integer", Bound::Min) => ("integer_below_min_value", "below minimum", ">="),
        ("integer", Bound::Max) => ("integer_above_max_value", "above maximum", "<="),
        (_, Bound::Min) => ("decimal_below_min_value", "below minimum", ">="),
        (_, Bound::Max) => ("decimal_above_max_value", "above maximum", "<="),
    };
    ApiError::invalid(
        path,
        code,
        format!("Invalid '{path}': {kind} {words} value. Expected a value {sign} {limit}, but got {found} instead."),
    )
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
