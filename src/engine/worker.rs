//! Marks worker threads, so that a call from one is recognized as coming from a handler.

use std::cell::Cell;

use super::Engine;

/// What the thread is a worker of, by address; 0 if it is not a worker.
#[derive(Clone, Copy)]
pub(crate) struct WorkerMark {
    pool: usize,
    queue: usize,
}

thread_local! {
    static CURRENT: Cell<WorkerMark> = const { Cell::new(WorkerMark { pool: 0, queue: 0 }) };
}

impl WorkerMark {
    /// Marks the calling thread as a worker of a pool, identified by its address.
    pub(crate) fn mark(queue: &Engine, pool: usize) {
        let queue = std::ptr::from_ref(queue).addr();
        CURRENT.set(Self { pool, queue });
    }

    pub(crate) fn is_current_in(pool: usize) -> bool {
        CURRENT.get().pool == pool
    }

    pub(super) fn is_current_of(queue: &Engine) -> bool {
        CURRENT.get().queue == std::ptr::from_ref(queue).addr()
    }
}
