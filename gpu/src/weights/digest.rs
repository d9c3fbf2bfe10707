//! What a model's weights are, in sixteen bytes: two nodes whose weights differ must not work on one sequence.
//!
//! Of a large tensor, pieces spread over all of it are read, not the whole: another revision, another quantisation or another model differs nearly
//! everywhere, and a node that only talks to clients is not to read hundreds of gigabytes at its start.

use std::fmt;

use super::ModelFiles;
use crate::description::ModelDescription;

/// What is read of a tensor at most: all of it, or so many pieces.
const WHOLE_BYTES: usize = PIECES * PIECE_BYTES;
const PIECES: usize = 16;
const PIECE_BYTES: usize = 16 << 10;

/// A digest of a model's description and weights, whichever files they lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightsDigest([u8; 16]);

impl fmt::Display for WeightsDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl ModelFiles {
    /// The digest of these: of the name, type, shape and bytes of each tensor, in the order of their names, and of what the model is.
    pub fn digest(&self) -> WeightsDigest {
        *self.digest.get_or_init(|| self.compute_digest())
    }

    fn compute_digest(&self) -> WeightsDigest {
        let mut hasher = blake3::Hasher::new();
        say(&mut hasher, format!("{:?}", use_of_weights(self.description())).as_bytes());
        let mut tensors: Vec<_> = self.tensors_with_bytes().collect();
        tensors.sort_unstable_by_key(|(entry, _)| &entry.name);
        for (entry, bytes) in tensors {
            say(&mut hasher, format!("{} {:?} {:?}", entry.name, entry.ty, entry.shape).as_bytes());
            pieces(bytes).for_each(|piece| say(&mut hasher, piece));
        }
        let mut digest = [0; 16];
        hasher.finalize_xof().fill(&mut digest);
        WeightsDigest(digest)
    }
}

/// What decides how the weights are used and is not in their shapes; not what somebody called the file.
fn use_of_weights(description: &ModelDescription) -> impl fmt::Debug {
    let ModelDescription { architecture, num_heads, num_kv_heads, norm_epsilon, rope, attention_scale, .. } =
        description;
    let ModelDescription { qk_norm, sliding_windows, .. } = description;
    (architecture, num_heads, num_kv_heads, norm_epsilon, rope, attention_scale, qk_norm, sliding_windows)
}

/// With its length, so that no two sequences of parts are one sequence of bytes.
fn say(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
}

/// All of a tensor, or pieces of it from its beginning to its end.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_whole = bytes.len() <= WHOLE_BYTES;
    let num_pieces = if is_whole { 1 } else { PIECES };
    (0..num_pieces).map(move |piece| {
        if is_whole {
            return bytes;
        }
        let start = (bytes.len() - PIECE_BYTES) / (PIECES - 1) * piece;
        let start = if piece + 1 == PIECES { bytes.len() - PIECE_BYTES } else { start };
        &bytes[start..start + PIECE_BYTES]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_small_tensor_and_reach_from_end_to_end_of_a_large_one() {
        let small = vec![7; WHOLE_BYTES];
        assert_eq!(pieces(&small).collect::<Vec<_>>(), [&small[..]]);
        for beyond in [1, 15, 16, 1000, PIECE_BYTES * 100 + 3] {
            let large: Vec<u8> = (0..WHOLE_BYTES + beyond).map(|at| (at % 251) as u8).collect();
            let found: Vec<&[u8]> = pieces(&large).collect();
            assert_eq!(found.len(), PIECES);
            assert!(found.iter().all(|piece| piece.len() == PIECE_BYTES));
            assert_eq!(found[0].as_ptr(), large.as_ptr());
            assert_eq!(found[PIECES - 1].as_ptr_range().end, large.as_ptr_range().end);
            assert!(found.is_sorted_by_key(|piece| piece.as_ptr()), "in order");
        }
    }
}
