//! The atomics and locks of the concurrency protocols: the standard ones, or loom's when a model
//! is being checked (`--cfg loom`). Only the protocols that loom checks import from here.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::thread::yield_now;

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(loom)]
pub(crate) use loom::thread::yield_now;

#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell;

/// A standard cell with the interface of loom's.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Calls a function with a pointer to the value.
    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}

/// Runs the loom models of the protocols.
#[cfg(all(loom, test))]
pub(crate) mod model {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::thread;

    /// Checks a model in all interleavings, except those that loom regards as equivalent to one
    /// that it has checked. With a bound, checks those with at most that many preemptions: switches
    /// away from a thread that could go on.
    pub(crate) fn check(bound: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = bound;
        builder.check(model);
    }

    /// Runs each body in a thread of its own, except the last, which runs in the caller's thread.
    ///
    /// Loom tries another order only where an operation conflicts with the latest one on the same
    /// object, and so misses conflicts with earlier ones. All threads first add to a counter, so
    /// that loom begins them in every order at least.
    pub(crate) fn concurrently<S: 'static, T: 'static, const N: usize>(
        shared: &Arc<S>,
        bodies: [fn(&S) -> T; N],
    ) -> [T; N] {
        let begun = Arc::new(AtomicUsize::new(0));
        let mut threads = bodies.map(|body| {
            let (shared, begun) = (Arc::clone(shared), Arc::clone(&begun));
            Some(move || {
                begun.fetch_add(1, Ordering::Relaxed);
                body(&shared)
            })
        });
        let last = threads[N - 1].take();
        let handles = threads.map(|body| body.map(thread::spawn));
        let mut last = last.map(|body| body());
        handles.map(|handle| match handle {
            Some(handle) => handle.join().unwrap(),
            None => last.take().unwrap(),
        })
    }
}
