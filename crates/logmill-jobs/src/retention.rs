//! How many records of ended jobs are kept: by age as the backend expires them, and by number and
//! bytes here, the oldest first.
//!
//! The order is in memory, 32 bytes a record: a line for each time that kinds keep their records for, in
//! which records expire in the order in which they came. It is rebuilt in the background after a
//! restart, when the first record is stored. Records are removed in the transactions in which others are stored, so
//! that they cost no transaction of their own.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::JobId;
use crate::backend::{BackendError, Changes, Keep, KeyChange};
use crate::clock::Clock;
use crate::keys;
use crate::mill::Mill;

/// Which records there are, and how many there may be.
pub(crate) struct Retention {
    max_records: usize,
    max_bytes: u64,
    clock: Clock,
    opened: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    records: usize,
    bytes: u64,
    /// Whether those that an earlier process left are, or are about to be, in the order.
    is_rebuilt: bool,
}

/// Records that are kept for the same time, oldest first.
struct Line {
    /// In seconds; [`FOREVER`], also if it is not known.
    keep: u32,
    order: VecDeque<Kept>,
}

/// A record that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    id: JobId,
    /// Of its key and its value.
    bytes: u32,
    /// When it was stored, in seconds since the mill was opened, from 1 on; 0 if an earlier process did.
    stored: u32,
}

const FOREVER: u32 = u32::MAX;
/// As many are removed together with one that is stored: more than one, so that there are fewer with
/// time where a limit was lowered.
const AT_ONCE: usize = 4;
/// As many that have expired are forgotten at a time, at least: they cost nothing but the look.
const EXPIRED: usize = 64;
/// As many are removed in a transaction after the order was rebuilt.
const BATCH: usize = 256;

/// Records that are to be removed in a transaction; they are kept if that does not happen.
pub(crate) struct Evicted {
    /// Each with the time that it is kept for.
    kept: SmallVec<[(u32, Kept); AT_ONCE]>,
    keys: SmallVec<[Vec<u8>; AT_ONCE]>,
}

impl Evicted {
    pub(crate) fn changes(&self) -> impl Iterator<Item = KeyChange<'_>> {
        self.keys.iter().map(|key| KeyChange::Remove(key))
    }
}

/// A record that is about to be stored, and those that it takes the room of.
pub(crate) struct NewRecord {
    key: Vec<u8>,
    value: Vec<u8>,
    keep: Keep,
    evicted: Evicted,
}

impl NewRecord {
    pub(crate) fn new(mill: &Mill, id: &JobId, value: Vec<u8>, keep: Duration) -> Self {
        let key = keys::of_record(id);
        Self {
            evicted: mill
                .inner
                .retention
                .make_room(mill, key.len() + value.len()),
            key,
            value,
            keep: Keep::For(keep),
        }
    }

    /// What is to be changed in one transaction.
    pub(crate) fn changes(&self) -> impl Iterator<Item = KeyChange<'_>> {
        let put = KeyChange::Put(&self.key, &self.value, self.keep);
        std::iter::once(put).chain(self.evicted.changes())
    }

    /// The transaction has happened, or not.
    pub(crate) fn settled(self, mill: &Mill, id: &JobId, settled: &Result<(), BackendError>) {
        let retention = &mill.inner.retention;
        match settled {
            Ok(()) | Err(BackendError::NotDurable(_)) => {
                retention.entered(id, self.key.len() + self.value.len(), self.keep);
            }
            Err(_) => retention.put_back(self.evicted),
        }
    }
}

impl State {
    fn line(&mut self, keep: u32) -> &mut VecDeque<Kept> {
        let at = match self.lines.iter().position(|line| line.keep == keep) {
            Some(at) => at,
            None => {
                let order = VecDeque::new();
                self.lines.push(Line { keep, order });
                self.lines.len() - 1
            }
        };
        &mut self.lines[at].order
    }

    fn push(&mut self, keep: u32, kept: Kept) {
        self.count(&kept);
        self.line(keep).push_back(kept);
    }

    /// Puts one back that was taken out, or is older than all others.
    fn push_oldest(&mut self, keep: u32, kept: Kept) {
        self.count(&kept);
        self.line(keep).push_front(kept);
    }

    fn count(&mut self, kept: &Kept) {
        self.records += 1;
        self.bytes += u64::from(kept.bytes);
    }

