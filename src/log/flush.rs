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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_failed_flush_is_final_and_never_tried_again() {
        let gate = FlushGate::new();
        gate.flush(|| Ok(())).unwrap();
        let first = gate.flush(|| Err("EIO")).unwrap_err();
        for _ in 0..3 {
            let later = gate.flush(|| panic!("tried again")).unwrap_err();
            assert!(Arc::ptr_eq(&first, &later));
        }
    }

    /// What a caller of a gate got.
    type Got = Result<(), Arc<&'static str>>;

    /// Runs a flush with this result, during which `callers` callers come, each with a flush that
    /// counts and succeeds. Returns what each got, and how many of their flushes ran.
    fn callers_during_a_flush(
        result: Result<(), &'static str>,
        callers: usize,
    ) -> (Vec<Got>, u32) {
        let gate = FlushGate::new();
        let ran = AtomicU32::new(0);
        let (come, has_come) = mpsc::channel();
        let got = thread::scope(|scope| {
            let mut waiting = Vec::new();
            let first = gate.flush(|| {
                for _ in 0..callers {
                    let come = come.clone();
                    let (gate, ran) = (&gate, &ran);
                    waiting.push(scope.spawn(move || {
                        come.send(()).unwrap();
                        gate.flush(|| {
                            ran.fetch_add(1, Ordering::Relaxed);
                            Ok(())
                        })
                    }));
                    has_come.recv().unwrap();
                }
                result
            });
            assert_eq!(first.map_err(|error| *error), result);
            waiting.into_iter().map(|one| one.join().unwrap()).collect()
        });
        (got, ran.into_inner())
    }

    #[test]
    fn callers_that_come_during_a_flush_are_served_by_a_later_one() {
        for _ in 0..100 {
            let (got, ran) = callers_during_a_flush(Ok(()), 4);
            assert!(got.iter().all(Result::is_ok));
            // Usually one for all of them; a caller that was slow to ask leads another.
            assert!((1..=4).contains(&ran), "{ran} flushes");
        }
    }

    #[test]
    fn callers_that_come_during_a_flush_that_fails_get_its_error() {
        for _ in 0..100 {
            let (got, ran) = callers_during_a_flush(Err("EIO"), 4);
            assert!(
                got.iter()
                    .all(|one| matches!(one, Err(error) if **error == "EIO")),
                "{got:?}"
            );
            assert_eq!(ran, 0, "a flush was tried after one had failed");
        }
    }
}
