//! The memory behind a KV pool: zeroed pages, huge ones where the system gives them, either this process's alone or in an unnamed file that other
//! processes of the host can be given.

use std::io;
use std::sync::Arc;

#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;

use memmap2::{MmapMut, MmapRaw};
use relevo_wire::SharedRegion;

/// What a pool's clones and the `Bytes` of its blocks own together. Where the system gives huge pages, a decode step, which reads keys and values all
/// over the pool, looks fewer of them up.
pub(super) struct Pages {
    map: MmapRaw,
    #[cfg(target_os = "linux")]
    file: Option<Arc<OwnedFd>>,
}

impl Pages {
    /// Pages that no other process sees.
    pub(super) fn private(byte_len: usize) -> io::Result<Self> {
        let map = MmapRaw::from(MmapMut::map_anon(byte_len)?);
        advise_huge(&map);
        Ok(Self {
            map,
            #[cfg(target_os = "linux")]
            file: None,
        })
    }

    /// Pages that other processes can be let into, to read; where there are no such pages, private ones.
    #[cfg(target_os = "linux")]
    pub(super) fn shareable(byte_len: usize) -> io::Result<Self> {
        match in_a_file::sealed(byte_len) {
            Ok((map, file)) => {
                advise_huge(&map);
                Ok(Self { map, file: Some(Arc::new(file)) })
            }
            Err(error) => {
                tracing::warn!(%error, "no other process can read the KV pool");
                Self::private(byte_len)
            }
        }
    }

    /// As [`Pages::private`]: memory files are Linux's.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn shareable(byte_len: usize) -> io::Result<Self> {
        Self::private(byte_len)
    }

    /// Their first byte. They live as long as `self`, all of them zero at first.
    pub(super) fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// What another process needs to read them.
    #[cfg(target_os = "linux")]
    pub(super) fn shared_region(pages: &Arc<Self>) -> Option<SharedRegion> {
        let file = pages.file.clone()?;
        let start = pages.map.as_ptr().addr();
        let owner: std::sync::Weak<Self> = Arc::downgrade(pages);
        Some(SharedRegion::new(file, start..start + pages.map.len(), owner))
    }

    /// Nothing: memory files are Linux's.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn shared_region(_: &Arc<Self>) -> Option<SharedRegion> {
        None
    }

    /// Has all pages of `num_regions` equal regions come before they are touched, if the system can do that.
    pub(super) fn populate_in_background(pages: &Arc<Self>, num_regions: usize) {
        #[cfg(target_os = "linux")]
        populate::in_background(pages, num_regions);
        #[cfg(not(target_os = "linux"))]
        let _ = (pages, num_regions);
    }
}

fn advise_huge(map: &MmapRaw) {
    #[cfg(target_os = "linux")]
    if let Err(error) = map.advise(memmap2::Advice::HugePage) {
        tracing::debug!(%error, "no huge pages for the KV pool");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = map;
}

#[cfg(target_os = "linux")]
mod in_a_file {
    //! A file without a name: nothing is left of it when its last process is gone, however it went.

    use std::os::fd::OwnedFd;

    use memmap2::{MmapOptions, MmapRaw};
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    /// A file of `byte_len` zeros, mapped. It keeps its length, so that no reader can be made to fault, and it can be written through this map alone:
    /// who is given the file can but read.
    pub(super) fn sealed(byte_len: usize) -> std::io::Result<(MmapRaw, OwnedFd)> {
        let file = memfd_create("relevo-kv", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, byte_len as u64)?;
        let map = MmapOptions::new().len(byte_len).map_raw(&file)?;
        // After the map, which the third of them would refuse.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok((map, file))
    }
}

#[cfg(target_os = "linux")]
mod populate {
    //! Pages before they are needed: the system clears a page when it is first touched, and a token whose block begins a huge page in each layer
    //! would wait for all of them: 60 MB for thirty layers, and one first token in a hundred of a fresh server came 130 ms late.

    use std::sync::{Arc, Weak};

    use memmap2::Advice;

    use super::Pages;

    /// Asked for at a time: a huge page.
    const PIECE: usize = 2 << 20;

    /// Has a thread of the lowest priority ask for all pages of `num_regions` equal regions, their beginnings first: blocks are taken in that order.
    /// It ends when it is done or the memory is no longer wanted. Best effort: pages that it did not get come when they are touched.
    pub(super) fn in_background(memory: &Arc<Pages>, num_regions: usize) {
        let memory = Arc::downgrade(memory);
        let started = std::thread::Builder::new().name("kv-populate".to_owned()).spawn(move || {
            if let Err(error) =
                rustix::process::nice(19).map_err(Into::into).and_then(|_| populate(&memory, num_regions))
            {
                tracing::debug!(%error, "the KV pool's pages come when they are touched");
            }
        });
        if let Err(error) = started {
            tracing::debug!(%error, "no thread for the KV pool's pages");
        }
    }

    fn populate(memory: &Weak<Pages>, num_regions: usize) -> std::io::Result<()> {
        let mut offset = 0;
        loop {
            for region in 0..num_regions {
                let Some(memory) = memory.upgrade() else { return Ok(()) };
                let region_bytes = memory.map.len() / num_regions;
                if offset >= region_bytes {
                    return Ok(());
                }
                let len = PIECE.min(region_bytes - offset);
                memory.map.advise_range(Advice::PopulateWrite, region * region_bytes + offset, len)?;
            }
            offset += PIECE;
        }
    }
}
