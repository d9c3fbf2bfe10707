//! The description that a GGUF file's keys give.

use super::assemble::{Facts, KeyNames, Windows, assemble};
use super::roles::Naming;
use super::{Architecture, DescriptionError, Keys, ModelDescription, RopeDescription, RopeScaling, Yarn};
use crate::weights::{Metadata, TensorEntry};

/// Reads the keys and holds them against the tensors. `file_name` stands in where the file does not name itself.
pub(crate) fn describe_gguf(
    metadata: Metadata<'_>,
    tensors: &[&TensorEntry],
    file_name: &str,
) -> Result<ModelDescription, DescriptionError> {
    let keys = Keys::new(metadata);
    let missing = |key: &str| DescriptionError::MissingKey { key: key.to_owned() };
    let found = keys.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    let architecture = Architecture::from_name(found)
        .ok_or_else(|| DescriptionError::UnknownArchitecture { found: found.to_owned() })?;
    refuse_parts(&keys)?;
    let names = key_names(architecture);
    let facts = read_facts(&keys, &names, architecture, file_name)?;
    assemble(facts, &names, Naming::Gguf, tensors)
}

/// A model split over several files.
fn refuse_parts(keys: &Keys<'_>) -> Result<(), DescriptionError> {
    match keys.count("split.count")? {
        None | Some(0 | 1) => Ok(()),
        Some(count) => Err(DescriptionError::NotServed {
            what: format!("a GGUF file that is one of {count} (split.count)"),
            reason: "join them first: `llama-gguf-split --merge FIRST JOINED`".to_owned(),
        }),
    }
}

fn key_names(architecture: Architecture) -> KeyNames {
    let key = |rest: &str| format!("{}.{rest}", architecture.name());
    KeyNames {
        hidden_size: key("embedding_length"),
        num_layers: key("block_count"),
        num_heads: key("attention.head_count"),
        num_kv_heads: key("attention.head_count_kv"),
        head_dim: key("attention.key_length"),
        ffn_size: key("feed_forward_length"),
        norm_epsilon: key("attention.layer_norm_rms_epsilon"),
        max_context: key("context_length"),
        rotary_dim: key("rope.dimension_count"),
        rope_theta: key("rope.freq_base"),
        rope_scaling: key("rope.scaling.type"),
    }
}

fn read_facts(
    keys: &Keys<'_>,
    names: &KeyNames,
    architecture: Architecture,
    file_name: &str,
) -> Result<Facts, DescriptionError> {
    let hidden_size = keys.required_count(&names.hidden_size)?;
    let num_layers = keys.required_count(&names.num_layers)?;
    let num_heads = keys.required_count(&names.num_heads)?;
    let head_dim = head_dim(keys, names, hidden_size, num_heads)?;
    let norm_epsilon = keys.number(&names.norm_epsilon)?;
    let max_context = keys.required_count(&names.max_context)?;
    let window_key = format!("{}.attention.sliding_window", architecture.name());
    // 0 is how converters write "none".
    let window = keys.count(&window_key)?.filter(|&window| window > 0);
    Ok(Facts {
        name: keys.text("general.name")?.unwrap_or(file_name).to_owned(),
        architecture,
        hidden_size,
        num_layers,
        num_heads,
        num_kv_heads: keys.count(&names.num_kv_heads)?.unwrap_or(num_heads),
        head_dim,
        ffn_size: keys.required_count(&names.ffn_size)?,
        norm_epsilon: norm_epsilon.ok_or_else(|| DescriptionError::MissingKey { key: names.norm_epsilon.clone() })?,
        max_context,
        rope: RopeDescription {
            theta: keys.number(&names.rope_theta)?.unwrap_or(10_000.0),
            rotary_dim: keys.count(&names.rotary_dim)?.unwrap_or(head_dim),
            interleaved: matches!(architecture, Architecture::Llama | Architecture::Mistral),
            scaling: rope_scaling(keys, names, architecture, max_context)?,
        },
        tied_embeddings: None,
        sliding_windows: Windows::Same(window),
    })
}

fn head_dim(
    keys: &Keys<'_>,
    names: &KeyNames,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, DescriptionError> {
    let head_dim = match keys.count(&names.head_dim)? {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(num_heads).unwrap_or(0),
    };
    let value_key = names.head_dim.replace("key_length", "value_length");
    match keys.count(&value_key)? {
        Some(value_dim) if value_dim != head_dim => Err(DescriptionError::NotServed {
            what: format!("{value_key} {value_dim}"),
            reason: format!("keys have {head_dim}, and both must have the same"),
        }),
        _ => Ok(head_dim),
    }
}

fn rope_scaling(
    keys: &Keys<'_>,
    names: &KeyNames,
    architecture: Architecture,
    max_context: usize,
) -> Result<RopeScaling, DescriptionError> {
    let key = |rest: &str| format!("{}.rope.{rest}", architecture.name());
    let number = |rest: &str| keys.number(&key(rest));
    let factor = match number("scaling.factor")? {
        Some(factor) => Some(factor),
        None => number("scale_linear")?,
    };
    // 0 is how converters write "none".
    let factor = factor.filter(|&factor| factor != 0.0);
    match (keys.text(&names.rope_scaling)?, factor) {
        (Some("none"), _) | (None | Some("linear"), None) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some("yarn"), Some(factor)) => Ok(RopeScaling::Yarn(Yarn {
            factor,
            original_context: number("scaling.original_context_length")?.unwrap_or(max_context as f64),
            beta_fast: number("scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: number("scaling.yarn_beta_slow")?.unwrap_or(1.0),
            truncate: true,
            attention_factor: Yarn::default_attention_factor(factor) * number("scaling.attn_factor")?.unwrap_or(1.0),
        })),
        (Some("yarn"), None) => Err(DescriptionError::MissingKey { key: key("scaling.factor") }),
        (Some(other), _) => Err(DescriptionError::NotServed {
            what: format!("{} {other}", names.rope_scaling),
            reason: "known are none, linear and yarn".to_owned(),
        }),
    }
}
