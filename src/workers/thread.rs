//! The threads of a worker pool: where they get their jobs from, and what they do with them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{IDLE, Pool, Served};
use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::engine::worker::WorkerMark;
use crate::events::event;
use crate::log::lease::Lease;
use crate::several::Sources;
use crate::transaction::Completion;
use crate::{Failure, Job, user_code};

/// Where a worker gets its jobs from.
pub(super) trait Feed {
    /// Waits for the next job; None once the pool is stopping or nothing is left to serve.
    fn next(&self, is_stopping: impl Fn() -> bool) -> Option<(&Running, Lease)>;

    /// Waits while jobs that are found may not be delivered. Returns whether to look for the next
    /// one.
    fn rest(&self, is_stopping: impl Fn() -> bool) -> bool;
}

/// One queue.
pub(super) struct One {
    source: Source<Arc<Running>>,
    running: Arc<Running>,
}

impl One {
    pub(super) fn new(running: &Arc<Running>) -> Self {
        Self {
            source: Source::new(Arc::clone(running)),
            running: Arc::clone(running),
        }
    }
}

impl Feed for One {
    #[inline]
    fn next(&self, is_stopping: impl Fn() -> bool) -> Option<(&Running, Lease)> {
        let stopped = || is_stopping() || self.running.is_resting();
        loop {
            if let Some(lease) = self.source.next(|| None, stopped) {
                if is_stopping() {
                    self.source.put_back(lease);
                    return None;
                }
                return Some((&self.running, lease));
            }
            // Paused, or resumed since: then the wait goes on.
            if is_stopping() || !self.rest(&is_stopping) {
                return None;
            }
        }
    }

    #[cold]
    fn rest(&self, is_stopping: impl Fn() -> bool) -> bool {
        let running = &self.running;
        // Not asked whether it is paused: that may have ended since, which is no reason to stop.
        !running.is_resting() || running.wait_for_resume(None, is_stopping)
    }
}

impl Feed for Sources {
    fn next(&self, is_stopping: impl Fn() -> bool) -> Option<(&Running, Lease)> {
        let (at, lease) = Sources::next(self, || None, is_stopping)?;
        Some((self.running(at), lease))
    }

    fn rest(&self, _: impl Fn() -> bool) -> bool {
        // It passes over queues that are paused or closed.
        true
    }
}

/// Counts a worker as alive from before its thread starts until it has ended, in whatever way.
pub(super) struct Alive(Arc<Pool>);

impl Alive {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        pool.state.lock().alive += 1;
        Self(pool)
    }

    /// Counts the worker as one that died.
    fn note_death(&self, at: usize) {
        self.0.state.lock().died += 1;
        if let Some(current) = self.0.current.get(at) {
            current.store(IDLE, Ordering::Relaxed);
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.state.lock().alive -= 1;
        self.0.ended.notify_all();
    }
}

pub(super) struct Worker<H, F> {
    handler: Arc<H>,
    feed: F,
    served: Served,
    alive: Alive,
    at: usize,
}

impl<H, C, E, F> Worker<H, F>
where
    H: Fn(&Job<'_>) -> Result<C, E>,
    C: Into<Completion>,
    E: Into<Failure>,
    F: Feed,
{
    pub(super) fn new(handler: Arc<H>, feed: F, served: &Served, alive: Alive, at: usize) -> Self {
        Self {
            handler,
            feed,
            served: served.clone(),
            alive,
            at,
        }
    }

    pub(super) fn spawn(self, thread: thread::Builder, core: Option<usize>) -> io::Result<()>
    where
        Self: Send + 'static,
    {
        thread.spawn(move || {
            if let Some(core) = core {
                pin_to(core);
            }
            self.live();
        })?;
        Ok(())
    }

    /// Runs jobs until the pool is stopped or all queues are closed.
    fn live(self) {
        let queues = self.served.queues();
        let queues = queues.into_iter().map(|queue| &**queue);
        queues
            .clone()
            .for_each(|queue| queue.dispatch().prepare_worker());
        WorkerMark::mark(queues, Arc::as_ptr(&self.alive.0).addr());
        // No code of this library is expected to panic here. If it does, the other workers go on,
        // and an event reports it.
        if let Err(panic) = user_code::call(|| self.work()) {
            event!(error, panic, "a worker has died: a bug in logmill");
            self.alive.note_death(self.at);
        }
        // Before the worker counts as ended, its claimed jobs are returned, and everything in it
        // that keeps the queue open is dropped. The handler is user code, and dropping the rest may
        // close the queue.
        let Self {
            handler,
            feed,
            served,
            alive,
            ..
        } = self;
        user_code::discard(handler);
        user_code::discard(feed);
        user_code::discard(served);
        drop(alive);
    }

    fn work(&self) {
        let pool = &*self.alive.0;
        let current = &pool.current[self.at];
        // Relaxed: whoever stops the pool or closes the queue wakes this thread through a lock.
        let is_stopping = || pool.stopping.load(Ordering::Relaxed);
        while let Some((running, lease)) = self.feed.next(is_stopping) {
            let Some(job) = Job::begin(running, lease) else {
                match self.feed.rest(is_stopping) {
                    true => continue,
                    false => return,
                }
            };
            // Relaxed: read for reports only.
            current.store(job.id().get(), Ordering::Relaxed);
            let handle = || (self.handler)(&job).map(Into::into).map_err(Into::into);
            match user_code::call_here(handle) {
                Ok(Ok(completion)) => complete(job, completion),
                Ok(Err(failure)) => job.fail(failure),
                Err(panic) => job.retry(panic),
            }
            current.store(IDLE, Ordering::Relaxed);
        }
    }
}

#[inline]
fn complete(job: Job<'_>, completion: Completion) {
    match completion.into_transaction() {
        None => job.ack(),
        Some(transaction) => {
            let id = job.id();
            if let Err(error) = job.ack_with(transaction) {
                event!(debug, job = %id, %error, "a transaction was not committed");
            }
        }
    }
}

pub(super) fn usable_cores() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|&core| set.is_set(core))
            .collect(),
        Err(error) => {
            event!(warn, %error, "workers are not pinned: the usable cores are unknown");
            Vec::new()
        }
    }
}

fn pin_to(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = sched_setaffinity(None, &set) {
        event!(warn, core, %error, "a worker is not pinned");
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::super::Workers;
    use super::*;
    use crate::Builder;

    #[test]
    fn a_worker_that_dies_of_a_bug_is_reported_and_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        let running = Arc::new(Running::open(&builder, None).unwrap().0);
        let pool = Arc::new(Pool::new(0));
        let worker = Worker {
            handler: Arc::new(|_: &Job<'_>| Ok::<(), Failure>(())),
            feed: One::new(&running),
            served: Served::One(Arc::clone(&running)),
            alive: Alive::new(Arc::clone(&pool)),
            // The bug: this index is out of range.
            at: 7,
        };
        let served = Served::One(running);
        let workers = Workers { pool, served };
        assert_eq!(workers.alive(), 1);
        thread::spawn(move || worker.live()).join().unwrap();
        assert_eq!(workers.alive(), 0);
        let report = workers.shutdown(Duration::MAX);
        assert!(report.finished_in_time);
        assert_eq!((report.still_running, report.died), (vec![], 1));
        assert!(Running::open(&builder, None).is_ok());
    }
}
