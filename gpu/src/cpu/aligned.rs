//! Host memory at cache-line alignment.

#![allow(unsafe_code, reason = "views an array of cache lines as the floats in it")]

use crate::compute::ComputeError;

/// Floats that start at a cache line, so that a load of sixteen never touches two.
#[derive(Clone, Debug, Default)]
pub struct AlignedVec {
    lines: Vec<Line>,
    len: usize,
}

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl AlignedVec {
    /// `len` zeros.
    ///
    /// # Errors
    /// Transient: memory is short; `what` it was for is in the message.
    pub fn zeroed(len: usize, what: &'static str) -> Result<Self, ComputeError> {
        let mut vec = Self::default();
        vec.grow(len, what)?;
        Ok(vec)
    }

    /// Makes room for at least `len` floats; what is new is 0.
    ///
    /// # Errors
    /// As [`AlignedVec::zeroed`].
    pub fn grow(&mut self, len: usize, what: &'static str) -> Result<(), ComputeError> {
        if len <= self.len {
            return Ok(());
        }
        let num_lines = len.div_ceil(16);
        self.lines
            .try_reserve_exact(num_lines - self.lines.len())
            .map_err(|_| ComputeError::OutOfMemory { wanted_bytes: len.saturating_mul(4), what })?;
        self.lines.resize(num_lines, Line([0.0; 16]));
        self.len = len;
        Ok(())
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`AlignedVec::zeroed`].
    pub fn copy_of(values: &[f32], what: &'static str) -> Result<Self, ComputeError> {
        let mut vec = Self::zeroed(values.len(), what)?;
        vec.as_mut_slice().copy_from_slice(values);
        Ok(vec)
    }

    /// The floats.
    pub fn as_slice(&self) -> &[f32] {
        debug_assert!(self.len <= self.lines.len() * 16);
        // SAFETY: a line is sixteen floats without padding, and `len` is at most those of all lines.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// The floats.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        debug_assert!(self.len <= self.lines.len() * 16);
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
