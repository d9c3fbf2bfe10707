//! A cursor over bytes that nobody vouches for: every read is checked and names what it was after.

use super::FormatError;

/// Reads little-endian values from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    data: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at `offset`, which may lie behind the end: the first read says so.
    pub(super) const fn new(data: &'a [u8], offset: usize) -> Self {
        Self { data, offset }
    }

    /// Where the next read begins.
    pub(super) const fn offset(&self) -> usize {
        self.offset
    }

    /// All the bytes, those before the cursor included.
    pub(super) const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Bytes that are left.
    pub(super) const fn remaining(&self) -> usize {
        self.data.len().saturating_sub(self.offset)
    }

    /// The next `len` bytes; `what` names them in the error.
    pub(super) fn bytes(&mut self, len: u64, what: &dyn Fn() -> String) -> Result<&'a [u8], FormatError> {
        let taken = usize::try_from(len)
            .ok()
            .and_then(|len| self.offset.checked_add(len))
            .and_then(|end| self.data.get(self.offset..end));
        match taken {
            Some(bytes) => {
                self.offset += bytes.len();
                Ok(bytes)
            }
            None => Err(FormatError::Truncated {
                what: what(),
                offset: self.offset,
                byte_len: len,
                available: self.remaining(),
            }),
        }
    }

    fn array<const N: usize>(&mut self, what: &dyn Fn() -> String) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &dyn Fn() -> String) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &dyn Fn() -> String) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A GGUF string: its length (u64), then UTF-8.
    pub(super) fn string(&mut self, what: &dyn Fn() -> String) -> Result<&'a str, FormatError> {
        let byte_len = self.u64(&|| format!("the length of {}", what()))?;
        let bytes = self.bytes(byte_len, what)?;
        std::str::from_utf8(bytes).map_err(|_| FormatError::NotUtf8 { what: what() })
    }
}
