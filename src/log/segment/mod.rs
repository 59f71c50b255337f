//! A segment: a run of records in one mapped file, with their acks in a second file beside it.
//!
//! A segment goes through these states: *open* (producers reserve and commit), *full* (the tail is
//! closed), *sealed* (flushed, its end written into the header, truncated), *claimed* from,
//! *complete* (every record done, sealed or not), *retired* (unmapped and deleted). A segment that
//! *waits* behind the one that is claimed from, and each one found sealed at open, need not be
//! mapped until it is claimed from.
//!
//! # What keeps the mapping alive
//! The counters of a segment live on the heap. Its two mappings are in [`Maps`], which [`Mapping`]
//! hands out. They are dropped when no share of them is left after
//! - [`Segment::retire`], which requires that the segment is complete, or
//! - [`Segment::end_wait_use`], which requires that it is full, every record is committed and
//!   durable, and its closer is done; its caller ensures that nothing was ever claimed from it and
//!   that nobody begins to.
//!
//! So these may use the mappings without a share:
//! - the holder of a reservation: that record is not committed, and not done;
//! - the closer: before the close has been counted the segment is not complete, and the closer not
//!   done;
//! - the holder of a claimed run or of a [`Lease`] in it: it was claimed from while it was mapped
//!   for use (see [`Log::claim`](super::Log::claim)), and the record is not done.
//!
//! All other code uses a [`Pinned`], which owns a share.
//!
//! This file is the writing side; `pinned.rs`, `run.rs` and `lease.rs` read.

#![allow(unsafe_code)]

mod durability;
mod files;
#[cfg(test)]
mod tests;
mod unsettled;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use self::files::create_segment_file;
pub(crate) use self::files::{Maps, Paths, Warm, create_ack_file};
pub(crate) use self::unsettled::Unsettled;
use super::ack::{self, AckFile};
use super::crc::Crc32;
use super::flush::FlushGate;
use super::flushed_acks::{DeliveriesChanged, FlushedAcks};
use super::header::{self, Identity};
use super::mapping::Mapping;
use super::names::Names;
use super::owed::Owed;
use super::progress::Progress;
use super::record::{self, HEADER_UNITS, Header, NewRecord, RECORD_HEADER_BYTES, UNIT};
use super::records::{Record, Records, write_record};
use super::tail::{Cursor, Position, Reserved, Tail};
use crate::events::Mutex;
use crate::storage::mapped::MappedFile;
use crate::storage::mappings::Purpose;
use crate::storage::{Entry, Operation, StorageError};
use crate::time;
use crate::{Sequence, Timestamp};

/// The position of the first record.
pub(crate) const START: Position = Position {
    index: 0,
    units: (header::FILE_HEADER_BYTES / UNIT) as u32,
};

/// Most records that a segment of `segment_size` bytes can hold. This is also the distance between
/// the bases of consecutive segments, so that a segment's name is known before the one before it is
/// full.
pub(crate) fn capacity_of(segment_size: u64) -> u32 {
    ((segment_size as usize - header::FILE_HEADER_BYTES) / RECORD_HEADER_BYTES) as u32
}

/// A segment's state in memory.
pub(crate) struct Segment {
    identity: Identity,
    crc: Crc32,
    pub(super) tail: Tail,
    pub(super) cursor: Cursor,
    progress: Progress,
    mapping: Mapping,
    paths: Paths,
    records_gate: FlushGate,
    acks_gate: FlushGate,
    flushed_acks: FlushedAcks,
    pub(super) deliveries_changed: DeliveriesChanged,
    names: Arc<Names>,
    owed: Owed,
    /// Whether it was found at open, rather than created since.
    pub(super) recovered: bool,
    /// Records that are done without having been acked since the open: found done, or marked done
    /// since then other than through a lease.
    pub(super) not_acked: AtomicU32,
    /// Whether it must be checked record by record before anything is read from it: it was sealed
    /// by an earlier process, or is damaged in a way that could not be mended yet.
    unscanned: AtomicBool,
    sealed: AtomicBool,
    /// When it was found full, unless that was at open.
    full_since: OnceLock<Instant>,
    /// Whether a flush has begun, so that data on disk may be relied on.
    flushed: AtomicBool,
    /// Whether all records that it will ever have are durable.
    settled: AtomicBool,
    /// Whether some of its pages cannot be made present.
    abandoned: AtomicBool,
    /// Whether the names of its files are durable.
    named: AtomicBool,
    /// All jobs before this position are done: where to look for the oldest one.
    pub(super) oldest: AtomicU32,
    /// No job before this position waits for its first handler, or will.
    pub(super) waiting: AtomicU32,
    /// See [`left_bytes`](Self::left_bytes).
    left_bytes: Mutex<(u32, u64)>,
    /// Its first job that is not done, as found before it was scanned.
    pub(super) first_job: OnceLock<Option<Header>>,
}

