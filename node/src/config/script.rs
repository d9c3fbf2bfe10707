//! The file of a scripted device: what it passes for, what it says, and how long that takes.

use std::path::Path;

use relevo_gpu::model::AnswerChoice;
use relevo_wire::{ElementType, KvLayout, TokenId};
use serde::{Deserialize, Serialize};

use super::load::{ConfigError, out_of_range, read, refuse_keys_beyond, syntax, within};
use super::section::{Section, section};
use crate::text::BYTE_VOCABULARY;

/// Largest (layer, block): Llama 3.1 405B's has 64 KiB, DeepSeek-V3's 18 KiB.
const MAX_LAYER_BLOCK_BYTES: usize = 16 << 20;

section! {
    /// A scripted device. It stands for the model and for the hardware; several of one server may differ in their timings only.
    Script {
        /// The model's name, as requests may call it.
        name: String = String::from("scripted");
        /// Ids: 258 to 262144. The first 256 are bytes, then begin and end of sequence; the others read as ` t258`, ` t259`…
        vocab_size: u32 = 512;
        /// Positions of a request, prompt and answer together: 16 to 1048576.
        max_context_tokens: u32 = 4096;
        /// Layers, each of which is pushed by itself: 1 to 256.
        num_layers: u32 = 2;
        /// Key/value heads of a layer: 1 to 256.
        num_kv_heads: u32 = 1;
        /// Elements of a key head: 1 to 4096.
        key_dim: u32 = 1;
        /// Elements of a value head: 1 to 4096.
        value_dim: u32 = 1;
        /// Their type: "f32", "f16" or "bf16".
        element: ElementType = ElementType::F32;
        /// "hash" (of every byte of the context's KV blocks), "echo" (the prompt's tokens in turn) or "file" (one of `answers`).
        tokens: TokenRule = TokenRule::Hash;
        /// With tokens = "file": texts or lists of token ids.
        answers: Vec<Answer> = Vec::new();
        /// Which answer: "prompt" (by its hash) or "seed" (the request's `seed` is the answer's number, from 0, modulo how many there are).
        choose: AnswerChoice = AnswerChoice::Prompt;
        /// The end of sequence comes after this many tokens: 0 to 1048576. Default: after an answer out of `answers`, else never.
        end_after_tokens: Option<u32> = None, example "32";
        /// Time of every step, in microseconds: 0 to 10000000.
        fixed_us: u32 = 0;
        /// Time of each prompt row of a step, in microseconds: 0 to 1000000.
        prefill_token_us: u32 = 0;
        /// Time of each decode row of a step, in microseconds: 0 to 1000000.
        decode_token_us: u32 = 0;
        /// Time of each token that the sequences of a step have in their contexts, in nanoseconds: 0 to 1000000.
        context_token_ns: u32 = 0;
        /// A step takes up to this much more or less, in percent: 0 to 100.
        jitter_percent: u32 = 0;
        /// Seed of the jitter.
        jitter_seed: u32 = 1;
    }
}

/// Where a script's tokens come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenRule {
    /// Out of every byte of the context's KV blocks.
    #[default]
    Hash,
    /// The prompt's, in turn.
    Echo,
    /// Those of an answer in the file.
    File,
}

/// An answer in a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of token ids")]
pub enum Answer {
    /// A text: its bytes are its tokens.
    Text(String),
    /// Token ids.
    Tokens(Vec<TokenId>),
}

/// Reads and checks a script.
///
/// # Errors
/// The user's fault, all of them.
pub fn load_script(path: &Path) -> Result<Script, ConfigError> {
    parse_script(&read(path)?)
}

/// Reads and checks a script's text.
///
/// # Errors
/// As [`load_script`].
pub fn parse_script(text: &str) -> Result<Script, ConfigError> {
    let table: toml::Table = toml::from_str(text).map_err(|error| syntax(text, &error))?;
    refuse_keys_beyond(Script::KEYS, &table, "")?;
    let script: Script = toml::from_str(text).map_err(|error| syntax(text, &error))?;
    script.check()?;
    Ok(script)
}

