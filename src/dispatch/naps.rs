//! When an idle consumer naps rather than sleeps, and how it watches for jobs meanwhile.
//!
//! A consumer that sleeps must be woken, by a system call of the producer. One that naps wakes up by
//! itself, so it costs producers nothing, and its own core a wake-up every few tens of microseconds.
//! That pays off while jobs come often: consumers begin to nap when there is more than one job in
//! [`GAPS`] naps on average, and no longer nap when there is less than half as many. One that has
//! met no job in [`LONGEST`] naps sleeps until the next one.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Dispatch;
use super::source::{Deques, Source};
use crate::events::{Mutex, event};
use crate::log::Log;
use crate::log::lease::Lease;

/// Naps for each job, at most, on average.
const GAPS: u32 = 4;
/// The rate is measured over this many naps at least. Jobs that come at random times seem to come
/// half as often as they do once in thousands of times.
const MEASURED: u32 = 80;
/// Naps in a row, at most, that find nothing.
const LONGEST: u32 = 20;

/// Whether consumers of a queue nap.
pub(super) struct Naps {
    /// The longest time between two looks; zero if there are no naps.
    within: Duration,
    /// Jobs claimed. Relaxed throughout: it is only used to estimate a rate.
    claimed: AtomicU64,
    pace: Mutex<Pace>,
}

struct Pace {
    since: Instant,
    claimed: u64,
    is_fast: bool,
}

impl Naps {
    pub(super) fn new(within: Duration) -> Self {
        Self {
            within,
            claimed: AtomicU64::new(0),
            pace: Mutex::new(Pace {
                since: Instant::now(),
                claimed: 0,
                is_fast: false,
            }),
        }
    }

    pub(super) fn note_claimed(&self, jobs: u64) {
        if !self.within.is_zero() {
            self.claimed.fetch_add(jobs, Ordering::Relaxed);
        }
    }

    /// Has this thread wake up from naps in time. Only for threads of the library's own, as it holds
    /// for all sleeps of a thread.
    pub(super) fn prepare_thread(&self) {
        if !self.within.is_zero()
            && let Err(error) = rustix::thread::set_current_timer_slack(Some(NonZeroU64::MIN))
        {
            event!(debug, %error, "naps are longer than asked for");
        }
    }

    /// Until when a consumer that has found nothing may nap; None if it sleeps.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        if self.within.is_zero() {
            return None;
        }
        let claimed = self.claimed.load(Ordering::Relaxed);
        let mut pace = self.pace.lock();
        let passed = now.saturating_duration_since(pace.since);
        if passed >= self.within * MEASURED {
            let jobs = u128::from(claimed.wrapping_sub(pace.claimed));
            let enough = passed.as_nanos() / (self.within * GAPS).as_nanos();
            *pace = Pace {
                since: now,
                claimed,
                is_fast: jobs > enough || pace.is_fast && jobs > enough / 2,
            };
        }
        pace.is_fast.then(|| now + self.within * LONGEST)
    }

    /// Sleeps until the next look, at most until the deadline.
    pub(super) fn nap(&self, now: Instant, deadline: Instant) {
        // The kernel may add as much as the thread's timer slack, 50 us unless it was set.
        let slack = rustix::thread::current_timer_slack().unwrap_or_default();
        let nap = self.within.saturating_sub(Duration::from_nanos(slack));
        let nap = nap.max(Duration::from_micros(1));
        thread::sleep(nap.min(deadline.saturating_duration_since(now)));
    }

    /// Whether a consumer that is away for so long each time should have another one watch.
    pub(super) fn is_long(&self, away: Duration) -> bool {
        away > self.within / 2
    }
}

/// How a watch ended.
pub(super) enum Watched {
    Found(Lease),
    /// It met what another consumer took, reached its deadline, or was stopped.
    Interrupted,
    /// The consumer sleeps.
    InVain,
}

impl<D: AsRef<Dispatch>> Source<D> {
    /// Naps until there may be work, unless it is better to sleep, and takes a job.
    pub(super) fn watch(&self, deadline: Option<Instant>, stopped: &impl Fn() -> bool) -> Watched {
        let dispatch = self.dispatch.as_ref();
        let mut now = Instant::now();
        note_return(&self.own, now);
        let Some(longest) = dispatch.naps.until(now) else {
            return Watched::InVain;
        };
        let until = deadline.map_or(longest, |deadline| deadline.min(longest));
        let Some(watch) = dispatch.sleepers.watch() else {
            return Watched::InVain;
        };
        while now < until && !stopped() && !dispatch.may_have_work() && !watch.wants_maintenance() {
            dispatch.naps.nap(now, until);
            now = Instant::now();
        }
        // Before user code runs: a handler, or a subscriber that hears of a damaged record.
        let ended = watch.end();
        if ended.wants_maintenance {
            dispatch.stripes[0].kick();
        }
        let found = dispatch.find(&self.own, false);
        if found.is_some() {
            self.own.left_at.set(Some(now));
        }
        let is_away_for_long = found.is_some() && dispatch.naps.is_long(self.own.away.get());
        if ended.has_sleepers {
            self.wake_for_the_rest(is_away_for_long);
        }
        match found {
            Some(lease) => Watched::Found(lease),
            None if now >= longest => Watched::InVain,
            None => Watched::Interrupted,
        }
    }

    /// Wakes as many as the producers have left asleep during the watch: one for each job. Looks at
    /// every stripe, so that a producer that it does not see sees those that sleep.
    fn wake_for_the_rest(&self, and_another: bool) {
        let dispatch = self.dispatch.as_ref();
        let unclaimed = dispatch.stripes.iter().map(Log::most_unclaimed);
        let jobs = unclaimed.fold(0, usize::saturating_add);
        let other = usize::from(and_another || dispatch.may_have_work());
        dispatch.sleepers.notify(jobs.max(other));
    }
}

/// Records that the consumer has nothing to do any more.
fn note_return(own: &Deques, now: Instant) {
    if let Some(left) = own.left_at.take() {
        let away = now.saturating_duration_since(left);
        own.away.set((own.away.get() * 3 + away) / 4);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_micros(50);

    #[test]
    fn consumers_nap_while_jobs_come_often() {
        let naps = Naps::new(WITHIN);
        let mut now = naps.pace.lock().since;
        let mut after = |time: Duration, jobs| {
            now += time;
            naps.note_claimed(jobs);
            naps.until(now).is_some()
        };
        let ms = Duration::from_millis;
        assert!(!after(ms(4), 20), "a nap more for each");
        assert!(after(ms(4), 21));
        assert!(after(WITHIN, 0), "too short a time to tell");
        assert!(after(ms(4), 11), "less often, but not by half");
        assert!(!after(ms(4), 10));
        assert!(!after(ms(4), 11));
        assert!(after(ms(4), 1_000));
        // A long sleep, and one job that ended it.
        assert!(!after(ms(1_000), 1));
    }

    #[test]
    fn without_a_bound_nobody_naps() {
        let naps = Naps::new(Duration::ZERO);
        naps.note_claimed(1_000_000);
        assert_eq!(naps.until(Instant::now() + Duration::from_millis(1)), None);
    }
}