    /// Takes out the oldest record, with the time that it is kept for.
    fn pop(&mut self) -> Option<(u32, Kept)> {
        let lines = self.lines.iter_mut();
        let oldest = lines.min_by_key(|line| line.order.front().map_or(u32::MAX, |one| one.stored));
        let line = oldest?;
        let kept = line.order.pop_front()?;
        let keep = line.keep;
        self.records -= 1;
        self.bytes -= u64::from(kept.bytes);
        Some((keep, kept))
    }

    /// Forgets at most so many records of each line that are gone by themselves.
    fn forget_expired(&mut self, now: u32, most: usize) {
        for line in &mut self.lines {
            let has_expired = |one: &mut Kept| {
                line.keep != FOREVER && one.stored.saturating_add(line.keep) <= now
            };
            for _ in 0..most {
                let Some(expired) = line.order.pop_front_if(has_expired) else {
                    break;
                };
                self.records -= 1;
                self.bytes -= u64::from(expired.bytes);
            }
        }
    }
}

impl Retention {
    pub(crate) fn new(max_records: usize, max_bytes: u64, clock: Clock) -> Self {
        Self {
            max_records: max_records.max(1),
            max_bytes,
            opened: clock.now(),
            clock,
            state: Mutex::default(),
        }
    }

    /// Makes room for a record of so many bytes: takes out those that are to be removed.
    pub(crate) fn make_room(&self, mill: &Mill, bytes: usize) -> Evicted {
        let is_first = {
            let mut state = self.state.lock();
            !std::mem::replace(&mut state.is_rebuilt, true)
        };
        if is_first {
            rebuild_in_background(mill);
        }
        self.evict(bytes, 1, AT_ONCE, |id| mill.inner.waiters.waits_for(id))
    }

    fn evict(
        &self,
        bytes: usize,
        records: usize,
        most: usize,
        is_waited_for: impl Fn(&JobId) -> bool,
    ) -> Evicted {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let now = self.seconds(self.clock.now());
        let mut kept: SmallVec<[(u32, Kept); AT_ONCE]> = SmallVec::new();
        let mut state = self.state.lock();
        state.forget_expired(now, most.max(EXPIRED));
        for _ in 0..most {
            let is_full = state.records + records > self.max_records
                || state.bytes.saturating_add(bytes) > self.max_bytes;
            let Some((keep, first)) = is_full.then(|| state.pop()).flatten() else {
                break;
            };
            // One that somebody is about to read is the newest again.
            match is_waited_for(&first.id) {
                true => state.push(
                    keep,
                    Kept {
                        stored: now,
                        ..first
                    },
                ),
                false => kept.push((keep, first)),
            }
        }
        drop(state);
        let keys = kept.iter().map(|(_, one)| keys::of_record(&one.id));
        Evicted {
            keys: keys.collect(),
            kept,
        }
    }

    /// A record was stored, and others were removed with it.
    pub(crate) fn entered(&self, id: &JobId, bytes: usize, keep: Keep) {
        let keep = match keep {
            Keep::Forever => FOREVER,
            // Late rather than early: one that is counted for longer does no harm.
            Keep::For(time) => u32::try_from(time.as_secs().saturating_add(2)).unwrap_or(FOREVER),
        };
        let kept = Kept {
            id: id.clone(),
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            stored: self.seconds(self.clock.now()),
        };
        self.state.lock().push(keep, kept);
    }

    /// The records are still there.
    pub(crate) fn put_back(&self, evicted: Evicted) {
        let mut state = self.state.lock();
        for (keep, kept) in evicted.kept.into_iter().rev() {
            state.push_oldest(keep, kept);
        }
    }

    fn seconds(&self, time: Instant) -> u32 {
        let seconds = time.saturating_duration_since(self.opened).as_secs();
        u32::try_from(seconds).map_or(u32::MAX, |seconds| seconds.saturating_add(1))
    }

    /// Puts the records of earlier processes in front of those of this one.
    fn rebuilt(&self, mut found: Vec<(u64, Kept)>) {
        found.sort_unstable_by_key(|(version, _)| *version);
        let mut state = self.state.lock();
        let own = state.lines.iter().flat_map(|line| &line.order);
        let own: HashSet<_> = own.map(|kept| kept.id.clone()).collect();
        for (_, kept) in found.into_iter().rev() {
            if !own.contains(&kept.id) {
                state.push_oldest(FOREVER, kept);
            }
        }
    }
}

