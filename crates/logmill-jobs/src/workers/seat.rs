//! What a thread of a pool runs, for reports, and whether that has gone on for too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::JobId;

/// What a thread runs. The thread writes to it at each job, and shares no cache line with others for that,
/// nor a pair of them that processors fetch together.
#[repr(align(128))]
pub(super) struct Seat {
    /// The thread's name.
    pub(super) thread: String,
    /// The number of the job, or [`IDLE`].
    number: AtomicU64,
    /// The job's queue; changes seldom.
    queue: Mutex<Option<Arc<str>>>,
    /// The other jobs of the chunk that the thread runs.
    others: Mutex<Vec<JobId>>,
    /// When the job counts as stuck, in nanoseconds of the [`Watch`](super::watch::Watch);
    /// [`NEVER`]; or [`STUCK`], once it does. A job without a timeout does not touch it.
    stuck_at: AtomicU64,
    timed: Mutex<Option<Timed>>,
}

/// A job with a timeout.
#[derive(Clone, Copy)]
pub(super) struct Timed {
    pub(super) kind: &'static str,
    pub(super) began: Instant,
}

/// What a look at a seat has found.
pub(super) enum Found {
    /// No job with a timeout, or one that counts as stuck since an earlier look.
    Nothing,
    /// A job that counts as stuck at that time, if it goes on until then.
    Until(u64),
    /// A job that counts as stuck from now on.
    Stuck(JobId, Timed),
}

/// No job has this number.
const IDLE: u64 = u64::MAX;
pub(super) const NEVER: u64 = u64::MAX;
/// Later than any time but [`NEVER`].
const STUCK: u64 = u64::MAX - 1;
/// The last time at which a job can count as stuck.
pub(super) const LAST: u64 = u64::MAX - 2;

impl Seat {
    pub(super) fn new(thread: String) -> Self {
        Self {
            thread,
            number: AtomicU64::new(IDLE),
            queue: Mutex::default(),
            others: Mutex::default(),
            stuck_at: AtomicU64::new(NEVER),
            timed: Mutex::default(),
        }
    }

    #[inline]
    pub(super) fn begin(&self, id: &JobId, is_other_queue: bool) {
        if is_other_queue {
            *self.queue.lock() = Some(Arc::clone(id.place_arc()));
        }
        // Relaxed, here and below: read for reports.
        self.number.store(id.number(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn end(&self) {
        self.number.store(IDLE, Ordering::Relaxed);
    }

    /// Begins the first of these jobs, which run together.
    pub(super) fn begin_chunk<'a>(&self, mut ids: impl Iterator<Item = &'a JobId>) {
        if let Some(first) = ids.next() {
            *self.others.lock() = ids.cloned().collect();
            self.begin(first, true);
        }
    }

    pub(super) fn end_chunk(&self) {
        self.end();
        self.others.lock().clear();
    }

    /// All jobs that the thread runs.
    pub(super) fn jobs(&self) -> Vec<JobId> {
        let Some(job) = self.job() else {
            return Vec::new();
        };
        let others = self.others.lock();
        std::iter::once(job).chain(others.iter().cloned()).collect()
    }

    /// The job that the thread runs; the first of a chunk.
    pub(super) fn job(&self) -> Option<JobId> {
        let number = self.number.load(Ordering::Relaxed);
        let queue = self.queue.lock().clone()?;
        (number != IDLE).then(|| JobId::new(queue, number))
    }

    /// Enters when the job that has begun counts as stuck.
    pub(super) fn begin_timed(&self, timed: Timed, stuck_at: u64) {
        *self.timed.lock() = Some(timed);
        // Pairs with the load in `look`, and with the watch's stores of when it wakes: either the
        // watch sees this time, or the caller sees that the watch sleeps for longer.
        self.stuck_at.store(stuck_at, Ordering::SeqCst);
    }

    /// Ends a job with a timeout. Returns whether it counts as stuck.
    pub(super) fn end_timed(&self) -> bool {
        self.stuck_at.swap(NEVER, Ordering::SeqCst) == STUCK
    }

    /// Looks whether the job has become stuck. One caller at a time.
    pub(super) fn look(&self, now: u64) -> Found {
        let stuck_at = self.stuck_at.load(Ordering::SeqCst);
        if stuck_at >= STUCK {
            return Found::Nothing;
        }
        if stuck_at > now {
            return Found::Until(stuck_at);
        }
        // Without a job, the handler has returned, and its thread is about to say so.
        let (Some(job), Some(timed)) = (self.job(), *self.timed.lock()) else {
            return Found::Nothing;
        };
        // If it fails, the job has ended meanwhile, and what was read may be of the next one, for which
        // the caller looks again.
        let marked =
            self.stuck_at
                .compare_exchange(stuck_at, STUCK, Ordering::SeqCst, Ordering::SeqCst);
        marked.map_or(Found::Nothing, |_| Found::Stuck(job, timed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed() -> Timed {
        Timed {
            kind: "k",
            began: Instant::now(),
        }
    }

    #[test]
    fn a_job_becomes_stuck_once_and_only_after_its_time() {
        let seat = Seat::new("jobs-0".to_owned());
        assert!(matches!(seat.look(LAST), Found::Nothing));
        let id = JobId::new("default", 7);
        seat.begin(&id, true);
        seat.begin_timed(timed(), 100);
        assert!(matches!(seat.look(99), Found::Until(100)));
        assert!(matches!(seat.look(100), Found::Stuck(job, _) if job == id));
        assert!(matches!(seat.look(101), Found::Nothing));
        assert!(seat.end_timed());

        // A handler that has returned is not marked, as nobody would count its thread.
        seat.begin_timed(timed(), 200);
        seat.end();
        assert!(matches!(seat.look(LAST), Found::Nothing));
        assert!(!seat.end_timed());
        assert!(matches!(seat.look(LAST), Found::Nothing));
    }
}
