//! Group commit: callers that want their records durable share one flush.
//!
//! A caller is served by any flush that *starts* after it asked. The first to ask while none runs
//! becomes the leader and flushes for all; those who come during a flush wait for the next one,
//! which one of them leads. No thread of its own, so a lone caller pays one flush and no hand-over.
//!
//! A failed flush is final: the kernel may have dropped the dirty pages and the next flush would
//! succeed without them (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).

use std::sync::{Arc, PoisonError};

use crate::sync::{Condvar, Mutex};

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
        // A panic in `flush` cannot leave the state half changed, so poisoning says nothing here.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = state.started + 1;
        while state.running {
            state = self
                .finished
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            // The first flush that started after this call has ended: either it is the latest, or
            // a later one is running already.
            if state.started > mine || (state.started == mine && !state.running) {
                return match &state.failed {
                    Some(error) => Err(Arc::clone(error)),
                    None => Ok(()),
                };
            }
        }
        if let Some(error) = &state.failed {
            return Err(Arc::clone(error));
        }
        state.started += 1;
        state.running = true;
        drop(state);
        let result = flush();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = false;
        let result = result.map_err(|error| {
            let error = Arc::new(error);
            state.failed = Some(Arc::clone(&error));
            error
        });
        drop(state);
        self.finished.notify_all();
        result
    }
}
