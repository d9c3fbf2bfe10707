//! `relevo model inspect`: what a model's files say of it.

use std::path::Path;

use relevo_gpu::description::{ModelDescription, RopeScaling, TypeShare};
use relevo_gpu::weights::{ModelFiles, TokenizerSource};
use relevo_wire::Numerics;

use crate::cli::Failure;
use crate::model_store::{self, StoreError};
use crate::terminal::{self, Style};

/// Prints the model at `path`; `keys` adds the files' own metadata.
///
/// # Errors
/// The files' fault: they cannot be read.
pub(super) fn run(path: &Path, keys: bool) -> Result<(), Failure> {
    let files = model_store::open(path)?;
    let byte_len: u64 = files.tensors().map(|tensor| tensor.byte_len as u64).sum();
    let mut text = summary(path, &files, byte_len, Style::of_stdout());
    if keys {
        text.push_str("\n\nKEYS");
        for (key, value) in files.metadata() {
            text += &format!("\n  {key} = {value}");
        }
    }
    Ok(terminal::print(format!("{text}\n\n{}", tensor_table(&files)))?)
}

fn summary(path: &Path, files: &ModelFiles, byte_len: u64, style: Style) -> String {
    let model = files.description();
    let kv = |numerics| terminal::bytes(model.kv_bytes_per_token(numerics) as u64 * 1000);
    let rows = [
        ("path", path.display().to_string()),
        ("architecture", architecture(model)),
        ("attention", attention(model)),
        ("rope", rope(model)),
        ("vocabulary", vocabulary(files)),
        ("context", format!("{} tokens", terminal::thousands(model.max_context as u64))),
        ("quantisation", quantisation(&model.quantisation)),
        (
            "weights",
            format!(
                "{} of tensors, {} read for a token",
                terminal::bytes(byte_len),
                terminal::bytes(model.weight_bytes as u64)
            ),
        ),
        (
            "KV memory",
            format!(
                "{} per 1,000 tokens (f16), {} with exact numerics (f32)",
                kv(Numerics::Default),
                kv(Numerics::Exact)
            ),
        ),
    ];
    let lines = rows.iter().map(|(name, value)| format!("  {name:13} {value}"));
    [style.strong(&model.name)].into_iter().chain(lines).collect::<Vec<_>>().join("\n")
}

fn architecture(model: &ModelDescription) -> String {
    let tied = if model.tied_embeddings { ", output head tied to the embedding" } else { "" };
    format!(
        "{}: {} layers, width {}, feed-forward {}{tied}",
        model.architecture.name(),
        model.num_layers,
        model.hidden_size,
        model.ffn_size
    )
}

fn attention(model: &ModelDescription) -> String {
    let mut text =
        format!("{} heads of {}, {} for keys and values", model.num_heads, model.head_dim, model.num_kv_heads);
    if model.qk_norm {
        text += ", q and k normalised";
    }
    if model.biases.query || model.biases.key || model.biases.value {
        text += ", with biases";
    }
    let windows = model.sliding_windows.iter().flatten();
    if let Some(window) = windows.clone().min() {
        text += &format!(", sliding window of {window} in {} layers", windows.count());
    }
    text
}

fn rope(model: &ModelDescription) -> String {
    let scaling = match &model.rope.scaling {
        RopeScaling::None => "not scaled".to_owned(),
        RopeScaling::Linear { factor } => format!("linear scaling by {factor}"),
        RopeScaling::Llama3 { factor, .. } => format!("Llama 3 scaling by {factor}"),
        RopeScaling::Yarn(yarn) => format!("YaRN scaling by {}", yarn.factor),
    };
    format!("base {}, {} of {} elements rotate, {scaling}", model.rope.theta, model.rope.rotary_dim, model.head_dim)
}

fn vocabulary(files: &ModelFiles) -> String {
    let size = terminal::thousands(files.description().vocab_size as u64);
    let tokenizer = match files.tokenizer() {
        Some(TokenizerSource::Gguf(vocabulary)) => format!("tokenizer {}", vocabulary.model),
        Some(TokenizerSource::HuggingFace(_)) => "tokenizer.json".to_owned(),
        None => "no tokenizer: serves token ids only".to_owned(),
    };
    let template = if files.chat_template().is_some() { "chat template" } else { "no chat template" };
    format!("{size} tokens, {tokenizer}, {template}, ends at {:?}", files.end_of_generation_ids())
}

/// Types with the most bytes first: `Q4_1 (210 tensors, 63.3 MiB), …`.
fn quantisation(shares: &[TypeShare]) -> String {
    let share = |share: &TypeShare| {
        let plural = if share.num_tensors == 1 { "tensor" } else { "tensors" };
        format!("{} ({} {plural}, {})", share.ty.name(), share.num_tensors, terminal::bytes(share.byte_len as u64))
    };
    shares.iter().map(share).collect::<Vec<_>>().join(", ")
}

/// The type that holds the most bytes, or why the model cannot be read, for `relevo model list`.
pub(super) fn main_type(path: &Path) -> String {
    match ModelFiles::open(path) {
        Ok(files) => files.description().quantisation.first().map_or("-", |share| share.ty.name()).to_owned(),
        Err(source) => {
            let error = StoreError::Unreadable { source: Box::new(source) };
            tracing::debug!(path = %path.display(), %error, "a model cannot be read");
            "unreadable".to_owned()
        }
    }
}

fn tensor_table(files: &ModelFiles) -> String {
    let mut table = terminal::table(&["TENSOR", "TYPE", "SHAPE", "BYTES"]);
    for tensor in files.tensors() {
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        let bytes = terminal::thousands(tensor.byte_len as u64);
        table.add_row([tensor.name.to_owned(), tensor.ty.name().to_owned(), shape.join(" × "), bytes]);
    }
    table.trim_fmt()
}
