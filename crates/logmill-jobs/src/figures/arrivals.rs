//! How many jobs of each kind were enqueued in a queue, counted where they are enqueued.
//!
//! All threads that enqueue count, so a kind has as many cells as it takes for them to seldom meet in
//! one: to count is to find the kind in a table and to add to a cell that this thread mostly has in
//! its own cache. The cells are summed when they are read.
//!
//! A job is counted before it is stored, and uncounted if it is not: so none has ended that was not
//! counted.

use std::cell::Cell;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;

use crate::backend::{BackendError, NewJob, QueueStats};

/// Cells of a kind.
const CELLS: usize = 16;
/// Places for kinds in a table. Where more are needed, another table follows.
const SLOTS: usize = 64;
/// So many places are tried in each table.
const PROBES: usize = 8;
/// Kinds that find no place in so many tables are counted as one without a name: kinds come from code,
/// so that there are more only by a mistake.
const TABLES: usize = 64;

/// The counts of a queue of the backend.
pub(crate) struct Arrivals {
    /// The backend's queue.
    pub(super) place: Arc<str>,
    hasher: RandomState,
    first: Table,
    others: OnceLock<Box<Counter>>,
    /// Jobs that were there when the queue was opened.
    found: OnceLock<u64>,
}

/// A part of a hash table that only grows.
struct Table {
    slots: [OnceLock<Box<Counter>>; SLOTS],
    next: OnceLock<Box<Table>>,
}

/// The count of a kind.
pub(crate) struct Counter {
    pub(super) kind: Arc<str>,
    cells: [Padded; CELLS],
    /// Jobs that edits have moved into the queue, less those that they have moved out of it.
    moved: AtomicI64,
}

/// A cell that shares no cache line, nor a pair of them that processors fetch together.
#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

thread_local! {
    /// Which cells this thread writes; none yet beyond their number.
    static CELL: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The cell of the calling thread. The first threads each get one of their own.
#[inline]
fn cell_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    CELL.with(|cell| {
        if cell.get() >= CELLS {
            cell.set(NEXT.fetch_add(1, Ordering::Relaxed) % CELLS);
        }
        cell.get()
    })
}

impl Default for Table {
    fn default() -> Self {
        Self {
            slots: [const { OnceLock::new() }; SLOTS],
            next: OnceLock::new(),
        }
    }
}

impl Counter {
    fn new(kind: &str) -> Box<Self> {
        Box::new(Self {
            kind: kind.into(),
            cells: Default::default(),
            moved: AtomicI64::new(0),
        })
    }

    /// Counts jobs that are about to be stored.
    #[inline]
    pub(crate) fn add(&self, jobs: u64) {
        // Relaxed, as all of figures: each stands for itself.
        self.cells[cell_of_thread()]
            .0
            .fetch_add(jobs, Ordering::Relaxed);
    }

    /// Uncounts jobs that this thread has counted and not stored.
    #[cold]
    pub(crate) fn take_back(&self, jobs: u64) {
        self.cells[cell_of_thread()]
            .0
            .fetch_sub(jobs, Ordering::Relaxed);
    }

    /// Counts a job as moved into the queue, or out of it.
    pub(crate) fn move_by(&self, jobs: i64) {
        self.moved.fetch_add(jobs, Ordering::Relaxed);
    }

