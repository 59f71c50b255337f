//! Group commit: callers that want their records durable share one flush.
//!
//! A caller is served by any flush that *starts* after it asked. The first to ask while none runs
//! becomes the leader and flushes for all; those who come during a flush wait for the next one,
//! which one of them leads. No thread of its own, so a lone caller pays one flush and no hand-over.
//!
//! A failed flush is final: the kernel may have dropped the dirty pages and the next flush would
//! succeed without them (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).

use std::sync::{Arc, PoisonError};

use crate::sync::{Condvar, Mutex, MutexGuard};

/// Where callers of one file meet.
pub(crate) struct FlushGate<E = crate::storage::StorageError> {
    state: Mutex<State<E>>,
    finished: Condvar,
}

struct State<E> {
    /// Flushes that have started, the running one included.
    started: u64,
    running: bool,
    failed: Option<Arc<E>>,
}

impl<E> FlushGate<E> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                started: 0,
                running: false,
                failed: None,
            }),
            finished: Condvar::new(),
        }
    }

    /// Returns once a flush that started after this call has finished, running `flush` itself if
    /// nobody else does. After a failure, every call fails with that failure.
    pub(crate) fn flush(&self, flush: impl FnOnce() -> Result<(), E>) -> Result<(), Arc<E>> {
        let mut state = self.lock();
        // Not the running one, which may have started before the caller's last store.
        let mine = state.started + 1;
        // One flush runs at a time: when `mine` is the latest started, it is running or has ended;
        // when a later one has started, it has ended.
        while state.running && state.started <= mine {
            state = self
                .finished
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(error) = &state.failed {
            return Err(Arc::clone(error));
        }
        if state.started >= mine {
            return Ok(());
        }
        state.started += 1;
        state.running = true;
        drop(state);
        let running = Running(self);
        let result = flush().map_err(Arc::new);
        std::mem::forget(running);
        self.finish(|state| state.failed = result.as_ref().err().map(Arc::clone));
        result
    }

    fn finish(&self, change: impl FnOnce(&mut State<E>)) {
        let mut state = self.lock();
        state.running = false;
        change(&mut state);
        drop(state);
        self.finished.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        // Nothing that can panic runs under the lock, so poisoning says nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flush that panics drops this. It never was, then: those who waited for it run another.
struct Running<'a, E>(&'a FlushGate<E>);

impl<E> Drop for Running<'_, E> {
    fn drop(&mut self) {
        self.0.finish(|state| state.started -= 1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    #[test]
    fn a_flush_that_panics_serves_nobody_and_blocks_nobody() {
        let gate = FlushGate::<()>::new();
        let first = catch_unwind(AssertUnwindSafe(|| {
            gate.flush(|| resume_unwind(Box::new("the disk is on fire")))
        }));
        assert!(first.is_err());
        let mut flushed = false;
        let second = gate.flush(|| {
            flushed = true;
            Ok(())
        });
        assert!(second.is_ok() && flushed);
    }

    #[test]
    fn a_failed_flush_fails_every_later_call_without_another_flush() {
        let gate = FlushGate::new();
        assert_eq!(*gate.flush(|| Err("no space")).unwrap_err(), "no space");
        let later = gate.flush(|| panic!("a flush after a failed one proves nothing"));
        assert_eq!(*later.unwrap_err(), "no space");
    }
}
