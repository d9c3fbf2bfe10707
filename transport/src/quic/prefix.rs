//! The first sixteen bytes of a frame on the wire: four that say that it is one, and of which version; then, little-endian, the header's length
//! in four bytes and that of all blocks together in eight. The header follows, then the blocks as they lie in the pool, without a gap.

use relevo_wire::{FrameError, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES};

/// Length of a prefix.
pub(super) const PREFIX_BYTES: usize = 16;

/// How every frame begins; the last byte is the version of what follows.
const MAGIC: [u8; 4] = *b"RKV\x01";

/// How long the parts of a frame are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) header_bytes: usize,
    pub(super) payload_bytes: usize,
}

impl Prefix {
    /// As bytes.
    ///
    /// # Errors
    /// Our bug: a frame that nobody would take.
    pub(super) fn to_bytes(self) -> Result<[u8; PREFIX_BYTES], FrameError> {
        self.check()?;
        let mut bytes = [0; PREFIX_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        // Both fit: they were checked.
        bytes[4..8].copy_from_slice(&u32::try_from(self.header_bytes).unwrap_or(0).to_le_bytes());
        bytes[8..].copy_from_slice(&(self.payload_bytes as u64).to_le_bytes());
        Ok(bytes)
    }

    /// From a peer's bytes.
    ///
    /// # Errors
    /// The peer's fault: no frame, or one that is too long.
    pub(super) fn from_bytes(bytes: &[u8; PREFIX_BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, h0, h1, h2, h3, payload @ ..] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::NoFrame);
        }
        let prefix = Self {
            header_bytes: usize::try_from(u32::from_le_bytes([h0, h1, h2, h3])).unwrap_or(usize::MAX),
            payload_bytes: usize::try_from(u64::from_le_bytes(payload)).unwrap_or(usize::MAX),
        };
        prefix.check()?;
        Ok(prefix)
    }

    fn check(self) -> Result<(), FrameError> {
        if self.header_bytes > MAX_HEADER_BYTES {
            return Err(FrameError::HeaderTooLong { byte_len: self.header_bytes });
        }
        if self.payload_bytes > MAX_PAYLOAD_BYTES {
            return Err(FrameError::PayloadTooLong { byte_len: self.payload_bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_beyond_the_bounds_are_refused_at_both_ends() {
        let longest = Prefix { header_bytes: MAX_HEADER_BYTES, payload_bytes: MAX_PAYLOAD_BYTES };
        let mut bytes = longest.to_bytes().unwrap();
        assert_eq!(Prefix::from_bytes(&bytes), Ok(longest));
        let error = FrameError::HeaderTooLong { byte_len: MAX_HEADER_BYTES + 1 };
        assert_eq!(Prefix { header_bytes: MAX_HEADER_BYTES + 1, ..longest }.to_bytes(), Err(error.clone()));
        bytes[4] += 1;
        assert_eq!(Prefix::from_bytes(&bytes), Err(error));
        bytes[4] -= 1;
        bytes[8..].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Prefix::from_bytes(&bytes), Err(FrameError::PayloadTooLong { byte_len: usize::MAX }));
        bytes[3] = 2;
        assert_eq!(Prefix::from_bytes(&bytes), Err(FrameError::NoFrame));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_what_was_meant(header_bytes in 0..=MAX_HEADER_BYTES, payload_bytes in 0..=MAX_PAYLOAD_BYTES, noise: [u8; 16]) {
            let prefix = Prefix { header_bytes, payload_bytes };
            prop_assert_eq!(Prefix::from_bytes(&prefix.to_bytes().unwrap()), Ok(prefix));
            if let Ok(accepted) = Prefix::from_bytes(&noise) {
                prop_assert_eq!(accepted.to_bytes().unwrap(), noise);
            }
        }
    }
}
