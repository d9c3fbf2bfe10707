//! The description that a Hugging Face `config.json` gives.

use serde_json::{Map, Value};

use super::assemble::{Facts, KeyNames, Windows, assemble};
use super::roles::Naming;
use super::{Architecture, DescriptionError, ModelDescription, RopeDescription, RopeScaling, Yarn};
use crate::weights::TensorEntry;

/// Reads the configuration and holds it against the tensors. `folder_name` stands in where the configuration does not name the model.
pub(crate) fn describe_config(
    config: &Map<String, Value>,
    tensors: &[&TensorEntry],
    folder_name: &str,
) -> Result<ModelDescription, DescriptionError> {
    let config = Config { object: config, prefix: "" };
    let found = config.text("model_type")?.ok_or_else(|| config.missing("model_type"))?;
    let architecture = Architecture::from_name(found)
        .ok_or_else(|| DescriptionError::UnknownArchitecture { found: found.to_owned() })?;
    refuse_other_computations(&config)?;
    let facts = read_facts(&config, architecture, folder_name)?;
    assemble(facts, &key_names(), Naming::HuggingFace, tensors)
}

fn key_names() -> KeyNames {
    KeyNames {
        hidden_size: "hidden_size".to_owned(),
        num_layers: "num_hidden_layers".to_owned(),
        num_heads: "num_attention_heads".to_owned(),
        num_kv_heads: "num_key_value_heads".to_owned(),
        head_dim: "head_dim".to_owned(),
        ffn_size: "intermediate_size".to_owned(),
        norm_epsilon: "rms_norm_eps".to_owned(),
        max_context: "max_position_embeddings".to_owned(),
        rotary_dim: "partial_rotary_factor".to_owned(),
        rope_theta: "rope_theta".to_owned(),
        rope_scaling: "rope_scaling".to_owned(),
    }
}

fn refuse_other_computations(config: &Config<'_>) -> Result<(), DescriptionError> {
    if config.present("quantization_config").is_some() {
        return Err(DescriptionError::NotServed {
            what: "quantization_config".to_owned(),
            reason: "safetensors are served as F32, F16 or BF16; for quantised weights give a GGUF file".to_owned(),
        });
    }
    match config.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(DescriptionError::NotServed {
            what: format!("hidden_act {other}"),
            reason: "the dense architectures use silu".to_owned(),
        }),
    }
}

fn read_facts(config: &Config<'_>, architecture: Architecture, folder_name: &str) -> Result<Facts, DescriptionError> {
    let hidden_size = config.required_count("hidden_size")?;
    let num_layers = config.required_count("num_hidden_layers")?;
    let num_heads = config.required_count("num_attention_heads")?;
    let head_dim = match config.count("head_dim")? {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(num_heads).unwrap_or(0),
    };
    let max_context = config.required_count("max_position_embeddings")?;
    let name = config.text("_name_or_path")?.filter(|name| !name.is_empty()).unwrap_or(folder_name);
    Ok(Facts {
        name: name.to_owned(),
        architecture,
        hidden_size,
        num_layers,
        num_heads,
        num_kv_heads: config.count("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        ffn_size: config.required_count("intermediate_size")?,
        norm_epsilon: config.number("rms_norm_eps")?.unwrap_or(1e-6),
        max_context,
        rope: rope(config, head_dim, max_context)?,
        // transformers' default for all of these families.
        tied_embeddings: Some(config.boolean("tie_word_embeddings")?.unwrap_or(false)),
        sliding_windows: windows(config, architecture, num_layers)?,
    })
}

/// Which layers have a window: `layer_types` says, or Mistral's and Qwen's own rules.
fn windows(config: &Config<'_>, architecture: Architecture, num_layers: usize) -> Result<Windows, DescriptionError> {
    let Some(window) = config.count("sliding_window")? else { return Ok(Windows::Same(None)) };
    if config.boolean("use_sliding_window")? == Some(false) {
        return Ok(Windows::Same(None));
    }
    if let Some(types) = config.list("layer_types")? {
        if types.len() != num_layers {
            let (value, expected) =
                (format!("a list of {}", types.len()), format!("one for each of {num_layers} layers"));
            return Err(DescriptionError::OutOfRange { key: "layer_types".to_owned(), value, expected });
        }
        return types.iter().map(|ty| layer_window(ty, window)).collect::<Result<_, _>>().map(Windows::PerLayer);
    }
    match architecture {
        Architecture::Llama => Ok(Windows::Same(None)),
        Architecture::Mistral => Ok(Windows::Same(Some(window))),
        Architecture::Qwen2 | Architecture::Qwen3 if config.boolean("use_sliding_window")? != Some(true) => {
            Ok(Windows::Same(None))
        }
        // The first `max_window_layers` see everything.
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let first = config.count("max_window_layers")?.unwrap_or(28);
            let num_layers = num_layers.min(super::assemble::MAX_LAYERS);
            Ok(Windows::PerLayer((0..num_layers).map(|layer| (layer >= first).then_some(window)).collect()))
        }
    }
}

fn layer_window(ty: &Value, window: usize) -> Result<Option<usize>, DescriptionError> {
    match ty.as_str() {
        Some("sliding_attention") => Ok(Some(window)),
        Some("full_attention") => Ok(None),
        _ => Err(DescriptionError::NotServed {
            what: format!("layer_types {ty}"),
            reason: "known are full_attention and sliding_attention".to_owned(),
        }),
    }
}