impl Script {
    /// Every key, in the order of the file.
    pub fn keys() -> impl Iterator<Item = &'static str> {
        Self::KEYS.iter().map(|key| key.name)
    }

    /// Shape of the KV blocks.
    pub const fn layout(&self) -> KvLayout {
        KvLayout {
            num_layers: self.num_layers,
            num_kv_heads: self.num_kv_heads,
            key_dim: self.key_dim,
            value_dim: self.value_dim,
            element: self.element,
        }
    }

    /// The key in which two scripts differ, timings apart: devices with such scripts do not serve one model.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let table = |script: &Self| toml::Table::try_from(script).unwrap_or_default();
        let (own, others) = (table(self), table(other));
        let is_timing = |key: &str| key.ends_with("_us") || key.ends_with("_ns") || key.starts_with("jitter_");
        Self::keys().find(|&key| !is_timing(key) && own.get(key) != others.get(key))
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.name.trim().is_empty() {
            return Err(out_of_range("name", "empty", "a name for the model"));
        }
        within("vocab_size", self.vocab_size, BYTE_VOCABULARY..=262_144)?;
        within("max_context_tokens", self.max_context_tokens, 16..=1_048_576)?;
        self.check_shape()?;
        self.check_answers()?;
        self.end_after_tokens.map_or(Ok(()), |tokens| within("end_after_tokens", tokens, 0..=1_048_576))?;
        within("fixed_us", self.fixed_us, 0..=10_000_000)?;
        within("prefill_token_us", self.prefill_token_us, 0..=1_000_000)?;
        within("decode_token_us", self.decode_token_us, 0..=1_000_000)?;
        within("context_token_ns", self.context_token_ns, 0..=1_000_000)?;
        within("jitter_percent", self.jitter_percent, 0..=100)
    }

    fn check_shape(&self) -> Result<(), ConfigError> {
        within("num_layers", self.num_layers, 1..=256)?;
        within("num_kv_heads", self.num_kv_heads, 1..=256)?;
        within("key_dim", self.key_dim, 1..=4096)?;
        within("value_dim", self.value_dim, 1..=4096)?;
        let byte_len = self.layout().layer_block_bytes();
        if byte_len > MAX_LAYER_BLOCK_BYTES {
            let value = format!("{} × ({} + {})", self.num_kv_heads, self.key_dim, self.value_dim);
            let expected = format!(
                "less: a layer's block of 16 tokens would have {byte_len} bytes, at most {MAX_LAYER_BLOCK_BYTES} will do"
            );
            return Err(out_of_range("num_kv_heads × (key_dim + value_dim)", value, expected));
        }
        Ok(())
    }

    fn check_answers(&self) -> Result<(), ConfigError> {
        match self.tokens {
            TokenRule::File if self.answers.is_empty() => {
                return Err(out_of_range("answers", "empty", "at least one where tokens is \"file\""));
            }
            TokenRule::Hash | TokenRule::Echo if !self.answers.is_empty() => {
                return Err(out_of_range("answers", "given", "none unless tokens is \"file\""));
            }
            _ => {}
        }
        for (index, answer) in self.answers.iter().enumerate() {
            let Answer::Tokens(tokens) = answer else { continue };
            if let Some(token) = tokens.iter().find(|token| **token >= self.vocab_size) {
                return Err(out_of_range(
                    format!("an id of answers[{index}]"),
                    token,
                    format!("0 to {}, since vocab_size is {}", self.vocab_size - 1, self.vocab_size),
                ));
            }
        }
        Ok(())
    }
}

