//! The index of the keys: where in the state log the value of each one is.
//!
//! It holds 16 bytes for each key and reads key and value in the log, whose segments it keeps
//! mapped.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;

use super::entry::{Entry, expiry_of};
use crate::Sequence;
use crate::Timestamp;
use crate::log::meta::Meta;
use crate::log::pinned::Pinned;
use crate::log::records::Record;

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

#[derive(Default)]
pub(super) struct Index {
    table: HashTable<Slot>,
    hasher: RandomState,
    /// The segments that have records of keys, oldest first.
    pins: Vec<Pinned>,
    /// The bases of those whose values were appended again. Other records may still keep them.
    cleaned: HashSet<Sequence>,
    /// Bytes of the records in the table.
    live_bytes: u64,
}

/// The hash for the table, of which a slot stores what it takes to compute it again.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The record at a place, in one of these segments.
fn record_at(pins: &[Pinned], place: Place) -> Option<Record<'_>> {
    let after = pins.partition_point(|pin| pin.segment().base() <= place.record);
    pins.get(after.checked_sub(1)?)?.record(place.units)
}

fn has_key(pins: &[Pinned], place: Place, key: &[u8]) -> bool {
    record_at(pins, place).is_some_and(|record| Entry::of(&record) == Entry::Value { key })
}

impl Index {
    fn hash(&self, key: &[u8]) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Keeps a segment mapped, for the records of keys in it.
    pub(super) fn keep(&mut self, pin: impl FnOnce() -> Option<Pinned>, base: Sequence) {
        let at = self.pins.partition_point(|pin| pin.segment().base() < base);
        if self
            .pins
            .get(at)
            .is_none_or(|pin| pin.segment().base() != base)
            && let Some(pin) = pin()
        {
            self.pins.insert(at, pin);
        }
    }

    /// Lets go of segments in which all is done.
    pub(super) fn let_go(&mut self) {
        let Self { pins, cleaned, .. } = self;
        pins.retain(|pin| {
            let is_kept = !pin.segment().is_complete();
            if !is_kept {
                cleaned.remove(&pin.segment().base());
            }
            is_kept
        });
    }

    /// Lets go of all segments, for a log that is closed.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Where the record of a key is, expired or not.
    pub(super) fn place_of(&self, key: &[u8]) -> Option<Place> {
        let hash = self.hash(key);
        let is_it = |slot: &Slot| slot.hash == hash && has_key(&self.pins, slot.place(), key);
        self.table.find(spread(hash), is_it).map(Slot::place)
    }

    /// The value of a key that has not expired.
    pub(super) fn get(&self, key: &[u8], now: Timestamp) -> Option<Found> {
        let place = self.place_of(key)?;
        let record = record_at(&self.pins, place)?;
        let meta = Meta::decode(record.meta());
        let expires_at = meta.options.expires_at;
        if expires_at.is_some_and(|at| at <= now) {
            return None;
        }
        Some(Found {
            value: record.payload().to_vec(),
            version: meta.original.unwrap_or(place.record).get(),
            expires_at,
        })
    }

    /// The version of a key that has not expired.
    pub(super) fn version_of(&self, key: &[u8], now: Timestamp) -> Option<u64> {
        let place = self.place_of(key)?;
        let record = record_at(&self.pins, place)?;
        let meta = Meta::decode(record.meta());
        let is_over = meta.options.expires_at.is_some_and(|at| at <= now);
        (!is_over).then(|| meta.original.unwrap_or(place.record).get())
    }

    /// Points a key to its new record, whose segment is kept. Returns where the old one is.
    pub(super) fn insert(&mut self, key: &[u8], place: Place) -> Option<Place> {
        let hash = self.hash(key);
        let Self {
            table,
            pins,
            live_bytes,
            ..
        } = self;
        let len = |place| record_at(pins, place).map_or(0, |record| record.header().len.into());
        *live_bytes += len(place);
        let is_it = |slot: &Slot| slot.hash == hash && has_key(pins, slot.place(), key);
        match table.entry(spread(hash), is_it, |slot| spread(slot.hash)) {
            TableEntry::Occupied(mut slot) => {
                let old = std::mem::replace(slot.get_mut(), Slot::new(place, hash)).place();
                *live_bytes -= len(old);
                Some(old)
            }
            TableEntry::Vacant(slot) => {
                slot.insert(Slot::new(place, hash));
                None
            }
        }
    }

    /// Forgets a key, if its record is the one at this place.
    pub(super) fn remove(&mut self, key: &[u8], place: Place) {
        let hash = self.hash(key);
        let is_it = |slot: &Slot| slot.place() == place;
        if let Ok(slot) = self.table.find_entry(spread(hash), is_it) {
            slot.remove();
            let len = record_at(&self.pins, place).map_or(0, |record| record.header().len.into());
            self.live_bytes -= len;
        }
    }

    /// The full segments that have records of keys and were not cleaned, oldest first.
    fn full(&self) -> impl Iterator<Item = &Pinned> {
        self.pins.iter().filter(|pin| {
            let segment = pin.segment();
            segment.closed().is_some() && !self.cleaned.contains(&segment.base())
        })
    }

    /// Notes that the values of the segment with this base were appended again.
    pub(super) fn note_cleaned(&mut self, base: Sequence) {
        self.cleaned.insert(base);
    }

    /// The base of the oldest segment that is full, has records of keys and was not cleaned, with
    /// the places of its records.
    pub(super) fn oldest_full(&self) -> Option<(Sequence, Vec<Place>)> {
        let pin = self.full().next()?;
        let places = pin.live_records().map(|record| Place {
            record: pin.segment().sequence(record.header().index),
            units: record.units(),
        });
        let places = places.collect();
        Some((pin.segment().base(), places))
    }

    pub(super) fn record_at(&self, place: Place) -> Option<Record<'_>> {
        record_at(&self.pins, place)
    }

    /// Bytes of the segments that are full and were not cleaned.
    pub(super) fn full_bytes(&self) -> u64 {
        let full = self.full().filter_map(|pin| pin.segment().closed());
        full.map(|end| u64::from(end.units) * crate::log::record::UNIT as u64)
            .sum()
    }

    /// Whether the value at a place has expired.
    pub(super) fn has_expired(&self, place: Place, now: Timestamp) -> bool {
        let record = record_at(&self.pins, place);
        record.is_some_and(|record| expiry_of(&record).is_some_and(|at| at <= now))
    }
}