fn rope(config: &Config<'_>, head_dim: usize, max_context: usize) -> Result<RopeDescription, DescriptionError> {
    // transformers 5 writes theta and scaling together, as `rope_parameters`.
    let parameters = config.object("rope_parameters")?;
    let scaling = match config.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => parameters,
    };
    let theta = match parameters.map(|parameters| parameters.number("rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => config.number("rope_theta")?.unwrap_or(10_000.0),
    };
    let rotary = config.number("partial_rotary_factor")?.unwrap_or(1.0);
    Ok(RopeDescription {
        theta,
        // A float beyond the range saturates, and is refused with the others.
        rotary_dim: (head_dim as f64 * rotary) as usize,
        interleaved: false,
        scaling: scaling.map_or(Ok(RopeScaling::None), |scaling| rope_scaling(&scaling, max_context))?,
    })
}

fn rope_scaling(scaling: &Config<'_>, max_context: usize) -> Result<RopeScaling, DescriptionError> {
    let kind = match scaling.text("rope_type")? {
        Some(kind) => Some(kind),
        None => scaling.text("type")?,
    };
    match kind {
        None | Some("default") => Ok(RopeScaling::None),
        Some("dynamic") => dynamic(scaling, max_context),
        Some("linear") => Ok(RopeScaling::Linear { factor: scaling.required_number("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: scaling.required_number("factor")?,
            low_frequency_factor: scaling.required_number("low_freq_factor")?,
            high_frequency_factor: scaling.required_number("high_freq_factor")?,
            original_context: scaling.required_number("original_max_position_embeddings")?,
        }),
        Some("yarn") => yarn(scaling, max_context).map(RopeScaling::Yarn),
        Some(other) => Err(DescriptionError::NotServed {
            what: format!("rope_scaling {other}"),
            reason: "known are default, linear, dynamic, llama3 and yarn".to_owned(),
        }),
    }
}

/// NTK-aware scaling that changes with the length, as transformers has it: up to `max_position_embeddings`, which is our limit, its
/// base is the model's own, whatever the factor. Relatives of it that differ below the limit are refused: angles that depend on how long
/// a prompt has become would break the promise of same bits, and fixed ones would not be the model's.
fn dynamic(scaling: &Config<'_>, max_context: usize) -> Result<RopeScaling, DescriptionError> {
    scaling.required_number("factor")?;
    let refused = |key: &str, reason: &str| {
        Err(DescriptionError::NotServed {
            what: format!("{} with rope_type dynamic", scaling.path(key)),
            reason: reason.to_owned(),
        })
    };
    if scaling.present("alpha").is_some() {
        return refused("alpha", "that is another formula than transformers' own");
    }
    match scaling.number("original_max_position_embeddings")? {
        Some(original) if original != max_context as f64 => refused(
            "original_max_position_embeddings",
            "the angles would change with the length of the prompt; set max_position_embeddings to this value, or rope_type to yarn",
        ),
        _ => Ok(RopeScaling::None),
    }
}

fn yarn(scaling: &Config<'_>, max_context: usize) -> Result<Yarn, DescriptionError> {
    let factor = scaling.required_number("factor")?;
    let attention_factor = match scaling.number("attention_factor")? {
        Some(attention_factor) => attention_factor,
        None => match (scaling.number("mscale")?, scaling.number("mscale_all_dim")?) {
            // DeepSeek's pair; 0 counts as not given.
            (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                let with = |mscale: f64| 1.0 + mscale * (Yarn::default_attention_factor(factor) - 1.0);
                with(mscale) / with(all)
            }
            _ => Yarn::default_attention_factor(factor),
        },
    };
    Ok(Yarn {
        factor,
        original_context: scaling.number("original_max_position_embeddings")?.unwrap_or(max_context as f64),
        beta_fast: scaling.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: scaling.number("beta_slow")?.unwrap_or(1.0),
        truncate: scaling.boolean("truncate")?.unwrap_or(true),
        attention_factor,
    })
}

/// Typed look-ups in a JSON object; null counts as absent.
#[derive(Clone, Copy)]
struct Config<'a> {
    object: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Config<'a> {
    fn present(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn missing(&self, key: &str) -> DescriptionError {
        DescriptionError::MissingKey { key: self.path(key) }
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, DescriptionError> {
        let Some(value) = self.present(key) else { return Ok(None) };
        let wrong = || DescriptionError::WrongType { key: self.path(key), found: short(value), expected };
        convert(value).map(Some).ok_or_else(wrong)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, DescriptionError> {
        self.typed(key, "a string", Value::as_str)
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>, DescriptionError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, DescriptionError> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn required_number(&self, key: &str) -> Result<f64, DescriptionError> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    fn count(&self, key: &str) -> Result<Option<usize>, DescriptionError> {
        self.typed(key, "a whole number", |value| value.as_u64().and_then(|count| usize::try_from(count).ok()))
    }

    fn required_count(&self, key: &str) -> Result<usize, DescriptionError> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>, DescriptionError> {
        self.typed(key, "a list", Value::as_array)
    }

    fn object(&self, key: &'static str) -> Result<Option<Config<'a>>, DescriptionError> {
        let object = self.typed(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Config {
            object,
            prefix: if key == "rope_parameters" { "rope_parameters." } else { "rope_scaling." },
        }))
    }
}

/// A value for an error text, not longer than a line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