/// Finds the records that there are, and removes those that are too many.
fn rebuild_in_background(mill: &Mill) {
    let inner = Arc::downgrade(&mill.inner);
    let thread = std::thread::Builder::new().name("jobs-retention".to_owned());
    let started = thread.spawn(move || {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let mill = Mill { inner };
        if let Err(error) = rebuild(&mill)
            && !mill.inner.is_closed()
        {
            tracing::warn!(%error, "the records of ended jobs could not be counted");
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "the records of ended jobs are not counted: no thread");
    }
}

fn rebuild(mill: &Mill) -> Result<(), BackendError> {
    // This handle of the mill is not to keep it open when it is the last.
    let is_wanted = || !mill.inner.is_closed() && Arc::strong_count(&mill.inner) > 1;
    let mut found = Vec::new();
    let mut places = HashSet::new();
    mill.inner
        .backend
        .each_key(keys::RECORDS, &mut |key, value| {
            if let Some(id) = keys::id_of_record(&key) {
                // One text for all jobs of a queue.
                let place = match places.get(id.place()) {
                    Some(place) => Arc::clone(place),
                    None => Arc::clone(id.place_arc()),
                };
                places.insert(Arc::clone(&place));
                let id = JobId::new(place, id.number());
                let bytes = u32::try_from(key.len() + value.value.len()).unwrap_or(u32::MAX);
                let stored = 0;
                found.push((value.version, Kept { id, bytes, stored }));
            }
            is_wanted()
        })?;
    let retention = &mill.inner.retention;
    retention.rebuilt(found);
    loop {
        let evicted = retention.evict(0, 0, BATCH, |id| mill.inner.waiters.waits_for(id));
        if evicted.kept.is_empty() || !is_wanted() {
            retention.put_back(evicted);
            return Ok(());
        }
        let keys = evicted.changes().collect();
        let removed = mill.inner.backend.commit(&Changes {
            keys,
            ..Changes::default()
        });
        if let Err(error) = removed {
            retention.put_back(evicted);
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "embedded")]
    use crate::backend::{KeyValue, forward_backend};
    use crate::secs;

    const DAY: Keep = Keep::For(secs(86_400));

    fn id(number: u64) -> JobId {
        JobId::new("default", number)
    }

    fn numbers(retention: &Retention) -> Vec<u64> {
        let state = retention.state.lock();
        let kept: Vec<_> = state.lines.iter().flat_map(|line| &line.order).collect();
        let bytes: u64 = kept.iter().map(|kept| u64::from(kept.bytes)).sum();
        assert_eq!((state.bytes, state.records), (bytes, kept.len()));
        kept.iter().map(|kept| kept.id.number()).collect()
    }

    fn enter(retention: &Retention, number: u64, bytes: usize, waited_for: u64) {
        let evicted = retention.evict(bytes, 1, AT_ONCE, |one| one.number() == waited_for);
        assert!(evicted.changes().count() <= AT_ONCE);
        retention.entered(&id(number), bytes, DAY);
    }

    #[test]
    fn the_oldest_are_removed_by_number_and_by_bytes() {
        let retention = Retention::new(3, 100, Default::default());
        for number in 0..10 {
            enter(&retention, number, 10, u64::MAX);
        }
        assert_eq!(numbers(&retention), [7, 8, 9]);
        enter(&retention, 10, 85, u64::MAX);
        assert_eq!(numbers(&retention), [9, 10]);
        // One that is larger than all may be is kept alone.
        enter(&retention, 11, 200, u64::MAX);
        assert_eq!(numbers(&retention), [11]);
    }

    #[test]
    fn one_that_is_waited_for_is_kept() {
        let retention = Retention::new(3, 1000, Default::default());
        for number in 0..10 {
            enter(&retention, number, 10, 0);
        }
        assert!(numbers(&retention).contains(&0));
    }

    #[test]
    fn what_was_not_removed_is_the_oldest_again_and_what_has_expired_costs_nothing() {
        let retention = Retention::new(3, 1000, Default::default());
        for number in 0..3 {
            enter(&retention, number, 10, u64::MAX);
        }
        let evicted = retention.evict(10, 2, AT_ONCE, |_| false);
        assert_eq!(numbers(&retention), [2]);
        retention.put_back(evicted);
        assert_eq!(numbers(&retention), [0, 1, 2]);

        // One that is kept for a shorter time, behind those that are kept for longer.
        retention.put_back(retention.evict(10, 1, 1, |_| false));
        let mut state = retention.state.lock();
        let shorter = Kept {
            id: id(3),
            bytes: 10,
            stored: 0,
        };
        state.push(0, shorter);
        drop(state);
        let evicted = retention.evict(0, 0, AT_ONCE, |_| false);
        let left = (evicted.kept.len(), numbers(&retention));
        assert_eq!(left, (0, vec![0, 1, 2]));
    }

    #[test]
    fn of_records_that_are_kept_for_different_times_the_oldest_go_first() {
        let retention = Retention::new(4, 1000, Default::default());
        let stored = |number, stored| Kept {
            id: id(number),
            bytes: 10,
            stored,
        };
        let mut state = retention.state.lock();
        for number in 0..4 {
            state.push(
                [60, FOREVER][number % 2],
                stored(number as u64, 10 + number as u32),
            );
        }
        state.push_oldest(FOREVER, stored(9, 0));
        drop(state);
        let evicted = retention.evict(10, 2, AT_ONCE, |_| false);
        let numbers = evicted.kept.iter().map(|(_, one)| one.id.number());
        assert_eq!(numbers.collect::<Vec<_>>(), [9, 0, 1]);
    }

    #[test]
    fn those_of_an_earlier_process_are_older_and_none_is_counted_twice() {
        let retention = Retention::new(5, 1000, Default::default());
        enter(&retention, 9, 10, u64::MAX);
        let kept = |number| Kept {
            id: id(number),
            bytes: 10,
            stored: 0,
        };
        let found = [(30, 9), (20, 4), (10, 5)];
        let found = found.map(|(version, number)| (version, kept(number)));
        retention.rebuilt(found.to_vec());
        let mut found = numbers(&retention);
        found.sort_unstable();
        assert_eq!(found, [4, 5, 9]);
        let oldest = std::iter::from_fn(|| retention.state.lock().pop());
        let oldest = oldest.map(|(_, one)| one.id.number());
        assert_eq!(oldest.collect::<Vec<_>>(), [5, 4, 9]);
    }

    /// A backend with more records than anybody counts.
    #[cfg(feature = "embedded")]
    struct Endless {
        inner: crate::backend::Embedded,
        is_read: std::sync::mpsc::Sender<()>,
    }

    #[cfg(feature = "embedded")]
    impl crate::backend::Backend for Endless {
        forward_backend!(inner: capabilities on_end queue queue_names consumer wake_consumers get);
        forward_backend!(inner: keys commit extend damage flush close);

        fn each_key(
            &self,
            _: &[u8],
            see: &mut dyn FnMut(Vec<u8>, KeyValue) -> bool,
        ) -> Result<(), BackendError> {
            let value = || KeyValue {
                version: 1,
                value: Vec::new(),
            };
            while see(b"not a record".to_vec(), value()) {
                let _ = self.is_read.send(());
            }
            Ok(())
        }
    }

    #[cfg(feature = "embedded")]
    #[test]
    fn a_mill_whose_last_handle_is_dropped_ends_though_its_records_are_being_counted() {
        let dir = tempfile::tempdir().unwrap();
        let queues = logmill::Queues::options(dir.path().join("jobs")).open();
        let (is_read, reads) = std::sync::mpsc::channel();
        let backend = Endless {
            inner: crate::backend::Embedded::new(queues.unwrap(), logmill::Durability::Process),
            is_read,
        };
        let mill = Mill::with_backend(backend, crate::MillOptions::new());
        drop(NewRecord::new(&mill, &id(1), vec![0], secs(60)));
        reads.recv_timeout(secs(60)).unwrap();
        drop(mill);
        let start = Instant::now();
        // The sender goes with the backend.
        let left = loop {
            match reads.recv_timeout(secs(60)) {
                Ok(()) => assert!(start.elapsed() < secs(60), "it goes on"),
                Err(left) => break left,
            }
        };
        assert_eq!(left, std::sync::mpsc::RecvTimeoutError::Disconnected);
    }

    #[cfg(feature = "embedded")]
    #[test]
    fn a_record_that_could_not_be_stored_leaves_the_one_whose_room_it_was_to_take() {
        let dir = tempfile::tempdir().unwrap();
        let options = crate::MillOptions::new().max_results(1);
        let mill = Mill::builder(dir.path().join("jobs")).options(options);
        let mill = mill.open().unwrap();
        let store = |number, settled| {
            let record = NewRecord::new(&mill, &id(number), vec![0], secs(60));
            record.settled(&mill, &id(number), &settled);
        };
        store(1, Ok(()));
        store(2, Err(BackendError::Closed));
        assert_eq!(numbers(&mill.inner.retention), [1]);
        store(3, Ok(()));
        assert_eq!(numbers(&mill.inner.retention), [3]);
    }
}