impl Answer {
    /// Its token ids.
    pub fn tokens(&self) -> Vec<TokenId> {
        match self {
            Self::Text(text) => text.bytes().map(TokenId::from).collect(),
            Self::Tokens(tokens) => tokens.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(text: &str) -> String {
        parse_script(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_script_is_all_defaults() {
        assert_eq!(parse_script("").unwrap(), Script::default());
    }

    #[test]
    fn answers_are_texts_or_token_ids() {
        let script = parse_script("tokens = \"file\"\nanswers = [\"hé\", [300, 257], \"\", []]").unwrap();
        let tokens: Vec<_> = script.answers.iter().map(Answer::tokens).collect();
        assert_eq!(tokens, [vec![0x68, 0xc3, 0xa9], vec![300, 257], vec![], vec![]]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key_and_what_would_do() {
        let cases = [
            ("fixed_ms = 2", "unknown key `fixed_ms`, did you mean `fixed_us`?"),
            ("[timings]\nfixed_us = 2", "unknown key `timings`, did you mean `tokens`?"),
            ("name = \" \"", "name is empty, expected a name for the model"),
            ("vocab_size = 257", "vocab_size is 257, expected 258 to 262144"),
            ("vocab_size = 4000000000", "vocab_size is 4000000000, expected 258 to 262144"),
            ("num_layers = 0", "num_layers is 0, expected 1 to 256"),
            ("num_kv_heads = 4294967295", "num_kv_heads is 4294967295, expected 1 to 256"),
            ("value_dim = 0", "value_dim is 0, expected 1 to 4096"),
            ("max_context_tokens = 15", "max_context_tokens is 15, expected 16 to 1048576"),
            ("jitter_percent = 101", "jitter_percent is 101, expected 0 to 100"),
            ("fixed_us = 10000001", "fixed_us is 10000001, expected 0 to 10000000"),
            ("tokens = \"file\"", "answers is empty, expected at least one where tokens is \"file\""),
            ("answers = [\"x\"]", "answers is given, expected none unless tokens is \"file\""),
            (
                "tokens = \"file\"\nanswers = [\"x\", [1, 512]]",
                "an id of answers[1] is 512, expected 0 to 511, since vocab_size is 512",
            ),
            (
                "num_kv_heads = 256\nkey_dim = 4096\nvalue_dim = 4096",
                "num_kv_heads × (key_dim + value_dim) is 256 × (4096 + 4096), expected less: \
                 a layer's block of 16 tokens would have 134217728 bytes, at most 16777216 will do",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(refusal(text), expected, "{text}");
        }
    }

    #[test]
    fn wrong_types_and_words_name_the_line() {
        assert!(refusal("\nnum_layers = -1").starts_with("line 2: invalid value: integer `-1`"));
        assert!(refusal("tokens = \"random\"").contains("expected one of `hash`, `echo`, `file`"));
        let answers = refusal("tokens = \"file\"\nanswers = [1.5]");
        assert!(answers.starts_with("line 2: ") && answers.contains("a text or a list of token ids"), "{answers}");
        assert!(refusal("element = \"f8\"").contains("expected one of `f32`, `f16`, `bf16`"));
    }

    #[test]
    fn two_scripts_of_one_model_differ_in_their_timings_only() {
        let script = |text: &str| parse_script(text).unwrap();
        assert_eq!(script("fixed_us = 5\njitter_percent = 3").difference(&Script::default()), None);
        assert_eq!(script("key_dim = 2").difference(&Script::default()), Some("key_dim"));
        assert_eq!(script("end_after_tokens = 2").difference(&Script::default()), Some("end_after_tokens"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "(\\[?[a-z_]{0,9}\\]?( = )?[0-9a-z\"\\[\\]{}.,é-]{0,9}\n?){0,6}") {
            let _ = parse_script(&text);
        }

        /// Numbers where numbers belong, of every size, so that the checks behind the parser are reached, too.
        #[test]
        fn any_numbers_are_taken_or_refused_without_a_panic(
            numbers in proptest::collection::vec((any::<i64>(), 0..64_u32, any::<bool>()), Script::KEYS.len())
        ) {
            let is_number = |name: &str| !["name", "element", "tokens", "answers", "choose"].contains(&name);
            let mut text = String::new();
            for (name, (number, shift, is_given)) in Script::keys().zip(&numbers) {
                if is_number(name) && *is_given {
                    text += &format!("{name} = {}\n", number.rem_euclid(i64::MAX) >> shift);
                }
            }
            if let Ok(script) = parse_script(&text) {
                prop_assert!(script.layout().layer_block_bytes() <= MAX_LAYER_BLOCK_BYTES);
            }
        }
    }
}
