//! What goes through the socket for a frame: twelve bytes, of which four say that it is one, and of which version, then, little-endian, the header's
//! length and the number of blocks in four bytes each; the header; for each block its place, in eight bytes where in the sender's memory it lies and
//! in eight how long it is; and then, one after the other, those blocks that do not lie there.

use relevo_wire::{FrameError, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, SharedRegion};

use crate::frame::Frame;

/// Length of what comes first.
pub(super) const LENGTHS_BYTES: usize = 12;

/// Length of a place.
pub(super) const PLACE_BYTES: usize = 16;

/// Most blocks of a frame: a header names each of them and its checksum, in four bytes each.
const MAX_BLOCKS: usize = MAX_HEADER_BYTES / 8;

/// How every frame begins; the last byte is the version of what follows.
const MAGIC: [u8; 4] = *b"RKP\x01";

/// Stands for the offset of a block that follows by its bytes.
const INLINE: u64 = u64::MAX;

/// How long the parts of a frame's head are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) header_bytes: usize,
    pub(super) num_blocks: usize,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// In the sender's memory; nothing if it follows by its bytes.
    pub(super) offset: Option<usize>,
    pub(super) byte_len: usize,
}

/// Puts the head of a frame into `bytes`, and returns the indices of the blocks that have to follow it.
///
/// # Errors
/// Our bug: a frame that nobody would take.
pub(super) fn write(frame: &Frame, region: &SharedRegion, bytes: &mut Vec<u8>) -> Result<Vec<usize>, FrameError> {
    let lengths = Lengths { header_bytes: frame.header().len(), num_blocks: frame.blocks().len() };
    lengths.check()?;
    let payload_bytes = frame.payload_bytes();
    if payload_bytes > MAX_PAYLOAD_BYTES {
        return Err(FrameError::PayloadTooLong { byte_len: payload_bytes });
    }
    bytes.clear();
    bytes.extend_from_slice(&lengths.to_bytes());
    bytes.extend_from_slice(frame.header());
    let mut inline = Vec::new();
    for (index, block) in frame.blocks().iter().enumerate() {
        let place = Place { offset: region.offset_of(block), byte_len: block.len() };
        bytes.extend_from_slice(&place.to_bytes());
        if place.offset.is_none() {
            inline.push(index);
        }
    }
    Ok(inline)
}

impl Lengths {
    fn to_bytes(self) -> [u8; LENGTHS_BYTES] {
        let mut bytes = [0; LENGTHS_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        // Both fit: they were checked.
        bytes[4..8].copy_from_slice(&u32::try_from(self.header_bytes).unwrap_or(0).to_le_bytes());
        bytes[8..].copy_from_slice(&u32::try_from(self.num_blocks).unwrap_or(0).to_le_bytes());
        bytes
    }

    /// From a peer's bytes.
    ///
    /// # Errors
    /// The peer's fault: no frame, or one that is too long.
    pub(super) fn from_bytes(bytes: [u8; LENGTHS_BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, m2, m3, h0, h1, h2, h3, n0, n1, n2, n3] = bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(FrameError::NoFrame);
        }
        let length = |bytes| usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
        let lengths = Self { header_bytes: length([h0, h1, h2, h3]), num_blocks: length([n0, n1, n2, n3]) };
        lengths.check()?;
        Ok(lengths)
    }

    fn check(self) -> Result<(), FrameError> {
        let Self { header_bytes, num_blocks } = self;
        if header_bytes > MAX_HEADER_BYTES {
            return Err(FrameError::HeaderTooLong { byte_len: header_bytes });
        }
        if num_blocks > MAX_BLOCKS {
            // No header announces as many.
            return Err(FrameError::Inconsistent { num_blocks, num_checksums: 0, payload_bytes: 0 });
        }
        Ok(())
    }
}

impl Place {
    fn to_bytes(self) -> [u8; PLACE_BYTES] {
        let mut bytes = [0; PLACE_BYTES];
        bytes[..8].copy_from_slice(&self.offset.map_or(INLINE, |offset| offset as u64).to_le_bytes());
        bytes[8..].copy_from_slice(&(self.byte_len as u64).to_le_bytes());
        bytes
    }

    /// From a peer's bytes. What does not fit an address is no place anywhere, as the largest that does.
    pub(super) fn from_bytes(bytes: &[u8; PLACE_BYTES]) -> Self {
        let [o0, o1, o2, o3, o4, o5, o6, o7, length @ ..] = *bytes;
        let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        let fitting = |value| usize::try_from(value).unwrap_or(usize::MAX);
        Self { offset: (offset != INLINE).then(|| fitting(offset)), byte_len: fitting(u64::from_le_bytes(length)) }
    }
}

/// Bytes of all blocks.
///
/// # Errors
/// The peer's fault: too many.
pub(super) fn payload_bytes(places: &[Place]) -> Result<usize, FrameError> {
    let sum = places.iter().try_fold(0_usize, |sum, place| sum.checked_add(place.byte_len));
    let byte_len = sum.unwrap_or(usize::MAX);
    if byte_len > MAX_PAYLOAD_BYTES { Err(FrameError::PayloadTooLong { byte_len }) } else { Ok(byte_len) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_beyond_the_bounds_are_refused() {
        let longest = Lengths { header_bytes: MAX_HEADER_BYTES, num_blocks: MAX_BLOCKS };
        let bytes = longest.to_bytes();
        assert_eq!(Lengths::from_bytes(bytes), Ok(longest));
        let with = |at: usize| {
            let mut bytes = bytes;
            bytes[at] += 1;
            Lengths::from_bytes(bytes)
        };
        assert_eq!(with(4), Err(FrameError::HeaderTooLong { byte_len: MAX_HEADER_BYTES + 1 }));
        assert!(matches!(with(8), Err(FrameError::Inconsistent { num_blocks, .. }) if num_blocks == MAX_BLOCKS + 1));
        assert_eq!(with(3), Err(FrameError::NoFrame));
        let place = |byte_len| Place { offset: None, byte_len };
        assert_eq!(payload_bytes(&[place(MAX_PAYLOAD_BYTES - 1), place(1)]), Ok(MAX_PAYLOAD_BYTES));
        assert!(payload_bytes(&[place(MAX_PAYLOAD_BYTES), place(1)]).is_err());
        assert!(payload_bytes(&[place(usize::MAX), place(usize::MAX)]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_meant(noise: [u8; LENGTHS_BYTES], place: [u8; PLACE_BYTES]) {
            if let Ok(accepted) = Lengths::from_bytes(noise) {
                prop_assert_eq!(accepted.to_bytes(), noise);
            }
            prop_assert_eq!(Place::from_bytes(&place).to_bytes(), place);
        }
    }
}
