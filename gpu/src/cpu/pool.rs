//! A fork/join pool for the operations of one device: the caller and its workers run one share each and meet again.
//!
//! A transformer layer has about eight joins of some tens of microseconds each, so that waking a sleeping thread (5 to 50 µs) would cost more than
//! it brings: workers spin for [`SPIN_FOR`] after a job and sleep only then. The limit is short because several processes may share the cores.
//!
//! For the same reason nobody waits for a thread that has not begun: its core may carry tokens to a socket just now, for as long as five joins take.
//! Shares are claimed; each thread claims its own first, and whoever is done takes what is unclaimed.
//!
//! **Invariant:** [`ThreadPool::run`] returns (or unwinds) only after every thread has left the closure, so the closure may borrow.
//! **Invariant:** a share is claimed once a run, and the job is read only by those who hold a claim.
//! **Invariant:** nothing is allocated by a run.

#![allow(
    unsafe_code,
    reason = "the closure's lifetime is erased while the workers run it, and results are written to disjoint ranges"
)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::compute::ComputeError;

/// How long a thread waits on its core before it sleeps.
///
/// Between two operations of a layer lie a few microseconds, between two steps of an engine up to a hundred: this bridges the first and spares
/// the cores in the second.
const SPIN_FOR: Duration = Duration::from_micros(20);

/// Pauses between two looks at the clock; a look costs about as much as two.
const PAUSES_PER_LOOK: u32 = 16;

/// Threads that run a closure together: the one that calls [`ThreadPool::run`] and `num_threads - 1` workers.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The cores to pin to, if so: one for each thread, the caller's first.
    cores: Option<Vec<usize>>,
    /// Runs do not overlap.
    turn: Mutex<()>,
}

/// A closure with its lifetime erased.
#[derive(Clone, Copy)]
struct Job {
    closure: *const (),
    call: unsafe fn(*const (), usize, usize),
}

struct Shared {
    /// Counts the jobs; a change is the signal to start.
    generation: AtomicU64,
    job: UnsafeCell<Job>,
    /// One for each share.
    claims: Vec<Claim>,
    /// Shares of the job that are not done yet.
    undone: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    started: Gate,
    finished: Gate,
}

/// The generation of the last job that this share was claimed of, alone on its cache line.
#[derive(Default)]
#[repr(align(64))]
struct Claim(AtomicU64);

impl Claim {
    /// True for one caller in each generation. It holds no one back once the generation has passed: by then the share is claimed.
    fn take(&self, generation: u64) -> bool {
        self.0.compare_exchange(generation - 1, generation, SeqCst, SeqCst).is_ok()
    }
}

