//! Dispatch: hands jobs from the logs of the stripes to consumers.
//!
//! A consumer claims runs of records into a deque of its own, and turns one run at a time into
//! leases in a second deque. Idle consumers steal from both. Jobs that come back (retries, due
//! jobs) go through a separate queue. While both kinds of jobs wait, a consumer takes one of each
//! in turn, so that neither a flood of retries nor one of new jobs holds up the other. Jobs that a
//! handler had when a process died are delivered one at a time, through neither of these. The
//! deques are Chase and Lev's (SPAA 2005), as implemented by crossbeam.

mod at_hand;
mod came_back;
pub(crate) mod cancels;
mod compaction;
mod finding;
pub(crate) mod gate;
pub(crate) mod lease_timeouts;
#[cfg(all(loom, test))]
mod loom_models;
mod marks;
mod naps;
#[cfg(feature = "async")]
mod polling;
mod registry;
mod rest;
pub(crate) mod source;
pub(crate) mod suspects;
#[cfg(all(test, not(loom)))]
mod tests;
pub(crate) mod timer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use self::came_back::CameBack;
use self::cancels::Cancels;
use self::gate::Gate;
use self::naps::Naps;
use self::registry::Registry;
use self::source::{Deques, Looking};
use self::suspects::Suspects;
use self::timer::{Now, Scheduled, Timer, When};
use crate::Sequence;
use crate::event_count::EventCount;
use crate::events::Mutex;
use crate::log::Log;
use crate::log::lease::Lease;
use crate::log::meta::Meta;
use crate::log::run::Run;
use crate::log::segment::Unsettled;
use crate::runtime::Waker;
use crate::time::Clock;
use crate::turns::Turns;
use crate::{RetryPolicy, WaitStrategy};

/// Most jobs that one claim takes: enough to pay for the cache lines that a claim moves between
/// cores, few enough that thieves find work. Measured in `benches/`.
const CLAIM_JOBS: u32 = 256;
/// The shortest delay named by a handler that survives a restart.
pub(crate) const KEPT_DELAY: Duration = Duration::from_secs(1);
/// Bytes of records after which a claim ends, so that one consumer does not take all large jobs.
const CLAIM_BYTES: usize = 256 * 1024;

/// The state that the consumers of a queue share.
pub(crate) struct Dispatch {
    stripes: Box<[Log]>,
    /// Assigns stripes to threads that enqueue.
    pub(crate) turns: Turns,
    /// Jobs that are due again, and jobs that a consumer gave back.
    came_back: CameBack,
    pub(crate) suspects: Suspects<Lease>,
    consumers: Registry,
    pub(crate) sleepers: Arc<EventCount>,
    looking: Looking,
    /// Whether consumers look for work until there is some.
    spins: bool,
    naps: Naps,
    pub(crate) timer: Timer,
    pub(crate) gate: Gate,
    /// Whether consumers put all their leases where others need no barrier to steal them, as the
    /// kernel has or grants none.
    shares: AtomicBool,
    pub(crate) cancels: Cancels,
    /// Held while jobs are moved in the log, and while it is found out where a job is that is to be
    /// cancelled.
    pub(crate) moving: Mutex<()>,
    /// Copies that compaction has appended, see [`Moved`].
    copied: AtomicU64,
    moved: AtomicU64,
    /// How many jobs may have a copy in the log and not be marked done at their old places. After a
    /// failed flush they stay so.
    in_two_places: AtomicU64,
    /// How often the reserve segment was used.
    #[cfg(test)]
    reserves_used: AtomicU64,
    /// Jobs that wait for a delay that a handler named, and that is not stored yet, see
    /// [`keep_delays`](Self::keep_delays).
    unkept: Mutex<Vec<(Sequence, When)>>,
    /// Records that moved jobs name, and that could not be made durable when that was tried.
    pub(crate) unsettled: Mutex<Vec<Unsettled>>,
    clock: Clock,
    retry: RetryPolicy,
    /// Whether leases own a share of their mappings, because a job can have two (lease timeouts).
    counted: bool,
}

/// Jobs that compaction has moved since the queue was opened.
pub(crate) struct Moved {
    /// Copies appended.
    pub(crate) copied: u64,
    /// Of these, jobs marked done at their old places. After a failed flush they are not marked,
    /// and the job is in the log twice.
    pub(crate) moved: u64,
}

/// The jobs of a run that are not due yet.
#[derive(Default)]
struct HeldBack {
    /// Read once for all of them.
    now: Option<Now>,
    waiting: Vec<(Lease, When)>,
}

impl Dispatch {
    pub(crate) fn new(
        stripes: Box<[Log]>,
        sleepers: Arc<EventCount>,
        timer: Waker,
        clock: Clock,
        retry: RetryPolicy,
        counted: bool,
        waiting: WaitStrategy,
    ) -> Self {
        let gate = Gate::new();
        Self {
            turns: Turns::new(stripes.len()),
            stripes,
            came_back: CameBack::new(),
            suspects: Suspects::new(),
            shares: AtomicBool::new(!gate.has_barrier()),
            consumers: Registry::new(),
            sleepers,
            looking: Looking::new(),
            spins: waiting == WaitStrategy::Spin,
            naps: Naps::new(waiting.nap()),
            timer: Timer::new(timer),
            gate,
            cancels: Cancels::new(),
            moving: Mutex::default(),
            copied: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            in_two_places: AtomicU64::new(0),
            #[cfg(test)]
            reserves_used: AtomicU64::new(0),
            unkept: Mutex::default(),
            unsettled: Mutex::default(),
            clock,
            retry,
            counted,
        }
    }

