//! Jobs of which there is one at a time.
//!
//! A key is a key of the backend whose value names the job that has it. It is taken in the same
//! transaction in which the job is stored, and released in the one in which the job is completed. Each
//! enqueue has a random *ticket*, which the job's header and the value of its key have in common: no
//! job releases the key of another. The number of the job is known after the transaction, and kept
//! in memory; jobs of an earlier process are found by their tickets.
//!
//! A job whose arguments or time later calls may change is a *turn*: the value of its key says with
//! what it runs, so that such a call changes one key and nothing else. A worker that comes to the job
//! reads the value; what was kept while it ran is enqueued in the transaction that completes it.
//!
//! In this process all of this goes on under a lock for each key.

mod enqueue;
mod merge;
mod release;
mod tickets;
mod turn;
mod value;

use std::time::{Duration, SystemTime};

pub(crate) use self::enqueue::{Call, enqueue};
pub(crate) use self::merge::by as merge_by;
pub(crate) use self::release::{
    Release, finish_interrupted, forget_letter, job_of_letter, keeps_of_letter,
};
pub(crate) use self::tickets::Tickets;
pub(crate) use self::turn::{Began, Edited, begin, is_turn, moving};
use self::value::Until;

/// Within which key a job is unique among those of its kind, for how long, and what another call
/// with the key does meanwhile.
///
/// ```
/// use logmill_jobs::{Job, Mill, Outcome, Unique, minutes, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "rebuild_index", unique = "shop")]
/// struct RebuildIndex {
///     shop: u32,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let mill = Mill::open(dir.path().join("jobs"))?;
/// let first = mill.enqueue(RebuildIndex { shop: 7 })?;
/// let second = mill.enqueue(RebuildIndex { shop: 7 })?;
/// assert_eq!(second.outcome(), Outcome::Existing);
/// assert_eq!(second.id(), first.id());
///
/// // At most one in ten minutes, however soon it is done.
/// let throttled = Unique::by("shop 8").for_at_least(minutes(10));
/// mill.job(RebuildIndex { shop: 8 }).unique(throttled).enqueue()?;
///
/// // Five seconds after the last of many calls, and 30 after the first at the latest.
/// let debounced = Unique::by("shop 9").debounce(secs(5)).max_wait(secs(30));
/// let first = mill.job(RebuildIndex { shop: 9 }).unique(debounced.clone()).enqueue()?;
/// let second = mill.job(RebuildIndex { shop: 9 }).unique(debounced).enqueue()?;
/// assert_eq!((first.outcome(), second.outcome()), (Outcome::New, Outcome::PutOff));
/// assert_eq!(second.id(), first.id());
/// # Ok(())
/// # }
/// ```
///
/// Without further options, a call that finds a job with the key changes nothing. A job whose
/// arguments are replaced stays in the queue, at the priority and with the key for limits that it was
/// enqueued with, and keeps its id and its failed attempts. A call may put it off, and does not bring it
/// forward.
///
/// A dead job that is replayed does not take its key again: it runs beside one that has it by then.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Unique {
    key: String,
    period: Option<Duration>,
    is_replacing: bool,
    keeps_latest: bool,
    while_waiting: bool,
    debounce: Option<Debounce>,
}

/// How calls put a job off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Debounce {
    time: Duration,
    max_wait: Option<Duration>,
    is_leading: bool,
}

