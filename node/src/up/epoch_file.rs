//! How often a node and its devices began, kept so that no number comes twice: what is left of an earlier start is known by its lower number.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use relevo_actors::cluster::Epochs;
use relevo_wire::Epoch;

use crate::cli::Failure;

/// A counter in a file. It counts on disk before anybody uses the number.
#[derive(Clone, Debug)]
pub(super) struct EpochFile {
    path: PathBuf,
    last: Arc<Mutex<u64>>,
}

impl EpochFile {
    /// The counter in this folder, which is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be written, or the file there holds no number: whoever damaged it must say which was the last.
    pub(super) fn open(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("epoch");
        let failed = |source| Failure::System { doing: format!("cannot keep epochs in {}", path.display()), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let last = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                let path = path.display();
                Failure::Usage(format!(
                    "{path} holds no number: write one there that is higher than all epochs of this node"
                ))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, last: Arc::new(Mutex::new(last)) })
    }

    /// The next number, durable.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn next(&self) -> io::Result<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let next = *last + 1;
        let temporary = self.path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(next.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        *last = next;
        Ok(next)
    }

    /// The same for devices.
    pub(super) fn epochs(&self) -> Epochs {
        let counter = self.clone();
        Arc::new(move || counter.next().map(Epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_comes_twice_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let first = EpochFile::open(folder.path()).unwrap();
        assert_eq!([first.next().unwrap(), first.next().unwrap()], [1, 2]);
        assert_eq!(EpochFile::open(folder.path()).unwrap().next().unwrap(), 3);
    }

    #[test]
    fn a_damaged_counter_is_not_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("epoch"), "many").unwrap();
        assert!(EpochFile::open(folder.path()).unwrap_err().to_string().contains("holds no number"));
    }
}
