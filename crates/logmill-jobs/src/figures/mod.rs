//! Figures, always on: how many attempts and jobs ended how, and histograms of how long jobs waited
//! and ran; for each kind in each queue.
//!
//! ```text
//!  worker ── its own cell, without a locked instruction ──┐
//!  task, thread of the engine ── the shared cell ─────────┴─▶ summed when they are read
//! ```

mod histogram;
mod load;
#[cfg(feature = "metrics")]
mod publish;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

pub use self::histogram::Times;
use self::histogram::{Histogram, add};
pub use self::load::Load;
pub(crate) use self::load::Loads;
pub(crate) use self::watch::Begun;
pub(crate) use self::watch::{Ran, Watch};
use crate::JobId;
use crate::mill::Mill;

/// The figures of a mill.
#[derive(Default)]
pub(crate) struct Figures {
    cells: Mutex<Cells>,
}

#[derive(Default)]
struct Cells {
    /// By queue of the backend and kind.
    shared: BTreeMap<String, BTreeMap<String, Arc<Cell>>>,
    count: usize,
    /// Those of worker threads.
    own: Vec<Arc<Cell>>,
}

/// Kinds in queues beyond this number are counted as one kind without a name: kinds come from code,
/// so that there are more only by a mistake.
const MOST_CELLS: usize = 4096;

/// What is counted of a kind in a queue.
pub(crate) struct Cell {
    kind: Arc<str>,
    /// The backend's queue.
    place: Arc<str>,
    /// Whether one thread alone writes it.
    is_own: bool,
    done: AtomicU64,
    failed: AtomicU64,
    snoozed: AtomicU64,
    dead: AtomicU64,
    cancelled: AtomicU64,
    expired: AtomicU64,
    waited: Histogram,
    ran: Histogram,
    late: OnceLock<Histogram>,
    /// Attempts that will not be measured; only in cells of one thread.
    skip: AtomicU32,
    /// Attempts that were not, since the last that was.
    skipped: AtomicU32,
}

/// What is counted as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Done,
    Failed,
    Snoozed,
    Dead,
    Cancelled,
    Expired,
}

/// An attempt that took less than this is short: to read the clock twice is 2% of it.
const SHORT: Duration = Duration::from_micros(5);
/// After a short one, fewer attempts than this are not measured, and half of that on average.
const MOST_SKIPPED: u32 = 15;

impl Cell {
    fn new(place: &str, kind: &str, is_own: bool) -> Arc<Self> {
        Arc::new(Self {
            kind: kind.into(),
            place: place.into(),
            is_own,
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            snoozed: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            waited: Histogram::default(),
            ran: Histogram::default(),
            late: OnceLock::new(),
            skip: AtomicU32::new(0),
            skipped: AtomicU32::new(0),
        })
    }

    #[inline]
    fn figure(&self, what: Count) -> &AtomicU64 {
        match what {
            Count::Done => &self.done,
            Count::Failed => &self.failed,
            Count::Snoozed => &self.snoozed,
            Count::Dead => &self.dead,
            Count::Cancelled => &self.cancelled,
            Count::Expired => &self.expired,
        }
    }

    #[inline]
    fn count(&self, what: Count) {
        add(self.figure(what), 1, self.is_own);
    }

    /// Whether the next attempt is to be measured; and then for how many it stands.
    #[inline]
    fn turn(&self, must: bool) -> Option<u64> {
        let left = self.skip.load(Ordering::Relaxed);
        let skipped = self.skipped.load(Ordering::Relaxed);
        if left > 0 {
            self.skip.store(left - 1, Ordering::Relaxed);
            if must {
                // Not at random, so it stands for no other.
                return Some(1);
            }
            self.skipped.store(skipped + 1, Ordering::Relaxed);
            return None;
        }
        self.skipped.store(0, Ordering::Relaxed);
        Some(u64::from(skipped) + 1)
    }

    #[inline]
    fn record_ran(&self, ran: Duration, stands_for: u64) {
        self.ran.record(ran, stands_for, self.is_own);
        if self.is_own && ran < SHORT && self.skip.load(Ordering::Relaxed) == 0 {
            // A random number, so that no rhythm of the jobs falls in with it.
            self.skip
                .store(fastrand::u32(..MOST_SKIPPED), Ordering::Relaxed);
        }
    }

