//! A model's tokenizer and chat template, as the gateway uses them.

use std::borrow::Cow;
use std::sync::Arc;

use relevo_wire::TokenId;
use serde_json::Map;

use super::ServedModel;
use super::api_error::ApiError;
use super::request::Message;
use crate::text::{
    ChatTemplate, ModelText, SpecialText, SpecialTokens, StopStrings, TemplateError, TemplateInput, TextStream,
    Tokenizer, TokenizerError,
};
use crate::wall_clock::unix_seconds;

/// Text in, token ids out, and back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a> {
    tokenizer: &'a Arc<Tokenizer>,
    chat_template: Option<&'a ChatTemplate>,
}

/// Bytes of the longest token of a tokenizer; 1 without one.
pub(super) fn longest_token(text: &ModelText) -> usize {
    let Some(tokenizer) = &text.tokenizer else { return 1 };
    let ids = 0..TokenId::try_from(tokenizer.num_tokens()).unwrap_or(TokenId::MAX);
    ids.filter_map(|id| tokenizer.token(id)).map(|piece| piece.bytes.len()).max().unwrap_or(1).max(1)
}

impl<'a> Words<'a> {
    /// Those of a model that has a tokenizer.
    pub(super) fn of(model: &'a ServedModel) -> Option<Self> {
        let tokenizer = model.text.tokenizer.as_ref()?;
        Some(Self { tokenizer, chat_template: model.text.chat_template.as_ref() })
    }

    /// The tokens of a text by itself.
    pub(super) fn encode(self, text: &str) -> Result<Vec<TokenId>, ApiError> {
        self.tokenizer.encode(text, SpecialText::Parsed).map_err(untokenised)
    }

    /// The tokens of a text with what the model wants around a prompt.
    pub(super) fn encode_prompt(self, text: &str) -> Result<Vec<TokenId>, ApiError> {
        self.tokenizer.encode_prompt(text).map_err(untokenised)
    }

    /// A conversation in the words of the model's template; with the head of the answer if `open`.
    pub(super) fn render(self, messages: &[Message], open: bool) -> Result<String, ApiError> {
        let Some(template) = self.chat_template else {
            let message = "Invalid 'messages': this model has no chat template; use /v1/completions.";
            return Err(ApiError::invalid("messages", "no_chat_template", message));
        };
        let messages = serde_json::to_value(messages).map_err(|error| {
            tracing::error!(%error, "messages cannot be written as JSON");
            ApiError::internal()
        })?;
        let input = TemplateInput {
            messages: &messages,
            add_generation_prompt: open,
            extra: &Map::new(),
            unix_seconds: unix_seconds(),
        };
        template.render(&input).map_err(|error| {
            let reason = match &error {
                TemplateError::Refused { reason } => reason,
                _ => "its shape is not what the template expects",
            };
            tracing::debug!(%error, "a conversation cannot be rendered");
            let message = format!("Invalid 'messages': the model's chat template refuses the conversation: {reason}.");
            ApiError::invalid("messages", "invalid_messages", message)
        })
    }

    /// The text of tokens, special ones included.
    pub(super) fn decode(self, tokens: &[TokenId]) -> String {
        self.tokenizer.decode(tokens, SpecialTokens::Shown)
    }

    /// The bytes of one token.
    pub(super) fn token_bytes(self, token: TokenId) -> Option<Cow<'a, [u8]>> {
        self.tokenizer.token(token).map(|piece| Cow::Borrowed(piece.bytes))
    }

    /// An answer's text as its tokens come.
    pub(super) fn stream(self, special: SpecialTokens, stops: &[String]) -> TextStream {
        TextStream::new(Arc::clone(self.tokenizer), special, StopStrings::new(stops.iter().cloned()))
    }
}

/// The model's fault: text that its vocabulary has no tokens for.
fn untokenised(error: TokenizerError) -> ApiError {
    tracing::error!(%error, "a text has no tokens");
    ApiError::internal()
}