    pub(crate) fn stripes(&self) -> &[Log] {
        &self.stripes
    }

    /// Prepares a thread of a worker pool, which belongs to the library.
    pub(crate) fn prepare_worker(&self) {
        self.naps.prepare_thread();
    }

    pub(crate) fn moved(&self) -> Moved {
        // Relaxed: counts for statistics. `moved` is read first, so that it is not the larger one.
        let moved = self.moved.load(Ordering::Relaxed);
        Moved {
            copied: self.copied.load(Ordering::Relaxed).max(moved),
            moved,
        }
    }

    /// Whether a job may be done where it was moved to, and not be marked yet where it was.
    pub(crate) fn has_any_in_two_places(&self) -> bool {
        // Acquire pairs with the Release in `note_in_one_place`: who sees that the job is in one place again
        // sees it done at the other one. A job that is done at the new place was acked by a thread
        // that saw the copy, and so what was counted before that.
        self.in_two_places.load(Ordering::Acquire) > 0
    }

    /// How often the reserve segment was used.
    #[cfg(test)]
    pub(crate) fn reserves_used(&self) -> u64 {
        self.reserves_used.load(Ordering::Relaxed)
    }

    /// Jobs that are claimed and wait for a consumer.
    pub(crate) fn queued(&self) -> u64 {
        let in_deques = self.consumers.queued();
        in_deques + self.came_back.len() as u64 + self.suspects.len() as u64
    }

    /// How long the job that has waited longest for a consumer has been due.
    pub(crate) fn longest_wait(&self) -> Option<Duration> {
        let now = Now::of(&self.clock);
        let new = self.stripes.iter().filter_map(|stripe| {
            let since = stripe.waiting_since(now.wall, &|record| self.is_gone(record))?;
            Some(now.wall.since(since))
        });
        let came_back = self.came_back.oldest();
        let came_back = came_back.map(|since| now.tick.since(since));
        new.chain(came_back).max()
    }

    /// Makes a job available to all consumers at once.
    pub(crate) fn inject(&self, lease: Lease) {
        match lease.is_suspect() {
            true => _ = self.suspects.add_back(lease),
            false => self.came_back.push(lease, self.clock.now_coarse()),
        }
        self.sleepers.notify_fenced(1);
    }

    /// Makes jobs available to all consumers.
    pub(crate) fn inject_all(&self, leases: Vec<Lease>) {
        let count = leases.len();
        let now = self.clock.now_coarse();
        for lease in leases {
            match lease.is_suspect() {
                true => _ = self.suspects.add_back(lease),
                false => self.came_back.push(lease, now),
            }
        }
        self.sleepers.notify_fenced(count);
    }

    fn add_suspect(&self, lease: Lease) {
        if self.suspects.add(lease.crashes(), lease.sequence(), lease) {
            self.sleepers.notify_fenced(1);
        }
    }

    /// Ends the turn of a suspect, whose handler has ended: the next suspect may begin.
    pub(crate) fn end_suspect(&self) {
        if self.suspects.end() {
            self.sleepers.notify_fenced(1);
        }
    }

    /// Turns a run into leases: those that are due become the consumer's, others go into the timer.
    ///
    /// They go to the deque, where others steal them without a barrier, if some sleep that are about
    /// to be woken for that; also if user code may run before all are there.
    fn expand(&self, run: Run, own: &Deques) {
        let is_shared = self.sleepers.may_have_any()
            || run.is_recovered()
            || self.shares.load(Ordering::Relaxed);
        let mut at_hand = match is_shared {
            true => None,
            false => own.at_hand.fill(),
        };
        self.make_leases(run, |lease| {
            let rest = match &mut at_hand {
                Some(at_hand) => at_hand.push(lease).err(),
                None => Some(lease),
            };
            if let Some(lease) = rest {
                own.leases.push(lease);
            }
        });
        drop(at_hand);
        self.offer(own, 1);
    }

    /// Turns a run into leases: `due` takes those that are due, the timer the others.
    fn make_leases(&self, run: Run, mut due: impl FnMut(Lease)) {
        let mut held = HeldBack::default();
        run.expand(|lease, is_ready| {
            let lease = match is_ready {
                true => Some(lease),
                false => self.hold_back(lease, &mut held),
            };
            if let Some(lease) = lease {
                due(lease);
            }
        });
        if let (Some((first, _)), Some(now)) = (held.waiting.first(), held.now) {
            self.note_waiting(first);
            let is_cancelled = |record| self.is_cancelled(record);
            let due = self.timer.schedule_all(held.waiting, now, is_cancelled);
            self.tell_of_waiting();
            if !due.is_empty() {
                self.inject_all(due);
            }
        }
    }

