//! Which tokens end a generation.
//!
//! Files name one or two of them; models emit more. As llama.cpp does (llama-vocab.cpp, `special_eog_ids`), the rest is found by the
//! tokens' text.

use std::collections::BTreeSet;

use relevo_wire::TokenId;

use super::{GgufVocabulary, TokenKind};

/// Texts that end a turn or a document in one family or another.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Texts of the fill-in-the-middle tokens that end a file: padding, repository, separator. One of each group counts.
const FILE_ENDS: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// Ids whose text says that they end a generation, and `named`, those that the files name.
///
/// `tokens`: (id, text) of the tokens that may; plain text that happens to read `<EOT>` is not among them.
pub(super) fn end_of_generation<'a>(
    tokens: impl Iterator<Item = (TokenId, &'a str)>,
    named: impl IntoIterator<Item = TokenId>,
) -> Vec<TokenId> {
    let mut ids: BTreeSet<TokenId> = named.into_iter().collect();
    let mut texts = BTreeSet::new();
    let mut file_ends = [None; FILE_ENDS.len()];
    for (id, text) in tokens {
        if ENDS.contains(&text) {
            ids.insert(id);
            texts.insert((text, id));
        }
        for (found, group) in file_ends.iter_mut().zip(FILE_ENDS) {
            if group.contains(&text) {
                found.get_or_insert(id);
            }
        }
    }
    ids.extend(file_ends.into_iter().flatten());
    drop_markers_inside(&mut ids, &texts);
    ids.into_iter().collect()
}

/// Where `<|return|>` and `<|call|>` exist (gpt-oss) `<|end|>` only parts messages; where a family has its own end, `</s>` is text.
fn drop_markers_inside(ids: &mut BTreeSet<TokenId>, texts: &BTreeSet<(&str, TokenId)>) {
    let has = |text: &str| texts.iter().any(|&(known, _)| known == text);
    let call = has("<|call|>") || has("<|calls|>");
    let inner_end = call && (has("<|return|>") || has("<|flush|>"));
    let inner_s = has("<|tool_response>");
    for &(text, id) in texts {
        if (text == "<|end|>" && inner_end) || (text == "</s>" && inner_s) {
            ids.remove(&id);
        }
    }
}

impl GgufVocabulary {
    /// The ids that end a generation, ascending.
    pub(super) fn end_of_generation_ids(&self) -> Vec<TokenId> {
        // Old files do not say which tokens are special.
        let untold = self.kinds.iter().all(|&kind| kind == TokenKind::Normal);
        let is_special = |kind| matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown);
        let special = (0..)
            .zip(&self.tokens)
            .zip(&self.kinds)
            .filter(|&(_, &kind)| untold || is_special(kind))
            .map(|((id, text), _)| (id, text.as_str()));
        end_of_generation(special, [self.eos, self.eot, self.eom].into_iter().flatten())
    }
}
