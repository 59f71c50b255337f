//! How busy a kind is: how fast its jobs come and go, how many are left, and when none will be at that
//! pace.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::load::{Look, Rates, Window};
use super::{ALL, Count};
use crate::backend::BackendError;
use crate::clock::Clock;
use crate::mill::Mill;

/// How busy a kind is, from [`Mill::kind_load`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KindLoad {
    /// The kind under which the jobs are stored: that of their type, or an alias.
    pub kind: String,
    /// Jobs enqueued in a second, over `over`: also those that are delayed, and dead ones that are
    /// replayed.
    pub arrivals: f64,
    /// Jobs ended in a second, over `over`: done, dead, cancelled, expired.
    pub ends: f64,
    /// The time over which the rates are taken: the last minute; less if the mill was opened since;
    /// more if nobody looked a minute ago.
    pub over: Duration,
    /// Jobs that have not ended, at least: they are ready, delayed, held or running. Exact unless an
    /// earlier process left jobs in the queues of this kind.
    ///
    /// Which kinds those jobs are of is not known until they run. Of them count those that must be of
    /// this kind, as more have ended than were enqueued: all that are left, once a call was made while
    /// there were none.
    pub left: u64,
    /// Jobs that have not ended, at most: if all whose kind is not known were of this one. The same as
    /// `left` where no jobs were found.
    pub left_at_most: u64,
    /// When none will be left, at the latest, if jobs keep coming and going as now. None if as many come
    /// as go, or more; jobs that are delayed for long have no part in what goes.
    pub time_to_drain: Option<Duration>,
}

/// What is counted of a kind, in a queue or in all.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    pub(super) enqueued: u64,
    pub(super) ended: u64,
    /// Jobs that edits have moved here from other queues.
    pub(super) moved: i64,
    /// The backend's queues in which it was seen.
    pub(super) places: Vec<Arc<str>>,
}

/// Earlier looks at the kinds of a mill.
pub(crate) struct KindLoads {
    clock: Clock,
    opened: Instant,
    /// By kind and queue; None for all queues of the kind.
    windows: Mutex<HashMap<Key, KindWindow>>,
}

type Key = (Arc<str>, Option<String>);

#[derive(Default)]
struct KindWindow {
    rates: Window,
    /// The least number of jobs, enqueued less ended, at any look: so many less than none, that as
    /// many of those that were found must have been of this kind.
    lowest: i64,
}

/// How many jobs of any kind there were and are in queues.
#[derive(Clone, Copy, Default)]
struct Around {
    found: u64,
    there: u64,
}

impl KindLoads {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            opened: clock.now(),
            clock,
            windows: Mutex::default(),
        }
    }

    fn look(&self, key: Key, counted: &Counted, around: Around) -> KindLoad {
        let mut windows = self.windows.lock();
        // Under the lock, so that looks are in order.
        let now = Look {
            at: self.clock.now(),
            enqueued: counted.enqueued,
            ended: counted.ended,
        };
        let kind = key.0.to_string();
        let window = windows.entry(key).or_default();
        let rates = window.rates.look(self.opened, now);
        let (left, left_at_most) = window.left(counted, around);
        let Rates {
            arrivals,
            ends,
            over,
        } = rates;
        KindLoad {
            kind,
            arrivals,
            ends,
            over,
            left,
            left_at_most,
            time_to_drain: rates.time_to_drain(left_at_most),
        }
    }
}

impl KindWindow {
    /// How many jobs are left, at least and at most.
    fn left(&mut self, counted: &Counted, around: Around) -> (u64, u64) {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let known = signed(counted.enqueued)
            .saturating_add(counted.moved)
            .saturating_sub(signed(counted.ended));
        let unsigned = |count: i64| u64::try_from(count).unwrap_or(0);
        if around.found == 0 {
            return (unsigned(known), unsigned(known));
        }
        self.lowest = self.lowest.min(known);
        let left = unsigned(known.saturating_sub(self.lowest));
        let most = unsigned(known.saturating_add(signed(around.found))).min(around.there);
        (left, most.max(left))
    }
}

