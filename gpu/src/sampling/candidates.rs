//! Which tokens may be drawn: the best `top_k`, at least `min_p` of the best, the first `top_p` of the mass.

use relevo_wire::TokenId;

use super::exponential::exp;

/// Logits of one chunk, whose largest is kept: 768 chunks for 49,152 tokens.
pub(super) const CHUNK: usize = 64;

/// Mass of the most likely token.
pub(super) const ONE: u32 = 1 << 30;

/// A token with its logit, in an order that has no ties: larger is better, the lower id of equals first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ranked(u64);

impl Ranked {
    fn new(token: TokenId, logit: f32) -> Self {
        // + 0.0 makes -0.0 equal to 0.0. Floats compare as their bits do, once negative ones are turned around.
        let bits = (logit + 0.0).to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self(u64::from(ordered) << 32 | u64::from(!token))
    }

    pub(super) const fn token(&self) -> TokenId {
        !(self.0 as u32)
    }
}

/// Leaves in `best` the `count` tokens of the largest logits, in no order (all that are numbers if there are not more).
///
/// `count` chunks have their largest at or above the `count`-th largest of the chunks' largest: so at least `count` tokens do, and what
/// lies below cannot be among the best. That leaves a few dozen tokens to look at one by one.
#[inline(always)]
pub(super) fn keep_best(logits: &[f32], count: usize, chunk_maxima: &[f32], best: &mut Vec<Ranked>) {
    best.clear();
    if count == 0 {
        return;
    }
    let bound = if count < chunk_maxima.len() {
        best.extend(chunk_maxima.iter().map(|max| Ranked::new(0, *max)));
        let (_, bound, _) = best.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        let bound = *bound;
        best.clear();
        bound
    } else {
        Ranked(0)
    };
    for (chunk, max) in chunk_maxima.iter().enumerate() {
        if Ranked::new(0, *max) < bound {
            continue;
        }
        let start = chunk * CHUNK;
        let tokens = logits[start..].iter().take(CHUNK).zip(start as TokenId..).filter(|(logit, _)| !logit.is_nan());
        best.extend(
            tokens.map(|(logit, token)| Ranked::new(token, *logit)).filter(|ranked| ranked.0 >> 32 >= bound.0 >> 32),
        );
    }
    if best.len() > count {
        best.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        best.truncate(count);
    }
}

/// A token's mass.
#[inline(always)]
pub(super) fn mass(logit: f32, max: f32, inverse_temperature: f32) -> u32 {
    // Rounded in two halves by adding 2^23, whose lowest bits are then the whole number: vector units of old have no quick conversion that is
    // defined for every float.
    let scaled = exp((logit - max) * inverse_temperature) * 32_768.0;
    let upper = scaled + 8_388_608.0;
    let lower = (scaled - (upper - 8_388_608.0)) * 32_768.0 + 12_582_912.0;
    ((upper.to_bits() & 0x007f_ffff) << 15).wrapping_add(lower.to_bits().wrapping_sub(12_582_912.0f32.to_bits()))
}

/// The tokens of a list of masses that may be drawn: those above `least`, and of those equal to it the first `num_least`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cutoff {
    least: u32,
    num_least: u64,
    total: u64,
}

impl Cutoff {
    /// Those that have mass, and of it at least `min_p` times the largest mass.
    #[inline(always)]
    pub(super) fn min_p(masses: &[u32], min_p: f32) -> Self {
        let least = ((f64::from(min_p) * f64::from(ONE)).ceil() as u32).max(1);
        let total = masses.iter().map(|mass| if *mass >= least { u64::from(*mass) } else { 0 }).sum();
        Self { least, num_least: u64::MAX, total }
    }

    /// Of those, the fewest, largest first, that hold `top_p` of their mass.
    #[inline(always)]
    pub(super) fn top_p(self, masses: &[u32], top_p: f32, crossing: &mut Vec<u32>) -> Self {
        let wanted = ((f64::from(top_p) * self.total as f64).ceil() as u64).clamp(1, self.total.max(1));
        let (bucket, mut above) = crossing_bucket(masses, self.least, wanted);
        crossing.clear();
        crossing.extend(masses.iter().copied().filter(|mass| *mass >= self.least && bucket_of(*mass) == bucket));
        crossing.sort_unstable_by(|a, b| b.cmp(a));
        for group in crossing.chunk_by(|a, b| a == b) {
            let mass = u64::from(group[0]);
            if above + mass * group.len() as u64 >= wanted {
                let num_least = (wanted - above).div_ceil(mass);
                return Self { least: group[0], num_least, total: above + num_least * mass };
            }
            above += mass * group.len() as u64;
        }
        self
    }

    /// The index whose share of the mass, laid out in order, holds the point that 64 random bits choose.
    #[inline(always)]
    pub(super) fn draw(self, masses: &[u32], random: u64) -> Option<usize> {
        let mut point = ((u128::from(random) * u128::from(self.total)) >> 64) as u64;
        let mut num_least = self.num_least;
        for (start, chunk) in (0..).step_by(CHUNK).zip(masses.chunks(CHUNK)) {
            // A chunk that the point lies beyond is skipped as a whole; ties with `least` are rare and take the slow way.
            let (mut sum, mut num_ties) = (0u64, 0u64);
            for mass in chunk {
                sum += if *mass >= self.least { u64::from(*mass) } else { 0 };
                num_ties += u64::from(*mass == self.least);
            }
            if num_ties <= num_least && sum <= point {
                num_least -= num_ties;
                point -= sum;
                continue;
            }
            for (index, mass) in (start..).zip(chunk) {
                let is_tie = *mass == self.least;
                if *mass < self.least || is_tie && num_least == 0 {
                    continue;
                }
                num_least -= u64::from(is_tie);
                if u64::from(*mass) > point {
                    return Some(index);
                }
                point -= u64::from(*mass);
            }
        }
        None
    }
}

/// Masses of 1 to 2^30 in buckets of 1/32 of an octave.
const NUM_BUCKETS: usize = 31 * 32;

#[inline(always)]
fn bucket_of(mass: u32) -> usize {
    // The upper bits of a float are a logarithm. Five bits of mantissa stay.
    ((mass as f32).to_bits() >> 18) as usize - (127 << 5)
}

/// The bucket in which the masses from `least` on, summed from the largest down, reach `wanted`; and the sum above it.
#[inline(always)]
fn crossing_bucket(masses: &[u32], least: u32, wanted: u64) -> (usize, u64) {
    let mut sums = [0u64; NUM_BUCKETS];
    for mass in masses.iter().filter(|mass| **mass >= least) {
        sums[bucket_of(*mass)] += u64::from(*mass);
    }
    let mut above = 0;
    for (bucket, sum) in sums.iter().enumerate().rev() {
        if above + sum >= wanted {
            return (bucket, above);
        }
        above += sum;
    }
    (0, above)
}
