//! A segment: a run of records in one mapped file, with the file of their acks beside it.
//!
//! Life of a segment: *open* (producers reserve and commit), *full* (the tail is closed),
//! *sealed* (flushed, its end written into the header, truncated), *claimed* from, *complete* (every
//! record done, sealed or not), *retired* (unmapped and deleted). A segment that *waits* behind the
//! one that is claimed from, and each one found sealed at open, need not be mapped until it is claimed from.
//!
//! # What keeps the mapping alive
//! The counters of a segment live on the heap; its two mappings are in [`Maps`], which
//! [`Mapping`] hands out. They are dropped when nobody has a share of them after
//! - [`Segment::retire`], which demands that the segment is complete, or
//! - [`Segment::end_wait_use`], which demands that it is full, every record committed and durable, its
//!   closer done, and, by its caller, that nothing was ever claimed from it and nobody begins to.
//!
//! So the mappings may be used without a share by
//! - the holder of a reservation: that record is not committed, and not done;
//! - whoever closes it: before the close has been counted it is not complete, and the closer not
//!   done;
//! - the holder of a claimed run or of a [`Lease`] in it: it was claimed from while it was mapped for
//!   use (see [`Stripe::claim`](super::Stripe::claim)), and the record is not done.
//!
//! Everybody else has a [`Pinned`], which owns a share.
//!
//! This file is the writing side; `lease.rs` is the reading side.

#![allow(unsafe_code)]

#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::ack::{self, AckFile};
use super::crc::Crc32;
use super::flush::FlushGate;
use super::flushed_acks::{DeliveriesChanged, FlushedAcks};
use super::header::{self, FileKind, Identity};
pub(crate) use super::lease::{Claim, Lease, Pinned, Record, Records, Run};
use super::mapping::Mapping;
use super::names::Names;
use super::owed::Owed;
use super::progress::Progress;
use super::record::{self, HEADER_BYTES, HEADER_UNITS, Header, KIND_JOB, NewRecord, UNIT};
use super::tail::{Cursor, Position, Reserved, Tail};
use crate::events::{Mutex, event};
use crate::storage::mapped::MappedFile;
use crate::storage::mappings::Purpose;
use crate::storage::{Entry, Operation, StorageError};
use crate::time;
use crate::{Sequence, Timestamp};

/// Where the first record stands.
pub(crate) const START: Position = Position {
    index: 0,
    units: (header::HEADER_BYTES / UNIT) as u32,
};

/// Most records that a segment of `segment_size` bytes can hold. Also the distance between the
/// bases of neighbours, so that a segment's name is known before its predecessor is full.
pub(crate) fn capacity_of(segment_size: u64) -> u32 {
    ((segment_size as usize - header::HEADER_BYTES) / HEADER_BYTES) as u32
}

/// The two mappings of a segment.
///
/// Aligned, so that what every append reads is not on the line of the count of shares, which every
/// claim changes.
#[repr(align(128))]
pub(crate) struct Maps {
    pub(crate) records: Records,
    pub(crate) acks: AckFile,
}

impl Maps {
    /// Writes the headers of a new segment into files that are all zero.
    pub(super) fn write_headers(&self, identity: &Identity) {
        write_header(&self.records.file, &identity.encode(FileKind::Segment));
        write_header(&self.acks.file, &identity.encode(FileKind::Ack));
        self.acks.mark_fresh();
    }

    /// Writes records into a new segment that nobody else has seen, from its start on; they fit it.
    /// Returns where they end.
    pub(super) fn write_records(&mut self, salt: u64, records: &[NewRecord<'_>]) -> Position {
        let crc = Crc32::new();
        let mut end = START;
        for record in records {
            let content = record::content_check(&crc, record.meta, record.payload);
            // SAFETY: `self` is borrowed exclusively.
            unsafe { write_record(&self.records.file, salt, end, record, content) };
            end.index += 1;
            end.units += record::units_of(record.len());
        }
        end
    }

    /// See [`Records::valid_record`].
    pub(crate) fn valid_record(&self, units: u32, end: u32, salt: u64) -> Option<Record<'_>> {
        self.records.valid_record(units, end, salt)
    }
}

