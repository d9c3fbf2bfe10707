//! Files and folders that hold certificates and keys: they appear whole or not at all, and keys for their owner only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::name::Serial;

/// A file or folder that does not do as asked. Transient, or the user's fault: the path, or permissions.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub struct StorageError {
    /// Such as `cannot read`.
    pub doing: &'static str,
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Its owner only.
    Secret,
    /// Everybody.
    Open,
}

impl Access {
    const fn mode(self) -> u32 {
        match self {
            Self::Secret => 0o600,
            Self::Open => 0o644,
        }
    }
}

/// Largest file that is read, in bytes: a revocation list of 100,000 certificates has about 4 MB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Reads a file as text.
pub(super) fn read(path: &Path) -> Result<String, StorageError> {
    let open = || io::read_to_string(File::open(path)?.take(MAX_FILE_BYTES));
    at("cannot read", path, open())
}

/// Whether everybody on the machine may read a file: a key must not be so. A group may, as systemd's credentials have it.
pub(super) fn is_open_to_all(path: &Path) -> Result<bool, StorageError> {
    let metadata = at("cannot read", path, fs::metadata(path))?;
    Ok(metadata.permissions().mode() & 0o007 != 0)
}

/// Puts a file in its place, durably and in one step; one that is there is replaced.
pub(super) fn write(path: &Path, text: &str, access: Access) -> Result<(), StorageError> {
    let temporary = at("cannot write", path, temporary_beside(path))?;
    let written = write_new(&temporary, text, access)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(parent(path)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    at("cannot write", path, written)
}

/// Gives a file the name of another, durably and in one step; the other is gone.
pub(super) fn replace(from: &Path, to: &Path) -> Result<(), StorageError> {
    at("cannot write", to, fs::rename(from, to).and_then(|()| sync_folder(parent(to))))
}

/// Makes a folder of these files, durably and in one step. What is there already stays, and is an error, unless it is an empty folder.
pub(super) fn write_folder(folder: &Path, files: &[(&str, &str, Access)]) -> Result<(), StorageError> {
    let temporary = at("cannot make", folder, temporary_beside(folder))?;
    let made = fill_folder(&temporary, files)
        .and_then(|()| fs::rename(&temporary, folder))
        .and_then(|()| sync_folder(parent(folder)));
    if made.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    at("cannot make", folder, made)
}

fn fill_folder(folder: &Path, files: &[(&str, &str, Access)]) -> io::Result<()> {
    fs::create_dir_all(parent(folder))?;
    make_private_folder(folder)?;
    for (name, text, access) in files {
        write_new(&folder.join(name), text, *access)?;
    }
    sync_folder(folder)
}

/// Makes a folder that its owner only may enter.
pub(super) fn make_private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)
}

/// Whether something is there that a new folder of this name would have to replace.
pub(super) fn is_taken(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => fs::symlink_metadata(path).is_ok(),
    }
}

fn write_new(path: &Path, text: &str, access: Access) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// A rename is durable once its folder is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A name that nothing has, beside `path`, so that a rename stays within one file system.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{}", Serial::new(&random))))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(super) fn at<T>(doing: &'static str, path: &Path, result: io::Result<T>) -> Result<T, StorageError> {
    result.map_err(|source| StorageError { doing, path: path.to_owned(), source })
}