/// The initial state in memory of a segment found at open.
pub(crate) struct Found {
    pub(crate) end: Position,
    pub(crate) sealed: bool,
    pub(crate) unscanned: bool,
    pub(crate) done: Done,
}

/// The acks of a segment found at open.
#[derive(Clone, Copy, Default)]
pub(crate) struct Done {
    records: u32,
    full_words: u32,
}

impl Done {
    /// Counts the acks of the first `records` records; the bits past them are set.
    pub(crate) fn count(acks: &AckFile, records: u32) -> Self {
        let words = ack::words_for(records);
        let mut done = Self::default();
        for bits in (0..words).map(|word| acks.done_bits(word)) {
            done.full_words += u32::from(bits == u32::MAX);
            done.records += bits.count_ones();
        }
        let past = words * ack::RECORDS_PER_WORD - records;
        done.records = done.records.saturating_sub(past);
        done
    }
}

impl Segment {
    /// Creates the files of a segment and prefaults them as far as `warm` says. The first flush
    /// makes their names durable. Leaves nothing behind on failure.
    pub(crate) fn create(
        names: &Arc<Names>,
        identity: Identity,
        warm: Warm,
    ) -> Result<Arc<Self>, StorageError> {
        let paths = Paths::new(names, identity.base);
        let capacity = capacity_of(identity.segment_size);
        // The segment file first: an ack file beside an empty segment would look like what is left
        // of truncated records.
        let records = create_segment_file(&paths.segment, &identity, warm)?;
        let acks = create_ack_file(&paths.ack, &identity, capacity, warm).inspect_err(|_| {
            // A segment without records is removed by the next open.
            let _ = paths.segment.remove();
        })?;
        let end_units = (identity.segment_size as usize / UNIT) as u32;
        Ok(Self::assemble(
            identity,
            Tail::open(START, end_units),
            Mapping::of(Maps { records, acks }),
            paths,
            names,
            None,
        ))
    }

    /// Makes a segment of a spare's files, which have their names and headers, and records before
    /// `tail`.
    pub(super) fn from_spare(
        identity: Identity,
        maps: Maps,
        tail: Position,
        paths: Paths,
        names: &Arc<Names>,
    ) -> Arc<Self> {
        let end_units = (identity.segment_size as usize / UNIT) as u32;
        let tail = Tail::open(tail, end_units);
        Self::assemble(identity, tail, Mapping::of(maps), paths, names, None)
    }

    /// Makes a segment of complete files found at open. A segment that is sealed, and so durable,
    /// is not mapped before it is claimed from.
    pub(crate) fn recover(
        identity: Identity,
        maps: Maps,
        paths: Paths,
        names: &Arc<Names>,
        found: &Found,
    ) -> Arc<Self> {
        let mapping = match found.sealed {
            true => Mapping::absent(),
            false => Mapping::of(maps),
        };
        Self::assemble(
            identity,
            Tail::closed_at(found.end),
            mapping,
            paths,
            names,
            Some(found),
        )
    }

    /// A placeholder without files, as if retired: it is empty, and nothing fits into it.
    pub(super) fn full(names: &Arc<Names>, base: Sequence) -> Arc<Self> {
        let identity = Identity {
            base,
            segment_size: 0,
            created_at: Timestamp::ZERO,
            salt: 0,
        };
        let found = Found {
            end: START,
            sealed: false,
            unscanned: false,
            done: Done::default(),
        };
        let tail = Tail::closed_at(START);
        let paths = Paths::new(names, base);
        Self::assemble(
            identity,
            tail,
            Mapping::retired(),
            paths,
            names,
            Some(&found),
        )
    }

