//! Group commit: callers that want their records durable share one flush.
//!
//! A flush covers every caller that asked before it *started*. The first caller to ask while none
//! runs becomes the leader and flushes for all; callers that arrive during a flush wait for the
//! next one, which one of them leads. There is no separate flush thread, so a lone caller pays for
//! one flush and no hand-over.
//!
//! Flushes are numbered, and callers that wait for odd and for even ones wait on separate condition
//! variables. The end of a flush wakes all callers that waited for it, but only one of those that
//! wait for the next flush, to lead it. (Waking them all, to sleep again, took a fifth of the time
//! of 64 producers.)
//!
//! A failed flush is final: the kernel may have dropped the dirty pages, and the next flush would
//! succeed without them (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).

use std::sync::{Arc, PoisonError};

use crate::events::Held;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Groups the callers that want the same file flushed.
pub(crate) struct FlushGate<E = crate::storage::StorageError> {
    state: Mutex<State<E>>,
    /// One for even flush numbers, one for odd ones.
    finished: [Condvar; 2],
}

struct State<E> {
    /// Flushes that have started, including the running one.
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
            finished: [Condvar::new(), Condvar::new()],
        }
    }

    /// Returns once a flush that started after this call has finished. Runs `flush` itself if no
    /// other caller does. After a failure, every call fails with that failure.
    pub(crate) fn flush(&self, flush: impl FnOnce() -> Result<(), E>) -> Result<(), Arc<E>> {
        let mut state = self.lock();
        // Not the running flush, which may have started before the caller's last store.
        let mine = state.started + 1;
        // One flush runs at a time: if `mine` is the latest started, it is running or has ended; if
        // a later one has started, `mine` has ended.
        while state.running && state.started <= mine {
            state = self
                .finished_of(mine)
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
        // A subscriber that requests a flush must not wait for itself.
        let held = Held::new();
        let running = FlushUnderWay(self);
        let result = flush().map_err(Arc::new);
        std::mem::forget(running);
        match &result {
            Ok(()) => {
                let ended = self.end(|_| ());
                self.finished_of(ended).notify_all();
                // If another caller leads first, this one waits for that flush instead.
                self.finished_of(ended + 1).notify_one();
            }
            Err(error) => {
                self.end(|state| state.failed = Some(Arc::clone(error)));
                self.wake_all();
            }
        }
        drop(held);
        result
    }

    /// Ends the running flush. Returns its number.
    fn end(&self, change: impl FnOnce(&mut State<E>)) -> u64 {
        let mut state = self.lock();
        let number = state.started;
        state.running = false;
        change(&mut state);
        number
    }

    /// The condition variable for callers of this flush. Callers only ever wait for the running
    /// flush and the next one.
    fn finished_of(&self, flush: u64) -> &Condvar {
        &self.finished[(flush % 2) as usize]
    }

    fn wake_all(&self) {
        for finished in &self.finished {
            finished.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        // Nothing that can panic runs under the lock, so lock poisoning carries no information.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped by a flush that panics, which then counts as never run: its waiters run another.
struct FlushUnderWay<'a, E>(&'a FlushGate<E>);

impl<E> Drop for FlushUnderWay<'_, E> {
    fn drop(&mut self) {
        self.0.end(|state| state.started -= 1);
        self.0.wake_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
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

    /// The result of a caller of a gate.
    type Got = Result<(), Arc<&'static str>>;

    /// Runs a flush with this result, during which `callers` callers come, each with a flush that
    /// counts and succeeds. Returns what each got, and how many of their flushes ran.
    fn callers_during_a_flush(result: Result<(), &'static str>, callers: usize) -> (Vec<Got>, u32) {
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
            // Usually one for all of them; a late caller leads another one.
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

    #[test]
    fn a_flush_that_panics_serves_nobody_and_blocks_nobody() {
        let gate = FlushGate::<()>::new();
        let flush = || gate.flush(|| resume_unwind(Box::new("a bug in a subscriber")));
        assert!(catch_unwind(AssertUnwindSafe(flush)).is_err());
        let mut flushed = false;
        let later = gate.flush(|| {
            flushed = true;
            Ok(())
        });
        assert!(later.is_ok() && flushed);
    }
}