impl Mill {
    /// How busy a kind is, in all queues; all is 0 if it was never seen.
    ///
    /// Each call is a look from which later ones take the rates, as for
    /// [`JobQueue::load`](crate::JobQueue::load). Costs as much as
    /// [`JobQueue::stats`](crate::JobQueue::stats) of its queues if jobs of an earlier process were
    /// found there, and reads memory only otherwise.
    ///
    /// ```
    /// # use logmill_jobs::{Job, Mill};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize, Job)]
    /// # #[job(kind = "welcome")]
    /// # struct Welcome;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// mill.enqueue(Welcome)?;
    /// let load = mill.kind_load("welcome")?;
    /// assert_eq!((load.left, load.left_at_most), (1, 1));
    /// assert!(load.arrivals > 0.0 && load.ends == 0.0);
    /// assert_eq!(load.time_to_drain, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The storage failed.
    pub fn kind_load(&self, kind: &str) -> Result<KindLoad, BackendError> {
        let key = (Arc::<str>::from(kind), None);
        let counted = self
            .inner
            .figures
            .counted(|one, _| (**one == *kind).then_some(()));
        match counted.into_values().next() {
            Some(counted) => self.kind_load_of(key, &counted),
            // No window is kept for it: such names are without end.
            None => Ok(KindLoad {
                kind: kind.to_owned(),
                arrivals: 0.0,
                ends: 0.0,
                over: Duration::ZERO,
                left: 0,
                left_at_most: 0,
                time_to_drain: Some(Duration::ZERO),
            }),
        }
    }

    /// How busy each kind that was seen is, in all queues, by name; as [`kind_load`](Self::kind_load).
    ///
    /// # Errors
    /// The storage failed.
    pub fn load_by_kind(&self) -> Result<Vec<KindLoad>, BackendError> {
        let counted = self.inner.figures.counted(|kind, _| Some(Arc::clone(kind)));
        let loads = counted.into_iter();
        loads
            .map(|(kind, counted)| self.kind_load_of((kind, None), &counted))
            .collect()
    }

    /// How busy each kind is in each queue.
    #[cfg(feature = "metrics")]
    pub(super) fn load_by_kind_and_queue(&self) -> Result<Vec<(String, KindLoad)>, BackendError> {
        let counted = self.inner.figures.counted(|kind, place| {
            let queue = crate::JobId::new(Arc::clone(place), 0).queue().to_owned();
            Some((Arc::clone(kind), queue))
        });
        let loads = counted.into_iter();
        loads
            .map(|((kind, queue), counted)| {
                let key = (kind, Some(queue.clone()));
                Ok((queue, self.kind_load_of(key, &counted)?))
            })
            .collect()
    }

    fn kind_load_of(&self, key: Key, counted: &Counted) -> Result<KindLoad, BackendError> {
        let mut around = Around::default();
        for place in &counted.places {
            let queue = self.inner.backend_queue(place)?;
            let (found, there) = queue.found()?;
            around.found += found;
            around.there += there;
        }
        Ok(self.inner.kind_loads.look(key, counted, around))
    }
}

/// The ends of jobs among what is counted.
pub(super) fn ends() -> impl Iterator<Item = Count> {
    let is_end = |what: &Count| !matches!(what, Count::Failed | Count::Snoozed);
    ALL.into_iter().filter(is_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(enqueued: u64, ended: u64) -> Counted {
        Counted {
            enqueued,
            ended,
            ..Counted::default()
        }
    }

    #[test]
    fn what_is_left_is_exact_where_nothing_was_found() {
        let mut window = KindWindow::default();
        let around = Around { found: 0, there: 9 };
        assert_eq!(window.left(&counted(7, 3), around), (4, 4));
        assert_eq!(window.left(&counted(7, 7), around), (0, 0));
        let moved = Counted {
            moved: -2,
            ..counted(7, 3)
        };
        assert_eq!(window.left(&moved, around), (2, 2));
    }

    #[test]
    fn what_an_earlier_process_left_is_between_what_it_must_and_what_it_can_be() {
        let mut window = KindWindow::default();
        let around = |there| Around { found: 100, there };
        // Ten were enqueued since, and those found may be of any kind.
        assert_eq!(window.left(&counted(10, 0), around(110)), (10, 110));
        // At least 20 of those found were of this kind.
        assert_eq!(window.left(&counted(10, 30), around(80)), (0, 80));
        assert_eq!(window.left(&counted(15, 30), around(85)), (5, 85));
        // All have ended: from then on it is exact.
        assert_eq!(window.left(&counted(15, 65), around(0)), (0, 0));
        assert_eq!(window.left(&counted(19, 65), around(4)), (4, 4));
    }
}
