//! SentencePiece's BPE as merges.
//!
//! A SentencePiece file has scores and no merges: any two neighbours whose concatenation is a token may merge, the best score first.
//! That is what `tokenizers`' BPE does once every way to split a token into two tokens is listed in that order; transformers
//! converts Llama's tokenizers in the same way (`generate_merges` in convert_slow_tokenizer.py).

use std::collections::HashMap;

use relevo_gpu::weights::{GgufVocabulary, TokenKind};

/// All merges, best first.
pub(super) fn merges_by_score(vocabulary: &GgufVocabulary) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> = vocabulary.tokens.iter().map(String::as_str).zip(0..).collect();
    let mut merges = Vec::new();
    for ((token, kind), &score) in vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(&vocabulary.scores) {
        if matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::Byte) {
            continue;
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((score, left_id, right_id, left, right));
            }
        }
    }
    // Better scores first; then by ids, so that the order is one.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    merges.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect()
}
