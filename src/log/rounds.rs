//! Numbers the flushes of a stripe, so that whoever appended a record can learn later that it is
//! durable.
//!
//! The first flush that starts after the append covers the record. Its number is the record's
//! *round*, taken under the same lock under which flushes take their numbers: so a flush of that
//! number, or of a higher one, starts after the append, whichever thread runs it. A round is over
//! once such a flush has succeeded, or once one has failed and no later one has succeeded.
//!
//! Tasks that wait for a round have their wakers here. The end of a flush wakes those of its round
//! and of earlier ones, and no others.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::events;
use crate::storage::StorageError;
use crate::sync::{Mutex, MutexGuard};

/// The flushes of one stripe.
pub(crate) struct Rounds<E = StorageError>(Mutex<State<E>>);

struct State<E> {
    started: u64,
    /// Everything of this round and of earlier ones is durable.
    durable: u64,
    /// The latest failure, and the highest round that it was for.
    failed: Option<(u64, Arc<E>)>,
    waiting: BTreeMap<(u64, u64), Waker>,
    registered: u64,
}

/// A task's place among those that wait; empty while it does not wait.
#[derive(Default)]
pub(crate) struct Waiter(Option<(u64, u64)>);

impl<E> State<E> {
    fn result(&self, round: u64) -> Option<Result<(), Arc<E>>> {
        if self.durable >= round {
            return Some(Ok(()));
        }
        let (failed, error) = self.failed.as_ref()?;
        (*failed >= round).then(|| Err(Arc::clone(error)))
    }

    /// Takes out those who wait for this round or an earlier one.
    fn take_up_to(&mut self, round: u64) -> BTreeMap<(u64, u64), Waker> {
        let later = match round.checked_add(1) {
            Some(next) => self.waiting.split_off(&(next, 0)),
            None => BTreeMap::new(),
        };
        std::mem::replace(&mut self.waiting, later)
    }
}

