//! A model's files, opened and checked: its description, its tensors, its tokenizer's parts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use relevo_wire::TokenId;

use super::hugging_face::Folder;
use super::mapped::MappedFile;
use super::{
    FormatError, GgufHeader, GgufVocabulary, StoredType, TensorEntry, TensorView, TokenizerSource, Value,
    WeightsDigest, WeightsError, parse_safetensors,
};
use crate::description::{DescriptionError, ModelDescription, Role, describe_config, describe_gguf};

/// An opened model. Its weights stay in the page cache and are read where they lie.
#[derive(Debug)]
pub struct ModelFiles {
    files: Vec<MappedFile>,
    /// With the index of its file; in the files' order.
    tensors: Vec<(usize, TensorEntry)>,
    by_name: HashMap<String, usize>,
    description: ModelDescription,
    tokenizer: Option<TokenizerSource>,
    chat_template: Option<String>,
    end_of_generation_ids: Vec<TokenId>,
    metadata: Vec<(String, String)>,
    pub(super) digest: OnceLock<WeightsDigest>,
}

/// A tensor as `relevo model inspect` lists it.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Its type.
    pub ty: StoredType,
    /// Row-major; a matrix is `[num_outputs, num_inputs]`.
    pub shape: &'a [usize],
    /// Bytes in the file.
    pub byte_len: usize,
    /// The file it is in.
    pub file: &'a Path,
}

impl ModelFiles {
    /// Opens a GGUF file, a folder with one, or a Hugging Face folder (`config.json`, safetensors, `tokenizer.json`).
    ///
    /// # Errors
    /// The user's or the file's fault: nothing there, a damaged file, an architecture or type that is not served.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        if !path.is_dir() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").is_file() {
            return Self::open_folder(path);
        }
        match gguf_files(path)?.as_slice() {
            [only] => Self::open_gguf(only),
            // Its error says what a folder must hold.
            [] => Self::open_folder(path),
            [first, ..] => Err(WeightsError::NotAModel {
                path: path.to_owned(),
                reason: format!("it has several GGUF files; name one, such as {}", first.display()),
            }),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, WeightsError> {
        let file = MappedFile::open(path)?;
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let reason = "safetensors need the config.json beside them; give the folder".to_owned();
            return Err(WeightsError::NotAModel { path: path.to_owned(), reason });
        }
        let header = GgufHeader::parse(file.bytes()).map_err(|source| format_error(&file, source))?;
        let metadata = header.metadata(file.bytes());
        let unserved = |source| WeightsError::Description { path: path.to_owned(), source };
        let entries: Vec<&TensorEntry> = header.tensors.iter().collect();
        let description = describe_gguf(metadata, &entries, &file_stem(path)).map_err(unserved)?;
        let vocabulary = GgufVocabulary::read(metadata).map_err(unserved)?;
        let end_of_generation_ids = vocabulary.as_ref().map(GgufVocabulary::end_of_generation_ids).unwrap_or_default();
        let chat_template =
            metadata.value("tokenizer.chat_template").and_then(|value| value.as_str()).map(str::to_owned);
        let listing =
            metadata.keys().filter_map(|key| Some((key.to_owned(), one_line(&metadata.value(key)?)))).collect();
        let tensors: Vec<_> = header.tensors.into_iter().map(|tensor| (0, tensor)).collect();
        Ok(Self {
            by_name: index_by_name(&tensors),
            tensors,
            files: vec![file],
            description,
            tokenizer: vocabulary.map(TokenizerSource::Gguf),
            chat_template,
            end_of_generation_ids,
            metadata: listing,
            digest: OnceLock::new(),
        })
    }

    fn open_folder(path: &Path) -> Result<Self, WeightsError> {
        let folder = Folder::read(path)?;
        let files = folder.weight_files.iter().map(|file| MappedFile::open(file)).collect::<Result<Vec<_>, _>>()?;
        let mut tensors = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let entries = parse_safetensors(file.bytes()).map_err(|source| format_error(file, source))?;
            tensors.extend(entries.into_iter().map(|entry| (number, entry)));
        }
        let by_name = index_by_name(&tensors);
        check_index(&folder, &files, &tensors, &by_name)?;
        let entries: Vec<&TensorEntry> = tensors.iter().map(|(_, entry)| entry).collect();
        let description = describe_config(&folder.config, &entries, &file_stem(path))
            .map_err(|source| WeightsError::Description { path: path.to_owned(), source })?;
        let metadata = folder.config.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
        Ok(Self {
            files,
            tensors,
            by_name,
            description,
            tokenizer: folder.tokenizer.map(TokenizerSource::HuggingFace),
            chat_template: folder.chat_template,
            end_of_generation_ids: folder.end_of_generation_ids,
            metadata,
            digest: OnceLock::new(),
        })
    }

    /// What the model is.
    pub const fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// A tensor by its name in the file.
    ///
    /// # Errors
    /// The caller's or the file's fault: no such tensor, or its type has no kernels.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightsError> {
        let no_such = || WeightsError::NoSuchTensor { name: name.to_owned() };
        let (file, entry) = self.by_name.get(name).and_then(|&index| self.tensors.get(index)).ok_or_else(no_such)?;
        let StoredType::Served(ty) = entry.ty else {
            return Err(WeightsError::TypeNotServed { name: name.to_owned(), found: entry.ty.name() });
        };
        let data = self.bytes_of(*file, entry).ok_or_else(no_such)?;
        Ok(TensorView { name: &entry.name, ty, shape: &entry.shape, data })
    }

    fn bytes_of(&self, file: usize, entry: &TensorEntry) -> Option<&[u8]> {
        self.files.get(file)?.bytes().get(entry.offset..)?.get(..entry.byte_len)
    }

    /// All tensors as they lie, of whatever type.
    pub(super) fn tensors_with_bytes(&self) -> impl Iterator<Item = (&TensorEntry, &[u8])> {
        self.tensors.iter().filter_map(|(file, entry)| Some((entry, self.bytes_of(*file, entry)?)))
    }

    /// The tensor that plays `role`; `None` if the model has no such part.
    ///
    /// # Errors
    /// Our bug: the description names a tensor that the files do not have.
    pub fn role(&self, role: Role) -> Result<Option<TensorView<'_>>, WeightsError> {
        self.description.tensor_name(role).map(|name| self.tensor(name)).transpose()
    }

    /// All tensors, in the files' order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(file, entry)| TensorInfo {
            name: &entry.name,
            ty: entry.ty,
            shape: &entry.shape,
            byte_len: entry.byte_len,
            file: self.files.get(*file).map_or(Path::new(""), |file| &file.path),
        })
    }

    /// What its tokenizer is made of; without one the model serves token ids only.
    pub const fn tokenizer(&self) -> Option<&TokenizerSource> {
        self.tokenizer.as_ref()
    }

    /// Its chat template (Jinja), if it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// All ids that end a generation, ascending.
    pub fn end_of_generation_ids(&self) -> &[TokenId] {
        &self.end_of_generation_ids
    }

    /// The files' own keys and their values, each on one short line, in the files' order.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }
}

