//! The thread that finds blocking handlers which go on long after their timeout. It sleeps until the
//! first of them could; without jobs that have a timeout, for ever.
//!
//! ```text
//!   begin ──── timeout ────▶ token ──── grace ────▶ stuck: reported, the thread is replaced
//!                                                     └─ the handler returns: its result counts
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::pool::Shared;
use super::seat::{Found, LAST, NEVER, Seat, Timed};
use crate::JobId;
use crate::clock::{Advances, Clock};

/// A job whose blocking handler goes on after its kind's timeout and grace, from
/// [`Pool::stuck`](super::Pool::stuck).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StuckJob {
    /// The job; the first of a [chunk](crate::Chunk).
    pub id: JobId,
    /// Its kind.
    pub kind: String,
    /// When the attempt began.
    pub since: SystemTime,
    /// The name of the thread that the handler occupies, as debuggers and `ps -T` show it.
    pub thread: String,
}

pub(super) struct Watch {
    clock: Clock,
    origin: Instant,
    /// When the thread looks next, in nanoseconds since the origin.
    wakes_at: AtomicU64,
    /// Whether it is to look before that.
    looks_again: Mutex<bool>,
    changed: Condvar,
    advances: OnceLock<Advances>,
    /// The pool whose handlers it watches; None where they are run by their caller.
    pool: OnceLock<Weak<Shared>>,
    is_started: AtomicBool,
}

impl Watch {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            origin: clock.now(),
            clock,
            wakes_at: AtomicU64::new(NEVER),
            looks_again: Mutex::new(false),
            changed: Condvar::new(),
            advances: OnceLock::new(),
            pool: OnceLock::new(),
            is_started: AtomicBool::new(false),
        }
    }

    /// Has the first job with a timeout start the thread, which ends with the pool.
    pub(super) fn set_pool(&self, shared: &Arc<Shared>) {
        let _ = self.pool.set(Arc::downgrade(shared));
    }

    #[cold]
    fn start(self: &Arc<Self>, shared: &Weak<Shared>) {
        let Some(pool) = shared.upgrade() else {
            return;
        };
        let thread = std::thread::Builder::new().name(format!("{}-watch", pool.concurrency.name));
        drop(pool);
        let (watch, shared) = (Arc::clone(self), shared.clone());
        // It sleeps until a time that a manual clock comes to at once.
        let advanced = Arc::downgrade(self);
        let advances = self.clock.on_advance(move || {
            if let Some(watch) = advanced.upgrade() {
                watch.wake();
            }
        });
        let _ = self.advances.set(advances);
        if let Err(error) = thread.spawn(move || watch.run(&shared)) {
            // Handlers that do not look at their token keep their threads until the next job tries again.
            self.is_started.store(false, Ordering::Relaxed);
            tracing::error!(%error, "could not start the thread that finds stuck handlers");
        }
    }

    fn run(&self, shared: &Weak<Shared>) {
        loop {
            // Before the seats are read: whoever begins a job after that sees that it has to wake
            // this thread.
            self.wakes_at.store(NEVER, Ordering::SeqCst);
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let now = self.nanos(self.clock.now());
            let Some(next) = shared.find_stuck(now) else {
                return;
            };
            drop(shared);
            self.wakes_at.store(next, Ordering::SeqCst);
            self.sleep_until(next);
        }
    }

    fn sleep_until(&self, next: u64) {
        let mut looks_again = self.looks_again.lock();
        while !*looks_again && self.nanos(self.clock.now()) < next {
            let time = std::time::Duration::from_nanos(next);
            let time = self.origin.checked_add(time).filter(|_| next != NEVER);
            match time.and_then(|time| self.clock.sleeps_until(time)) {
                Some(time) => {
                    self.changed.wait_until(&mut looks_again, time);
                }
                None => self.changed.wait(&mut looks_again),
            }
        }
        *looks_again = false;
    }

    /// A job begins that counts as stuck at this time.
    pub(super) fn begin(self: &Arc<Self>, seat: &Seat, timed: Timed, stuck_at: Instant) {
        // Relaxed: the thread reads the seats after it was woken.
        if !self.is_started.load(Ordering::Relaxed)
            && let Some(shared) = self.pool.get()
            && !self.is_started.swap(true, Ordering::Relaxed)
        {
            self.start(shared);
        }
        let stuck_at = self.nanos(stuck_at);
        seat.begin_timed(timed, stuck_at);
        if stuck_at < self.wakes_at.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Has the thread look again.
    pub(super) fn wake(&self) {
        *self.looks_again.lock() = true;
        self.changed.notify_one();
    }

    fn nanos(&self, time: Instant) -> u64 {
        let nanos = time.saturating_duration_since(self.origin).as_nanos();
        u64::try_from(nanos).unwrap_or(LAST).min(LAST)
    }

    /// Looks at seats. Returns those whose jobs have become stuck, and when the next one may.
    pub(super) fn look<'a>(
        &self,
        seats: impl Iterator<Item = &'a Arc<Seat>>,
        now: u64,
    ) -> (Vec<(Arc<Seat>, StuckJob)>, u64) {
        let (mut stuck, mut next) = (Vec::new(), NEVER);
        for seat in seats {
            match seat.look(now) {
                Found::Nothing => {}
                Found::Until(time) => next = next.min(time),
                Found::Stuck(id, timed) => {
                    let ago = self.clock.now().saturating_duration_since(timed.began);
                    let wall = self.clock.wall();
                    let job = StuckJob {
                        id,
                        kind: timed.kind.to_owned(),
                        since: wall.checked_sub(ago).unwrap_or(wall),
                        thread: seat.thread.clone(),
                    };
                    stuck.push((Arc::clone(seat), job));
                }
            }
        }
        (stuck, next)
    }
}
