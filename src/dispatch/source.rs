//! One consumer's end of the dispatch: its deques, and how it waits when there is nothing to do.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_deque::{Steal, Stealer, Worker};

use super::Dispatch;
use crate::log::segment::{Lease, Run};

/// Looks for work before a consumer goes to sleep, each after a pause: together a few tens of
/// microseconds, about what a sleep and a wake-up cost.
const LOOKS_BEFORE_SLEEP: u32 = 48;
/// Of these, looks after a spin; later ones yield the core, in case the producer needs it.
const LOOKS_WITH_SPIN: u32 = 24;
/// Spin-loop hints in a pause, about a microsecond. A consumer that looked more often would follow
/// the producer record by record, and each record's cache line would travel between the cores
/// twice: slower for both than a run at a time.
const SPINS_PER_LOOK: u32 = 24;

/// A consumer's own deques.
pub(super) struct Deques {
    /// Jobs to deliver next; never more than a run, so that it does not grow.
    pub(super) leases: Worker<Lease>,
    /// Claimed runs to make leases of.
    runs: Worker<Run>,
    /// Jobs in `runs`.
    in_runs: Arc<AtomicU64>,
    /// Where a claim puts its runs.
    pub(super) claimed: RefCell<Vec<Run>>,
    home: usize,
    /// Claims so far.
    claims: Cell<usize>,
}

/// Every so many claims begin at another stripe than home, each in turn: a stripe that is nobody's
/// home must not wait until another one runs dry.
const CLAIMS_AT_HOME: usize = 8;

/// What others have of a consumer: the other ends of its deques.
#[derive(Clone)]
pub(super) struct Thief {
    pub(super) leases: Stealer<Lease>,
    runs: Stealer<Run>,
    in_runs: Arc<AtomicU64>,
}

impl Deques {
    /// The stripe to begin the next claim at.
    pub(super) fn first_stripe(&self) -> usize {
        let claims = self.claims.get().wrapping_add(1);
        self.claims.set(claims);
        if claims.is_multiple_of(CLAIMS_AT_HOME) {
            self.home + claims / CLAIMS_AT_HOME
        } else {
            self.home
        }
    }

    pub(super) fn push_run(&self, run: Run) {
        // Relaxed, here and below: a count for statistics.
        self.in_runs.fetch_add(run.jobs(), Ordering::Relaxed);
        self.runs.push(run);
    }

    pub(super) fn has_runs(&self) -> bool {
        !self.runs.is_empty()
    }

    pub(super) fn pop_run(&self) -> Option<Run> {
        let run = self.runs.pop()?;
        self.in_runs.fetch_sub(run.jobs(), Ordering::Relaxed);
        Some(run)
    }
}

impl Thief {
    pub(super) fn steal_run(&self) -> Steal<Run> {
        let stolen = self.runs.steal();
        if let Steal::Success(run) = &stolen {
            self.in_runs.fetch_sub(run.jobs(), Ordering::Relaxed);
        }
        stolen
    }

    /// Jobs in the deques.
    pub(super) fn queued(&self) -> u64 {
        self.leases.len() as u64 + self.in_runs.load(Ordering::Relaxed)
    }

    pub(super) fn has_work(&self) -> bool {
        !self.leases.is_empty() || !self.runs.is_empty()
    }
}

/// A consumer's place in the dispatch. When it is dropped, its jobs go back to the others.
pub(crate) struct Source<D: AsRef<Dispatch>> {
    dispatch: D,
    own: Deques,
    name: u64,
}

impl<D: AsRef<Dispatch>> Source<D> {
    pub(crate) fn new(dispatch: D) -> Self {
        let leases = Worker::new_fifo();
        let runs = Worker::new_fifo();
        let in_runs = Arc::new(AtomicU64::new(0));
        let (name, home) = dispatch.as_ref().register(Thief {
            leases: leases.stealer(),
            runs: runs.stealer(),
            in_runs: Arc::clone(&in_runs),
        });
        Self {
            dispatch,
            own: Deques {
                leases,
                runs,
                in_runs,
                claimed: RefCell::default(),
                home,
                claims: Cell::new(0),
            },
            name,
        }
    }

    /// The next job, if there is one now.
    #[inline]
    pub(crate) fn try_next(&self) -> Option<Lease> {
        match self.own.leases.pop() {
            Some(lease) => Some(lease),
            None => self.dispatch.as_ref().find(&self.own),
        }
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
        match self.own.leases.pop() {
            Some(lease) => Some(lease),
            None => self.wait(deadline, stopped),
        }
    }

    fn wait(&self, deadline: Option<Instant>, stopped: impl Fn() -> bool) -> Option<Lease> {
        let dispatch = self.dispatch.as_ref();
        loop {
            for look in 0..LOOKS_BEFORE_SLEEP {
                if let Some(lease) = dispatch.find(&self.own) {
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
            let registered = dispatch.sleepers.register();
            if stopped() || dispatch.may_have_work() {
                dispatch.sleepers.cancel(registered);
            } else {
                dispatch.sleepers.wait(registered, deadline);
            }
        }
    }
}

impl<D: AsRef<Dispatch>> Drop for Source<D> {
    fn drop(&mut self) {
        let dispatch = self.dispatch.as_ref();
        dispatch.unregister(self.name);
        let mut rest = Vec::new();
        while let Some(lease) = self.own.leases.pop() {
            rest.push(lease);
        }
        while let Some(run) = self.own.pop_run() {
            run.expand(|lease, plain| {
                rest.extend(if plain {
                    Some(lease)
                } else {
                    dispatch.hold_back(lease)
                });
            });
        }
        if !rest.is_empty() {
            dispatch.inject_all(rest);
        }
    }
}
