//! Chat templates: a conversation becomes the text that the model was trained on.
//!
//! Templates are Jinja, written for transformers' environment (`_compile_jinja_template` in chat_template_utils.py); this one behaves the
//! same. They come with models, so they are code of strangers: they have no access to files or the clock, and they run on a budget.

use std::collections::BTreeMap;
use std::io;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde_json::{Map, Value as Json};

use super::python_json::dumps;
use super::strftime::strftime;

/// Instructions that one rendering may take. A thousand messages with a large template take some 200,000.
const FUEL: u64 = 20_000_000;
/// Bytes that one rendering may give; far more than any context holds.
const MAX_RENDERED_BYTES: usize = 64 << 20;
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
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(write_as_python);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::Invalid { reason: error.to_string() })?;
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
            input.extra.iter().map(|(key, value)| (key.as_str(), Value::from_serialize(value))).collect();
        variables.extend([
            ("messages", Value::from_serialize(input.messages)),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
            ("bos_token", Value::from(self.bos_token.as_str())),
            ("eos_token", Value::from(self.eos_token.as_str())),
            ("strftime_now", strftime_now),
        ]);
        let context = Value::from_iter(variables);
        let template = self.environment.get_template(NAME).map_err(|error| failure(&error))?;
        let mut out = Bounded(Vec::new());
        template.render_captured_to(context, &mut out).map_err(|error| failure(&error))?;
        String::from_utf8(out.0).map_err(|error| TemplateError::Failed { reason: error.to_string() })
    }
}

/// A buffer that refuses to grow without end.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::Error::other(format!("it writes more than {MAX_RENDERED_BYTES} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what `{{ … }}` gives as Python's `str` does, as far as the engine's own words differ.
fn write_as_python(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let word = match (value.kind(), value.is_true()) {
        (ValueKind::Bool, true) => "True",
        (ValueKind::Bool, false) => "False",
        (ValueKind::None, _) => "None",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
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
fn tojson(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    let wrong = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = arguments.get("indent")?;
    let sort_keys: Option<bool> = arguments.get("sort_keys")?;
    // Taken and without effect: what they ask for is what is done anyway.
    let _: (Option<Value>, Option<Value>) = (arguments.get("ensure_ascii")?, arguments.get("separators")?);
    arguments.assert_all_used()?;
    let mut json = serde_json::to_value(value).map_err(wrong)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    dumps(&json, indent.map(|indent| indent.min(MAX_INDENT))).map(Value::from_safe_string).map_err(wrong)
}

/// Widest indentation that a template may ask for; known ones ask for 4.
const MAX_INDENT: usize = 16;
