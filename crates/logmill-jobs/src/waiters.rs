//! Threads and tasks of this process that wait for the end of a job.
//!
//! Who ends a job tells them. Of what another process ends nobody does, so on a shared backend a thread
//! has them look again from time to time, while there are any.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::JobId;
use crate::notice::{Changed, Notice};

/// Those who wait, by job.
#[derive(Default)]
pub(crate) struct Waiters {
    /// How many there are, so that a job that nobody waits for costs a load.
    count: AtomicUsize,
    waiting: Mutex<HashMap<JobId, Waiting>>,
    /// Whether other processes end jobs as well.
    is_shared: bool,
    /// Whether the thread runs, or is about to; changed under the lock of `waiting`.
    looks: AtomicBool,
}

/// So often those who wait look again, on a shared backend.
const LOOK: Duration = Duration::from_millis(100);

struct Waiting {
    notice: Arc<Notice>,
    count: usize,
    /// How the job ended, once it has.
    ended: Option<Ended>,
}

/// How a job ended, as far as those who wait cannot read it elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Done; its result, if it has one, is stored.
    Done,
    Dead(String),
    Cancelled(String),
    Expired,
    /// It was edited, and has another id.
    Moved,
}

/// One who waits for a job.
pub(crate) struct Waiter<'a> {
    waiters: &'a Waiters,
    id: JobId,
    notice: Arc<Notice>,
}

impl Waiters {
    /// For how many jobs somebody waits.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    pub(crate) fn new(is_shared: bool) -> Arc<Self> {
        Arc::new(Self {
            is_shared,
            ..Self::default()
        })
    }

    /// Waits for a job from now on.
    pub(crate) fn join(self: &Arc<Self>, id: &JobId) -> Waiter<'_> {
        let mut waiting = self.waiting.lock();
        self.count.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `has_any`: either the waiter, which looks at the job after this,
        // finds that it has ended, or who has ended it finds the waiter.
        fence(Ordering::SeqCst);
        let entry = waiting.entry(id.clone()).or_insert_with(|| Waiting {
            notice: Arc::default(),
            count: 0,
            ended: None,
        });
        entry.count += 1;
        let notice = Arc::clone(&entry.notice);
        let starts = self.is_shared && !self.looks.swap(true, Ordering::Relaxed);
        drop(waiting);
        if starts {
            // Without the lock: a subscriber may be told of an error.
            self.look_from_time_to_time();
        }
        Waiter {
            waiters: self,
            id: id.clone(),
            notice,
        }
    }

    /// Starts the thread, which ends when nobody waits.
    fn look_from_time_to_time(self: &Arc<Self>) {
        let waiters = Arc::clone(self);
        let thread = std::thread::Builder::new().name("jobs-waiters".to_owned());
        let started = thread.spawn(move || {
            loop {
                std::thread::sleep(LOOK);
                {
                    let waiting = waiters.waiting.lock();
                    if waiting.is_empty() {
                        waiters.looks.store(false, Ordering::Relaxed);
                        return;
                    }
                }
                waiters.wake_all();
            }
        });
        if let Err(error) = started {
            // The next one who waits tries again.
            self.looks.store(false, Ordering::Relaxed);
            tracing::error!(%error, "could not start the thread that looks for the ends of jobs in other processes");
        }
    }

    /// Whether somebody waits for a job; asked after one has ended.
    #[inline]
    pub(crate) fn has_any(&self) -> bool {
        fence(Ordering::SeqCst);
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody waits for this job, and may be about to read its record.
    pub(crate) fn waits_for(&self, id: &JobId) -> bool {
        self.has_any() && self.waiting.lock().contains_key(id)
    }

    /// Tells those who wait for a job that it has ended.
    pub(crate) fn end(&self, id: &JobId, ended: Ended) {
        let notice = {
            let mut waiting = self.waiting.lock();
            waiting.get_mut(id).map(|entry| {
                entry.ended = Some(ended);
                Arc::clone(&entry.notice)
            })
        };
        if let Some(notice) = notice {
            notice.notify();
        }
    }

    /// Has those who wait for a job look again.
    pub(crate) fn wake(&self, id: &JobId) {
        let notice = {
            let waiting = self.waiting.lock();
            waiting.get(id).map(|entry| Arc::clone(&entry.notice))
        };
        if let Some(notice) = notice {
            notice.notify();
        }
    }

    /// Has all look again.
    pub(crate) fn wake_all(&self) {
        let waiting = self.waiting.lock();
        let all = waiting.values().map(|entry| Arc::clone(&entry.notice));
        let all: Vec<_> = all.collect();
        drop(waiting);
        all.iter().for_each(|notice| notice.notify());
    }
}

impl Waiter<'_> {
    /// How the job ended, if it was told.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.waiters.waiting.lock().get(&self.id)?.ended.clone()
    }

    /// What [`wait`](Self::wait) and [`changed`](Self::changed) wait for is anything that happens after
    /// this call.
    pub(crate) fn changes(&self) -> u64 {
        self.notice.changes()
    }

    /// Blocks until something has happened, or until this time. Returns whether something has.
    pub(crate) fn wait(&self, since: u64, until: Option<Instant>) -> bool {
        self.notice.wait(since, until)
    }

    /// Is ready once something has happened.
    pub(crate) fn changed(&self, since: u64) -> Changed<'_> {
        self.notice.changed(since)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiters.waiting.lock();
        if let Some(entry) = waiting.get_mut(&self.id) {
            entry.count -= 1;
            if entry.count == 0 {
                waiting.remove(&self.id);
            }
        }
        self.waiters.count.fetch_sub(1, Ordering::Relaxed);
    }
}