    /// Decides where a claimed job goes: to those held back if it is not due yet, to the other
    /// suspects if it is one. Returns any other job.
    #[inline(never)]
    fn hold_back(&self, lease: Lease, held: &mut HeldBack) -> Option<Lease> {
        let now = *held.now.get_or_insert_with(|| Now::of(&self.clock));
        let due_at = lease.record().header().due_at;
        let meta = match lease.has_meta() {
            true => lease.meta(),
            false => Meta::default(),
        };
        let mut when = When::At(due_at);
        if due_at > now.wall
            && let Some(most) = meta.options.delay
        {
            // The wall clock may have been set back since.
            let delay = due_at.since(now.wall).min(most);
            when = When::After(now.tick.saturating_add(delay));
        }
        let (mut failed, mut crashes) = (meta.prior_attempts, meta.prior_crashes);
        // A job that is not recovered is claimed before its first delivery.
        if lease.is_recovered() {
            (failed, crashes) = (lease.failed(), lease.crashes());
        }
        // A dead job is not delivered again, so it neither waits nor does any harm.
        let is_dead = self.is_dead(&lease, failed, crashes);
        // The first crash is not counted: it was hardly this job's fault.
        let to_blame = failed.saturating_add(crashes.saturating_sub(1));
        if lease.is_recovered() && to_blame > 0 && !is_dead {
            let backoff = self.retry.backoff(to_blame);
            if backoff > now.until(when) {
                when = When::After(now.tick.saturating_add(backoff));
            }
        }
        let lease = match crashes > 0 && !is_dead {
            true => lease.into_suspect(),
            false => lease,
        };
        if !now.until(when).is_zero() {
            held.waiting.push((lease, when));
        } else if lease.is_suspect() {
            self.add_suspect(lease);
        } else {
            return Some(lease);
        }
        None
    }

    /// Whether a job is no longer delivered after this many failed attempts and crashes.
    fn is_dead(&self, lease: &Lease, failed: u32, crashes: u32) -> bool {
        crashes >= self.max_crashes() || failed > 0 && !self.may_retry(lease, failed)
    }

    /// The number of crashes after which a job is dead.
    pub(crate) fn max_crashes(&self) -> u32 {
        self.retry.crashes_limit().into()
    }

    /// Whether a job may be delivered again after this many failed attempts.
    pub(crate) fn may_retry(&self, lease: &Lease, attempts: u32) -> bool {
        let limit = match lease.max_attempts() {
            Some(own) => own,
            None => self.retry.attempts_limit(),
        };
        limit.is_none_or(|limit| attempts < u32::from(limit))
    }

    /// Brings a failed job back after `delay`, or after the policy's backoff. `late`: another
    /// handler may still ack it. Returns false if one has; the job does not come back then.
    pub(crate) fn retry(
        &self,
        lease: Lease,
        attempts: u32,
        delay: Option<Duration>,
        late: bool,
    ) -> bool {
        let is_kept = delay.is_some_and(|delay| delay >= KEPT_DELAY) && !late;
        let delay = delay.unwrap_or_else(|| self.retry.backoff(attempts));
        if delay.is_zero() {
            let is_done = lease.is_done();
            if !is_done {
                self.inject(lease);
            }
            return !is_done;
        }
        let when = When::After(self.clock.now().saturating_add(delay));
        let sequence = lease.sequence();
        let waits = self.wait(lease, when, late);
        if waits && is_kept {
            self.unkept.lock().push((sequence, when));
        }
        waits
    }

    /// Puts a job into the timer, see [`Timer::schedule`].
    fn wait(&self, lease: Lease, when: When, late: bool) -> bool {
        self.note_waiting(&lease);
        let is_cancelled = |record| self.is_cancelled(record);
        match self.timer.schedule(lease, when, late, is_cancelled) {
            Scheduled::Waits => {
                self.tell_of_waiting();
                true
            }
            Scheduled::Acked => false,
            Scheduled::Cancelled(lease) => {
                // The consumer that gets it finds out.
                self.inject(lease);
                true
            }
        }
    }

    /// Whether a job is cancelled that waits to be marked done.
    pub(crate) fn is_gone(&self, record: Sequence) -> bool {
        self.cancels.is_gone(&self.gate, record)
    }

    /// Whether a job was cancelled, or is about to be, see [`Cancels::has`].
    pub(crate) fn is_cancelled(&self, record: Sequence) -> bool {
        self.cancels.has(&self.gate, record)
    }

    /// Has maintenance look at jobs that have begun to wait, if it rests.
    fn tell_of_waiting(&self) {
        if self.timer.take_watch() {
            self.stripes[0].kick();
        }
    }

    fn note_waiting(&self, lease: &Lease) {
        self.stripes[usize::from(lease.sequence().stripe())].note_waiting();
    }

    /// Whether a consumer that has registered as a sleeper, and fenced, must look again.
    pub(crate) fn may_have_work(&self) -> bool {
        !self.came_back.is_empty()
            || self.suspects.can_take()
            || self.stripes.iter().any(Log::may_have_work)
            || self.consumers.has_work()
    }
}
