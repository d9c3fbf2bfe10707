//! Philox4x32-10, a counter-based generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//!
//! There is no state to carry along: the numbers of any (seed, choice, position) can be had at any time, which is what makes a replay on another
//! worker draw the tokens that it drew before.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const NUM_ROUNDS: u32 = 10;

/// Four random words for a counter and a key.
pub const fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    let mut round = 0;
    while round < NUM_ROUNDS {
        let a = MULTIPLIERS[0] as u64 * c[0] as u64;
        let b = MULTIPLIERS[1] as u64 * c[2] as u64;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        round += 1;
    }
    c
}

/// The 64 random bits that decide a draw.
pub(super) const fn random_bits(seed: u64, choice: u32, position: u32) -> u64 {
    let words = philox4x32([position, choice, 0, 0], [seed as u32, (seed >> 32) as u32]);
    (words[0] as u64) << 32 | words[1] as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of Random123 1.14.0, the lines `philox4x32 10`.
    #[test]
    fn the_published_known_answers_come_out() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }
}