// SAFETY: `job` is written by the caller only while `undone` is 0, and read only by those who claimed a share of the generation that was stored
// after it, before they count that share as done. The closure behind it is `Sync` (bound of `run`) and outlives the run.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointers are only used within a run.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// Starts `num_threads - 1` workers (0 counts as 1); with `pin`, each on a core of its own if there are as many.
    ///
    /// # Errors
    /// Transient: the system refuses another thread.
    pub fn new(num_threads: usize, pin: bool) -> Result<Self, ComputeError> {
        let num_threads = num_threads.max(1);
        let cores = if pin { affinity::allowed_cores() } else { None }.filter(|cores| cores.len() >= num_threads);
        let shared = Arc::new(Shared {
            generation: AtomicU64::new(0),
            job: UnsafeCell::new(Job { closure: std::ptr::null(), call: |_, _, _| {} }),
            claims: (0..num_threads).map(|_| Claim::default()).collect(),
            undone: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            started: Gate::default(),
            finished: Gate::default(),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(num_threads - 1), cores, turn: Mutex::new(()) };
        for thread_index in 1..num_threads {
            let shared = Arc::clone(&pool.shared);
            let core = pool.cores.as_ref().map(|cores| cores[thread_index]);
            let worker = std::thread::Builder::new().name(format!("compute-{thread_index}")).spawn(move || {
                if let Some(core) = core {
                    affinity::pin_to(core);
                }
                shared.work(thread_index);
            });
            // On failure the pool is dropped here, which stops and joins the workers that have started.
            pool.workers.push(worker.map_err(|error| {
                ComputeError::Device(format!("no thread {thread_index} of {num_threads}: {error}"))
            })?);
        }
        Ok(pool)
    }

    /// Threads of a run, the caller's included.
    pub fn num_threads(&self) -> usize {
        self.shared.claims.len()
    }

    /// Pins the calling thread to the pool's first core, if the pool pins; for the thread that will call [`ThreadPool::run`] from now on.
    pub fn pin_caller(&self) {
        if let Some(cores) = &self.cores {
            affinity::pin_to(cores[0]);
        }
    }

    /// Calls `closure(share_index, num_shares)` once for each of [`Self::num_threads`] shares, at the same time as far as threads are free, and waits
    /// for all. A share must not wait for another: one thread may run both.
    ///
    /// Two callers take turns. A run within a run would wait for itself for ever: do not.
    ///
    /// # Panics
    /// With the panic of the closure, once every thread has left it; the pool stays usable.
    pub fn run<F: Fn(usize, usize) + Sync>(&self, closure: F) {
        if self.workers.is_empty() {
            return closure(0, 1);
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        let generation = shared.start(&closure);
        shared.work_off(0, generation);
        shared.finished.wait_until(|| shared.undone.load(SeqCst) == 0);
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `closure(thread_index, item_index)` once for each of `num_items`, handed to whichever thread is free next: for work of uneven cost.
    ///
    /// # Panics
    /// As [`ThreadPool::run`].
    pub fn for_each<F: Fn(usize, usize) + Sync>(&self, num_items: usize, closure: F) {
        if num_items <= 1 {
            return (0..num_items).for_each(|item| closure(0, item));
        }
        let next = AtomicUsize::new(0);
        self.run(|thread_index, _| {
            loop {
                let item = next.fetch_add(1, SeqCst);
                if item >= num_items {
                    break;
                }
                closure(thread_index, item);
            }
        });
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.generation.fetch_add(1, SeqCst);
        self.shared.started.notify();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its closures; it has none of its own.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Hands `closure` to the workers; gives the job's generation. The caller must wait until `undone` is 0 before the closure's borrows end.
    fn start<F: Fn(usize, usize) + Sync>(&self, closure: &F) -> u64 {
        /// # Safety
        /// `closure` points to a live `F`.
        unsafe fn call<F: Fn(usize, usize) + Sync>(closure: *const (), share_index: usize, num_shares: usize) {
            // SAFETY: the caller's promise.
            let closure = unsafe { &*closure.cast::<F>() };
            closure(share_index, num_shares);
        }
        // SAFETY: `undone` is 0 (the last run waited for it, and runs take turns): nobody holds a claim, so that nobody reads the cell.
        unsafe { *self.job.get() = Job { closure: std::ptr::from_ref(closure).cast(), call: call::<F> } };
        self.undone.store(self.claims.len(), SeqCst);
        let generation = self.generation.fetch_add(1, SeqCst) + 1;
        self.started.notify();
        generation
    }

    fn work(&self, thread_index: usize) {
        let mut seen = 0;
        loop {
            self.started.wait_until(|| self.generation.load(SeqCst) != seen);
            seen = self.generation.load(SeqCst);
            if self.stop.load(SeqCst) {
                return;
            }
            self.work_off(thread_index, seen);
        }
    }

    /// Runs what is unclaimed of the job of `generation`, the thread's own share first.
    fn work_off(&self, thread_index: usize, generation: u64) {
        let num_shares = self.claims.len();
        let mut num_done = 0;
        for share_index in (thread_index..num_shares).chain(0..thread_index) {
            if !self.claims[share_index].take(generation) {
                continue;
            }
            // SAFETY: the share is ours and not counted as done, so that this generation's run still waits: its job stands in the cell.
            let job = unsafe { *self.job.get() };
            // SAFETY: `run` keeps the closure alive until `undone` is 0.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe { (job.call)(job.closure, share_index, num_shares) }));
            if let Err(panic) = result {
                lock(&self.panic).get_or_insert(panic);
            }
            num_done += 1;
        }
        if num_done > 0 && self.undone.fetch_sub(num_done, SeqCst) == num_done {
            self.finished.notify();
        }
    }
}

/// Where threads wait for a condition on atomics: on their core first, then asleep.
#[derive(Default)]
struct Gate {
    /// Whether anybody may be asleep. Whoever wakes the sleepers takes it back, so that the next one need not while they are on their way.
    has_sleepers: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    /// Returns once `condition` holds. It must read its atomics with `SeqCst`.
    fn wait_until(&self, condition: impl Fn() -> bool) {
        if spin_until(&condition) {
            return;
        }
        let mut guard = lock(&self.lock);
        loop {
            // Announced before the last look at the condition, which `notify` reads after the condition has changed: one of the two sees the other.
            self.has_sleepers.store(true, SeqCst);
            if condition() {
                return;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes the sleepers; called after the condition was made true with `SeqCst`.
    fn notify(&self) {
        if self.has_sleepers.load(SeqCst) && self.has_sleepers.swap(false, SeqCst) {
            // Taken and released, so that a sleeper between its last look and its sleep is in its sleep by now.
            drop(lock(&self.lock));
            self.wake.notify_all();
        }
    }
}

/// Whether `condition` came true within [`SPIN_FOR`].
fn spin_until(condition: impl Fn() -> bool) -> bool {
    #[allow(clippy::disallowed_methods, reason = "bounds a spin; nothing is decided by it")]
    let now = Instant::now;
    for _ in 0..PAUSES_PER_LOOK {
        if condition() {
            return true;
        }
        std::hint::spin_loop();
    }
    let start = now();
    while now() - start < SPIN_FOR {
        for _ in 0..PAUSES_PER_LOOK {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
    }
    false
}

/// The data under these locks is replaced whole or empty: a panic of another holder leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The share of thread `thread_index` in `len` items: consecutive, in units of `granule` (the last may be short), as even as that allows.
pub fn share(len: usize, granule: usize, (thread_index, num_threads): (usize, usize)) -> Range<usize> {
    let num_units = len.div_ceil(granule);
    let bound = |index: usize| (num_units * index / num_threads * granule).min(len);
    bound(thread_index)..bound(thread_index + 1)
}

/// A slice whose disjoint ranges are written by several threads of a run.
pub struct DisjointMut<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut [T]` of ranges that its users promise to be disjoint, as `split_at_mut` would.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    /// Borrows `slice` for as long as ranges of it are used.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _borrow: PhantomData }
    }

    /// Elements of the whole slice.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements of `range`.
    ///
    /// # Panics
    /// If `range` reaches beyond the slice.
    ///
    /// # Safety
    /// No other range that is alive at the same time overlaps this one.
    #[expect(clippy::mut_from_ref, reason = "that is its purpose; the caller promises disjointness")]
    pub unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "range {range:?} of a slice of {} elements",
            self.len
        );
        // SAFETY: inside the borrowed slice by the assertion, and alone by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(target_os = "linux")]
mod affinity {
    //! Threads on cores.

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// The cores that this process may run on.
    pub(super) fn allowed_cores() -> Option<Vec<usize>> {
        let set = sched_getaffinity(None).ok()?;
        Some((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
    }

    /// Best effort: a refusal costs speed, not correctness.
    pub(super) fn pin_to(core: usize) {
        let mut set = CpuSet::new();
        set.set(core);
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::debug!(core, %error, "thread not pinned");
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod affinity {
    //! Threads stay where the system puts them.

    pub(super) fn allowed_cores() -> Option<Vec<usize>> {
        None
    }

    pub(super) fn pin_to(_core: usize) {}
}
