//! How many records of ended jobs are kept: by age as the backend expires them, and by number and
//! bytes here, the oldest first.
//!
//! The order is in memory, 32 bytes a record, and is rebuilt in the background after a restart, when
//! the first record is stored. Records are removed in the transactions in which others are stored, so
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
    /// The records, oldest first.
    order: VecDeque<Kept>,
    bytes: u64,
    /// Whether those that an earlier process left are, or are about to be, in the order.
    is_rebuilt: bool,
}

/// A record that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    id: JobId,
    /// Of its key and its value.
    bytes: u32,
    /// In seconds since the mill was opened; [`UNKNOWN`].
    expires: u32,
}

/// Of a record that an earlier process stored.
const UNKNOWN: u32 = u32::MAX;
/// As many are removed together with one that is stored: more than one, so that there are fewer with
/// time where a limit was lowered.
const AT_ONCE: usize = 4;
/// As many are removed in a transaction after the order was rebuilt.
const BATCH: usize = 256;

/// Records that are to be removed in a transaction; they are kept if that does not happen.
pub(crate) struct Evicted {
    kept: SmallVec<[Kept; AT_ONCE]>,
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
    fn push(&mut self, kept: Kept) {
        self.bytes += u64::from(kept.bytes);
        self.order.push_back(kept);
    }

    fn pop(&mut self) -> Option<Kept> {
        let kept = self.order.pop_front()?;
        self.bytes -= u64::from(kept.bytes);
        Some(kept)
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
        let mut kept = SmallVec::new();
        let mut state = self.state.lock();
        // What has expired is gone by itself.
        for _ in 0..most {
            match state.order.front() {
                Some(first) if first.expires <= now => drop(state.pop()),
                _ => break,
            }
        }
        for _ in 0..most {
            let is_full = state.order.len() + records > self.max_records
                || state.bytes.saturating_add(bytes) > self.max_bytes;
            let Some(first) = is_full.then(|| state.pop()).flatten() else {
                break;
            };
            // One that somebody is about to read is the newest again.
            match is_waited_for(&first.id) {
                true => state.push(first),
                false => kept.push(first),
            }
        }
        drop(state);
        let keys = kept.iter().map(|one: &Kept| keys::of_record(&one.id));
        Evicted {
            keys: keys.collect(),
            kept,
        }
    }

    /// A record was stored, and others were removed with it.
    pub(crate) fn entered(&self, id: &JobId, bytes: usize, keep: Keep) {
        let expires = match keep {
            Keep::Forever => UNKNOWN,
            Keep::For(time) => {
                let time = self.clock.now().checked_add(time);
                // Late rather than early: one that is counted for longer does no harm.
                time.map_or(UNKNOWN, |time| self.seconds(time).saturating_add(1))
            }
        };
        self.state.lock().push(Kept {
            id: id.clone(),
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            expires,
        });
    }

    /// The records are still there.
    pub(crate) fn put_back(&self, evicted: Evicted) {
        let mut state = self.state.lock();
        for kept in evicted.kept.into_iter().rev() {
            state.bytes += u64::from(kept.bytes);
            state.order.push_front(kept);
        }
    }

    fn seconds(&self, time: Instant) -> u32 {
        let seconds = time.saturating_duration_since(self.opened).as_secs();
        u32::try_from(seconds)
            .unwrap_or(UNKNOWN - 1)
            .min(UNKNOWN - 1)
    }

    /// Puts the records of earlier processes in front of those of this one.
    fn rebuilt(&self, mut found: Vec<(u64, Kept)>) {
        found.sort_unstable_by_key(|(version, _)| *version);
        let mut state = self.state.lock();
        let own: HashSet<_> = state.order.iter().map(|kept| kept.id.clone()).collect();
        for (_, kept) in found.into_iter().rev() {
            if !own.contains(&kept.id) {
                state.bytes += u64::from(kept.bytes);
                state.order.push_front(kept);
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
    let mut found = Vec::new();
    let mut places = HashSet::new();
    mill.inner
        .backend
        .each_key(keys::RECORDS, &mut |key, value| {
            if let Some(id) = keys::id_of_record(&key) {
                // One text for all jobs of a queue.
                let place = match places.get(id.place()) {
                    Some(place) => Arc::clone(place),
                    None => id.place_arc(),
                };
                places.insert(Arc::clone(&place));
                let id = JobId::new(place, id.number());
                let bytes = u32::try_from(key.len() + value.value.len()).unwrap_or(u32::MAX);
                let expires = UNKNOWN;
                found.push((value.version, Kept { id, bytes, expires }));
            }
            !mill.inner.is_closed()
        })?;
    let retention = &mill.inner.retention;
    retention.rebuilt(found);
    loop {
        let evicted = retention.evict(0, 0, BATCH, |id| mill.inner.waiters.waits_for(id));
        if evicted.kept.is_empty() || mill.inner.is_closed() {
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
    use crate::secs;

    const DAY: Keep = Keep::For(secs(86_400));

    fn id(number: u64) -> JobId {
        JobId::new("default", number)
    }

    fn numbers(retention: &Retention) -> Vec<u64> {
        let state = retention.state.lock();
        let bytes: u64 = state.order.iter().map(|kept| u64::from(kept.bytes)).sum();
        assert_eq!(state.bytes, bytes);
        state.order.iter().map(|kept| kept.id.number()).collect()
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

        retention.state.lock().order[0].expires = 0;
        let evicted = retention.evict(10, 1, AT_ONCE, |_| false);
        assert_eq!((evicted.kept.len(), numbers(&retention)), (0, vec![1, 2]));
    }

    #[test]
    fn those_of_an_earlier_process_are_older_and_none_is_counted_twice() {
        let retention = Retention::new(5, 1000, Default::default());
        enter(&retention, 9, 10, u64::MAX);
        let kept = |number| Kept {
            id: id(number),
            bytes: 10,
            expires: UNKNOWN,
        };
        let found = [(30, 9), (20, 4), (10, 5)];
        let found = found.map(|(version, number)| (version, kept(number)));
        retention.rebuilt(found.to_vec());
        assert_eq!(numbers(&retention), [5, 4, 9]);
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
