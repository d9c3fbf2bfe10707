//! Chat templates: a conversation becomes the text that the model was trained on.
//!
//! Templates are Jinja, written for transformers' environment (`_compile_jinja_template` in chat_template_utils.py); this one behaves the
//! same. They come with models, so they are code of strangers: they have no access to files or the clock, and they run on a budget.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde_json::{Map, Value as Json};

use super::bounded::Bounded;
use super::python_json::dumps;
use super::strftime::strftime;

/// What one rendering may take: an instruction is one, and so are 64 bytes that it makes, hence 128 MB at most. A thousand messages
/// with a large template take some 200,000 instructions, a body of 4 MiB through ten filters 700,000 for its bytes.
const FUEL: u64 = 2_000_000;
/// What a unit of fuel pays for.
const BYTES_PER_FUEL: usize = 64;
/// Bytes that one rendering may give; far more than any context holds.
const MAX_RENDERED_BYTES: usize = 16 << 20;
/// Longest template; the largest known ones have 20 kB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

/// What a template is rendered with.
#[derive(Clone, Copy, Debug)]
pub struct TemplateInput<'a> {
    /// A list of objects with `role` and `content`.
    pub messages: &'a Json,
    /// Ends with the beginning of the assistant's message.
    pub add_generation_prompt: bool,
    /// Further variables (`tools`, `documents`, a client's `chat_template_kwargs`); they do not replace the others.
    pub extra: &'a Map<String, Json>,
    /// Seconds since 1970, for `strftime_now`.
    pub unix_seconds: u64,
}

/// Why a template gives no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The model's fault: it is no valid template.
    #[error("the model's chat template is not valid: {reason}")]
    Invalid {
        /// What the engine says.
        reason: String,
    },
    /// The caller's fault: the template refuses the conversation (`raise_exception`).
    #[error("the model's chat template refuses the conversation: {reason}")]
    Refused {
        /// What the template says.
        reason: String,
    },
    /// The conversation is not what the template expects, or it used up its budget.
    #[error("the model's chat template fails on the conversation: {reason}")]
    Failed {
        /// What the engine says.
        reason: String,
    },
}

impl ChatTemplate {
    /// Compiles a template. `bos_token` and `eos_token` are the texts of those tokens.
    ///
    /// # Errors
    /// The model's fault: it is no valid template.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            let reason = format!("it has {} bytes, at most {MAX_SOURCE_BYTES} are taken", source.len());
            return Err(TemplateError::Invalid { reason });
        }
        let invalid = |error: Error| TemplateError::Invalid { reason: error.to_string() };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(invalid)?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(write_as_python);
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source.to_owned()).map_err(invalid)?;
        let owned = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Ok(Self { environment, bos_token: owned(bos_token), eos_token: owned(eos_token) })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// The caller's fault where the template refuses the conversation or cannot deal with its shape.
    pub fn render(&self, input: &TemplateInput<'_>) -> Result<String, TemplateError> {
        let unix_seconds = input.unix_seconds;
        let strftime_now = Value::from_function(move |format: &str| strftime(format, unix_seconds));
        let mut variables: BTreeMap<&str, Value> =
            input.extra.iter().map(|(key, value)| (key.as_str(), Value::from(Serde(value)))).collect();
        variables.extend([
            ("messages", Value::from(Serde(input.messages))),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
            ("bos_token", Value::from(self.bos_token.as_str())),
            ("eos_token", Value::from(self.eos_token.as_str())),
            ("strftime_now", strftime_now),
        ]);
        let context = Value::from_pairs(variables);
        let template = self.environment.get_template(NAME).map_err(|error| failure(&error))?;
        let mut out = Bounded::new(MAX_RENDERED_BYTES);
        template.render_captured_to(context, &mut out).map_err(|error| failure(&error))?;
        out.into_text().map_err(|error| TemplateError::Failed { reason: error.to_string() })
    }
}

/// Writes what `{{ … }}` gives as Python's `str` does, as far as the engine's own words differ.
fn write_as_python(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let word = match (value.kind(), value.is_true()) {
        (ValueKind::Bool, true) => "True",
        (ValueKind::Bool, false) => "False",
        (ValueKind::None, _) => "None",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
}

/// Python's methods of strings, lists and objects. Those that give far more than they take are paid for before, not after.
fn python_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "format" => check_widths(text)?,
            "split" => {
                let separator = args.first().and_then(Value::as_str).filter(|separator| !separator.is_empty());
                let num_pieces = separator
                    .map_or_else(|| text.split_whitespace().count(), |separator| text.matches(separator).count());
                state.consume_fuel(num_pieces as u64)?;
            }
            "splitlines" => state.consume_fuel(text.lines().count() as u64)?,
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Widths and precisions of a format beyond four digits are no template's wish but memory.
fn check_widths(format: &str) -> Result<(), Error> {
    let longest = format.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if longest <= 4 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("a format with a number of {longest} digits")))
}

/// Marks an error that the template raised itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
}

fn failure(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(reason)) = current.downcast_ref::<Raised>() {
            return TemplateError::Refused { reason: reason.clone() };
        }
        cause = current.source();
    }
    TemplateError::Failed { reason: error.to_string() }
}

/// transformers' `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(state: &State<'_, '_>, value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let wrong = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = arguments.get("indent")?;
    let sort_keys: Option<bool> = arguments.get("sort_keys")?;
    // Taken and without effect: what they ask for is what is done anyway.
    let _: (Option<Value>, Option<Value>) = (arguments.get("ensure_ascii")?, arguments.get("separators")?);
    arguments.assert_all_used()?;
    let indent = indent.map(|indent| indent.min(MAX_INDENT));
    // A sequence may be short to write and endless to read: the bytes are bounded as they come.
    let most = state.fuel_levels().map_or(usize::MAX, |(_, left)| usize::try_from(left).unwrap_or(usize::MAX));
    let most = most.saturating_mul(BYTES_PER_FUEL).min(MAX_RENDERED_BYTES);
    let text = if sort_keys == Some(true) {
        let mut json: Json = serde_json::from_str(&dumps(value, None, most).map_err(wrong)?).map_err(wrong)?;
        json.sort_all_objects();
        dumps(&json, indent, most)
    } else {
        dumps(value, indent, most)
    };
    text.map(Value::from_safe_string).map_err(wrong)
}

/// Widest indentation that a template may ask for; known ones ask for 4.
const MAX_INDENT: usize = 16;