impl<E> Rounds<E> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State {
            started: 0,
            durable: 0,
            failed: None,
            waiting: BTreeMap::new(),
            registered: 0,
        }))
    }

    /// The round of everything that the caller has appended.
    pub(crate) fn next(&self) -> u64 {
        self.lock().started + 1
    }

    /// Runs a flush of the stripe, and tells those who wait for it how it ended.
    pub(crate) fn flush(&self, flush: impl FnOnce() -> Result<(), Arc<E>>) -> Result<(), Arc<E>> {
        let round = {
            let mut state = self.lock();
            state.started += 1;
            state.started
        };
        let result = flush();
        self.end(round, &result);
        result
    }

    fn end(&self, round: u64, result: &Result<(), Arc<E>>) {
        let mut state = self.lock();
        match result {
            Ok(()) => state.durable = state.durable.max(round),
            Err(error) => {
                let round = state
                    .failed
                    .as_ref()
                    .map_or(round, |(last, _)| round.max(*last));
                state.failed = Some((round, Arc::clone(error)));
            }
        }
        let over = state.take_up_to(round);
        drop(state);
        over.into_values().for_each(events::wake);
    }

    /// Ends all rounds: no flush starts any more. What is not durable has failed with this error.
    pub(crate) fn close(&self, error: &Arc<E>) {
        self.end(u64::MAX, &Err(Arc::clone(error)));
    }

    /// How a round has ended; None if it has not.
    pub(crate) fn result(&self, round: u64) -> Option<Result<(), Arc<E>>> {
        self.lock().result(round)
    }

    /// How a round has ended. If it has not, the task is woken when it does.
    pub(crate) fn poll(
        &self,
        round: u64,
        waiter: &mut Waiter,
        context: &Context<'_>,
    ) -> Poll<Result<(), Arc<E>>> {
        // Cloned and dropped outside of the lock, as it is user code.
        let waker = context.waker().clone();
        let mut state = self.lock();
        if let Some(result) = state.result(round) {
            drop(state);
            waiter.0 = None;
            return Poll::Ready(result);
        }
        let place = waiter.0.unwrap_or((round, state.registered));
        state.registered += 1;
        let before = state.waiting.insert(place, waker);
        drop(state);
        drop(before);
        waiter.0 = Some(place);
        Poll::Pending
    }

    /// Ends the wait of a task.
    pub(crate) fn forget(&self, waiter: &mut Waiter) {
        if let Some(place) = waiter.0.take() {
            let mut state = self.lock();
            let waker = state.waiting.remove(&place);
            drop(state);
            drop(waker);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        // Nothing that can panic runs under the lock, so lock poisoning carries no information.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Failed;

    type Rounds = super::Rounds<Failed>;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn succeeds() -> Result<(), Arc<Failed>> {
        Ok(())
    }

    fn fails() -> Result<(), Arc<Failed>> {
        Err(Arc::new(Failed))
    }

    #[test]
    fn a_round_is_over_after_a_flush_that_started_after_it_was_taken() {
        let rounds = Rounds::new();
        let first = rounds.next();
        let mut second = 0;
        rounds
            .flush(|| {
                second = rounds.next();
                assert_eq!(rounds.result(first), None);
                Ok(())
            })
            .unwrap();
        assert_eq!(rounds.result(first), Some(Ok(())));
        assert_eq!(rounds.result(second), None);
        rounds.flush(succeeds).unwrap();
        assert_eq!(rounds.result(second), Some(Ok(())));
    }

    #[test]
    fn a_failure_is_told_to_all_that_it_was_for_until_a_later_flush_succeeds() {
        let rounds = Rounds::new();
        let before = rounds.next();
        rounds.flush(succeeds).unwrap();
        let round = rounds.next();
        rounds.flush(fails).unwrap_err();
        let after = rounds.next();
        assert_eq!(rounds.result(before), Some(Ok(())));
        assert!(rounds.result(round).unwrap().is_err());
        assert_eq!(rounds.result(after), None);
        rounds.flush(succeeds).unwrap();
        assert_eq!(rounds.result(round), Some(Ok(())));
    }

    #[test]
    fn the_end_of_a_flush_wakes_those_of_its_round_and_the_end_of_all_the_others() {
        let rounds = Rounds::new();
        let wakes = [(); 3].map(|()| Arc::<Wakes>::default());
        let mut waiters = [(); 3].map(|()| Waiter::default());
        let mut poll = |at: usize, round| {
            let waker = Waker::from(Arc::clone(&wakes[at]));
            rounds.poll(round, &mut waiters[at], &Context::from_waker(&waker))
        };
        let first = rounds.next();
        assert!(poll(0, first).is_pending());
        let mut second = 0;
        rounds
            .flush(|| {
                second = rounds.next();
                assert!(poll(1, second).is_pending());
                assert!(poll(2, second).is_pending());
                Ok(())
            })
            .unwrap();
        let woken = || wakes.each_ref().map(|wakes| wakes.0.load(Relaxed));
        assert_eq!(woken(), [1, 0, 0]);
        assert_eq!(poll(0, first), Poll::Ready(Ok(())));
        rounds.forget(&mut waiters[1]);
        rounds.close(&Arc::new(Failed));
        assert_eq!(woken(), [1, 0, 1]);
        assert!(rounds.result(second).unwrap().is_err());
        assert!(rounds.result(rounds.next() + 7).unwrap().is_err());
    }

    #[test]
    fn a_task_that_polls_again_is_woken_once_by_its_latest_waker() {
        let rounds = Rounds::new();
        let wakes = [(); 2].map(|()| Arc::<Wakes>::default());
        let mut waiter = Waiter::default();
        let round = rounds.next();
        for wakes in &wakes {
            let waker = Waker::from(Arc::clone(wakes));
            let polled = rounds.poll(round, &mut waiter, &Context::from_waker(&waker));
            assert!(polled.is_pending());
        }
        rounds.flush(succeeds).unwrap();
        assert_eq!(wakes.each_ref().map(|wakes| wakes.0.load(Relaxed)), [0, 1]);
    }
}
