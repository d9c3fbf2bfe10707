//! Wakes a parked thread as if it were a task, so that a thread outside the runtime can wait on the runtime's channels with a deadline.

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::Thread;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// A waker that unparks the calling thread.
pub(super) fn thread_waker() -> Waker {
    Arc::new(Unpark(std::thread::current())).into()
}
