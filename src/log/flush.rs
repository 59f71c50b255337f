//! Group commit: callers that want their records durable share one flush.
//!
//! A caller is served by any flush that *starts* after it asked. The first to ask while none runs
//! becomes the leader and flushes for all; those who come during a flush wait for the next one,
//! which one of them leads. No thread of its own, so a lone caller pays one flush and no hand-over.
//!
//! Flushes are numbered, and those who wait for an odd one wait apart from those who wait for an even
//! one: at the end of a flush, all who waited for it are woken, and of those who wait for the next
//! one only a leader. (Waking them all, to sleep again, took a fifth of the time of 64 producers.)
//!
//! A failed flush is final: the kernel may have dropped the dirty pages and the next flush would
//! succeed without them (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).

use std::sync::{Arc, PoisonError};

use crate::events::Held;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Where callers of one file meet.
pub(crate) struct FlushGate<E = crate::storage::StorageError> {
    state: Mutex<State<E>>,
    /// Of flushes with an even number, and with an odd one.
    finished: [Condvar; 2],
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
            finished: [Condvar::new(), Condvar::new()],
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
        // A subscriber that wants something flushed must not wait for itself.
        let held = Held::new();
        let running = FlushUnderWay(self);
        let result = flush().map_err(Arc::new);
        std::mem::forget(running);
        match &result {
            Ok(()) => {
                let ended = self.end(|_| ());
                self.finished_of(ended).notify_all();
                // Should another have come first and lead, this one waits again, for that flush.
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

    /// Where those wait whom this flush serves. Nobody waits for any but the running one and the
    /// next.
    fn finished_of(&self, flush: u64) -> &Condvar {
        &self.finished[(flush % 2) as usize]
    }

    fn wake_all(&self) {
        for finished in &self.finished {
            finished.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        // Nothing that can panic runs under the lock, so poisoning says nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flush that panics drops this. It never was, then: those who waited for it run another.
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

    /// What a caller of a gate got.
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
