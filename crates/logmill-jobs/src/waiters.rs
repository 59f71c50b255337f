//! Threads and tasks of this process that wait for the end of a job.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Instant;

use parking_lot::Mutex;

use crate::JobId;
use crate::notice::{Changed, Notice};

/// Those who wait, by job.
#[derive(Default)]
pub(crate) struct Waiters {
    /// How many there are, so that a job that nobody waits for costs a load.
    count: AtomicUsize,
    waiting: Mutex<HashMap<JobId, Waiting>>,
}

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
    /// Waits for a job from now on.
    pub(crate) fn join(&self, id: &JobId) -> Waiter<'_> {
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
        Waiter {
            waiters: self,
            id: id.clone(),
            notice: Arc::clone(&entry.notice),
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
