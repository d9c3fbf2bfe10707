//! JSON as Python's `json.dumps` writes it, which is what chat templates were tested with.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::bounded::Bounded;

/// Writes `value` as `json.dumps(value, ensure_ascii=False, indent=indent)`: `, ` and `: ` between items, on one line without `indent`.
///
/// # Errors
/// It takes more than `most_bytes`, or is nothing that JSON can say.
pub(super) fn dumps(
    value: &impl Serialize,
    indent: Option<usize>,
    most_bytes: usize,
) -> Result<String, serde_json::Error> {
    let mut out = Bounded::new(most_bytes);
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            value.serialize(&mut Serializer::with_formatter(
                &mut out,
                PrettyFormatter::with_indent(spaces.as_bytes()),
            ))?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine))?,
    }
    out.into_text().map_err(serde::ser::Error::custom)
}

/// Python's default separators.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