/// How much of a new segment's files is in the page cache and mapped before anyone appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Warm {
    All,
    /// What the first records need, for an open not to wait for the rest, which
    /// [`Segment::warm_up`] sees to.
    Start,
}

/// Bytes of records of [`Warm::Start`]: at a million jobs of 64 B a second, what is enqueued in
/// two and a half milliseconds.
const WARM_START: u64 = 256 * 1024;

impl Warm {
    fn records(self) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::Start => WARM_START,
        }
    }

    fn acks(self) -> u64 {
        match self {
            Self::All => u64::MAX,
            // The header. A page of acks is for over thirty thousand records, one of counts for a
            // thousand.
            Self::Start => 1,
        }
    }
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
    /// Found at open, rather than created since.
    pub(super) recovered: bool,
    /// Records that are done without having been acked since the open: found done, or marked done
    /// since by other means than a lease.
    pub(super) not_acked: AtomicU32,
    /// To be checked record by record before anything is read from it: sealed by an earlier
    /// process, or damaged in a way that could not be mended yet.
    unscanned: AtomicBool,
    sealed: AtomicBool,
    /// When it was found full, if it was not found so at open.
    full_since: OnceLock<Instant>,
    /// A flush has begun, so that what is on disk may be relied on.
    flushed: AtomicBool,
    /// All records that it will ever have are durable.
    settled: AtomicBool,
    /// Some of its pages cannot be had.
    left: AtomicBool,
    /// The names of its files are durable.
    named: AtomicBool,
    /// A position with no job that is not done before it: where to look for the oldest.
    pub(super) oldest: AtomicU32,
    /// A position with no job before it that waits for its first handler, or will.
    pub(super) waiting: AtomicU32,
    /// See [`left_bytes`](Self::left_bytes).
    left_bytes: Mutex<(u32, u64)>,
    /// Its first job that is not done, as found before it was scanned.
    pub(super) first_job: OnceLock<Option<Header>>,
}

/// The files of a segment.
#[derive(Clone)]
pub(crate) struct Paths {
    pub(crate) segment: Entry,
    pub(crate) ack: Entry,
}

impl Paths {
    pub(crate) fn new(names: &Names, base: Sequence) -> Self {
        let name = base.within_stripe();
        Self {
            segment: names.entry(&format!("{name:020}.seg")),
            ack: names.entry(&format!("{name:020}.ack")),
        }
    }

    /// Gives the files' space back and keeps their names. The segment goes first, durably: when
    /// it is empty, the ack file says nothing.
    pub(super) fn empty(&self) -> Result<(), StorageError> {
        self.segment.empty_durably()?;
        self.ack.truncate(0)
    }
}

/// How a segment found at open begins its life in memory.
pub(crate) struct Found {
    pub(crate) end: Position,
    pub(crate) sealed: bool,
    pub(crate) unscanned: bool,
    pub(crate) done: Done,
}

/// What the ack file of a segment found at open says.
#[derive(Clone, Copy, Default)]
pub(crate) struct Done {
    records: u32,
    full_words: u32,
}

