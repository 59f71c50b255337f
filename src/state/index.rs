//! The index of the keys: where in the state log the value of each one is.
//!
//! It holds 16 bytes for each key and reads key and value in the log, whose segments it keeps
//! mapped as long as they have values of keys.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;

use super::entry::{Entry, expiry_of};
use crate::log::meta::Meta;
use crate::log::pinned::Pinned;
use crate::log::record::{UNIT, units_of};
use crate::log::records::Record;
use crate::{Sequence, Timestamp, time};

/// The keys are spread over so many tables, so that no caller waits for more than a small one to
/// grow.
pub(super) const SHARDS: usize = 256;
/// A table that is emptier than this is given less memory.
const SLOTS_PER_KEY: usize = 8;
/// Smaller tables keep their memory.
const SMALL_TABLE: usize = 32;
/// How long a segment is left alone after it was searched for values that have expired.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// The place of a key's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) record: Sequence,
    pub(super) units: u32,
}

struct Slot {
    record: Sequence,
    units: u32,
    /// The lower half of the key's hash.
    hash: u32,
}

impl Slot {
    fn new(place: Place, hash: u32) -> Self {
        let Place { record, units } = place;
        Self {
            record,
            units,
            hash,
        }
    }

    fn place(&self) -> Place {
        Place {
            record: self.record,
            units: self.units,
        }
    }
}

// There may be millions of them.
const _: () = assert!(size_of::<Slot>() == 16);

/// The value of a key, copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) value: Vec<u8>,
    /// The sequence of the record that the value was first written with.
    pub(crate) version: u64,
    pub(crate) expires_at: Option<Timestamp>,
}

impl Found {
    /// The value in a record, unless it has expired.
    fn of(record: &Record<'_>, place: Place, now: Timestamp) -> Option<Self> {
        let meta = Meta::decode(record.meta());
        let expires_at = meta.options.expires_at;
        if expires_at.is_some_and(|at| at <= now) {
            return None;
        }
        Some(Self {
            value: record.payload().to_vec(),
            version: meta.original.unwrap_or(place.record).get(),
            expires_at,
        })
    }
}

pub(super) struct Index {
    tables: Vec<HashTable<Slot>>,
    hasher: RandomState,
    kept: KeptSegments,
    len: usize,
    /// When the first segment is to be searched for values that have expired.
    next_sweep: Option<Timestamp>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            tables: (0..SHARDS).map(|_| HashTable::new()).collect(),
            hasher: RandomState::new(),
            kept: KeptSegments::default(),
            len: 0,
            next_sweep: None,
        }
    }
}

/// The segments that have values of keys, oldest first.
#[derive(Default)]
struct KeptSegments(Vec<Kept>);

/// A segment that has values of keys.
struct Kept {
    pin: Pinned,
    /// Bytes of the records in it that the index points to.
    live: u64,
    /// When to search it for values that have expired, by the wall clock.
    sweep_at: Option<Timestamp>,
    /// When it was last searched.
    swept: Option<Instant>,
}

impl KeptSegments {
    fn find(&self, record: Sequence) -> Option<&Kept> {
        let after = self
            .0
            .partition_point(|kept| kept.pin.segment().base() <= record);
        self.0.get(after.checked_sub(1)?)
    }

    fn find_mut(&mut self, record: Sequence) -> Option<&mut Kept> {
        let after = self
            .0
            .partition_point(|kept| kept.pin.segment().base() <= record);
        self.0.get_mut(after.checked_sub(1)?)
    }

    fn record_at(&self, place: Place) -> Option<Record<'_>> {
        self.find(place.record)?.pin.record(place.units)
    }

    fn has_key(&self, place: Place, key: &[u8]) -> bool {
        self.record_at(place)
            .is_some_and(|record| Entry::of(&record) == Entry::Value { key })
    }
}

impl Kept {
    /// How long until it is to be searched; zero if it is due.
    fn sweep_in(&self, now: Timestamp) -> Option<Duration> {
        let expiry = self.sweep_at?.since(now);
        let since = self.swept.map(|swept| time::now().duration_since(swept));
        let pause = since.map_or(Duration::ZERO, |since| SWEEP_PAUSE.saturating_sub(since));
        Some(expiry.max(pause))
    }
}

/// Bytes that a record takes in its segment.
fn bytes_of(record: &Record<'_>) -> u64 {
    u64::from(units_of(record.header().len as usize)) * UNIT as u64
}

/// Which table a hash belongs to.
fn shard_of(hash: u32) -> usize {
    (hash >> 24) as usize
}

const _: () = assert!(SHARDS == 1 << 8);