fn format_error(file: &MappedFile, source: FormatError) -> WeightsError {
    WeightsError::Format { path: file.path.clone(), source }
}

fn file_stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let io = |source| WeightsError::Io { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in folder.read_dir().map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn index_by_name(tensors: &[(usize, TensorEntry)]) -> HashMap<String, usize> {
    tensors.iter().enumerate().map(|(index, (_, tensor))| (tensor.name.clone(), index)).collect()
}

/// Holds the shards against the index: each tensor in one file, the one that the index names.
fn check_index(
    folder: &Folder,
    files: &[MappedFile],
    tensors: &[(usize, TensorEntry)],
    by_name: &HashMap<String, usize>,
) -> Result<(), WeightsError> {
    if by_name.len() != tensors.len() {
        let twice = tensors.iter().enumerate().find(|(index, (_, tensor))| by_name.get(&tensor.name) != Some(index));
        if let Some((_, (file, tensor))) = twice
            && let Some(file) = files.get(*file)
        {
            return Err(format_error(file, FormatError::DuplicateTensor { name: tensor.name.clone() }));
        }
    }
    for (name, stated) in &folder.index {
        let actual = by_name.get(name).and_then(|&index| tensors.get(index)).and_then(|(file, _)| files.get(*file));
        let actual = actual.and_then(|file| file.path.file_name());
        if actual.map(|name| name.to_string_lossy()).as_deref() != stated.as_str() {
            let source = DescriptionError::MissingTensor { name: format!("{name} (by the index in {stated})") };
            let path = files.first().map(|file| file.path.clone()).unwrap_or_default();
            return Err(WeightsError::Description { path, source });
        }
    }
    Ok(())
}

/// Most characters of a value that a listing shows.
const MAX_LISTED_CHARS: usize = 80;
/// Elements of a list that a listing shows.
const MAX_LISTED_ELEMENTS: usize = 4;

fn one_line(value: &Value<'_>) -> String {
    match value {
        Value::Unsigned(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        // As f32, which it mostly was: 0.00001 and not 0.000009999999747378752.
        Value::Float(value) => (*value as f32).to_string(),
        Value::Bool(value) => value.to_string(),
        Value::String(text) => {
            let line: String = text.chars().take(MAX_LISTED_CHARS).flat_map(char::escape_debug).collect();
            if text.chars().nth(MAX_LISTED_CHARS).is_some() { format!("{line}…") } else { line }
        }
        Value::Array(array) => {
            let first: Vec<String> = array.iter().take(MAX_LISTED_ELEMENTS).map(|value| one_line(&value)).collect();
            let more = if array.len() > MAX_LISTED_ELEMENTS { ", …" } else { "" };
            format!("{} of [{}{more}]", array.len(), first.join(", "))
        }
    }
}
