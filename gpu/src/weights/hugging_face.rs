//! A Hugging Face folder: which files belong to it, and what its JSON files say.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use relevo_wire::TokenId;
use serde_json::{Map, Value};

use super::end_of_generation::end_of_generation;
use super::{HuggingFaceTokenizer, WeightsError};

/// A configuration is some kilobytes, an index of a large model some megabytes.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Vocabularies of 256,000 tokens take some 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// What the JSON files of a folder say.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) config: Map<String, Value>,
    /// The safetensors files, sorted.
    pub(super) weight_files: Vec<PathBuf>,
    /// Which file holds which tensor, if there is an index.
    pub(super) index: Map<String, Value>,
    pub(super) tokenizer: Option<HuggingFaceTokenizer>,
    pub(super) chat_template: Option<String>,
    pub(super) end_of_generation_ids: Vec<TokenId>,
}

impl Folder {
    /// Reads all but the weights.
    pub(super) fn read(folder: &Path) -> Result<Self, WeightsError> {
        let Some(config) = read_object(&folder.join("config.json"), MAX_JSON_BYTES)? else {
            let reason =
                "a folder must hold config.json and *.safetensors as Hugging Face lays them out; or give a .gguf file";
            return Err(WeightsError::NotAModel { path: folder.to_owned(), reason: reason.to_owned() });
        };
        let index_path = folder.join("model.safetensors.index.json");
        let index = read_object(&index_path, MAX_JSON_BYTES)?;
        let (weight_files, index) = match index {
            Some(index) => shards(folder, &index_path, index)?,
            None => (vec![single_file(folder)?], Map::new()),
        };
        let tokenizer_config = read_object(&folder.join("tokenizer_config.json"), MAX_JSON_BYTES)?.unwrap_or_default();
        let generation = read_object(&folder.join("generation_config.json"), MAX_JSON_BYTES)?.unwrap_or_default();
        let added = added_tokens(&folder.join("tokenizer.json"))?;
        let named = ids(&config, "eos_token_id").into_iter().chain(ids(&generation, "eos_token_id"));
        let eos_text = token_text(&tokenizer_config, "eos_token");
        let eos = added.iter().flatten().find(|token| Some(&token.content) == eos_text.as_ref()).map(|token| token.id);
        let special =
            added.iter().flatten().filter(|token| token.special).map(|token| (token.id, token.content.as_str()));
        Ok(Self {
            end_of_generation_ids: end_of_generation(special, named.chain(eos)),
            tokenizer: added.as_ref().map(|_| HuggingFaceTokenizer {
                tokenizer_json: folder.join("tokenizer.json"),
                bos_token: token_text(&tokenizer_config, "bos_token"),
                eos_token: eos_text.clone(),
                add_bos: tokenizer_config.get("add_bos_token").and_then(Value::as_bool),
            }),
            chat_template: chat_template(folder, &tokenizer_config)?,
            config,
            weight_files,
            index,
        })
    }
}

fn single_file(folder: &Path) -> Result<PathBuf, WeightsError> {
    let path = folder.join("model.safetensors");
    if path.is_file() {
        return Ok(path);
    }
    let reason = "it has neither model.safetensors nor model.safetensors.index.json; \
                  convert other formats (pytorch_model.bin) with `save_pretrained(…, safe_serialization=True)`";
    Err(WeightsError::NotAModel { path: folder.to_owned(), reason: reason.to_owned() })
}

/// The files that the index names, and its map from tensors to files.
fn shards(
    folder: &Path,
    path: &Path,
    mut index: Map<String, Value>,
) -> Result<(Vec<PathBuf>, Map<String, Value>), WeightsError> {
    let fail = |reason: String| WeightsError::Json { path: path.to_owned(), reason };
    let Some(Value::Object(weight_map)) = index.remove("weight_map") else {
        return Err(fail("weight_map is missing; expected an object from tensor names to file names".to_owned()));
    };
    let mut names = BTreeSet::new();
    for (tensor, file) in &weight_map {
        // A bare name: an index must not reach outside of its folder.
        let file_name = file.as_str().filter(|name| is_bare_file_name(name));
        let name = file_name
            .ok_or_else(|| fail(format!("tensor {tensor} is in {file}, expected the name of a .safetensors file")))?;
        names.insert(name);
    }
    if names.is_empty() {
        return Err(fail("weight_map is empty".to_owned()));
    }
    let files = names.into_iter().map(|name| folder.join(name)).collect();
    Ok((files, weight_map))
}

fn is_bare_file_name(name: &str) -> bool {
    name.ends_with(".safetensors") && Path::new(name).file_name().is_some_and(|file_name| file_name == name)
}

/// Reads a file of bounded size; `None` if it is not there.
fn read_bounded(path: &Path, most: u64) -> Result<Option<Vec<u8>>, WeightsError> {
    let io = |source| WeightsError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > most {
        let reason = format!("it is longer than {most} bytes, which no such file is");
        return Err(WeightsError::Json { path: path.to_owned(), reason });
    }
    Ok(Some(bytes))
}

fn read_object(path: &Path, most: u64) -> Result<Option<Map<String, Value>>, WeightsError> {
    let Some(bytes) = read_bounded(path, most)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| WeightsError::Json { path: path.to_owned(), reason: error.to_string() })
}

/// A token that `tokenizer.json` adds to its vocabulary.
#[derive(serde::Deserialize)]
struct AddedToken {
    id: TokenId,
    content: String,
    #[serde(default)]
    special: bool,
}

/// `None` if there is no `tokenizer.json`.
fn added_tokens(path: &Path) -> Result<Option<Vec<AddedToken>>, WeightsError> {
    #[derive(serde::Deserialize)]
    struct TokenizerJson {
        #[serde(default)]
        added_tokens: Vec<AddedToken>,
    }
    let Some(bytes) = read_bounded(path, MAX_TOKENIZER_BYTES)? else { return Ok(None) };
    let parsed: Result<TokenizerJson, _> = serde_json::from_slice(&bytes);
    let wrong = |error: serde_json::Error| WeightsError::Json { path: path.to_owned(), reason: error.to_string() };
    parsed.map(|tokenizer| Some(tokenizer.added_tokens)).map_err(wrong)
}

/// One id, a list of them, or none.
fn ids(object: &Map<String, Value>, key: &str) -> Vec<TokenId> {
    let id = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    match object.get(key) {
        Some(Value::Array(values)) => values.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// A token as `tokenizer_config.json` writes it: its text, or an object with the text as `content`.
fn token_text(config: &Map<String, Value>, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// `chat_template.jinja`, or the configuration's own, or the one of its several that is named `default`.
fn chat_template(folder: &Path, config: &Map<String, Value>) -> Result<Option<String>, WeightsError> {
    let path = folder.join("chat_template.jinja");
    if let Some(bytes) = read_bounded(&path, MAX_JSON_BYTES)? {
        let not_utf8 = |_| WeightsError::Json { path: path.clone(), reason: "it is not UTF-8".to_owned() };
        return String::from_utf8(bytes).map(Some).map_err(not_utf8);
    }
    let named_default = |template: &&Value| template.get("name").and_then(Value::as_str) == Some("default");
    Ok(match config.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(templates)) => templates
            .iter()
            .find(named_default)
            .and_then(|template| template.get("template"))
            .and_then(Value::as_str)
            .map(str::to_owned),
        _ => None,
    })
}