impl Unique {
    /// One job with this key until it has ended: is done, dead, cancelled or expired.
    pub fn by(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            period: None,
            is_replacing: false,
            keeps_latest: false,
            while_waiting: false,
            debounce: None,
        }
    }

    /// One job with this key in this period, which begins with the enqueue; whether the job has
    /// ended by then or not. Not together with the other options.
    pub fn for_at_least(mut self, period: Duration) -> Self {
        self.period = Some(period);
        self
    }

    /// The newest arguments win while the job waits: a call replaces those that it was enqueued
    /// with. If it runs, the call changes nothing.
    pub fn replacing(mut self) -> Self {
        self.is_replacing = true;
        self
    }

    /// The newest arguments always run: a call replaces those of a job that waits, and while it
    /// runs, they are kept for exactly one more, which is enqueued in the step in which it ends.
    ///
    /// Also if the job is dead, cancelled or expired. Not together with
    /// [`while_waiting`](Self::while_waiting).
    pub fn keep_latest(mut self) -> Self {
        self.keeps_latest = true;
        self
    }

    /// The key is that of a job that waits: once it runs, another one may be enqueued, and run beside
    /// it.
    pub fn while_waiting(mut self) -> Self {
        self.while_waiting = true;
        self
    }

    /// Starts the job once no call was made for this time. Each call puts it off and replaces its
    /// arguments; one that is made while it runs is for the next job, as by
    /// [`keep_latest`](Self::keep_latest).
    ///
    /// Its time replaces [`Enqueue::after`](crate::Enqueue::after) and `at`.
    pub fn debounce(mut self, time: Duration) -> Self {
        let Debounce {
            max_wait,
            is_leading,
            ..
        } = self.debounce_or_none();
        self.debounce = Some(Debounce {
            time,
            max_wait,
            is_leading,
        });
        self
    }

    /// With [`debounce`](Self::debounce): calls put the job off by at most this long after the first
    /// of them. Default: no limit.
    pub fn max_wait(mut self, time: Duration) -> Self {
        let debounce = self.debounce_or_none();
        self.debounce = Some(Debounce {
            max_wait: Some(time),
            ..debounce
        });
        self
    }

    /// With [`debounce`](Self::debounce): the first call starts a job at once. If more calls come
    /// within the time, or before that job has ended, another one with their arguments follows,
    /// once no call was made for the time.
    pub fn leading(mut self) -> Self {
        let debounce = self.debounce_or_none();
        self.debounce = Some(Debounce {
            is_leading: true,
            ..debounce
        });
        self
    }

    fn debounce_or_none(&self) -> Debounce {
        self.debounce.unwrap_or(Debounce {
            time: Duration::ZERO,
            max_wait: None,
            is_leading: false,
        })
    }

    fn until(&self) -> Until {
        let is_turn =
            self.is_replacing || self.keeps_latest || self.while_waiting || self.debounce.is_some();
        match self.period {
            _ if is_turn => Until::Turn,
            Some(_) => Until::Period,
            None => Until::End,
        }
    }

    /// Whether its options go together.
    fn check(&self) -> Result<(), &'static str> {
        if self.period.is_some() && self.until() == Until::Turn {
            return Err("a job that is unique for a period is not replaced, kept or debounced");
        }
        if self.while_waiting && self.keeps_latest {
            return Err("what is unique only while it waits keeps nothing while it runs");
        }
        if self
            .debounce
            .is_some_and(|debounce| debounce.time.is_zero())
        {
            return Err("a job is debounced by a time that is not zero");
        }
        Ok(())
    }
}

impl Debounce {
    /// When a job is due after a call at this time. A time that overflows is no time.
    fn due(&self, now: SystemTime, first: SystemTime) -> Option<SystemTime> {
        let last = self.max_wait.and_then(|most| first.checked_add(most));
        let next = now.checked_add(self.time);
        match (next, last) {
            (Some(next), Some(last)) => Some(next.min(last)),
            (next, last) => next.or(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_put_a_job_off_up_to_the_longest_wait() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let unique = Unique::by("x").debounce(Duration::from_secs(5));
        let debounce = unique.clone().debounce.unwrap();
        assert_eq!(debounce.due(at(100), at(1)), Some(at(105)));
        let debounce = unique.max_wait(Duration::from_secs(8)).debounce.unwrap();
        assert_eq!(debounce.due(at(2), at(1)), Some(at(7)));
        assert_eq!(debounce.due(at(6), at(1)), Some(at(9)));
        let longest = Debounce {
            time: Duration::MAX,
            ..debounce
        };
        assert_eq!(longest.due(at(2), at(1)), Some(at(9)));
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let second = Duration::from_secs(1);
        let unique = Unique::by("x");
        assert_eq!(unique.check(), Ok(()));
        assert!(
            unique
                .clone()
                .for_at_least(second)
                .replacing()
                .check()
                .is_err()
        );
        assert!(
            unique
                .clone()
                .while_waiting()
                .keep_latest()
                .check()
                .is_err()
        );
        assert!(unique.clone().leading().check().is_err());
        assert_eq!(unique.debounce(second).leading().check(), Ok(()));
    }
}
