//! Memory as a KV pool has it that other processes can be let into.
#![allow(unsafe_code, reason = "memory in a file is mapped, as the pool's is")]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use memmap2::Mmap;
use relevo_wire::SharedRegion;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::pwrite;

/// Blocks begin where pools have them begin.
const ALIGN: usize = 64;

/// A sealed file in memory, mapped; blocks are put into it one after the other.
pub struct Arena {
    file: Arc<OwnedFd>,
    map: Arc<Map>,
    taken: AtomicUsize,
}

struct Map(Mmap);

struct InMap {
    map: Arc<Map>,
    range: std::ops::Range<usize>,
}

impl AsRef<[u8]> for InMap {
    fn as_ref(&self) -> &[u8] {
        &self.map.0[self.range.clone()]
    }
}

impl Arena {
    pub fn new(byte_len: usize) -> Self {
        let file = memory_file(byte_len, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL);
        // SAFETY: the file keeps its length, and a block is written before anybody is given a reference to it, and never again.
        let map = unsafe { Mmap::map(&file) }.unwrap();
        Self { file: Arc::new(file), map: Arc::new(Map(map)), taken: AtomicUsize::new(0) }
    }

    /// Puts a block into it.
    pub fn put(&self, bytes: &[u8]) -> Bytes {
        let start = self.taken.fetch_add(bytes.len().next_multiple_of(ALIGN), Ordering::Relaxed);
        assert_eq!(pwrite(&self.file, bytes, start as u64).unwrap(), bytes.len(), "the arena is full");
        Bytes::from_owner(InMap { map: Arc::clone(&self.map), range: start..start + bytes.len() })
    }

    pub fn region(&self) -> SharedRegion {
        let start = self.map.0.as_ptr().addr();
        let owner: std::sync::Weak<Map> = Arc::downgrade(&self.map);
        SharedRegion::new(Arc::clone(&self.file), start..start + self.map.0.len(), owner)
    }

    /// Who holds its memory: itself, and each block.
    pub fn num_holders(&self) -> usize {
        Arc::strong_count(&self.map)
    }
}

/// A file in memory of this length and with these seals.
pub fn memory_file(byte_len: usize, seals: SealFlags) -> OwnedFd {
    let file = memfd_create("arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, byte_len as u64).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}
