//! Memory for weights, on cache lines and huge pages.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapRaw;

use crate::compute::ComputeError;

/// Zeroed memory of one matrix; a part of a [`Chunk`] that no other has.
pub(in crate::cpu) struct Lines {
    chunk: Arc<Chunk>,
    range: Range<usize>,
}

/// Memory that many matrices lie in, one after another.
///
/// A layer's matrices are smaller than a huge page or not much larger. Side by side in one mapping they lie on huge pages all the same, where the system
/// gives them on request; with pages of 4 KiB, which prefetchers do not cross, a pass over the weights reaches four fifths of the memory's bandwidth.
struct Chunk {
    memory: MmapRaw,
    /// Bytes that are given away.
    used: Mutex<usize>,
}

/// Of a chunk, at least.
const CHUNK_BYTES: usize = 64 << 20;

/// The chunk that the next matrix may go into. It is freed with the last matrix in it.
static LAST_CHUNK: Mutex<Weak<Chunk>> = Mutex::new(Weak::new());

impl Lines {
    /// What it is aligned to.
    pub(in crate::cpu) const LINE: usize = 64;

    /// # Errors
    /// Transient: memory is short.
    pub(in crate::cpu) fn zeroed(byte_len: usize) -> Result<Self, ComputeError> {
        let mut last = LAST_CHUNK.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lines) = last.upgrade().and_then(|chunk| Self::take(chunk, byte_len)) {
            return Ok(lines);
        }
        let out_of_memory = |_| ComputeError::OutOfMemory { wanted_bytes: byte_len, what: "the weights of a matrix" };
        let chunk = Arc::new(Chunk::new(byte_len.max(CHUNK_BYTES)).map_err(out_of_memory)?);
        *last = Arc::downgrade(&chunk);
        Self::take(chunk, byte_len)
            .ok_or(ComputeError::OutOfMemory { wanted_bytes: byte_len, what: "the weights of a matrix" })
    }

    /// The next bytes of `chunk`, if it has as many left.
    fn take(chunk: Arc<Chunk>, byte_len: usize) -> Option<Self> {
        let mut used = chunk.used.lock().unwrap_or_else(PoisonError::into_inner);
        let range = *used..used.checked_add(byte_len)?;
        if range.end > chunk.memory.len() {
            return None;
        }
        *used = range.end.next_multiple_of(Self::LINE);
        drop(used);
        Some(Self { chunk, range })
    }

    /// All of it.
    pub(in crate::cpu) fn bytes(&self) -> &[u8] {
        // SAFETY: inside the chunk, and nobody else has this range.
        unsafe { std::slice::from_raw_parts(self.chunk.memory.as_ptr().add(self.range.start), self.range.len()) }
    }

    /// All of it.
    pub(in crate::cpu) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for as long.
        unsafe {
            std::slice::from_raw_parts_mut(self.chunk.memory.as_mut_ptr().add(self.range.start), self.range.len())
        }
    }
}

impl Chunk {
    fn new(byte_len: usize) -> std::io::Result<Self> {
        let memory = memmap2::MmapMut::map_anon(byte_len)?;
        #[cfg(target_os = "linux")]
        if let Err(error) = memory.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no huge pages for weights");
        }
        Ok(Self { memory: memory.into(), used: Mutex::new(0) })
    }
}
