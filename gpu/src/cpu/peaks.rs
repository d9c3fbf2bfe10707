//! What this machine reaches at best: the rates that a roofline is drawn with.

#![allow(unsafe_code, reason = "calls a kernel by the instruction set that the processor has")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::isa::Isa;
use super::pool::{ThreadPool, share};
use super::simd::{Lanes, multiversion};
use crate::compute::ComputeError;
use crate::cost::Roofline;

/// Bounds of what is read to measure the memory.
const READ_BYTES: (usize, usize) = (16 << 20, 512 << 20);

/// Times that each probe is repeated: the best counts, since a limit is what nothing else disturbs.
const REPETITIONS: usize = 16;

/// Fused multiply-adds on each accumulator in a probe: a few milliseconds.
const CHAIN: u32 = 1 << 20;

/// Measures what `num_threads` threads get out of memory and arithmetic with an instruction set; takes a fraction of a second.
///
/// `working_set`: the bytes that are read again and again, such as a model's weights; the caches hold what they can of it.
///
/// The int8 rate follows from the measured f32 rate: `vpdpbusd` does four multiply-adds a lane where `vfmadd` does one, at the same rate;
/// AVX2 takes three instructions for the same four.
///
/// # Errors
/// Transient: the system refuses threads or memory.
pub fn measure_roofline(num_threads: usize, isa: Isa, working_set: usize) -> Result<Roofline, ComputeError> {
    let pool = ThreadPool::new(num_threads, false)?;
    let f32_rate = multiply_add_rate(&pool, isa);
    let int8_rate = match isa {
        Isa::Avx512Vnni => 4.0 * f32_rate,
        Isa::Avx2 => 4.0 / 3.0 * f32_rate,
        Isa::Portable => f32_rate,
    };
    Ok(Roofline {
        bytes_per_second: read_rate(&pool, working_set.clamp(READ_BYTES.0, READ_BYTES.1))?,
        matmul_operations_per_second: int8_rate,
        attention_operations_per_second: f32_rate,
    })
}

/// Bytes a second that all threads together read out of this many.
fn read_rate(pool: &ThreadPool, num_bytes: usize) -> Result<f64, ComputeError> {
    let mut words: Vec<u64> = Vec::new();
    words
        .try_reserve_exact(num_bytes / 8)
        .map_err(|_| ComputeError::OutOfMemory { wanted_bytes: num_bytes, what: "measuring the memory's bandwidth" })?;
    // Not zeros: untouched pages of zeros would all be one page, and stay in the cache.
    words.resize(num_bytes / 8, 1);
    let seconds = best_seconds(|| {
        pool.run(|thread, threads| {
            let part = &words[share(words.len(), 64, (thread, threads))];
            black_box(part.iter().fold(0, |sum: u64, word| sum ^ word));
        });
    });
    Ok(num_bytes as f64 / seconds)
}

/// Multiplications and additions a second, two for each fused one, of all threads together.
fn multiply_add_rate(pool: &ThreadPool, isa: Isa) -> f64 {
    let num_done = AtomicU64::new(0);
    let seconds = best_seconds(|| {
        num_done.store(0, Ordering::Relaxed);
        pool.run(|_, _| {
            num_done.fetch_add(chains(isa, black_box(1.000_1)), Ordering::Relaxed);
        });
    });
    num_done.load(Ordering::Relaxed) as f64 / seconds
}

multiversion! {
    /// Runs chains of fused multiply-adds in registers; returns the arithmetic operations done.
    fn chains(factor: f32) -> u64 = run_chains
}

#[inline(always)]
fn run_chains<V: Lanes>(factor: f32) -> u64 {
    // Enough chains to hide the latency of four cycles on two ports, few enough to stay in the registers.
    if V::NUM_REGISTERS >= 32 { chain::<V, 12>(factor) } else { chain::<V, 5>(factor) }
}

#[inline(always)]
fn chain<V: Lanes, const CHAINS: usize>(factor: f32) -> u64 {
    let (factor, addend) = (V::splat(factor), V::splat(black_box(1e-7)));
    let mut sums = [V::splat(black_box(1e-3)); CHAINS];
    for _ in 0..CHAIN {
        for sum in &mut sums {
            *sum = sum.mul_add(factor, addend);
        }
    }
    for sum in sums {
        black_box(sum.sum());
    }
    CHAINS as u64 * u64::from(CHAIN) * 16 * 2
}

#[expect(clippy::disallowed_methods, reason = "a probe of the machine has no clock to be given")]
fn best_seconds(mut probe: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..REPETITIONS {
        let start = std::time::Instant::now();
        probe();
        best = best.min(start.elapsed());
    }
    best.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_any_machine_are_plausible() {
        let roofline = measure_roofline(1, Isa::detect(), 1 << 20).unwrap();
        assert!((1e8..1e13).contains(&roofline.bytes_per_second), "{roofline:?}");
        assert!((1e8..1e15).contains(&roofline.attention_operations_per_second), "{roofline:?}");
        assert!(roofline.matmul_operations_per_second >= roofline.attention_operations_per_second, "{roofline:?}");
    }
}