    fn record_waited(&self, waited: Duration, is_delayed: bool, stands_for: u64) {
        self.waited.record(waited, stands_for, self.is_own);
        if is_delayed {
            let late = self.late.get_or_init(Histogram::default);
            late.record(waited, stands_for, self.is_own);
        }
    }

    /// Adds what another cell has counted.
    fn absorb(&self, other: &Self) {
        for what in ALL {
            let theirs = other.figure(what).load(Ordering::Relaxed);
            add(self.figure(what), theirs, self.is_own);
        }
        self.waited.absorb(&other.waited);
        self.ran.absorb(&other.ran);
        if let Some(theirs) = other.late.get() {
            self.late.get_or_init(Histogram::default).absorb(theirs);
        }
    }

    fn stats(&self) -> KindStats {
        let count = |what| self.figure(what).load(Ordering::Relaxed);
        KindStats {
            kind: self.kind.to_string(),
            done: count(Count::Done),
            failed: count(Count::Failed),
            snoozed: count(Count::Snoozed),
            dead: count(Count::Dead),
            cancelled: count(Count::Cancelled),
            expired: count(Count::Expired),
            waited: self.waited.times(),
            ran: self.ran.times(),
            late: self.late.get().map(Histogram::times).unwrap_or_default(),
        }
    }
}

const ALL: [Count; 6] = [
    Count::Done,
    Count::Failed,
    Count::Snoozed,
    Count::Dead,
    Count::Cancelled,
    Count::Expired,
];

impl Cells {
    fn shared(&mut self, place: &str, kind: &str) -> Arc<Cell> {
        if let Some(cell) = self.shared.get(place).and_then(|kinds| kinds.get(kind)) {
            return Arc::clone(cell);
        }
        let kind = match self.count < MOST_CELLS {
            true => kind,
            false => "",
        };
        let kinds = self.shared.entry(place.to_owned()).or_default();
        let cell = kinds.entry(kind.to_owned()).or_insert_with(|| {
            self.count += 1;
            Cell::new(place, kind, false)
        });
        Arc::clone(cell)
    }
}

impl Figures {
    /// The cell of a kind in a queue that any thread writes.
    pub(crate) fn shared(&self, place: &str, kind: &str) -> Arc<Cell> {
        self.cells.lock().shared(place, kind)
    }

    /// A cell for the calling thread alone.
    fn own(&self, place: &str, kind: &str) -> Arc<Cell> {
        let cell = Cell::new(place, kind, true);
        self.cells.lock().own.push(Arc::clone(&cell));
        cell
    }

    /// Keeps what a thread's cell has counted, as the thread ends.
    fn retire(&self, cell: &Arc<Cell>) {
        let mut cells = self.cells.lock();
        cells.shared(&cell.place, &cell.kind).absorb(cell);
        cells.own.retain(|one| !Arc::ptr_eq(one, cell));
    }

    /// Counts the end of a job that no handler has completed.
    pub(crate) fn count(&self, id: &JobId, kind: &str, what: Count) {
        self.shared(id.place(), kind).count(what);
    }

    /// The sums of the cells that have the same key.
    fn sums<K: Ord>(&self, key_of: impl Fn(&Cell) -> Option<K>) -> BTreeMap<K, Arc<Cell>> {
        let mut sums = BTreeMap::<K, Arc<Cell>>::new();
        let cells = self.cells.lock();
        let shared = cells.shared.values().flat_map(BTreeMap::values);
        for cell in shared.chain(&cells.own) {
            if let Some(key) = key_of(cell) {
                let sum = sums.entry(key);
                let sum = sum.or_insert_with(|| Cell::new(&cell.place, &cell.kind, false));
                sum.absorb(cell);
            }
        }
        sums
    }
}

