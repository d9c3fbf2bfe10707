//! The thread pool: every share runs once a run, borrows are safe, panics reach the caller, sleepers wake.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use proptest::prelude::*;
use relevo_gpu::cpu::ThreadPool;
use relevo_gpu::cpu::pool::{DisjointMut, share};

#[test]
fn every_thread_runs_its_share_once_in_every_of_many_runs() {
    for num_threads in [1, 2, 3, 7] {
        let pool = ThreadPool::new(num_threads, true).unwrap();
        pool.pin_caller();
        let counts: Vec<AtomicUsize> = (0..num_threads).map(|_| AtomicUsize::new(0)).collect();
        for run in 1..=3_000 {
            pool.run(|thread_index, threads| {
                assert_eq!(threads, num_threads);
                counts[thread_index].fetch_add(1, SeqCst);
            });
            // Seen right after the join, not some time later.
            assert!(counts.iter().all(|count| count.load(SeqCst) == run), "run {run} of {num_threads} threads");
        }
    }
}

#[test]
fn writes_of_the_workers_are_visible_after_the_join() {
    let pool = ThreadPool::new(3, false).unwrap();
    let mut values = vec![0usize; 1_000];
    for run in 1..500 {
        let out = DisjointMut::new(&mut values);
        pool.run(|thread_index, num_threads| {
            let range = share(out.len(), 16, (thread_index, num_threads));
            // SAFETY: shares of different threads are disjoint.
            #[allow(unsafe_code, reason = "the contract under test")]
            unsafe { out.range(range) }.iter_mut().for_each(|value| *value += 1);
        });
        assert!(values.iter().all(|&value| value == run));
    }
}

#[test]
fn nobody_waits_for_a_thread_that_has_not_begun() {
    // More threads than any machine has free cores: some are always late.
    let pool = ThreadPool::new(64, false).unwrap();
    let caller = std::thread::current().id();
    let taken_over = AtomicUsize::new(0);
    for _ in 0..1_000 {
        pool.run(|share_index, _| {
            if share_index != 0 && std::thread::current().id() == caller {
                taken_over.fetch_add(1, SeqCst);
            }
        });
    }
    assert!(taken_over.into_inner() > 0, "the caller took no share of a late thread");
}

#[test]
fn a_worker_that_fell_asleep_wakes_for_the_next_run() {
    let pool = ThreadPool::new(2, false).unwrap();
    let (_nobody_sends, idle) = sync_channel::<()>(1);
    let (other_ran, other) = sync_channel(1);
    let other = Mutex::new(other);
    for _ in 0..20 {
        // Fifteen times as long as workers spin.
        assert!(idle.recv_timeout(Duration::from_micros(300)).is_err());
        // Whoever has the first share holds it until the other thread has run the second one.
        pool.run(|share_index, _| match share_index {
            0 => other.lock().unwrap().recv_timeout(Duration::from_secs(10)).expect("the worker sleeps on"),
            _ => other_ran.send(()).unwrap(),
        });
    }
}

#[test]
fn a_panic_of_any_thread_reaches_the_caller_and_the_pool_lives_on() {
    let pool = ThreadPool::new(3, false).unwrap();
    for guilty in 0..3 {
        let ran = AtomicUsize::new(0);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(|thread_index, _| {
                assert!(thread_index != guilty, "thread {guilty} fails");
                ran.fetch_add(1, SeqCst);
            });
        }));
        let panic = result.unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("thread {guilty} fails"));
        assert_eq!(ran.into_inner(), 2, "the others finished");
    }
    let ran = AtomicUsize::new(0);
    pool.run(|_, _| {
        ran.fetch_add(1, SeqCst);
    });
    assert_eq!(ran.into_inner(), 3);
}

#[test]
fn two_callers_take_turns() {
    let pool = ThreadPool::new(2, false).unwrap();
    let inside = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..500 {
                    pool.run(|_, _| {
                        assert!(inside.fetch_add(1, SeqCst) < 2, "two runs overlap");
                        inside.fetch_sub(1, SeqCst);
                    });
                }
            });
        }
    });
}

proptest! {
    #[test]
    fn shares_cover_everything_once_in_order(len in 0usize..5_000, granule in 1usize..70, num_threads in 1usize..9) {
        let mut next = 0;
        for thread_index in 0..num_threads {
            let range = share(len, granule, (thread_index, num_threads));
            prop_assert_eq!(range.start, next);
            prop_assert!(range.start.is_multiple_of(granule) || range.start == len);
            next = range.end;
        }
        prop_assert_eq!(next, len);
    }

    #[test]
    fn for_each_hands_out_every_item_once(num_items in 0usize..200, num_threads in 1usize..4) {
        let pool = ThreadPool::new(num_threads, false).unwrap();
        let counts: Vec<AtomicUsize> = (0..num_items).map(|_| AtomicUsize::new(0)).collect();
        pool.for_each(num_items, |_, item| { counts[item].fetch_add(1, SeqCst); });
        prop_assert!(counts.iter().all(|count| count.load(SeqCst) == 1));
    }
}