impl Done {
    /// What it says of the first `records` records; the bits past them are set.
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
    /// Creates the files of a segment and prefaults them, as far as `warm` says. Their names are
    /// made durable by the first flush. Leaves nothing behind on failure.
    pub(crate) fn create(
        names: &Arc<Names>,
        identity: Identity,
        warm: Warm,
    ) -> Result<Arc<Self>, StorageError> {
        let paths = Paths::new(names, identity.base);
        let capacity = capacity_of(identity.segment_size);
        // The segment first: beside an empty segment, the file of its acks would look like what is
        // left of records that were cut off.
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

    /// Takes in the files of a spare, which have their names and headers, and records before `tail`.
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

    /// Takes in a segment found at open, whose files are whole. One that is sealed, and so durable,
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

    /// A segment without files that nothing is in and nothing fits, as if retired.
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
            left: AtomicBool::new(false),
            named: AtomicBool::new(found.is_some_and(|found| found.sealed)),
            oldest: AtomicU32::new(START.units),
            waiting: AtomicU32::new(START.units),
            left_bytes: Mutex::default(),
            first_job: OnceLock::new(),
        })
    }

    /// Prefaults what a creation with [`Warm::Start`] has not, while others use the segment.
    pub(crate) fn warm_up(self: &Arc<Self>) -> Result<(), StorageError> {
        let Some(pinned) = self.pin() else {
            return Ok(());
        };
        let Maps { records, acks } = pinned.maps();
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

    /// Found at open, rather than created since.
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

    /// Its mappings were given up.
    pub(crate) fn is_retired(&self) -> bool {
        self.mapping.is_retired()
    }

    /// Records that are done without having been acked since the open.
    pub(crate) fn not_acked(&self) -> u32 {
        self.not_acked.load(Ordering::Relaxed)
    }

    /// Whether it may have a job that waits for its first handler, or will.
    pub(super) fn may_have_waiting(&self) -> bool {
        // Relaxed: it only grows.
        let passed = self.waiting.load(Ordering::Relaxed);
        self.closed().is_none_or(|end| passed < end.units)
    }

    /// Takes note that it is full.
    pub(super) fn note_full(&self) {
        self.full_since.get_or_init(time::now);
    }

    /// How long ago it was found full; for ever, if that was by an earlier process.
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
        // Release: what the scan mended is visible to whoever finds the flag down.
        self.unscanned.store(false, Ordering::Release);
    }

    /// Every record is done and none can follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.progress.is_complete()
    }

    /// Whether nothing in it is needed any more.
    pub(super) fn can_go(&self) -> bool {
        self.has_nothing_left() && self.owes_nothing()
    }

    /// Whether there is neither a job in it nor damage that could not be set aside yet.
    pub(super) fn has_nothing_left(&self) -> bool {
        self.is_complete() && (self.is_sealed() || !self.is_unscanned())
    }

    /// Whether no record of it names a settlement that is not durable, for who has seen all of them
    /// committed.
    pub(super) fn owes_nothing(&self) -> bool {
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

    /// As [`append`](Self::append), of a record that names what it settles: until that is durable,
    /// the segment is neither sealed nor retired.
    pub(super) fn append_owing(self: &Arc<Self>, record: &NewRecord<'_>) -> (Append, Unsettled) {
        let unsettled = self.owing(1);
        (self.append(record), unsettled)
    }

    /// So many records that are about to be there name what they settle.
    pub(super) fn owing(self: &Arc<Self>, records: u64) -> Unsettled {
        self.owed.raise(records);
        Unsettled {
            segment: Arc::clone(self),
            records,
        }
    }

    /// The bytes that so many jobs left in it come to, counted anew only when their number has changed.
    pub(super) fn left_bytes(&self, jobs: u32, count: impl FnOnce() -> u64) -> u64 {
        let mut left = self.left_bytes.lock();
        if left.0 != jobs {
            *left = (jobs, count());
        }
        left.1
    }

    /// Reserves records for all the payloads in one step and commits them in order. They have
    /// everything else in common with `template`.
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
        // SAFETY: the bytes of a reserved and uncommitted record are touched by nobody else.
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

    /// Closes the segment where it stands, for shutdown. Returns whether that made it complete.
    pub(crate) fn close_now(&self) -> bool {
        match self.tail.close_now() {
            Some(end) => self.close(end),
            None => {
                // Whoever crossed the end publishes it in a moment.
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
        // SAFETY: `Mapping` holds them, as it is mapped for use and stays so by this function's
        // contract.
        unsafe { &*maps }
    }

    /// A share of the mappings, if it is mapped for use.
    pub(crate) fn pin(self: &Arc<Self>) -> Option<Pinned> {
        Some(Pinned::in_use(Arc::clone(self), self.mapping.used()?))
    }

    /// A share of the mappings, which are made for the occasion if need be; None once retired.
    pub(crate) fn look(self: &Arc<Self>) -> Result<Option<Pinned>, StorageError> {
        let maps = match self.mapping.look(|purpose| self.map(purpose)) {
            // Its names go a moment before it is retired in memory.
            Err(error) if self.is_complete() && is_missing(&error) => None,
            looked => looked?,
        };
        Ok(maps.map(|maps| Pinned::to_look(Arc::clone(self), maps)))
    }

    /// Has it mapped for use, unless it is retired.
    pub(super) fn begin_use(&self) -> Result<(), StorageError> {
        // A sector that cannot be read is an error here, and a signal later.
        let read_in = |maps: &Maps| match self.is_unscanned() {
            true => Ok(()),
            false => maps.records.read_in(),
        };
        self.mapping.begin_use(|purpose| self.map(purpose), read_in)
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.mapping.is_used()
    }

    /// Unmaps a segment that waits, if it can be. The caller has made sure that nothing was claimed
    /// from it, and that nobody begins to.
    ///
    /// Only one whose records are durable, so that no flush of records needs what may not be had.
    pub(super) fn end_wait_use(self: &Arc<Self>) {
        if self.is_mapped() && self.is_settled() && self.progress.is_closed() {
            self.mapping.end_use();
        }
    }

    /// Maps the files of a segment that is full.
    fn map(&self, purpose: Purpose) -> Result<Maps, StorageError> {
        let units = self.tail.reached().units;
        let capacity = capacity_of(self.identity.segment_size);
        let map = |entry: &Entry, len: u64| {
            // Past the end of a file that somebody has cut off, an access would be a signal.
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

    /// Gives up the mappings of a complete segment; they go when the last [`Pinned`] does.
    pub(crate) fn retire(&self) -> Option<Arc<Maps>> {
        assert!(self.is_complete(), "retired with jobs in it");
        self.mapping.retire()
    }

    /// Makes every record committed before this call durable, sharing one flush with whoever asks
    /// at the same time; with `acks_too`, the acks as well.
    ///
    /// Records, acks and names are flushed apart, and a failure of one is final for that one:
    /// every later call returns it again.
    pub(crate) fn flush(self: &Arc<Self>, acks_too: bool) -> Result<(), Arc<StorageError>> {
        let pinned = self.pin();
        if pinned.is_none() && self.is_retired() {
            // Complete and deleted: there is nothing left that could be lost.
            return Ok(());
        }
        self.flush_files(pinned, acks_too)
            .inspect_err(|error| self.names.poison().note(error))
    }

    fn flush_files(
        self: &Arc<Self>,
        mut pinned: Option<Pinned>,
        mut acks_too: bool,
    ) -> Result<(), Arc<StorageError>> {
        // SeqCst, as the load in `was_flushed`: a flush that returned before is seen.
        self.flushed.store(true, Ordering::SeqCst);
        if !self.is_settled() {
            let looked = match pinned {
                Some(pinned) => Some(pinned),
                None => self.look().map_err(Arc::new)?,
            };
            let Some(looked) = looked else {
                return Ok(());
            };
            let Maps { records, acks } = looked.maps();
            // One without records may be flushed ahead of need, and nobody relies on it.
            let has_record = looked.record(START.units).is_some();
            self.records_gate.flush(|| {
                // Nothing can follow what is there now.
                let is_whole = !self.is_unscanned() && self.is_committed();
                records.file.flush()?;
                if is_whole {
                    self.settled.store(true, Ordering::Release);
                }
                Ok(())
            })?;
            self.flush_names()?;
            // Not before the records and their names are durable, as the mark says that they are.
            if has_record && acks.mark_relied() {
                self.deliveries_changed.note_end();
                acks_too = true;
            }
            pinned = Some(looked);
        }
        if acks_too {
            self.flush_acks(pinned.as_ref())?;
        }
        Ok(())
    }

    fn flush_acks(self: &Arc<Self>, pinned: Option<&Pinned>) -> Result<(), Arc<StorageError>> {
        if self.are_acks_flushed() {
            return Ok(());
        }
        let entry = &self.paths.ack;
        // Somebody may be looking at it.
        let shared = self.mapping.shared();
        let mapped = pinned.map(Pinned::maps).or(shared.as_deref());
        let file = match mapped {
            Some(_) => None,
            // Before the flush is asked for: that it cannot be opened is no failed flush.
            None => match entry.open_to_flush() {
                Ok(file) => Some(file),
                // It was retired meanwhile.
                Err(error) if self.is_complete() && is_missing(&error) => return Ok(()),
                Err(error) => return Err(Arc::new(error)),
            },
        };
        let flush = || match (mapped, &file) {
            (Some(maps), _) => maps.acks.file.flush(),
            (None, Some(file)) => entry.flush(file),
            (None, None) => Ok(()),
        };
        // Nobody acks in one that waits, but by `mark_done`, which counts.
        let done = || pinned.map_or_else(|| self.not_acked(), Pinned::done);
        let deliveries = &self.deliveries_changed;
        self.acks_gate
            .flush(|| self.flushed_acks.flush(deliveries, done, flush))
    }

    /// Notes that all its jobs are done, durably if anything of it was relied on, or `durably`
    /// anyway. Before its files are emptied, renamed or removed, for that not to look like a loss.
    pub(super) fn finish(self: &Arc<Self>, durably: bool) -> Result<(), Arc<StorageError>> {
        debug_assert!(self.is_complete());
        let Some(pinned) = self.look().map_err(Arc::new)? else {
            return Ok(());
        };
        if pinned.maps().acks.mark_finished() || durably {
            self.deliveries_changed.note_end();
            self.flush_acks(Some(&pinned))
                .inspect_err(|error| self.names.poison().note(error))?;
        }
        Ok(())
    }

    /// Whether nothing was claimed from it and all acks in it are durable.
    pub(super) fn are_acks_flushed(&self) -> bool {
        self.claimed() == START
            && self
                .flushed_acks
                .covers(&self.deliveries_changed, self.not_acked())
    }

    /// Whether a flush has begun, so that what is on disk may be relied on.
    pub(super) fn was_flushed(&self) -> bool {
        self.flushed.load(Ordering::SeqCst)
    }

    /// Takes note that something in its records was mended, which is not durable yet.
    pub(super) fn note_mended(&self) {
        self.settled.store(false, Ordering::Release);
    }

    /// Whether all records that it will ever have are durable, with their names.
    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) && self.named.load(Ordering::Acquire)
    }

    /// Whether its files can serve again: they are whole, and this process made them.
    pub(super) fn is_recyclable(&self) -> bool {
        let is_whole =
            |maps: Arc<Maps>| maps.records.file.len() as u64 == self.identity.segment_size;
        !self.recovered
            && !self.is_sealed()
            && !self.is_left()
            && self.mapping.used().is_some_and(is_whole)
    }

    /// Has the next append go on with another segment, and this one never used again: some of its
    /// pages cannot be had. Returns whether that made it complete.
    pub(super) fn leave(&self) -> bool {
        self.left.store(true, Ordering::Release);
        self.note_full();
        self.close_now()
    }

    fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Makes the names of the files durable, once.
    pub(crate) fn flush_names(&self) -> Result<(), Arc<StorageError>> {
        if !self.named.load(Ordering::Acquire) {
            self.names.flush()?;
            self.named.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Flushes the records, then writes the seal, flushes it, and gives back the unused end of
    /// the file: in this order, so that a seal on disk proves its records.
    ///
    /// The segment is full, and every record committed. A failed flush is returned before the
    /// seal is written, and so does every later attempt.
    pub(crate) fn seal(self: &Arc<Self>) -> Result<(), Arc<StorageError>> {
        let (Some(end), Some(pinned)) = (self.closed(), self.look()?) else {
            return Ok(());
        };
        self.flush(true)?;
        let records = &pinned.maps().records.file;
        let (word, check) = header::encode_seal(self.identity.salt, end);
        records
            .word64(header::SEAL_OFFSET)
            .store(word, Ordering::Relaxed);
        records
            .word32(header::SEAL_OFFSET + 8)
            .store(check, Ordering::Relaxed);
        let sealed = self.records_gate.flush(|| records.flush());
        sealed.inspect_err(|error| {
            // Not settled: later flushes find the failure at the gate.
            self.settled.store(false, Ordering::Release);
            self.names.poison().note(error);
        })?;
        // One unit more than is used: a walk that began before the segment was closed looks for a
        // commit word at its end. Nobody touches the mapping beyond that. What was found at open was
        // closed, and may be no longer than its records.
        let kept = (u64::from(end.units) + u64::from(!self.recovered)) * UNIT as u64;
        if let Err(error) = self
            .paths
            .segment
            .truncate(kept.min(self.identity.segment_size))
        {
            // The seal holds for a longer file too; only its space stays taken.
            event!(debug, %error, "a sealed segment keeps its unused end");
        }
        self.sealed.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it is full and every record committed.
    pub(crate) fn is_committed(self: &Arc<Self>) -> bool {
        let Some(end) = self.closed() else {
            return false;
        };
        let Some(pinned) = self.pin() else {
            // One found at open is, and another was before it was unmapped.
            return !self.is_retired();
        };
        let mut units = START.units;
        while units + HEADER_UNITS <= end.units {
            match pinned.record(units) {
                Some(record) => units = record.next(),
                None => return false,
            }
        }
        true
    }
}

/// Records of a segment that name what they settle, and what they name is not durably settled. If
/// this is dropped the segment is kept for the next open, which settles it.
#[must_use]
pub(crate) struct Unsettled {
    segment: Arc<Segment>,
    records: u64,
}

impl Unsettled {
    /// What the records name is durably settled, or they were not appended after all.
    pub(crate) fn settle(self) {
        self.segment.owed.lower(self.records);
    }

    /// Takes in another one's records, if they are in the same segment.
    pub(crate) fn merge(&mut self, other: Self) -> Option<Self> {
        if !Arc::ptr_eq(&self.segment, &other.segment) {
            return Some(other);
        }
        self.records += other.records;
        None
    }
}

/// Whether a file was not there, or not as long as it was, when it was to be mapped.
fn is_missing(error: &StorageError) -> bool {
    let kind = error.io_error().kind();
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}

/// What became of an append.
pub(crate) enum Append {
    /// Committed; the (first) record stands here.
    Done(Position),
    /// The segment is full. `complete`: finding that out made the segment complete.
    Full { complete: bool },
}

fn create_segment_file(
    entry: &Entry,
    identity: &Identity,
    warm: Warm,
) -> Result<Records, StorageError> {
    let file = MappedFile::create(entry.clone(), identity.segment_size, warm.records())?;
    write_header(&file, &identity.encode(FileKind::Segment));
    Ok(Records { file })
}

pub(crate) fn create_ack_file(
    entry: &Entry,
    identity: &Identity,
    capacity: u32,
    warm: Warm,
) -> Result<AckFile, StorageError> {
    let file = MappedFile::create(entry.clone(), ack::file_bytes(capacity), warm.acks())?;
    write_header(&file, &identity.encode(FileKind::Ack));
    let acks = AckFile::new(file, capacity, identity.salt);
    acks.mark_fresh();
    Ok(acks)
}

/// Stores a file header. Nobody else has seen the mapping yet.
pub(super) fn write_header(file: &MappedFile, bytes: &[u8]) {
    for (word, chunk) in bytes.as_chunks::<8>().0.iter().enumerate() {
        file.word64(8 * word)
            .store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
}

/// Writes a record and commits it.
///
/// # Safety
/// Nobody else touches the bytes of the record meanwhile.
#[inline(always)]
unsafe fn write_record(
    records: &MappedFile,
    salt: u64,
    position: Position,
    record: &NewRecord<'_>,
    content: u32,
) {
    let header = Header {
        len: record.len() as u32,
        index: position.index,
        kind: KIND_JOB,
        meta_len: record.meta.len() as u16,
        enqueued_at: record.enqueued_at,
        due_at: record.due_at,
    };
    let offset = position.units as usize * UNIT;
    if !record.meta.is_empty() {
        // SAFETY: by this function's contract.
        unsafe { records.copy_in(offset + HEADER_BYTES, record.meta) };
    }
    // SAFETY: as above.
    unsafe { records.copy_in(offset + HEADER_BYTES + record.meta.len(), record.payload) };
    write_record_header(records, offset, &header, header.check_over(salt, content));
}

#[inline(always)]
pub(super) fn write_record_header(
    records: &MappedFile,
    offset: usize,
    header: &Header,
    check: u32,
) {
    let words = records.record_words(offset);
    words.check.store(check, Ordering::Relaxed);
    words
        .identity
        .store(header.identity_word(), Ordering::Relaxed);
    words
        .enqueued_at
        .store(header.enqueued_at.as_nanos(), Ordering::Relaxed);
    words
        .due_at
        .store(header.due_at.as_nanos(), Ordering::Relaxed);
    // Release: whoever sees the length, with the Acquire in `commit_word`, sees the record.
    words.len.store(header.len, Ordering::Release);
}
