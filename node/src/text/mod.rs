//! Text at the gateway's edge: prompts to token ids, conversations to prompts, tokens back to text.
//!
//! Workers know ids only. **Invariant:** nothing in here panics on what a model's files or a client's text contain, and a
//! [`TextStream`] emits the same text wherever the boundaries of its tokens fall.

mod bounded;
mod byte_vocabulary;
mod encoder;
mod model_text;
mod python_json;
mod sentence_piece;
mod split;
mod stops;
mod stream;
mod strftime;
mod template;
mod token_table;
mod tokenizer;
mod vocabulary;

pub use byte_vocabulary::{BYTE_END, BYTE_START, BYTE_VOCABULARY};
pub use model_text::{ModelText, TextError};
pub use stops::StopStrings;
pub use stream::{StreamedText, TextStream};
pub use template::{ChatTemplate, TemplateError, TemplateInput};
pub use tokenizer::{SpecialText, SpecialTokens, TokenPiece, Tokenizer, TokenizerError};