/// The hash for a table, of which a slot stores what it takes to compute it again.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Index {
    fn hash(&self, key: &[u8]) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Keeps a segment mapped, for the records of keys in it.
    pub(super) fn keep(&mut self, pin: impl FnOnce() -> Option<Pinned>, base: Sequence) {
        let kept = &mut self.kept.0;
        let at = kept.partition_point(|one| one.pin.segment().base() < base);
        let is_new = kept
            .get(at)
            .is_none_or(|one| one.pin.segment().base() != base);
        if is_new && let Some(pin) = pin() {
            let new = Kept {
                pin,
                live: 0,
                sweep_at: None,
                swept: None,
            };
            kept.insert(at, new);
        }
    }

    /// Lets go of full segments without values of keys, and returns them: the last share of a
    /// mapping is better dropped without a lock.
    #[must_use]
    pub(super) fn let_go(&mut self) -> Vec<Pinned> {
        let is_unused = |kept: &mut Kept| kept.live == 0 && kept.pin.segment().closed().is_some();
        let gone = self.kept.0.extract_if(.., is_unused);
        gone.map(|kept| kept.pin).collect()
    }

    /// Lets go of all segments, for a log that is closed.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Where the record of a key is, expired or not.
    pub(super) fn place_of(&self, key: &[u8]) -> Option<Place> {
        let hash = self.hash(key);
        let is_it = |slot: &Slot| slot.hash == hash && self.kept.has_key(slot.place(), key);
        self.tables[shard_of(hash)]
            .find(spread(hash), is_it)
            .map(Slot::place)
    }

    /// The value of a key that has not expired.
    pub(super) fn get(&self, key: &[u8], now: Timestamp) -> Option<Found> {
        let place = self.place_of(key)?;
        Found::of(&self.kept.record_at(place)?, place, now)
    }

    /// The version of a key that has not expired.
    pub(super) fn version_of(&self, key: &[u8], now: Timestamp) -> Option<u64> {
        let place = self.place_of(key)?;
        let meta = Meta::decode(self.kept.record_at(place)?.meta());
        let is_over = meta.options.expires_at.is_some_and(|at| at <= now);
        (!is_over).then(|| meta.original.unwrap_or(place.record).get())
    }

    /// The key whose value is at a place in a segment that is kept.
    pub(super) fn key_at(&self, place: Place) -> Option<Vec<u8>> {
        match Entry::of(&self.kept.record_at(place)?) {
            Entry::Value { key } => Some(key.to_vec()),
            _ => None,
        }
    }

    /// The keys of one of the [`SHARDS`] that begin with `prefix` and have not expired, with their
    /// values.
    pub(super) fn in_shard(
        &self,
        shard: usize,
        prefix: &[u8],
        now: Timestamp,
    ) -> Vec<(Vec<u8>, Found)> {
        let found = |slot: &Slot| {
            let record = self.kept.record_at(slot.place())?;
            match Entry::of(&record) {
                Entry::Value { key } if key.starts_with(prefix) => {
                    Some((key.to_vec(), Found::of(&record, slot.place(), now)?))
                }
                _ => None,
            }
        };
        self.tables[shard].iter().filter_map(found).collect()
    }

    /// Points a key to its new record, whose segment is kept. Returns where the old one is.
    pub(super) fn insert(&mut self, key: &[u8], place: Place) -> Option<Place> {
        let hash = self.hash(key);
        let Self { tables, kept, .. } = self;
        let is_it = |slot: &Slot| slot.hash == hash && kept.has_key(slot.place(), key);
        let table = &mut tables[shard_of(hash)];
        let old = match table.entry(spread(hash), is_it, |slot| spread(slot.hash)) {
            TableEntry::Occupied(mut slot) => {
                Some(std::mem::replace(slot.get_mut(), Slot::new(place, hash)).place())
            }
            TableEntry::Vacant(slot) => {
                slot.insert(Slot::new(place, hash));
                None
            }
        };
        match old {
            Some(old) => self.count_out(old),
            None => self.len += 1,
        }
        self.count_in(place);
        old
    }

    /// Forgets a key, if its record is the one at this place. Returns whether it was.
    pub(super) fn remove(&mut self, key: &[u8], place: Place) -> bool {
        let hash = self.hash(key);
        let table = &mut self.tables[shard_of(hash)];
        let Ok(slot) = table.find_entry(spread(hash), |slot| slot.place() == place) else {
            return false;
        };
        slot.remove();
        if table.capacity() > SMALL_TABLE && table.len() < table.capacity() / SLOTS_PER_KEY {
            table.shrink_to(2 * table.len(), |slot| spread(slot.hash));
        }
        self.len -= 1;
        self.count_out(place);
        true
    }

    fn count_in(&mut self, place: Place) {
        let Some(kept) = self.kept.find_mut(place.record) else {
            debug_assert!(false, "the segment of a value is not kept");
            return;
        };
        let Some(record) = kept.pin.record(place.units) else {
            return;
        };
        kept.live += bytes_of(&record);
        if let Some(expiry) = expiry_of(&record) {
            let sooner = |at: Option<Timestamp>| at.is_none_or(|at| expiry < at);
            if sooner(kept.sweep_at) {
                kept.sweep_at = Some(expiry);
            }
            if sooner(self.next_sweep) {
                self.next_sweep = Some(expiry);
            }
        }
    }

    fn count_out(&mut self, place: Place) {
        if let Some(kept) = self.kept.find_mut(place.record)
            && let Some(record) = kept.pin.record(place.units)
        {
            kept.live -= bytes_of(&record);
        } else {
            debug_assert!(false, "the segment of a value is not kept");
        }
    }

    /// When the first segment is to be searched for values that have expired. An insert makes it
    /// earlier, nothing but a sweep later.
    pub(super) fn next_sweep(&self) -> Option<Timestamp> {
        self.next_sweep
    }

    /// A segment to be searched for values that have expired at this time; otherwise, how long
    /// until there is one.
    pub(super) fn begin_sweep(&mut self, now: Timestamp) -> Result<Pinned, Option<Duration>> {
        let kept = &mut self.kept.0;
        let is_due = |kept: &&mut Kept| kept.sweep_in(now) == Some(Duration::ZERO);
        if let Some(due) = kept.iter_mut().find(is_due) {
            // An insert may set the next time from here on.
            due.sweep_at = None;
            due.swept = Some(time::now());
            return Ok(due.pin.another());
        }
        self.next_sweep = kept.iter().filter_map(|kept| kept.sweep_at).min();
        Err(kept.iter().filter_map(|kept| kept.sweep_in(now)).min())
    }

    /// Called after the search of a segment, with the time of the next one.
    pub(super) fn end_sweep(&mut self, swept: &Pinned, next: Option<Timestamp>) {
        let base = swept.segment().base();
        if let Some(kept) = self.kept.find_mut(base)
            && kept.pin.segment().base() == base
        {
            kept.sweep_at = kept.sweep_at.into_iter().chain(next).min();
        }
    }

    /// The sealed segment with the least share of valid values, if all of them together take more
    /// than `spare` bytes beyond `per_live` for each byte of valid values. Beside its records, each
    /// takes `overhead` bytes.
    pub(super) fn to_clean(&self, spare: u64, per_live: u64, overhead: u64) -> Option<Pinned> {
        // What is sealed is durable, and settles nothing any more.
        let is_sealed = |kept: &&Kept| kept.pin.segment().is_sealed();
        let sealed = || self.kept.0.iter().filter(is_sealed);
        let bytes_of = |kept: &Kept| {
            let end = kept.pin.segment().closed();
            end.map_or(0, |end| u64::from(end.units) * UNIT as u64) + overhead
        };
        let bytes: u64 = sealed().map(bytes_of).sum();
        let live: u64 = sealed().map(|kept| kept.live).sum();
        if bytes.saturating_sub(spare) <= live * per_live {
            return None;
        }
        let share = |kept: &&Kept| kept.live * 1024 / bytes_of(kept).max(1);
        sealed().min_by_key(share).map(|kept| kept.pin.another())
    }

    /// Whether a segment has values of keys.
    pub(super) fn has_values_in(&self, base: Sequence) -> bool {
        let kept = self.kept.find(base);
        kept.is_some_and(|kept| kept.pin.segment().base() == base && kept.live > 0)
    }

    /// Checks the counts against what the tables have.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let slots = || self.tables.iter().flatten();
        assert_eq!(slots().count(), self.len);
        let mut live = std::collections::BTreeMap::<_, u64>::new();
        for slot in slots() {
            let kept = self.kept.find(slot.record).expect("a kept segment");
            let record = kept.pin.record(slot.units).expect("a record");
            let index = slot.record.offset_from(kept.pin.segment().base());
            assert_eq!(record.header().index, index);
            assert!(
                matches!(Entry::of(&record), Entry::Value { key } if self.hash(key) == slot.hash)
            );
            assert!(!kept.pin.is_done(index), "the value of a key is done");
            *live.entry(kept.pin.segment().base()).or_default() += bytes_of(&record);
            if let Some(expiry) = expiry_of(&record) {
                assert!(kept.sweep_at.is_some(), "{expiry:?} is not looked for");
                assert!(self.next_sweep <= kept.sweep_at);
            }
        }
        for kept in &self.kept.0 {
            let base = kept.pin.segment().base();
            assert_eq!(kept.live, live.get(&base).copied().unwrap_or(0));
        }
    }

    /// Slots for which there is memory.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.tables.iter().map(HashTable::capacity).sum()
    }

    /// How many segments are kept.
    #[cfg(test)]
    pub(super) fn segments(&self) -> usize {
        self.kept.0.len()
    }
}
