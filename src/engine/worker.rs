//! Whether the calling thread is a worker, and of what: then whatever calls us from it is a handler.

use std::cell::Cell;

use super::Engine;

/// What a thread is a worker of, by address; 0: nothing.
#[derive(Clone, Copy)]
pub(crate) struct Worker {
    pool: usize,
    queue: usize,
}

thread_local! {
    static CURRENT: Cell<Worker> = const { Cell::new(Worker { pool: 0, queue: 0 }) };
}

impl Worker {
    /// Makes the calling thread a worker of a pool, by its address.
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
