//! How many threads and tasks a pool has: changed while it runs, by operators and by the load, stored
//! for the next start where that is asked for, and kept up when handlers get stuck.

use std::sync::Arc;

use super::numbers::Numbers;
use super::pool::{Pool, Shared};
use super::scale::Scale;
use super::seat::Seat;
use super::watch::StuckJob;
use crate::error::StartError;
use crate::user_code;

/// Starts a thread of a pool, whose slot is counted already.
pub(super) trait Spawn: Send + Sync {
    fn spawn(&self, shared: &Arc<Shared>) -> Result<(), StartError>;
}

/// The numbers of threads and tasks that the application asks for.
pub(crate) struct Concurrency {
    /// The pool's name.
    pub(super) name: String,
    /// To start with, if the pool scales.
    pub(super) threads: usize,
    pub(super) tasks: usize,
    pub(super) scale: Option<Scale>,
    /// Whether what operators set is stored under the pool's name.
    pub(super) is_stored: bool,
}

/// How a pool is, from [`Pool::health`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolHealth {
    /// Threads that take jobs.
    pub threads: usize,
    /// Threads that the pool is to have.
    pub wanted_threads: usize,
    /// The least and the most threads between which the pool sets `wanted_threads` by itself, by its
    /// [`Scale`](crate::Scale). None if it does not: there is no scale, or an operator has
    /// [set](Pool::set_threads) the number.
    pub scales_between: Option<(usize, usize)>,
    /// Threads that run a handler at this moment, those with stuck handlers among them.
    pub busy_threads: usize,
    /// Handlers that are [stuck](Pool::stuck).
    pub stuck: usize,
    /// Async handlers that run.
    pub tasks: usize,
    /// Async handlers that may run at the same time.
    pub max_tasks: usize,
    /// Whether the pool has ended or is about to: it was told to, its runtime ended, or the mill was
    /// closed.
    pub is_stopping: bool,
}

impl PoolHealth {
    /// Whether the pool takes jobs with all its threads: what a liveness probe asks.
    pub fn is_healthy(&self) -> bool {
        !self.is_stopping && self.threads >= self.wanted_threads
    }

    /// Whether no thread is left that takes jobs, as all handlers are stuck.
    pub fn is_exhausted(&self) -> bool {
        !self.is_stopping && self.threads == 0
    }
}

impl Concurrency {
    /// The pool's name, if what operators set is stored under it.
    pub(super) fn stored_as(&self) -> Option<&str> {
        self.is_stored.then_some(&*self.name)
    }
}

impl Pool {
    /// Sets how many threads take jobs, 1 to 1024, while the pool runs.
    ///
    /// More are started before the call returns. Threads that are too many end after the job that they
    /// run. The threads of up to this many [stuck](Self::stuck) handlers are replaced, and no more. With [`Workers::dynamic`](super::Workers::dynamic), the number is on stable storage when
    /// the call returns, and later starts use it.
    ///
    /// A pool that [scales](super::Workers::scale) keeps this number, also one beyond its bounds, until
    /// [`reset_concurrency`](Self::reset_concurrency).
    ///
    /// # Errors
    /// A thread could not be started, and the pool has those that could; or the number could not be
    /// stored, and nothing has changed.
    pub fn set_threads(&self, threads: usize) -> Result<(), StartError> {
        let (shared, threads) = (&self.shared, threads.clamp(1, MOST_THREADS));
        let _setting = shared.setting.lock()?;
        let numbers = Numbers {
            threads: Some(threads),
            tasks: shared.state.lock().max_tasks,
        };
        shared.concurrency.store(&shared.mill, numbers)?;
        let did_scale = std::mem::take(&mut shared.state.lock().is_scaling);
        let set = shared.have_threads(threads);
        if did_scale {
            let pool = &*shared.concurrency.name;
            tracing::info!(
                pool,
                threads,
                "the number of threads is set, and the pool does not \
                scale until it is reset"
            );
        }
        set
    }

    /// Sets how many async handlers run at the same time, at least 1, while the pool runs.
    ///
    /// Those that run go on, also if they are too many. Stored as by
    /// [`set_threads`](Self::set_threads). A pool that scales goes on to do so.
    ///
    /// # Errors
    /// The number could not be stored, and nothing has changed.
    pub fn set_tasks(&self, tasks: usize) -> Result<(), StartError> {
        let (shared, tasks) = (&self.shared, tasks.max(1));
        let _setting = shared.setting.lock()?;
        let threads = {
            let state = shared.state.lock();
            (!state.is_scaling).then_some(state.wanted)
        };
        let numbers = Numbers { threads, tasks };
        shared.concurrency.store(&shared.mill, numbers)?;
        shared.have_tasks(tasks);
        Ok(())
    }

