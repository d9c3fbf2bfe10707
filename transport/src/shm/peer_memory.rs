//! The file that a sender's blocks lie in, mapped to be read.
//!
//! Its pages are another process's, which may write to them at any time, by mistake or by malice. So nothing here makes a reference to plain bytes of
//! them: they are copied out by atomic loads of a word, which are defined whatever others do, and all that is decided about them (is this
//! the block that was announced?) is decided on the copy.
//!
//! Its seals keep the file from being cut short under a reader. Pages that its owner has not written, or gives back, the system makes when they are
//! read: a hostile process of the same user can so take memory that this one pays for, as it could by other means.

#![allow(unsafe_code, reason = "memory of another process is read in place")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};

/// Most that a peer can have us map: more than a host's memory, and little of the addresses that a process has.
const MAX_BYTES: usize = 1 << 42;

/// What Linux says of a file in ordinary pages of memory (`TMPFS_MAGIC`). One in huge pages from a reserve can run out of them under its reader.
const MEMORY_FILE: u64 = 0x0102_1994;

const WORD_BYTES: usize = size_of::<usize>();

/// A sender's memory.
pub(super) struct PeerMemory {
    map: MmapRaw,
}

/// Why a peer's file is not mapped. Its fault, except the last.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerMemoryError {
    #[error("the peer's file is no memory")]
    NoMemory,
    #[error("the peer's file could be cut short")]
    Unsealed,
    #[error("the peer's file has {0} bytes, expected 1 to {MAX_BYTES}")]
    Length(u64),
    #[error("the peer's file cannot be mapped")]
    Map(#[from] io::Error),
}

impl PeerMemory {
    /// Maps all of `file`.
    pub(super) fn map(file: &OwnedFd) -> Result<Self, PeerMemoryError> {
        // Only files in memory have seals.
        let seals = fcntl_get_seals(file.as_fd()).map_err(|_| PeerMemoryError::NoMemory)?;
        if u64::try_from(fstatfs(file.as_fd()).map_err(io::Error::from)?.f_type) != Ok(MEMORY_FILE) {
            return Err(PeerMemoryError::NoMemory);
        }
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(PeerMemoryError::Unsealed);
        }
        let size = u64::try_from(fstat(file.as_fd()).map_err(io::Error::from)?.st_size).unwrap_or(0);
        let byte_len = usize::try_from(size).ok().filter(|len| (1..=MAX_BYTES).contains(len));
        let byte_len = byte_len.ok_or(PeerMemoryError::Length(size))?;
        Ok(Self { map: MmapOptions::new().len(byte_len).map_raw_read_only(file)? })
    }

    /// Its length.
    pub(super) fn byte_len(&self) -> usize {
        self.map.len()
    }

    /// Copies what lies at `offset` to `target`; `false` if that goes beyond the end.
    pub(super) fn copy_to(&self, offset: usize, target: &mut [u8]) -> bool {
        if offset.checked_add(target.len()).is_none_or(|end| end > self.byte_len()) {
            return false;
        }
        // SAFETY: the range was checked to lie within the map, whose file cannot be cut short, and `self` keeps the map. Other processes may write to it
        // meanwhile: all loads are atomic. They are relaxed ones, of a word at most, which may be done on memory that cannot be written to (the
        // documentation of `std::sync::atomic` says so).
        let bytes =
            unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(offset).cast::<AtomicU8>(), target.len()) };
        // SAFETY: any bytes are a word.
        let (first, words, last) = unsafe { bytes.align_to::<AtomicUsize>() };
        let (head, rest) = target.split_at_mut(first.len());
        let (body, tail) = rest.split_at_mut(words.len() * WORD_BYTES);
        copy_bytes(first, head);
        for (target, word) in body.chunks_exact_mut(WORD_BYTES).zip(words) {
            target.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        copy_bytes(last, tail);
        true
    }
}

fn copy_bytes(from: &[AtomicU8], to: &mut [u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use rustix::io::pwrite;

    use super::*;

    fn file(byte_len: u64, seals: SealFlags) -> OwnedFd {
        let file = memfd_create("peer", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, byte_len).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    fn sealed(byte_len: u64) -> OwnedFd {
        file(byte_len, SealFlags::SHRINK | SealFlags::GROW)
    }

    #[test]
    fn what_is_copied_is_what_lies_there_wherever_it_begins_and_ends() {
        let file = sealed(4096);
        let bytes: Vec<u8> = (0..4096).map(|at| (at * 7 + at / 256) as u8).collect();
        pwrite(&file, &bytes, 0).unwrap();
        let memory = PeerMemory::map(&file).unwrap();
        assert_eq!(memory.byte_len(), 4096);
        for offset in (0..20).chain(4076..4097) {
            for len in (0..20).chain([64, 999]).filter(|len| offset + len <= 4096) {
                let mut copy = vec![0xee; len];
                assert!(memory.copy_to(offset, &mut copy));
                assert_eq!(copy, bytes[offset..offset + len], "{len} at {offset}");
            }
        }
    }

    #[test]
    fn nothing_beyond_the_end_is_copied() {
        let memory = PeerMemory::map(&sealed(100)).unwrap();
        for (offset, len) in [(0, 101), (100, 1), (99, 2), (4000, 1), (usize::MAX, 1), (usize::MAX - 3, 8)] {
            let mut copy = vec![0xee; len];
            assert!(!memory.copy_to(offset, &mut copy), "{len} at {offset}");
            assert!(copy.iter().all(|byte| *byte == 0xee));
        }
    }

    #[test]
    fn files_that_could_fault_under_their_reader_are_refused() {
        let refused = |file: &OwnedFd| PeerMemory::map(file).err().unwrap().to_string();
        for seals in [SealFlags::empty(), SealFlags::SHRINK, SealFlags::GROW] {
            assert_eq!(refused(&file(4096, seals)), "the peer's file could be cut short");
        }
        assert_eq!(refused(&sealed(0)), "the peer's file has 0 bytes, expected 1 to 4398046511104");
        assert!(refused(&sealed(1 << 43)).contains("8796093022208 bytes"));
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(4096).unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        for other in [OwnedFd::from(disk), pipe.into(), std::fs::File::open("/dev/zero").unwrap().into()] {
            let refused = refused(&other);
            assert!(["the peer's file is no memory", "the peer's file could be cut short"].contains(&&*refused));
        }
        if let Ok(huge) = memfd_create("huge", MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB) {
            fcntl_add_seals(&huge, SealFlags::SHRINK | SealFlags::GROW).unwrap();
            assert_eq!(refused(&huge), "the peer's file is no memory");
        }
    }
}