    fn assemble(
        identity: Identity,
        tail: Tail,
        mapping: Mapping,
        paths: Paths,
        names: &Arc<Names>,
        found: Option<&Found>,
    ) -> Arc<Self> {
        let progress = found.map_or_else(Progress::open, |found| {
            let words = ack::words_for(found.end.index);
            Progress::closed(words, found.done.full_words)
        });
        let done_at_open = found.map_or(0, |found| found.done.records);
        Arc::new(Self {
            identity,
            crc: Crc32::new(),
            tail,
            cursor: Cursor::new(START),
            progress,
            mapping,
            paths,
            records_gate: FlushGate::new(),
            acks_gate: FlushGate::new(),
            flushed_acks: FlushedAcks::new(),
            deliveries_changed: DeliveriesChanged::new(),
            names: Arc::clone(names),
            owed: Owed::nothing(),
            recovered: found.is_some(),
            not_acked: AtomicU32::new(done_at_open),
            unscanned: AtomicBool::new(found.is_some_and(|found| found.unscanned)),
            sealed: AtomicBool::new(found.is_some_and(|found| found.sealed)),
            full_since: OnceLock::new(),
            flushed: AtomicBool::new(found.is_some()),
            settled: AtomicBool::new(found.is_some_and(|found| found.sealed)),
            abandoned: AtomicBool::new(false),
            named: AtomicBool::new(found.is_some_and(|found| found.sealed)),
            oldest: AtomicU32::new(START.units),
            waiting: AtomicU32::new(START.units),
            left_bytes: Mutex::default(),
            first_job: OnceLock::new(),
        })
    }

