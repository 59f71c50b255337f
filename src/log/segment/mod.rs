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
//! - the holder of a claimed run or of a [`Lease`](super::lease::Lease) in it: it was claimed from
//!   while it was mapped for use (see [`Log::claim`](super::Log::claim)), and the record is not
//!   done.
//!
//! All other code uses a [`Pinned`](super::pinned::Pinned), which owns a share.
//!
//! This file is the writing side; `pinned.rs`, `run.rs` and `lease.rs` read.

#![allow(unsafe_code)]

mod append;
mod durability;
mod files;
mod making;
#[cfg(test)]
mod tests;
mod unsettled;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub(crate) use self::append::{Append, Batch, BatchRecords};
use self::files::create_segment_file;
pub(crate) use self::files::{Maps, Paths, Warm, create_ack_file};
pub(crate) use self::making::{Done, Found};
pub(crate) use self::unsettled::Unsettled;
use super::ack::{self, AckFile};
use super::crc::Crc32;
use super::durable_end::DurableEnd;
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
    /// Whether a record of it named what it settles, since it was created.
    settles: AtomicBool,
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
    /// Whether its first record is durable.
    has_durable_record: AtomicBool,
    durable: DurableEnd,
    /// Where producers were when pages ahead of them were last made writable.
    made_writable: AtomicU32,
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

impl Segment {
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

    /// The bytes of the jobs left in it; counted again only when their number has changed.
    pub(super) fn left_bytes(&self, jobs: u32, count: impl FnOnce() -> u64) -> u64 {
        let mut left = self.left_bytes.lock();
        if left.0 != jobs {
            *left = (jobs, count());
        }
        left.1
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

    /// Gives up the mappings of a complete segment; they are dropped with the last
    /// [`Pinned`](super::pinned::Pinned).
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
