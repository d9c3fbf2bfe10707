//! Everything of a model that concerns text, opened from its files.

use std::sync::Arc;

use relevo_gpu::weights::{ModelFiles, TokenizerSource};

use super::byte_vocabulary;
use super::{ChatTemplate, SpecialTokens, TemplateError, Tokenizer, TokenizerError};

/// A model's tokenizer and chat template, as far as it has them.
#[derive(Debug, Default)]
pub struct ModelText {
    /// Without one the model serves token ids only.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Without one there are no chats.
    pub chat_template: Option<ChatTemplate>,
}

/// Why a model's text parts cannot be used. The model can still be served with token ids.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// Its tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Its template.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl ModelText {
    /// Opens what the files have.
    ///
    /// # Errors
    /// The file's fault: a tokenizer or template that is there and cannot be used.
    pub fn open(files: &ModelFiles) -> Result<Self, TextError> {
        let Some(source) = files.tokenizer() else { return Ok(Self::default()) };
        let tokenizer = Tokenizer::open(source)?;
        let (bos, eos) = edge_tokens(source, &tokenizer);
        let compile = |template| ChatTemplate::new(template, bos.as_deref(), eos.as_deref());
        let chat_template = files.chat_template().map(compile).transpose()?;
        Ok(Self { tokenizer: Some(Arc::new(tokenizer)), chat_template })
    }

    /// The text of a scripted model: tokens are bytes (see [`Tokenizer::of_bytes`]), a chat has a line `role: content` for each message.
    ///
    /// # Errors
    /// Our bug: the template is not valid.
    pub fn of_bytes(vocab_size: u32) -> Result<Self, TextError> {
        let [start, end] = byte_vocabulary::EDGES;
        let chat_template = ChatTemplate::new(byte_vocabulary::TEMPLATE, Some(start), Some(end))?;
        Ok(Self { tokenizer: Some(Arc::new(Tokenizer::of_bytes(vocab_size))), chat_template: Some(chat_template) })
    }
}

/// The texts of the begin- and end-of-sequence tokens.
fn edge_tokens(source: &TokenizerSource, tokenizer: &Tokenizer) -> (Option<String>, Option<String>) {
    match source {
        TokenizerSource::HuggingFace(files) => (files.bos_token.clone(), files.eos_token.clone()),
        TokenizerSource::Gguf(vocabulary) => {
            let text = |id| tokenizer.decode(&[id], SpecialTokens::Shown);
            (vocabulary.bos.map(text), vocabulary.eos.map(text))
        }
    }
}
