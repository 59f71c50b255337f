//! Marks worker threads, so that a call from one is recognized as coming from a handler.

use std::cell::{Cell, RefCell};

use super::Engine;

thread_local! {
    /// The pool that the thread is a worker of, by address; 0 if it is not a worker.
    static POOL: Cell<usize> = const { Cell::new(0) };
    /// The queues that the pool serves, by address.
    static QUEUES: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The mark of a worker thread.
pub(crate) struct WorkerMark;

impl WorkerMark {
    /// Marks the calling thread as a worker of a pool, identified by its address, that serves these
    /// queues.
    pub(crate) fn mark<'q>(queues: impl IntoIterator<Item = &'q Engine>, pool: usize) {
        let queues = queues
            .into_iter()
            .map(|queue| std::ptr::from_ref(queue).addr());
        POOL.set(pool);
        QUEUES.set(queues.collect());
    }

    pub(crate) fn is_current_in(pool: usize) -> bool {
        POOL.get() == pool
    }

    pub(super) fn is_current_of(queue: &Engine) -> bool {
        let queue = std::ptr::from_ref(queue).addr();
        // A thread that is ending runs no handler.
        let is_own = QUEUES.try_with(|queues| queues.borrow().contains(&queue));
        is_own.unwrap_or(false)
    }
}
