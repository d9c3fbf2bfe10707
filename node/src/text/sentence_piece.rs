//! SentencePiece's BPE: any two neighbours whose concatenation is a token may merge, the best score first.
//!
//! The algorithm is llama.cpp's (`llm_tokenizer_spm` in llama-vocab.cpp), which is SentencePiece's own (bpe_model.cc): of equal scores the
//! leftmost goes first. A list of ranked merges, as `tokenizers` has it, cannot say that.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use relevo_gpu::weights::{GgufVocabulary, TokenKind};
use relevo_wire::TokenId;

use super::SpecialText;

/// Encodes with a vocabulary of scored pieces.
#[derive(Debug)]
pub(super) struct SentencePiece {
    pieces: HashMap<String, (TokenId, f32)>,
    /// The token of each byte, for text without a piece.
    bytes: Vec<Option<TokenId>>,
    unknown: Option<TokenId>,
    /// Tokens that are found in the text before anything else, longest first.
    added: Vec<Added>,
    space_prefix: bool,
}

#[derive(Debug)]
struct Added {
    text: String,
    id: TokenId,
    is_special: bool,
}

impl SentencePiece {
    /// `vocabulary.scores` is as long as its tokens.
    pub(super) fn new(vocabulary: &GgufVocabulary, space_prefix: bool) -> Self {
        let mut new = Self {
            pieces: HashMap::with_capacity(vocabulary.tokens.len()),
            bytes: vec![None; 256],
            unknown: vocabulary.unknown,
            added: Vec::new(),
            space_prefix,
        };
        let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(&vocabulary.scores);
        for (id, ((text, &kind), &score)) in (0..).zip(tokens) {
            new.pieces.insert(text.clone(), (id, score));
            let is_special = matches!(kind, TokenKind::Control | TokenKind::Unknown);
            if (is_special || kind == TokenKind::UserDefined) && !text.is_empty() {
                new.added.push(Added { text: text.clone(), id, is_special });
            }
        }
        for (byte, slot) in new.bytes.iter_mut().enumerate() {
            *slot = new.pieces.get(&format!("<0x{byte:02X}>")).map(|&(id, _)| id);
        }
        new.added.sort_by_key(|added| std::cmp::Reverse(added.text.len()));
        new
    }

    /// The ids of a text.
    pub(super) fn encode(&self, text: &str, special: SpecialText) -> Vec<TokenId> {
        let mut ids = Vec::new();
        for fragment in self.fragments(text, special) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => {
                    // Each fragment begins a text of its own, also one after an added token.
                    let prefix = if self.space_prefix { "▁" } else { "" };
                    self.merge(&format!("{prefix}{}", text.replace(' ', "▁")), &mut ids);
                }
            }
        }
        ids
    }

    /// Parts the text at added tokens, longer ones first.
    fn fragments<'t>(&self, text: &'t str, special: SpecialText) -> Vec<Fragment<'t>> {
        let mut fragments = vec![Fragment::Text(text)];
        let wanted = |added: &&Added| special == SpecialText::Parsed || !added.is_special;
        for added in self.added.iter().filter(wanted).filter(|added| text.contains(&added.text)) {
            let mut parted = Vec::new();
            for fragment in fragments {
                let Fragment::Text(text) = fragment else {
                    parted.push(fragment);
                    continue;
                };
                for (number, piece) in text.split(&added.text).enumerate() {
                    if number > 0 {
                        parted.push(Fragment::Token(added.id));
                    }
                    parted.push(Fragment::Text(piece));
                }
            }
            fragments = parted;
        }
        fragments.retain(|fragment| !matches!(fragment, Fragment::Text("")));
        fragments
    }

    fn merge(&self, text: &str, ids: &mut Vec<TokenId>) {
        let mut chain = Chain::new(text);
        let mut candidates = BinaryHeap::new();
        for right in 1..chain.symbols.len() {
            candidates.extend(self.candidate(&chain, Some(right - 1), Some(right)));
        }
        while let Some(best) = candidates.pop() {
            if !chain.join(&best) {
                continue;
            }
            let Symbol { before, after, .. } = chain.symbols[best.left];
            candidates.extend(self.candidate(&chain, before, Some(best.left)));
            candidates.extend(self.candidate(&chain, Some(best.left), after));
        }
        for symbol in chain.symbols.iter().filter(|symbol| symbol.byte_len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.byte_len];
            match self.pieces.get(piece) {
                Some(&(id, _)) => ids.push(id),
                None => ids.extend(piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown))),
            }
        }
    }

    fn candidate(&self, chain: &Chain<'_>, left: Option<usize>, right: Option<usize>) -> Option<Candidate> {
        let (left, right) = (left?, right?);
        let (first, second) = (&chain.symbols[left], &chain.symbols[right]);
        let byte_len = first.byte_len + second.byte_len;
        let &(_, score) = self.pieces.get(&chain.text[first.start..first.start + byte_len])?;
        Some(Candidate { score, left, right, byte_len })
    }
}

enum Fragment<'t> {
    Text(&'t str),
    Token(TokenId),
}

/// A piece of text between two others; empty once it has been joined to the one before it.
struct Symbol {
    start: usize,
    byte_len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// The pieces of a text, single characters at first.
struct Chain<'t> {
    text: &'t str,
    symbols: Vec<Symbol>,
}

impl<'t> Chain<'t> {
    fn new(text: &'t str) -> Self {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start,
                byte_len: character.len_utf8(),
                before: index.checked_sub(1),
                after: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        Self { text, symbols }
    }

    /// Joins two neighbours; `false` if one of them has changed since the candidate was found.
    fn join(&mut self, candidate: &Candidate) -> bool {
        let (left, right) = (&self.symbols[candidate.left], &self.symbols[candidate.right]);
        let unchanged = left.byte_len > 0 && right.byte_len > 0 && left.byte_len + right.byte_len == candidate.byte_len;
        if !unchanged {
            return false;
        }
        let after = right.after;
        self.symbols[candidate.right].byte_len = 0;
        self.symbols[candidate.left].byte_len = candidate.byte_len;
        self.symbols[candidate.left].after = after;
        if let Some(after) = after {
            self.symbols[after].before = Some(candidate.left);
        }
        true
    }
}

/// Two neighbours that may be joined; the greatest is the next to be.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    byte_len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
