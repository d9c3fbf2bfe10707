//! What matrix products are made of, alone and as fast as it goes: what a machine could do at most is measured with it.

use std::hint::black_box;

use super::quant::{LINE, PANEL_ROWS};
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use super::vector::{Portable, Vector};
use crate::cpu::isa::Isa;

/// Runs chains of 8-bit dot products in registers, `num_steps` long; returns the multiplications and additions done.
pub(in crate::cpu) fn run_dots(isa: Isa, num_steps: u32) -> u64 {
    run(isa, Dots(num_steps))
}

/// Reads memory once, front to back; returns how many bytes.
pub(in crate::cpu) fn read_lines(isa: Isa, lines: &[[u8; LINE]]) -> u64 {
    run(isa, Read(lines))
}

trait Probe {
    fn run<S: Vector>(self, s: S) -> u64;
}

fn run<P: Probe>(isa: Isa, probe: P) -> u64 {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn avx512<P: Probe>(probe: P) -> u64 {
        // SAFETY: the features are this function's.
        probe.run(unsafe { Avx512::new() })
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2<P: Probe>(probe: P) -> u64 {
        // SAFETY: the features are this function's.
        probe.run(unsafe { Avx2::new() })
    }
    match isa {
        // SAFETY: whoever holds this Isa has found its instructions in this processor.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => unsafe { avx512(probe) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(probe) },
        _ => probe.run(Portable::<PANEL_ROWS>),
    }
}

struct Dots(u32);

/// Enough to hide the four cycles of a dot product of which two begin in each, few enough for the sixteen registers of AVX2.
const CHAINS: usize = 12;

impl Probe for Dots {
    #[inline(always)]
    fn run<S: Vector>(self, s: S) -> u64 {
        let activations = s.splat_i32(black_box(0x0102_0304));
        // Numbers of which the compiler knows nothing: equal chains would be made one.
        let mut sums = [activations; CHAINS];
        for (chain, sum) in sums.iter_mut().enumerate() {
            *sum = s.splat_i32(black_box(chain as i32));
        }
        for _ in 0..self.0 {
            for sum in &mut sums {
                // Codes that change with each step: a product of constants would be taken out of the loop.
                *sum = s.dot::<false>(*sum, *sum, activations);
            }
        }
        black_box(sums);
        (CHAINS * S::LANES * 4 * 2) as u64 * u64::from(self.0)
    }
}

struct Read<'a>(&'a [[u8; LINE]]);

impl Probe for Read<'_> {
    #[inline(always)]
    fn run<S: Vector>(self, s: S) -> u64 {
        let mut sums = [s.splat_i32(0); 4];
        for lines in self.0.chunks(sums.len()) {
            for (sum, line) in sums.iter_mut().zip(lines) {
                for at in (0..LINE).step_by(4 * S::LANES) {
                    // SAFETY: a register's bytes from `at` on are within the line.
                    *sum = s.add(*sum, unsafe { s.load_bits(line.as_ptr().add(at)) });
                }
            }
        }
        black_box(sums);
        size_of_val(self.0) as u64
    }
}
