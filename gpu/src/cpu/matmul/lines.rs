//! Memory on cache lines and huge pages.

use memmap2::MmapMut;

use crate::compute::ComputeError;

/// Zeroed memory for weights or activations.
///
/// Huge pages where the system gives them: a pass over weights touches each page once, and with pages of 4 KiB the look-ups cost more than they should.
pub(super) struct Lines(MmapMut);

impl Lines {
    /// What it is aligned to, at least.
    pub(super) const LINE: usize = 64;

    /// # Errors
    /// Transient: memory is short.
    pub(super) fn zeroed(byte_len: usize) -> Result<Self, ComputeError> {
        let out_of_memory =
            |_| ComputeError::OutOfMemory { wanted_bytes: byte_len, what: "the weights of a matrix product" };
        let memory = MmapMut::map_anon(byte_len.max(Self::LINE)).map_err(out_of_memory)?;
        #[cfg(target_os = "linux")]
        if let Err(error) = memory.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no huge pages for weights");
        }
        Ok(Self(memory))
    }

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// All of it.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