    /// Goes back to the numbers of threads and tasks that the application asks for, and forgets those
    /// that were stored. A pool with a [scale](super::Workers::scale) goes on from the number of threads
    /// that it has, within its bounds.
    ///
    /// # Errors
    /// As for [`set_threads`](Self::set_threads).
    pub fn reset_concurrency(&self) -> Result<(), StartError> {
        let (shared, own) = (&self.shared, &self.shared.concurrency);
        let _setting = shared.setting.lock()?;
        own.forget(&shared.mill)?;
        shared.have_tasks(own.tasks);
        let threads = match &shared.scaling {
            None => own.threads,
            Some(scaling) => {
                let (least, most) = scaling.bounds();
                scaling.begin_anew();
                let mut state = shared.state.lock();
                state.is_scaling = true;
                state.wanted.clamp(least, most)
            }
        };
        shared.have_threads(threads)
    }

    /// The blocking handlers that go on after their kind's timeout and grace, in the order in which
    /// they became stuck.
    ///
    /// A job stays with its handler until that returns, so it never runs twice at the same time. The
    /// thread is replaced, so that the pool keeps its number of threads, as long as no more handlers
    /// are stuck than that.
    pub fn stuck(&self) -> Vec<StuckJob> {
        let state = self.shared.state.lock();
        state.stuck.iter().map(|(_, job)| job.clone()).collect()
    }

    /// How the pool is, for a health check.
    pub fn health(&self) -> PoolHealth {
        let state = self.shared.state.lock();
        PoolHealth {
            threads: state.active.min(state.threads),
            wanted_threads: state.wanted,
            scales_between: match &self.shared.scaling {
                Some(scaling) if state.is_scaling => Some(scaling.bounds()),
                _ => None,
            },
            busy_threads: state.seats.iter().filter_map(|seat| seat.job()).count(),
            stuck: state.stuck.len(),
            tasks: state.tasks.len(),
            max_tasks: state.max_tasks,
            is_stopping: self.shared.is_stopping() || state.threads == 0,
        }
    }
}

/// An operator's typo is not to keep a pool from starting.
pub(super) const MOST_THREADS: usize = 1024;