    /// Prefaults what a creation with [`Warm::Start`] has left out, while other threads use the
    /// segment.
    pub(crate) fn warm_up(&self) -> Result<(), StorageError> {
        let Some(maps) = self.maps() else {
            return Ok(());
        };
        let Maps { records, acks } = &*maps;
        records.file.prefault_from(Warm::Start.records())?;
        acks.file.prefault_from(0)
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn base(&self) -> Sequence {
        self.identity.base
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    pub(crate) fn sequence(&self, index: u32) -> Sequence {
        self.identity.base.plus(index)
    }

    /// Whether it was found at open, rather than created since.
    pub(crate) fn is_recovered(&self) -> bool {
        self.recovered
    }

    /// The final position, once full.
    pub(crate) fn closed(&self) -> Option<Position> {
        self.tail.closed()
    }

    /// How far reservations have come.
    pub(crate) fn reached(&self) -> Position {
        self.tail.reached()
    }

    /// How far claims have come.
    pub(crate) fn claimed(&self) -> Position {
        self.cursor.position()
    }

    /// Whether there may be something to claim, for a consumer that is about to sleep.
    pub(crate) fn may_have_work(&self) -> bool {
        self.tail.reserved_past(self.cursor.position()) && !self.is_retired()
    }

    /// Whether its mappings were given up.
    pub(crate) fn is_retired(&self) -> bool {
        self.mapping.is_retired()
    }

    /// Records that are done without having been acked since the open.
    pub(crate) fn not_acked(&self) -> u32 {
        self.not_acked.load(Ordering::Relaxed)
    }

    /// Whether it may have a job that waits for its first handler, or will.
    pub(super) fn may_have_waiting(&self) -> bool {
        // Relaxed: the value only grows.
        let passed = self.waiting.load(Ordering::Relaxed);
        self.closed().is_none_or(|end| passed < end.units)
    }

    /// Records the time at which it was found full.
    pub(super) fn note_full(&self) {
        self.full_since.get_or_init(time::now);
    }

    /// How long ago it was found full: `Duration::MAX` for a segment found at open, zero for one
    /// that has not been found full yet.
    pub(super) fn full_for(&self) -> Duration {
        match self.full_since.get() {
            Some(since) => time::now().duration_since(*since),
            None if self.recovered => Duration::MAX,
            None => Duration::ZERO,
        }
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn is_unscanned(&self) -> bool {
        self.unscanned.load(Ordering::Acquire)
    }

    pub(crate) fn set_scanned(&self) {
        // Release: a thread that finds the flag cleared sees what the scan mended.
        self.unscanned.store(false, Ordering::Release);
    }

    /// Whether every record is done and none can follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.progress.is_complete()
    }

    /// Whether nothing in it is needed any more.
    pub(super) fn can_go(&self) -> bool {
        self.has_nothing_left() && self.owes_nothing()
    }

    /// Whether it has neither unfinished jobs nor damage that could not be set aside yet.
    pub(super) fn has_nothing_left(&self) -> bool {
        self.is_complete() && (self.is_sealed() || !self.is_unscanned())
    }

    /// Whether no record of it names a settlement that is not durable, for a caller that has seen
    /// all of them committed.
    pub(crate) fn owes_nothing(&self) -> bool {
        self.owed.is_nothing()
    }

    /// Reserves and commits one record.
    #[inline(always)]
    pub(crate) fn append(&self, record: &NewRecord<'_>) -> Append {
        let content = self.content_check(record);
        match self.tail.reserve(1, record::units_of(record.len())) {
            Reserved::At(position) => {
                self.commit(position, record, content);
                Append::Done(position)
            }
            Reserved::Closing(position) => Append::Full {
                complete: self.close(position),
            },
            Reserved::Closed => Append::Full { complete: false },
        }
    }

    /// The bytes of the jobs left in it; counted again only when their number has changed.
    pub(super) fn left_bytes(&self, jobs: u32, count: impl FnOnce() -> u64) -> u64 {
        let mut left = self.left_bytes.lock();
        if left.0 != jobs {
            *left = (jobs, count());
        }
        left.1
    }

    /// Reserves records for all payloads in one step and commits them in order. Everything else in
    /// them is as in `template`.
    pub(crate) fn append_all(&self, template: &NewRecord<'_>, payloads: &[&[u8]]) -> Append {
        let records = || {
            payloads
                .iter()
                .map(|payload| template.with_payload(payload))
        };
        let units = |record: &NewRecord<'_>| record::units_of(record.len());
        let all_units = records().map(|record| units(&record)).sum();
        match self.tail.reserve(payloads.len() as u32, all_units) {
            Reserved::At(first) => {
                let mut position = first;
                for record in records() {
                    self.commit(position, &record, self.content_check(&record));
                    position.index += 1;
                    position.units += units(&record);
                }
                Append::Done(first)
            }
            Reserved::Closing(position) => Append::Full {
                complete: self.close(position),
            },
            Reserved::Closed => Append::Full { complete: false },
        }
    }

    #[inline(always)]
    fn content_check(&self, record: &NewRecord<'_>) -> u32 {
        record::content_check(&self.crc, record.meta, record.payload)
    }

    #[inline(always)]
    fn commit(&self, position: Position, record: &NewRecord<'_>, content: u32) {
        // SAFETY: the caller holds the reservation of this record, which is not committed.
        let records = &unsafe { self.maps_in_use() }.records.file;
        // SAFETY: nobody else touches the bytes of a reserved and uncommitted record.
        unsafe { write_record(records, self.identity.salt, position, record, content) };
    }

    /// Publishes the end. Returns whether that made the segment complete.
    fn close(&self, end: Position) -> bool {
        self.tail.close(end);
        // SAFETY: the closer is not done before `progress.close` below has counted the close.
        let acks = &unsafe { self.maps_in_use() }.acks;
        let mut filled = 0;
        for index in end.index..ack::words_for(end.index) * ack::RECORDS_PER_WORD {
            filled += u32::from(acks.set_once(index));
        }
        self.progress.close(ack::words_for(end.index), filled)
    }

    /// Closes the segment at its current end, for shutdown. Returns whether that made it complete.
    pub(crate) fn close_now(&self) -> bool {
        match self.tail.close_now() {
            Some(end) => self.close(end),
            None => {
                // The thread that crossed the end publishes it in a moment.
                while self.closed().is_none() {
                    std::thread::yield_now();
                }
                false
            }
        }
    }

    /// Counts an ack word that the caller has filled. Returns whether that completed the segment.
    #[inline]
    pub(super) fn count_full_word(&self) -> bool {
        self.progress.count_full_words(1)
    }

    /// The mappings, without a share of them.
    ///
    /// # Safety
    /// The caller is one of those that the module's documentation names, for as long as it uses
    /// them.
    #[inline(always)]
    pub(super) unsafe fn maps_in_use(&self) -> &Maps {
        let maps = self.mapping.raw();
        debug_assert!(!maps.is_null(), "not mapped");
        // SAFETY: `Mapping` holds them, as the segment is mapped for use and stays so by this
        // function's contract.
        unsafe { &*maps }
    }

    /// A share of the mappings, if the segment is mapped for use.
    pub(super) fn maps(&self) -> Option<Arc<Maps>> {
        self.mapping.used()
    }

    /// A share of the mappings, which are made temporarily if needed; None once retired.
    pub(super) fn maps_to_look(&self) -> Result<Option<Arc<Maps>>, StorageError> {
        match self.mapping.look(|purpose| self.map(purpose)) {
            // Its names are removed a moment before it is retired in memory.
            Err(error) if self.is_complete() && is_missing(&error) => Ok(None),
            looked => looked,
        }
    }

    /// Maps it for use, unless it is retired.
    pub(super) fn begin_use(&self) -> Result<(), StorageError> {
        // A sector that cannot be read is an error here, but would be a signal later.
        let read_in = |maps: &Maps| match self.is_unscanned() {
            true => Ok(()),
            false => maps.records.read_in(),
        };
        self.mapping.begin_use(|purpose| self.map(purpose), read_in)
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.mapping.is_used()
    }

    /// Unmaps a segment that waits, if possible. The caller has made sure that nothing was claimed
    /// from it, and that nobody begins to.
    ///
    /// Only a segment with durable records is unmapped, so that no flush of records needs a mapping
    /// that may not be available.
    pub(super) fn end_wait_use(self: &Arc<Self>) {
        if self.is_mapped() && self.is_settled() && self.progress.is_closed() {
            self.mapping.end_use();
        }
    }

    /// Maps the files of a full segment.
    fn map(&self, purpose: Purpose) -> Result<Maps, StorageError> {
        let units = self.tail.reached().units;
        let capacity = capacity_of(self.identity.segment_size);
        let map = |entry: &Entry, len: u64| {
            // An access past the end of a truncated file would raise a signal.
            if entry.file_len()?.is_none_or(|found| found < len) {
                let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "missing, or cut off");
                return Err(StorageError::new(Operation::Map.verb(), entry.path(), cut));
            }
            MappedFile::open(entry.clone(), len, purpose)
        };
        let file = map(&self.paths.segment, u64::from(units) * UNIT as u64)?;
        let acks = map(&self.paths.ack, ack::file_bytes(capacity))?;
        Ok(Maps {
            records: Records { file },
            acks: AckFile::new(acks, capacity, self.identity.salt),
        })
    }

    /// Gives up the mappings of a complete segment; they are dropped with the last [`Pinned`].
    pub(crate) fn retire(&self) -> Option<Arc<Maps>> {
        assert!(self.is_complete(), "retired with jobs in it");
        self.mapping.retire()
    }

    /// Whether its files can be reused: they are whole, and this process made them.
    pub(super) fn is_recyclable(&self) -> bool {
        let is_whole =
            |maps: Arc<Maps>| maps.records.file.len() as u64 == self.identity.segment_size;
        !self.recovered
            && !self.is_sealed()
            && !self.is_abandoned()
            && self.mapping.used().is_some_and(is_whole)
    }

    /// Makes the next append continue in another segment, and this one is never reused: some of its
    /// pages cannot be made present. Returns whether that made it complete.
    pub(super) fn abandon(&self) -> bool {
        self.abandoned.store(true, Ordering::Release);
        self.note_full();
        self.close_now()
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Whether it is full and every record committed.
    pub(crate) fn is_committed(&self) -> bool {
        let Some(end) = self.closed() else {
            return false;
        };
        let Some(maps) = self.maps() else {
            // A segment found at open is, and any other was before it was unmapped.
            return !self.is_retired();
        };
        let mut units = START.units;
        while units + HEADER_UNITS <= end.units {
            match Record::at(&maps.records, units) {
                Some(record) => units = record.next(),
                None => return false,
            }
        }
        true
    }
}

/// Whether a file was missing, or truncated, when it was to be mapped.
fn is_missing(error: &StorageError) -> bool {
    let kind = error.io_error().kind();
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}

/// The result of an append.
pub(crate) enum Append {
    /// Committed; this is the position of the (first) record.
    Done(Position),
    /// The segment is full. `complete`: finding that out made the segment complete.
    Full { complete: bool },
}