    pub(super) fn enqueued(&self) -> u64 {
        let cells = self.cells.iter();
        cells.map(|cell| cell.0.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn moved(&self) -> i64 {
        self.moved.load(Ordering::Relaxed)
    }
}

impl Arrivals {
    pub(super) fn new(place: &str) -> Self {
        Self {
            place: place.into(),
            hasher: RandomState::default(),
            first: Table::default(),
            others: OnceLock::new(),
            found: OnceLock::new(),
        }
    }

    /// The counter of a kind.
    #[inline]
    pub(crate) fn of(&self, kind: &str) -> &Counter {
        let hash = self.hasher.hash_one(kind) as usize;
        let mut table = &self.first;
        for _ in 0..TABLES {
            for probe in 0..PROBES {
                let slot = &table.slots[hash.wrapping_add(probe) % SLOTS];
                // Once filled, a slot stays as it is, so a kind has the first that was free for it.
                let counter = slot.get_or_init(|| Counter::new(kind));
                if *counter.kind == *kind {
                    return counter;
                }
            }
            table = table.next.get_or_init(Box::default);
        }
        self.others.get_or_init(|| Counter::new(""))
    }

    /// Stores jobs of a kind, which are counted.
    #[inline]
    pub(crate) fn counting<T>(
        &self,
        kind: &str,
        jobs: u64,
        store: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let counter = self.of(kind);
        counter.add(jobs);
        let stored = store();
        if !is_stored(&stored) {
            counter.take_back(jobs);
        }
        stored
    }

    pub(super) fn each(&self, mut see: impl FnMut(&Counter)) {
        let mut table = Some(&self.first);
        while let Some(one) = table {
            let counters = one.slots.iter().filter_map(OnceLock::get);
            counters.for_each(|counter| see(counter));
            table = one.next.get().map(|next| &**next);
        }
        if let Some(others) = self.others.get() {
            see(others);
        }
    }

    /// Whether it is known that no jobs were there when the queue was opened.
    pub(crate) fn has_found_none(&self) -> bool {
        self.found.get() == Some(&0)
    }

    /// How many jobs were there when the queue was opened, said by its figures then or at any time
    /// later.
    pub(crate) fn found_by(&self, stats: &QueueStats) -> u64 {
        *self
            .found
            .get_or_init(|| (stats.left() + stats.ended).saturating_sub(stats.enqueued))
    }
}

/// Whether it happened.
#[inline]
fn is_stored<T>(stored: &Result<T, BackendError>) -> bool {
    matches!(stored, Ok(_) | Err(BackendError::NotDurable(_)))
}

/// Stores jobs of several queues, which are counted where `arrivals` says.
pub(crate) fn counting_all<T>(
    jobs: &[(&str, NewJob<'_>)],
    arrivals: impl Fn(&str) -> Arc<Arrivals>,
    store: impl FnOnce() -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    let counted = jobs.iter().map(|(place, job)| {
        let arrivals = arrivals(place);
        arrivals.of(job.kind).add(1);
        (arrivals, job.kind)
    });
    let counted: Vec<_> = counted.collect();
    let stored = store();
    if !is_stored(&stored) {
        for (arrivals, kind) in counted {
            arrivals.of(kind).take_back(1);
        }
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(arrivals: &Arrivals) -> Vec<(String, u64)> {
        let mut counts = Vec::new();
        arrivals.each(|counter| counts.push((counter.kind.to_string(), counter.enqueued())));
        counts.sort();
        counts
    }

    #[test]
    fn what_threads_count_at_the_same_time_is_all_there() {
        let arrivals = Arrivals::new("mail");
        let kinds: Vec<_> = (0..300).map(|kind| format!("kind{kind:03}")).collect();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    for kind in &kinds {
                        arrivals.of(kind).add(1);
                        arrivals.of("welcome").add(2);
                    }
                });
            }
        });
        let mut expected: Vec<_> = kinds.iter().map(|kind| (kind.clone(), 20)).collect();
        expected.push(("welcome".to_owned(), 2 * 20 * 300));
        assert_eq!(counts(&arrivals), expected);
    }

    #[test]
    fn what_is_not_stored_is_not_counted() {
        let arrivals = Arc::new(Arrivals::new("mail"));
        let full = || Err::<(), _>(BackendError::Full("mail".to_owned()));
        let late = || Err::<(), _>(BackendError::NotDurable("slow".into()));
        assert!(arrivals.counting("a", 3, full).is_err());
        assert!(arrivals.counting("a", 5, late).is_err());
        arrivals.counting("b", 7, || Ok(())).unwrap();
        let job = NewJob {
            kind: "c",
            payload: b"",
            headers: &[],
            due: crate::backend::Due::Now,
            sync: false,
        };
        let jobs = [("mail", job), ("mail", job)];
        assert!(counting_all(&jobs, |_| Arc::clone(&arrivals), full).is_err());
        counting_all(&jobs[1..], |_| Arc::clone(&arrivals), || Ok(())).unwrap();
        let expected = [("a", 5), ("b", 7), ("c", 1)];
        assert_eq!(
            counts(&arrivals),
            expected.map(|(kind, count)| (kind.to_owned(), count))
        );
    }

    #[test]
    fn kinds_without_end_take_bounded_memory() {
        let arrivals = Arrivals::new("mail");
        let kinds = 3 * SLOTS * TABLES;
        for kind in 0..kinds {
            arrivals.of(&format!("kind{kind}")).add(1);
        }
        let counts = counts(&arrivals);
        assert!(counts.len() <= SLOTS * TABLES + 1);
        let sum: u64 = counts.iter().map(|(_, count)| count).sum();
        assert_eq!(sum, kinds as u64);
        assert_eq!(counts[0].0, "");
    }

    #[test]
    fn what_was_found_at_the_open_is_said_once() {
        let arrivals = Arrivals::new("mail");
        let stats = QueueStats {
            ready: 5,
            delayed: 2,
            running: 1,
            enqueued: 10,
            ended: 9,
            ..QueueStats::default()
        };
        assert_eq!(arrivals.found_by(&stats), 7);
        assert_eq!(arrivals.found_by(&QueueStats::default()), 7);
    }
}