impl Shared {
    /// The numbers of threads and tasks that the pool is to have.
    pub(super) fn wanted(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.wanted, state.max_tasks)
    }

    /// Grows or shrinks to this number of threads.
    pub(super) fn have_threads(self: &Arc<Self>, threads: usize) -> Result<(), StartError> {
        let (missing, is_other) = {
            let mut state = self.state.lock();
            let is_other = std::mem::replace(&mut state.wanted, threads) != threads;
            // As many as are wanted may be stuck and replaced, and no more.
            let free = threads.saturating_mul(2).saturating_sub(state.stuck.len());
            let missing = threads.min(free).saturating_sub(state.active);
            // Counted before they start, so that nobody else starts them as well, and so that the pool
            // does not end if the threads that it has end meanwhile.
            state.active += missing;
            state.starting += missing;
            (missing, is_other)
        };
        if is_other {
            self.have_threads_look();
        }
        let mut started = Ok(());
        for _ in 0..missing {
            match started {
                Ok(()) => started = self.start_thread(),
                Err(_) => self.end_start(true),
            }
        }
        started
    }

    /// Starts a thread whose slot is counted; the slot is free again if that fails.
    fn start_thread(self: &Arc<Self>) -> Result<(), StartError> {
        let spawn = self.spawn.lock().clone();
        let started = match &spawn {
            Some(spawn) => spawn.spawn(self),
            // The pool stops.
            None => {
                self.end_start(true);
                return Ok(());
            }
        };
        // It may be the last one, and what it has is the user's.
        user_code::discard(spawn);
        self.end_start(started.is_err());
        started
    }

    /// A thread was started, or could not be.
    fn end_start(self: &Arc<Self>, has_failed: bool) {
        let is_last = {
            let mut state = self.state.lock();
            state.starting -= 1;
            state.active -= usize::from(has_failed);
            state.threads == 0 && state.starting == 0
        };
        self.end_if(is_last);
        self.changed.notify_all();
    }

    fn end_if(self: &Arc<Self>, is_last: bool) {
        if is_last {
            // Nobody would run them, as the mill was closed.
            self.chunks.close();
            self.leave_mill();
            self.forget_spawn();
            self.watch.wake();
            self.stop_scaling();
        }
    }

    pub(super) fn stop_scaling(&self) {
        if let Some(scaling) = &self.scaling {
            scaling.stop();
        }
    }

    pub(super) fn forget_spawn(&self) {
        let spawn = self.spawn.lock().take();
        user_code::discard(spawn);
    }

    fn have_tasks(&self, tasks: usize) {
        let held = {
            let mut state = self.state.lock();
            state.max_tasks = tasks;
            std::mem::take(&mut state.held)
        };
        self.changed.notify_all();
        drop(held);
    }

    /// Whether a thread is to end, as there are too many.
    pub(super) fn is_surplus(&self) -> bool {
        let mut state = self.state.lock();
        let is_surplus = state.active > state.wanted;
        if is_surplus {
            state.active -= 1;
        }
        is_surplus
    }

    /// A seat for a thread of a pool with this name; without one, only so that the pool does not end.
    pub(super) fn begin_thread(&self, name: Option<&str>) -> Arc<Seat> {
        let mut state = self.state.lock();
        let mut thread = String::new();
        if let Some(name) = name {
            thread = format!("{name}-{}", state.started);
            state.started += 1;
        }
        let seat = Arc::new(Seat::new(thread));
        state.threads += 1;
        state.seats.push(Arc::clone(&seat));
        seat
    }

    pub(super) fn end_thread(self: &Arc<Self>, seat: &Arc<Seat>) {
        let is_last = {
            let mut state = self.state.lock();
            state.threads -= 1;
            state.seats.retain(|one| !Arc::ptr_eq(one, seat));
            state.threads == 0 && state.starting == 0
        };
        self.end_if(is_last);
        self.changed.notify_all();
    }

    /// Finds handlers that have become stuck, and replaces their threads. Returns when the next one
    /// may; None if the pool ends.
    pub(super) fn find_stuck(self: &Arc<Self>, now: u64) -> Option<u64> {
        let (stuck, next, mut replaced) = {
            let mut state = self.state.lock();
            if self.is_stopping() || state.threads + state.starting == 0 {
                return None;
            }
            // Under the lock: a handler that returns in this moment finds its entry.
            let (stuck, next) = self.watch.look(state.seats.iter(), now);
            let mut replaced = 0;
            for one in &stuck {
                state.stuck.push(one.clone());
                if state.stuck.len() <= state.wanted && state.active <= state.wanted {
                    state.starting += 1;
                    replaced += 1;
                } else {
                    state.active -= 1;
                }
            }
            (stuck, next, replaced)
        };
        for (_, job) in &stuck {
            let StuckJob {
                id, kind, thread, ..
            } = job;
            if replaced == 0 {
                let active = self.state.lock().active;
                tracing::error!(%id, kind, thread, active, "a handler goes on after its timeout and \
                    grace, and no thread takes its place: too many are stuck");
                continue;
            }
            replaced -= 1;
            // Before it is told: a subscriber may panic.
            let started = self.start_thread();
            tracing::error!(%id, kind, thread, "a handler goes on after its timeout and grace: \
                another thread takes its place");
            if let Err(error) = started {
                tracing::error!(%error, "no thread could be started in place of a stuck one");
            }
        }
        Some(next)
    }

    /// A stuck handler has returned. Returns whether its thread goes on taking jobs: it does if its
    /// place is still free.
    #[cold]
    pub(super) fn end_stuck(&self, seat: &Arc<Seat>) -> bool {
        let (job, goes_on) = {
            let mut state = self.state.lock();
            let at = state
                .stuck
                .iter()
                .position(|(one, _)| Arc::ptr_eq(one, seat));
            let job = at.map(|at| state.stuck.remove(at).1);
            let goes_on = state.active < state.wanted;
            if goes_on {
                state.active += 1;
            }
            (job, goes_on)
        };
        if let Some(StuckJob { id, kind, .. }) = job {
            tracing::warn!(%id, kind, "a stuck handler has returned");
        }
        goes_on
    }
}
