//! A file's bytes, mapped.
#![allow(unsafe_code, reason = "mapping a file into memory is an operating-system call that Rust cannot check")]

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::WeightsError;

/// A file that stays mapped for as long as it lives.
#[derive(Debug)]
pub(super) struct MappedFile {
    pub(super) path: PathBuf,
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps the whole file, read-only.
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let path = path.to_owned();
        // An empty file cannot be mapped.
        if file.metadata().map_err(io)?.len() == 0 {
            return Ok(Self { path, map: None });
        }
        // SAFETY: the mapping is private and read-only, and every use of it goes through a slice. Rust asks that the bytes never
        // change meanwhile: model files are replaced by renaming (`relevo model pull`), never written in place. Whoever writes to
        // one in place can change numbers, which no parsed offset depends on after the check, or, by truncating it, end the process.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { path, map: Some(map) })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}
