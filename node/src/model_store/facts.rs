//! What a model's files say of it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{StoreError, io_error};

/// Reads and checks a model.
pub(super) fn read(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    let mut magic = [0; 4];
    let mut file = File::open(path).map_err(|error| io_error("cannot read", path, error))?;
    let _ = file.read(&mut magic).map_err(|error| io_error("cannot read", path, error))?;
    if &magic == b"GGUF" {
        return Ok(());
    }
    Err(StoreError::Unreadable { path: path.to_owned(), reason: "it does not begin with `GGUF`".to_owned() })
}