/// The figures of a kind since the mill was opened, from [`Mill::kind_stats`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KindStats {
    /// The kind under which the jobs are stored: that of their type, or an alias.
    pub kind: String,
    /// Jobs that handlers have completed.
    pub done: u64,
    /// Attempts that failed, also the last ones of jobs that are dead.
    pub failed: u64,
    /// Attempts that gave the job back.
    pub snoozed: u64,
    /// Jobs that died.
    pub dead: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// Jobs that expired before they began.
    pub expired: u64,
    /// How long jobs were ready before their first attempt began: since their enqueue, or since they
    /// were due. For jobs that were not delayed, accurate to the kernel's clock tick (1 to 10 ms).
    ///
    /// The waits for limits and for a handler count; one that was given back has waited since its
    /// enqueue.
    pub waited: Times,
    /// How long attempts took.
    pub ran: Times,
    /// How long after their time those jobs began that were enqueued with a delay of their own; they
    /// are also in `waited`.
    pub late: Times,
}

impl Mill {
    /// The figures of a kind in all queues; all are 0 if it was never seen.
    ///
    /// All ends are counted. Of attempts that take less than 5 µs, one in eight on average is
    /// measured, at random, and stands for the others (those that were enqueued with a delay, those
    /// of async handlers, and all while there are [`Events`](crate::Events) are measured): with two looks at the clock for each, a job of
    /// a microsecond would cost a tenth more. So of such kinds `max` may miss the longest.
    ///
    /// Reads memory only: some microseconds for each thread and kind.
    pub fn kind_stats(&self, kind: &str) -> KindStats {
        let is_asked = |cell: &Cell| (*cell.kind == *kind).then_some(());
        let sums = self.inner.figures.sums(is_asked);
        sums.into_values()
            .next()
            .map_or_else(KindStats::default, |sum| sum.stats())
            .named(kind)
    }

    /// The figures of all kinds that were seen, by name.
    pub fn stats_by_kind(&self) -> Vec<KindStats> {
        let sums = self.inner.figures.sums(|cell| Some(Arc::clone(&cell.kind)));
        sums.into_values().map(|sum| sum.stats()).collect()
    }
}

impl KindStats {
    fn named(mut self, kind: &str) -> Self {
        kind.clone_into(&mut self.kind);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_a_thread_has_counted_stays_when_it_ends() {
        let figures = Figures::default();
        let cell = figures.own("mail.high", "welcome");
        cell.count(Count::Done);
        cell.record_ran(MS, 1);
        cell.record_waited(MS, true, 1);
        figures.count(&JobId::new("mail", 1), "welcome", Count::Dead);
        let stats = || {
            let sums = figures.sums(|cell| Some(cell.kind.to_string()));
            assert_eq!(sums.len(), 1);
            sums["welcome"].stats()
        };
        let before = stats();
        assert_eq!((before.done, before.dead), (1, 1));
        assert_eq!((before.ran.count, before.late.max), (1, MS));
        figures.retire(&cell);
        assert_eq!(stats(), before);
        assert!(figures.cells.lock().own.is_empty());
    }

    #[test]
    fn attempts_that_are_measured_stand_for_all() {
        let figures = Figures::default();
        let cell = figures.own("mail", "welcome");
        let mut measured = 0;
        for _ in 0..100_000 {
            if let Some(stands_for) = cell.turn(false) {
                measured += 1;
                cell.record_ran(Duration::from_micros(1), stands_for);
            }
        }
        // The last ones may stand for nothing yet.
        let count = cell.ran.times().count;
        assert!((99_984..=100_000).contains(&count), "{count}");
        assert!((10_000..16_000).contains(&measured), "{measured}");
        // Long ones are all measured, once one of them was.
        while cell.skip.load(Ordering::Relaxed) > 0 {
            assert!(cell.turn(false).is_none());
        }
        for _ in 0..100 {
            let stands_for = cell.turn(false).unwrap();
            cell.record_ran(MS, stands_for);
        }
        // One that must be measured stands for itself.
        cell.record_ran(Duration::from_nanos(1), 1);
        assert_eq!(cell.turn(true), Some(1));
    }

    #[test]
    fn kinds_without_end_take_bounded_memory() {
        let figures = Figures::default();
        for number in 0..2 * MOST_CELLS {
            figures.count(
                &JobId::new("mail", 1),
                &format!("kind{number}"),
                Count::Dead,
            );
        }
        let sums = figures.sums(|cell| Some(cell.kind.to_string()));
        assert_eq!(sums.len(), MOST_CELLS + 1);
        let dead = sums.values().map(|sum| sum.stats().dead).sum::<u64>();
        assert_eq!(dead, 2 * MOST_CELLS as u64);
    }
}
