//! One consumer's end of the dispatch: its deque, and how it waits when there is nothing to do.

use std::cell::RefCell;
use std::time::Instant;

use crossbeam_deque::Worker;

use super::Dispatch;
use crate::log::segment::Lease;

/// Looks for work before a consumer goes to sleep, each after a pause: together a few tens of
/// microseconds, about what a sleep and a wake-up cost.
const LOOKS_BEFORE_SLEEP: u32 = 48;
/// Of these, looks after a spin; later ones yield the core, in case the producer needs it.
const LOOKS_WITH_SPIN: u32 = 24;
/// Spin-loop hints in a pause, about a microsecond. A consumer that looked more often would follow
/// the producer record by record, and each record's cache line would travel between the cores
/// twice: slower for both than a run at a time.
const SPINS_PER_LOOK: u32 = 24;

/// A consumer's deque. When it is dropped, what is in it goes back to the others.
pub(crate) struct Source<D: AsRef<Dispatch>> {
    dispatch: D,
    deque: Worker<Lease>,
    claimed: RefCell<Vec<Lease>>,
    name: u64,
    home: usize,
}

impl<D: AsRef<Dispatch>> Source<D> {
    pub(crate) fn new(dispatch: D) -> Self {
        let deque = Worker::new_fifo();
        let (name, home) = dispatch.as_ref().register(deque.stealer());
        Self {
            dispatch,
            deque,
            claimed: RefCell::default(),
            name,
            home,
        }
    }

    /// The next job, if there is one now.
    #[inline]
    pub(crate) fn try_next(&self) -> Option<Lease> {
        if let Some(lease) = self.deque.pop() {
            return Some(lease);
        }
        self.dispatch
            .as_ref()
            .find(&self.deque, self.home, &mut self.claimed.borrow_mut())
    }

    /// The next job, waiting for it until the deadline, or until `stopped`. Whoever makes
    /// `stopped` true wakes the sleepers.
    #[inline]
    pub(crate) fn next(
        &self,
        deadline: Option<Instant>,
        stopped: impl Fn() -> bool,
    ) -> Option<Lease> {
        if stopped() {
            return None;
        }
        if let Some(lease) = self.deque.pop() {
            return Some(lease);
        }
        self.wait(deadline, stopped)
    }

    fn wait(&self, deadline: Option<Instant>, stopped: impl Fn() -> bool) -> Option<Lease> {
        let dispatch = self.dispatch.as_ref();
        loop {
            for look in 0..LOOKS_BEFORE_SLEEP {
                if let Some(lease) = self.try_next() {
                    return Some(lease);
                }
                if stopped() || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return None;
                }
                if look < LOOKS_WITH_SPIN {
                    for _ in 0..SPINS_PER_LOOK {
                        std::hint::spin_loop();
                    }
                } else {
                    std::thread::yield_now();
                }
            }
            dispatch.sleepers.register();
            if stopped() || dispatch.may_have_work() {
                dispatch.sleepers.cancel();
            } else {
                dispatch.sleepers.wait(deadline);
            }
        }
    }
}

impl<D: AsRef<Dispatch>> Drop for Source<D> {
    fn drop(&mut self) {
        let dispatch = self.dispatch.as_ref();
        dispatch.unregister(self.name);
        let mut rest = Vec::new();
        while let Some(lease) = self.deque.pop() {
            rest.push(lease);
        }
        if !rest.is_empty() {
            dispatch.inject_all(rest);
        }
    }
}
