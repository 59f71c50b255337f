//! Figures, always on: how many jobs were enqueued, how many attempts and jobs ended how, and
//! histograms of how long jobs waited and ran; for each kind in each queue.
//!
//! ```text
//!  producer ── one of 16 cells of the kind, mostly its own ┐
//!  worker ── its own cell, without a locked instruction ──┐
//!  task, thread of the engine ── the shared cell ─────────┴─▶ summed when they are read
//! ```

mod arrivals;
mod histogram;
mod kind_load;
mod kind_stats;
mod load;
#[cfg(feature = "metrics")]
mod publish;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use self::arrivals::Counter;
pub(crate) use self::arrivals::{Arrivals, counting_all};
pub use self::histogram::Times;
use self::histogram::{Histogram, add};
use self::kind_load::Counted;
pub use self::kind_load::KindLoad;
pub(crate) use self::kind_load::KindLoads;
pub use self::kind_stats::KindStats;
pub use self::load::Load;
pub(crate) use self::load::Loads;
pub(crate) use self::watch::Begun;
pub(crate) use self::watch::{Ran, Watch};
use crate::JobId;

/// The figures of a mill.
#[derive(Default)]
pub(crate) struct Figures {
    cells: Mutex<Cells>,
    /// By queue of the backend.
    arrivals: Mutex<BTreeMap<String, Arc<Arrivals>>>,
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

/// What is counted of a kind in a queue. A worker thread writes to its own at each job, and shares no cache
/// line with others for that, as in [`arrivals`].
#[repr(align(128))]
pub(crate) struct Cell {
    kind: Arc<str>,
    /// The backend's queue.
    place: Arc<str>,
    /// Whether one thread alone writes it.
    is_own: bool,
    /// Jobs enqueued; only in sums.
    enqueued: AtomicU64,
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
            enqueued: AtomicU64::new(0),
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
            // Each delayed job is measured, so it stands for no other.
            late.record(waited, 1, self.is_own);
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
            enqueued: self.enqueued.load(Ordering::Relaxed),
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

    /// What is counted of the jobs that are enqueued in a queue of the backend.
    pub(crate) fn arrivals(&self, place: &str) -> Arc<Arrivals> {
        let mut arrivals = self.arrivals.lock();
        if let Some(found) = arrivals.get(place) {
            return Arc::clone(found);
        }
        let new = Arc::new(Arrivals::new(place));
        arrivals.insert(place.to_owned(), Arc::clone(&new));
        new
    }

    /// The sums of the cells that have the same key, made of their kind and queue.
    fn sums<K: Ord>(
        &self,
        key_of: impl Fn(&Arc<str>, &Arc<str>) -> Option<K>,
    ) -> BTreeMap<K, Arc<Cell>> {
        let mut sums = BTreeMap::<K, Arc<Cell>>::new();
        let mut sum_of = |kind: &Arc<str>, place: &Arc<str>, add: &dyn Fn(&Cell)| {
            if let Some(key) = key_of(kind, place) {
                let sum = sums.entry(key);
                add(sum.or_insert_with(|| Cell::new(place, kind, false)));
            }
        };
        self.each_cell(|cell| sum_of(&cell.kind, &cell.place, &|sum| sum.absorb(cell)));
        self.each_arrival(|arrivals, counter| {
            let enqueued = counter.enqueued();
            if enqueued > 0 {
                sum_of(&counter.kind, &arrivals.place, &|sum| {
                    add(&sum.enqueued, enqueued, false);
                });
            }
        });
        sums
    }

    /// How many jobs have come and gone, by a key made of their kind and queue.
    fn counted<K: Ord>(
        &self,
        key_of: impl Fn(&Arc<str>, &Arc<str>) -> Option<K>,
    ) -> BTreeMap<K, Counted> {
        let mut all = BTreeMap::<K, Counted>::new();
        let mut counted_of = |kind: &Arc<str>, place: &Arc<str>, count: &dyn Fn(&mut Counted)| {
            if let Some(key) = key_of(kind, place) {
                let counted = all.entry(key).or_default();
                count(counted);
                if !counted.places.contains(place) {
                    counted.places.push(Arc::clone(place));
                }
            }
        };
        // Before the arrivals, so that a job that has ended is counted there by then, but for the order in
        // which a processor reads.
        self.each_cell(|cell| {
            let ended = kind_load::ends();
            let ended = ended.map(|what| cell.figure(what).load(Ordering::Relaxed));
            let ended: u64 = ended.sum();
            counted_of(&cell.kind, &cell.place, &|counted| counted.ended += ended);
        });
        self.each_arrival(|arrivals, counter| {
            counted_of(&counter.kind, &arrivals.place, &|counted| {
                counted.enqueued += counter.enqueued();
                counted.moved += counter.moved();
            });
        });
        all
    }

    fn each_cell(&self, see: impl FnMut(&Arc<Cell>)) {
        let cells = self.cells.lock();
        let shared = cells.shared.values().flat_map(BTreeMap::values);
        shared.chain(&cells.own).for_each(see);
    }

    fn each_arrival(&self, mut see: impl FnMut(&Arrivals, &Counter)) {
        let arrivals = self.arrivals.lock();
        for one in arrivals.values() {
            one.each(|counter| see(one, counter));
        }
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
            let sums = figures.sums(|kind, _| Some(kind.to_string()));
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
        let sums = figures.sums(|kind, _| Some(kind.to_string()));
        assert_eq!(sums.len(), MOST_CELLS + 1);
        let dead = sums.values().map(|sum| sum.stats().dead).sum::<u64>();
        assert_eq!(dead, 2 * MOST_CELLS as u64);
    }
}
