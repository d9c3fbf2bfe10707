//! What this machine reaches at best: the rates that a roofline is drawn with.

#![allow(unsafe_code, reason = "calls a kernel by the instruction set that the processor has")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::isa::Isa;
use super::matmul::{Lines, read_lines, run_dots};
use super::pool::{ThreadPool, share};
use super::simd::{Lanes, multiversion};
use crate::compute::ComputeError;
use crate::cost::Roofline;

/// Bounds of what is read to measure the memory.
const READ_BYTES: (usize, usize) = (16 << 20, 512 << 20);

/// Times that each probe is repeated: the best counts, since a limit is what nothing else disturbs.
const REPETITIONS: usize = 16;

/// After which a probe is not repeated: the portable kernels' arithmetic takes a hundred times as long as that of a processor's own instructions.
const ENOUGH_TIME: Duration = Duration::from_secs(1);

/// Multiply-adds on each accumulator in a probe: a few milliseconds.
const CHAIN: u32 = 1 << 20;

/// Measures what `num_threads` threads get out of memory and arithmetic with an instruction set; takes a fraction of a second, with the portable one a few seconds.
///
/// `working_set`: the bytes that are read again and again, such as a model's weights; the caches hold what they can of it.
///
/// # Errors
/// Transient: the system refuses threads or memory.
pub fn measure_roofline(num_threads: usize, isa: Isa, working_set: usize) -> Result<Roofline, ComputeError> {
    let pool = ThreadPool::new(num_threads, false)?;
    Ok(Roofline {
        bytes_per_second: read_rate((&pool, isa), working_set.clamp(READ_BYTES.0, READ_BYTES.1))?,
        matmul_operations_per_second: rate(&pool, |_, _| run_dots(isa, CHAIN)),
        attention_operations_per_second: rate(&pool, |_, _| chains(isa, black_box(1.000_1))),
    })
}

/// Bytes a second that all threads together read out of this many, which lie as weights do.
fn read_rate((pool, isa): (&ThreadPool, Isa), num_bytes: usize) -> Result<f64, ComputeError> {
    let mut memory = Lines::zeroed(num_bytes)?;
    // Not zeros: untouched pages of zeros would all be one page, and stay in the cache.
    memory.bytes_mut().fill(1);
    let (lines, _) = memory.bytes().as_chunks();
    Ok(rate(pool, |thread, threads| read_lines(isa, &lines[share(lines.len(), 1, (thread, threads))])))
}

/// What all threads together do a second, where each runs `probe` (with its index and the number of threads) and gets how much it did.
fn rate(pool: &ThreadPool, probe: impl Fn(usize, usize) -> u64 + Sync) -> f64 {
    let num_done = AtomicU64::new(0);
    let seconds = best_seconds(|| {
        num_done.store(0, Ordering::Relaxed);
        pool.run(|thread, threads| {
            num_done.fetch_add(probe(thread, threads), Ordering::Relaxed);
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
    let mut sums = [addend; CHAINS];
    // Numbers of which the compiler knows nothing: equal chains would be made one.
    for sum in &mut sums {
        *sum = V::splat(black_box(1e-3));
    }
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
    let (mut best, begin) = (Duration::MAX, std::time::Instant::now());
    for _ in 0..REPETITIONS {
        let start = std::time::Instant::now();
        probe();
        best = best.min(start.elapsed());
        if begin.elapsed() > ENOUGH_TIME {
            break;
        }
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
