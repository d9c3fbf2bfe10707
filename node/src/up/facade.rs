//! What is served, as its clients see it: the same of a model's files and of a script.

use std::path::Path;
use std::sync::Arc;

use relevo_gpu::weights::{ModelFiles, TokenizerSource};
use relevo_wire::TokenId;

use super::scripts::Scripts;
use crate::cli::Failure;
use crate::model_store;
use crate::text::{BYTE_END, BYTE_START, ModelText};

/// Where the devices' models come from.
pub(super) enum Source {
    /// Weights.
    Files(Arc<ModelFiles>),
    /// No weights.
    Scripts(Scripts),
}

/// A model from outside.
pub(super) struct Facade {
    /// What requests may call it by.
    pub(super) names: Vec<String>,
    /// What it is, such as `Q4_1, 30 layers`.
    pub(super) kind: String,
    /// Positions that it was made for.
    pub(super) max_context: usize,
    pub(super) vocab_size: u32,
    /// Ids that end a generation.
    pub(super) end_ids: Arc<[TokenId]>,
    /// The token that begins a document, if there is one.
    pub(super) start_id: Option<TokenId>,
    pub(super) text: ModelText,
}

impl Source {
    /// Opens a model and checks its files.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        Ok(Self::Files(Arc::new(model_store::open(path)?)))
    }

    /// What clients see of it. A model has names by the file that it lies in, a script says its own.
    pub(super) fn facade(&self, names: Vec<String>) -> Result<Facade, Failure> {
        match self {
            Self::Files(files) => {
                let description = files.description();
                let kind = description.quantisation.first().map_or("", |share| share.ty.name());
                Ok(Facade {
                    names,
                    kind: format!("{kind}, {} layers", description.num_layers),
                    max_context: description.max_context,
                    vocab_size: u32::try_from(description.vocab_size).unwrap_or(u32::MAX),
                    end_ids: files.end_of_generation_ids().into(),
                    start_id: start_id(files),
                    text: ModelText::open(files)?,
                })
            }
            Self::Scripts(scripts) => {
                let script = &scripts.of_device(0).script;
                Ok(Facade {
                    names: vec![script.name.clone()],
                    kind: format!("scripted, {} layers", script.num_layers),
                    max_context: script.max_context_tokens as usize,
                    vocab_size: script.vocab_size,
                    end_ids: [BYTE_END].into(),
                    start_id: Some(BYTE_START),
                    text: ModelText::of_bytes(script.vocab_size)?,
                })
            }
        }
    }
}

/// The token that begins a document, if the files name one.
fn start_id(files: &ModelFiles) -> Option<TokenId> {
    match files.tokenizer()? {
        TokenizerSource::Gguf(vocabulary) => vocabulary.bos,
        TokenizerSource::HuggingFace(_) => None,
    }
}
