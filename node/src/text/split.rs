//! How text is split before byte-level BPE, by GGUF's `tokenizer.ggml.pre`.
//!
//! The regular expressions are those of the models' own tokenizer.json, as llama.cpp lists them (llama-vocab.cpp,
//! `llm_tokenizer_bpe`).

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::TokenizerError;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
/// llama.cpp's for files that do not say.
const UNTOLD: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// Names that [`Splitting::named`] knows.
const KNOWN: &str = "default, gpt-2, smollm, llama-bpe, qwen2, qwen35, tekken, gpt-4o, deepseek-v3 and those that split like one of them";

/// A way to split, and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Splitting {
    /// Applied one after the other, each to the pieces of the one before.
    patterns: &'static [&'static str],
    /// A piece that is a token is not merged from its parts.
    pub(super) ignore_merges: bool,
    /// Prompts begin with the begin-of-sequence token unless the file says otherwise.
    pub(super) adds_bos: bool,
}

impl Splitting {
    /// The way of a `tokenizer.ggml.pre`.
    pub(super) fn named(pre: Option<&str>) -> Result<Self, TokenizerError> {
        let plain = |patterns| Self { patterns, ignore_merges: false, adds_bos: false };
        Ok(match pre {
            None | Some("default") => plain(&UNTOLD),
            Some(
                "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "exaone4" | "gigachat" | "a.x-4.0" | "mellum"
                | "trillion",
            ) => plain(&[GPT2]),
            Some(
                "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2",
            ) => plain(&[r"\p{N}", GPT2]),
            Some("llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2") => {
                Self { patterns: &[LLAMA3], ignore_merges: true, adds_bos: true }
            }
            Some("dbrx" | "smaug-bpe" | "chatglm-bpe") => plain(&[LLAMA3]),
            Some("glm4") => Self { patterns: &[LLAMA3], ignore_merges: true, adds_bos: false },
            Some("qwen2" | "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "megrez" | "solar-open" | "grok-2") => {
                plain(&[QWEN2])
            }
            Some("qwen35") => plain(&[QWEN35]),
            Some("tekken") => Self { patterns: &[TEKKEN], ignore_merges: true, adds_bos: true },
            Some("gpt-4o" | "llama4" | "kanana2" | "minimax-m2") => plain(&[GPT4O]),
            Some("deepseek-v3" | "hunyuan-dense") => plain(&DEEPSEEK_V3),
            Some(found) => {
                return Err(TokenizerError::Unknown {
                    key: "tokenizer.ggml.pre",
                    found: found.to_owned(),
                    known: KNOWN,
                });
            }
        })
    }

    /// The splits, then bytes as characters.
    pub(super) fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let split = |&pattern: &&str| {
            Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
                .map(PreTokenizerWrapper::Split)
                .map_err(|error| TokenizerError::Damaged { reason: error.to_string() })
        };
        let mut steps = self.patterns.iter().map(split).collect::<Result<Vec<_>, _>>()?;
        steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)));
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
    }
}
