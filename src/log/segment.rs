//! A segment: a run of records in one mapped file, with the file of their acks beside it.
//!
//! Life of a segment: *open* (producers reserve and commit), *full* (the tail is closed),
//! *sealed* (flushed, its end written into the header, truncated), *complete* (every record done,
//! from full or sealed), *retired* (unmapped and deleted).
//!
//! # What keeps the mapping alive
//! The counters of a segment live on the heap; its two mappings are in [`Maps`] and are dropped
//! only after [`Segment::retire`], which demands that the segment is complete. So a mapping may be
//! used by
//! - whoever holds a reservation or a [`Lease`] in it: that record is not done, so the segment is
//!   not complete;
//! - whoever closes it: it is not complete before the close has been counted;
//! - whoever holds a [`Pinned`], which owns a share of the mappings.

#![allow(unsafe_code)]

use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use crossbeam_utils::CachePadded;

use super::ack::{self, AckFile};
use super::flush::FlushGate;
use super::header::{self, FileKind, Identity};
use super::record::{self, HEADER_BYTES, HEADER_UNITS, Header, KIND_JOB, KIND_PAD, NewRecord, UNIT};
use super::tail::{Cursor, Position, Reserved, Tail};
use crate::mapped::MappedFile;
use crate::storage::{self, StorageError};
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
pub(crate) struct Maps {
    pub(crate) records: MappedFile,
    pub(crate) acks: AckFile,
}

/// Bit of `progress` that says that the count of needed words is in it.
const COUNTED: u64 = 1 << 63;

/// A segment's state in memory.
pub(crate) struct Segment {
    identity: Identity,
    tail: Tail,
    cursor: Cursor,
    /// Ack words that are full, in the lower half; once closed, [`COUNTED`] and the words needed
    /// in the upper half. One word, so that whoever makes the halves equal knows it without
    /// touching the segment again.
    progress: CachePadded<AtomicU64>,
    maps: ArcSwapOption<Maps>,
    /// What `maps` holds, or held before retirement.
    raw: NonNull<Maps>,
    paths: Paths,
    records_gate: FlushGate,
    acks_gate: FlushGate,
    names_gate: FlushGate,
    /// Found at open, rather than created since.
    recovered: bool,
    /// Records found done at open.
    done_at_open: u32,
    /// Sealed by an earlier process, and not yet checked record by record.
    unscanned: AtomicBool,
    sealed: AtomicBool,
    /// The names of its files are durable.
    named: AtomicBool,
    /// A position with no job that is not done before it: where to look for the oldest.
    oldest: AtomicU64,
}

// SAFETY: `raw` is the one field that is not already Send and Sync; it points into an Arc of
// Maps, which is both, and is dereferenced only under the rules in the module's documentation.
unsafe impl Send for Segment {}
// SAFETY: as for Send.
unsafe impl Sync for Segment {}

/// The files of a segment.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) segment: PathBuf,
    pub(crate) ack: PathBuf,
}

impl Paths {
    pub(crate) fn new(dir: &Path, base: Sequence) -> Self {
        let name = base.within_stripe();
        Self {
            segment: dir.join(format!("{name:020}.seg")),
            ack: dir.join(format!("{name:020}.ack")),
        }
    }
}

/// How a segment found at open begins its life in memory.
pub(crate) struct Found {
    pub(crate) end: Position,
    pub(crate) sealed: bool,
    pub(crate) unscanned: bool,
}

impl Segment {
    /// Creates the files of a segment and prefaults them.
    /// With `durable_name`, makes their names durable. Leaves nothing behind on failure.
    pub(crate) fn create(
        dir: &Path,
        identity: Identity,
        durable_name: bool,
    ) -> Result<Arc<Self>, StorageError> {
        let paths = Paths::new(dir, identity.base);
        let capacity = capacity_of(identity.segment_size);
        let acks = create_ack_file(&paths.ack, &identity, capacity)?;
        let records = create_segment_file(&paths.segment, &identity, dir, durable_name)
            .inspect_err(|_| {
                // An ack file alone is removed by the next open.
                let _ = storage::remove_file(&paths.ack);
            })?;
        let end_units = (identity.segment_size as usize / UNIT) as u32;
        Ok(Self::assemble(
            identity,
            Tail::open(START, end_units),
            Maps { records, acks },
            paths,
            None,
            durable_name,
        ))
    }

    /// Takes in a segment found at open. Done bits past its end are set, missing acks are zero.
    pub(crate) fn recover(identity: Identity, maps: Maps, paths: Paths, found: &Found) -> Arc<Self> {
        Self::assemble(
            identity,
            Tail::closed_at(found.end),
            maps,
            paths,
            Some(found),
            found.sealed,
        )
    }

    fn assemble(
        identity: Identity,
        tail: Tail,
        maps: Maps,
        paths: Paths,
        found: Option<&Found>,
        named: bool,
    ) -> Arc<Self> {
        let mut progress = 0;
        let mut done_at_open = 0;
        if let Some(found) = found {
            let records = found.end.index;
            let words = ack::words_for(records);
            let mut full = 0;
            for word in 0..words {
                let bits = maps.acks.done_bits(word);
                full += u64::from(bits == u32::MAX);
                done_at_open += bits.count_ones();
            }
            // The bits past the last record are set, see `recovery`.
            done_at_open = done_at_open.saturating_sub(words * ack::RECORDS_PER_WORD - records);
            progress = COUNTED | u64::from(words) << 32 | full;
        }
        let maps = Arc::new(maps);
        let raw = NonNull::from(&*maps);
        Arc::new(Self {
            identity,
            tail,
            cursor: Cursor::new(START),
            progress: CachePadded::new(AtomicU64::new(progress)),
            maps: ArcSwapOption::from(Some(maps)),
            raw,
            paths,
            records_gate: FlushGate::new(),
            acks_gate: FlushGate::new(),
            names_gate: FlushGate::new(),
            recovered: found.is_some(),
            done_at_open,
            unscanned: AtomicBool::new(found.is_some_and(|found| found.unscanned)),
            sealed: AtomicBool::new(found.is_some_and(|found| found.sealed)),
            named: AtomicBool::new(named),
            oldest: AtomicU64::new(u64::from(START.units)),
        })
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
        self.tail.reserved_past(self.cursor.position())
    }

    pub(crate) fn done_at_open(&self) -> u32 {
        self.done_at_open
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
        // Acquire: the mapping may go once this is seen, so everything that the ackers did with
        // it must have happened; pairs with the AcqRel of `count_full_words`.
        is_complete(self.progress.load(Ordering::Acquire))
    }

    /// Reserves and commits one record.
    #[inline]
    pub(crate) fn append(&self, record: &NewRecord<'_>) -> Append {
        match self.tail.reserve(1, record::units_of(record.len())) {
            Reserved::At(position) => {
                self.commit(position, record);
                Append::Done(position)
            }
            Reserved::Closing(position) => Append::Full {
                complete: self.close(position),
            },
            Reserved::Closed => Append::Full { complete: false },
        }
    }

    /// Reserves all the records in one step and commits them in order.
    pub(crate) fn append_all(&self, records: &[NewRecord<'_>]) -> Append {
        let units = records
            .iter()
            .map(|record| record::units_of(record.len()))
            .sum();
        match self.tail.reserve(records.len() as u32, units) {
            Reserved::At(first) => {
                let mut position = first;
                for record in records {
                    self.commit(position, record);
                    position.index += 1;
                    position.units += record::units_of(record.len());
                }
                Append::Done(first)
            }
            Reserved::Closing(position) => Append::Full {
                complete: self.close(position),
            },
            Reserved::Closed => Append::Full { complete: false },
        }
    }

    #[inline]
    fn commit(&self, position: Position, record: &NewRecord<'_>) {
        // SAFETY: the caller holds the reservation of this record, which is not done, so the
        // segment is not complete and the mapping is there.
        let records = &unsafe { self.raw.as_ref() }.records;
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
            // SAFETY: the bytes of a reserved and uncommitted record are touched by nobody else.
            unsafe { records.copy_in(offset + HEADER_BYTES, record.meta) };
        }
        // SAFETY: as above.
        unsafe { records.copy_in(offset + HEADER_BYTES + record.meta.len(), record.payload) };
        let check = header.check(self.identity.salt, record.meta, record.payload);
        write_record_header(records, offset, &header, check);
    }

    /// Publishes the end. Returns whether that made the segment complete.
    fn close(&self, end: Position) -> bool {
        self.tail.close(end);
        // SAFETY: not complete before `count_full_words` below has counted the close.
        let acks = &unsafe { self.raw.as_ref() }.acks;
        let mut filled = 0;
        for index in end.index..ack::words_for(end.index) * ack::RECORDS_PER_WORD {
            filled += u64::from(acks.set_once(index));
        }
        let needed = u64::from(ack::words_for(end.index)) << 32;
        self.count_full_words(COUNTED + needed + filled)
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

    #[inline]
    fn count_full_words(&self, step: u64) -> bool {
        // AcqRel: chains every acker's and the closer's accesses to the mapping, see `is_complete`.
        is_complete(self.progress.fetch_add(step, Ordering::AcqRel) + step)
    }

    /// A share of the mappings, unless retired.
    pub(crate) fn pin(self: &Arc<Self>) -> Option<Pinned> {
        Some(Pinned {
            maps: self.maps.load_full()?,
            segment: Arc::clone(self),
        })
    }

    /// Gives up the mappings of a complete segment; they go when the last [`Pinned`] does.
    pub(crate) fn retire(&self) -> Option<Arc<Maps>> {
        debug_assert!(self.is_complete());
        self.maps.swap(None)
    }

    /// Makes every record committed before this call durable, sharing one flush with whoever asks
    /// at the same time; with `acks_too`, the acks as well.
    ///
    /// Records, acks and names are flushed apart, each through a gate of its own, and a failure
    /// of one is final for that one: every later call returns it again.
    pub(crate) fn flush(self: &Arc<Self>, acks_too: bool) -> Result<(), Arc<StorageError>> {
        let Some(pinned) = self.pin() else {
            // Complete and deleted: there is nothing left that could be lost.
            return Ok(());
        };
        self.records_gate
            .flush(|| storage::flush_data(pinned.maps.records.file(), &self.paths.segment))?;
        self.flush_names()?;
        if acks_too {
            self.acks_gate
                .flush(|| storage::flush_data(pinned.maps.acks.file.file(), &self.paths.ack))?;
        }
        Ok(())
    }

    /// Makes the names of the files durable, once.
    pub(crate) fn flush_names(&self) -> Result<(), Arc<StorageError>> {
        if !self.named.load(Ordering::Acquire) {
            self.names_gate.flush(|| match self.paths.segment.parent() {
                Some(dir) => storage::flush_directory(dir),
                None => Ok(()),
            })?;
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
        let (Some(end), Some(pinned)) = (self.closed(), self.pin()) else {
            return Ok(());
        };
        self.flush(true)?;
        let records = &pinned.maps.records;
        let (word, check) = header::encode_seal(self.identity.salt, end);
        records
            .word64(header::SEAL_OFFSET)
            .store(word, Ordering::Relaxed);
        records
            .word32(header::SEAL_OFFSET + 8)
            .store(check, Ordering::Relaxed);
        self.records_gate
            .flush(|| storage::flush_data(records.file(), &self.paths.segment))?;
        // Nobody reads past the end, and the pages of the mapping beyond it are never touched.
        storage::truncate(
            records.file(),
            &self.paths.segment,
            u64::from(end.units) * UNIT as u64,
        )?;
        self.sealed.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether every reserved record is committed. Only asked of full segments.
    pub(crate) fn is_committed(self: &Arc<Self>) -> bool {
        let (Some(end), Some(pinned)) = (self.closed(), self.pin()) else {
            return false;
        };
        let mut units = START.units;
        while units < end.units {
            match pinned.record(units) {
                Some(record) => units = record.next(),
                None => return false,
            }
        }
        true
    }
}

#[inline]
fn is_complete(progress: u64) -> bool {
    progress & COUNTED != 0 && (progress & !COUNTED) >> 32 == progress & u64::from(u32::MAX)
}

/// What became of an append.
pub(crate) enum Append {
    /// Committed; the (first) record stands here.
    Done(Position),
    /// The segment is full. `complete`: finding that out made the segment complete.
    Full { complete: bool },
}

fn create_segment_file(
    path: &Path,
    identity: &Identity,
    dir: &Path,
    durable_name: bool,
) -> Result<MappedFile, StorageError> {
    let file = MappedFile::create(path, identity.segment_size)?;
    file.prefault(0, file.len());
    write_header(&file, &identity.encode(FileKind::Segment));
    if durable_name {
        storage::flush_directory(dir).inspect_err(|_| {
            let _ = storage::remove_file(path);
        })?;
    }
    Ok(file)
}

pub(crate) fn create_ack_file(
    path: &Path,
    identity: &Identity,
    capacity: u32,
) -> Result<AckFile, StorageError> {
    let file = MappedFile::create(path, ack::file_bytes(capacity))?;
    file.prefault(0, file.len());
    write_header(&file, &identity.encode(FileKind::Ack));
    Ok(AckFile::new(file, capacity))
}

/// Stores a file header. Nobody else has seen the mapping yet.
pub(crate) fn write_header(file: &MappedFile, bytes: &[u8; header::HEADER_BYTES]) {
    for (word, chunk) in bytes.as_chunks::<8>().0.iter().enumerate() {
        file.word64(8 * word)
            .store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
}

#[inline]
fn write_record_header(records: &MappedFile, offset: usize, header: &Header, check: u32) {
    records.word32(offset + 4).store(check, Ordering::Relaxed);
    records
        .word64(offset + 8)
        .store(header.identity_word(), Ordering::Relaxed);
    records
        .word64(offset + 16)
        .store(header.enqueued_at.as_nanos(), Ordering::Relaxed);
    records
        .word64(offset + 24)
        .store(header.due_at.as_nanos(), Ordering::Relaxed);
    // Release: whoever sees the length, with the Acquire in `commit_word`, sees the record.
    records.word32(offset).store(header.len, Ordering::Release);
}

impl Maps {
    #[inline]
    fn commit_word(&self, units: u32) -> u32 {
        // Acquire pairs with the Release in `write_record_header`.
        self.records
            .word32(units as usize * UNIT)
            .load(Ordering::Acquire)
    }

    #[inline]
    fn header(&self, units: u32, len: u32) -> Header {
        let offset = units as usize * UNIT;
        let word = |at| self.records.word64(offset + at).load(Ordering::Relaxed);
        Header::from_words(len, word(8), word(16), word(24))
    }

    /// Units that are mapped.
    pub(crate) fn units(&self) -> u32 {
        (self.records.len() / UNIT) as u32
    }

    /// The word at `units`, for a scan.
    pub(crate) fn unit(&self, units: u32) -> u64 {
        self.records
            .word64(units as usize * UNIT)
            .load(Ordering::Relaxed)
    }

    /// The header of the record at `units`, if there is a whole, valid one within `end`.
    ///
    /// For scans: of a segment that no producer can write to (it was found at open), or of a
    /// committed record.
    pub(crate) fn valid_record(&self, units: u32, end: u32, salt: u64) -> Option<Record<'_>> {
        if end < units + HEADER_UNITS {
            return None;
        }
        let header = self.header(units, self.commit_word(units));
        if !header.is_plausible((end - units) as usize * UNIT) {
            return None;
        }
        let offset = units as usize * UNIT;
        let flags = self.unit(units + 1) >> 40 & 0xff;
        let stored = self.records.word32(offset + 4).load(Ordering::Relaxed);
        let meta_len = usize::from(header.meta_len);
        // SAFETY: no producer writes here, by this function's contract; recovery, which may mend
        // a region, is alone with the segment and holds no slice.
        let content = unsafe {
            self.records
                .bytes(offset + HEADER_BYTES, header.len as usize - HEADER_BYTES)
        };
        let (meta, payload) = content.split_at(meta_len);
        (flags == 0 && header.check(salt, meta, payload) == stored).then_some(Record {
            maps: self,
            units,
            header,
        })
    }

    /// A copy of the units `[from, to)`; same contract as [`valid_record`](Self::valid_record).
    pub(crate) fn copy_out(&self, from: u32, to: u32) -> Vec<u8> {
        // SAFETY: as in `valid_record`.
        unsafe {
            self.records
                .bytes(from as usize * UNIT, (to - from) as usize * UNIT)
        }
        .to_vec()
    }

    /// Covers the units `[from, to)` of a found segment by a pad, or by zeros where a pad would
    /// not fit.
    pub(crate) fn cover(&self, from: u32, to: u32, index: u32, salt: u64) {
        if to - from < HEADER_UNITS {
            for units in from..to {
                self.records
                    .word64(units as usize * UNIT)
                    .store(0, Ordering::Relaxed);
            }
            return;
        }
        let header = Header {
            len: (to - from) * UNIT as u32,
            index,
            kind: KIND_PAD,
            meta_len: 0,
            enqueued_at: Timestamp::ZERO,
            due_at: Timestamp::ZERO,
        };
        let check = header.check(salt, b"", b"");
        write_record_header(&self.records, from as usize * UNIT, &header, check);
    }
}

/// A segment and a share of its mappings: committed records can be read as long as this lives.
pub(crate) struct Pinned {
    segment: Arc<Segment>,
    maps: Arc<Maps>,
}

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Leases were added. `plain`: all can be delivered as they are (none has a due time, none
    /// was found at open).
    Taken { plain: bool },
    /// Nothing is committed past the cursor.
    Empty,
    /// Everything is claimed and nothing can follow.
    Exhausted,
}

impl Pinned {
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The record at `units`, if one is committed there. Not for segments that are unscanned.
    #[inline]
    pub(crate) fn record(&self, units: u32) -> Option<Record<'_>> {
        Record::at(&self.maps, units)
    }

    /// All committed records from `from` on, up to the first that is not.
    pub(crate) fn records(&self, from: Position) -> impl Iterator<Item = Record<'_>> {
        let mut units = from.units;
        // An open segment's end bounds the walk as well: a reservation that crossed it is none.
        let end = self
            .segment
            .closed()
            .map_or_else(|| self.maps.units(), |end| end.units);
        std::iter::from_fn(move || {
            if units + HEADER_UNITS > end {
                return None;
            }
            let record = self.record(units)?;
            units = record.next();
            Some(record)
        })
    }

    /// Takes up to `max_jobs` committed records, or about `max_bytes`, and adds their leases to
    /// `leases`. With `counted`, each lease owns a share of the mappings.
    pub(crate) fn claim(
        &self,
        max_jobs: u32,
        max_bytes: usize,
        counted: bool,
        leases: &mut Vec<Lease>,
    ) -> Claim {
        let segment = &*self.segment;
        let taken_before = leases.len();
        let mut shared = None;
        loop {
            let from = segment.cursor.position();
            // Looked at before the walk: what was committed before the close is then seen.
            let closed = segment.tail.closed();
            let end = closed.map_or_else(|| self.maps.units(), |end| end.units);
            // Up to a whole ack word, so that the ackers of two runs meet in no word.
            let max_jobs = max_jobs
                .saturating_sub(from.index % ack::RECORDS_PER_WORD)
                .max(1);
            let max_units = record::units_of(max_bytes);
            let mut to = from;
            let mut plain = !segment.recovered;
            leases.truncate(taken_before);
            while to.units + HEADER_UNITS <= end
                && to.units - from.units < max_units
                && ((leases.len() - taken_before) as u32) < max_jobs
            {
                let Some(record) = self.record(to.units) else {
                    break;
                };
                let header = record.header();
                if header.kind == KIND_JOB {
                    to.index = header.index + 1;
                    // Looked at here, where the mapping is pinned: a lease of a record that is
                    // done would keep nothing alive. Only an earlier process can have acked what
                    // is past the cursor.
                    if !(segment.recovered && self.maps.acks.is_done(header.index)) {
                        plain &= header.due_at == Timestamp::ZERO;
                        leases.push(Lease {
                            hold: if counted {
                                let pinned = shared.get_or_insert_with(|| Arc::new(self.share()));
                                Hold::Counted(Arc::clone(pinned))
                            } else {
                                Hold::NotDone(NonNull::from(segment))
                            },
                            units: to.units,
                            index: header.index,
                        });
                    }
                }
                to.units = record.next();
            }
            if closed.is_some() && to.units < end && end - to.units < HEADER_UNITS {
                // What is left is too short for a record. The cursor passes it, so that nobody
                // takes it for work.
                to.units = end;
            }
            if to == from {
                return if closed.is_some() && from.units >= end {
                    Claim::Exhausted
                } else {
                    Claim::Empty
                };
            }
            if segment.cursor.advance(from, to) && leases.len() > taken_before {
                return Claim::Taken { plain };
            }
            // Another consumer was faster, or there were only pads and records that are done.
        }
    }

    fn share(&self) -> Self {
        Self {
            segment: Arc::clone(&self.segment),
            maps: Arc::clone(&self.maps),
        }
    }

    /// Marks a record done that no lease exists of. Returns None if it was done already, else
    /// whether that made the segment complete.
    pub(crate) fn mark_done(&self, index: u32) -> Option<bool> {
        let filled = self.maps.acks.set(index)?;
        Some(filled && self.segment.count_full_words(1))
    }

    /// Records that are done, as of now.
    pub(crate) fn done(&self) -> u32 {
        let reached = self.segment.reached().index;
        let full_words = reached / ack::RECORDS_PER_WORD;
        let rest = reached % ack::RECORDS_PER_WORD;
        let mut done = 0;
        for word in 0..full_words {
            done += self.maps.acks.done_bits(word).count_ones();
        }
        if rest > 0 {
            let mask = (1 << rest) - 1;
            done += (self.maps.acks.done_bits(full_words) & mask).count_ones();
        }
        done
    }

    /// When the oldest job that is not done was enqueued.
    pub(crate) fn oldest_enqueued_at(&self) -> Option<Timestamp> {
        let hint = Position {
            index: 0,
            units: self.segment.oldest.load(Ordering::Relaxed) as u32,
        };
        for record in self.records(hint) {
            let header = record.header();
            if header.kind == KIND_JOB && !self.maps.acks.is_done(header.index) {
                return Some(header.enqueued_at);
            }
            // Relaxed: any of the values ever stored is a right place to start.
            self.segment
                .oldest
                .store(u64::from(record.next()), Ordering::Relaxed);
        }
        None
    }
}

/// A committed record.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    maps: &'a Maps,
    units: u32,
    header: Header,
}

impl<'a> Record<'a> {
    #[inline]
    fn at(maps: &'a Maps, units: u32) -> Option<Self> {
        let len = maps.commit_word(units);
        (len != 0).then(|| Self {
            maps,
            units,
            header: maps.header(units, len),
        })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn units(&self) -> u32 {
        self.units
    }

    /// Where the next record starts.
    #[inline]
    pub(crate) fn next(&self) -> u32 {
        self.units + record::units_of(self.header.len as usize)
    }

    pub(crate) fn meta(&self) -> &'a [u8] {
        self.bytes(0, usize::from(self.header.meta_len))
    }

    #[inline]
    pub(crate) fn payload(&self) -> &'a [u8] {
        let meta_len = usize::from(self.header.meta_len);
        self.bytes(meta_len, self.header.len as usize - HEADER_BYTES - meta_len)
    }

    #[inline]
    fn bytes(&self, from: usize, len: usize) -> &'a [u8] {
        // SAFETY: the record is committed, and the bytes of a committed record never change.
        unsafe {
            self.maps
                .records
                .bytes(self.units as usize * UNIT + HEADER_BYTES + from, len)
        }
    }
}

/// What keeps a lease's segment alive.
enum Hold {
    /// The record itself: it is not done, so the segment is not complete.
    NotDone(NonNull<Segment>),
    /// A share, for leases of which a record can have two (lease timeouts).
    Counted(Arc<Pinned>),
}

/// The right to deliver one record and to say what became of it.
///
/// A record has at most one lease that is not counted. Losing a lease loses no job: the record
/// stays not done and is found again at the next open.
#[must_use]
pub(crate) struct Lease {
    hold: Hold,
    units: u32,
    index: u32,
}

// SAFETY: `NotDone` points to a Segment, which is Sync; what keeps it alive does not depend on
// the thread.
unsafe impl Send for Lease {}
// SAFETY: as for Send; every method that takes `&self` only reads or uses atomics.
unsafe impl Sync for Lease {}

/// What an ack did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acked {
    /// This ack, and no other, completed the job.
    pub(crate) first: bool,
    /// The segment has no job left that is not done.
    pub(crate) segment_complete: bool,
}

impl Lease {
    #[inline]
    fn segment(&self) -> &Segment {
        match &self.hold {
            // SAFETY: the record is not done as long as this lease, the only one, exists: `ack`
            // consumes it. So the segment is not complete, and its stripe holds a reference.
            Hold::NotDone(segment) => unsafe { segment.as_ref() },
            Hold::Counted(pinned) => &pinned.segment,
        }
    }

    #[inline]
    fn maps(&self) -> &Maps {
        match &self.hold {
            // SAFETY: the record is not done, see `segment`, so the mappings are there.
            Hold::NotDone(segment) => unsafe { segment.as_ref().raw.as_ref() },
            Hold::Counted(pinned) => &pinned.maps,
        }
    }

    #[inline]
    pub(crate) fn sequence(&self) -> Sequence {
        self.segment().sequence(self.index)
    }

    /// Base of the segment it is in.
    pub(crate) fn segment_base(&self) -> Sequence {
        self.segment().base()
    }

    pub(crate) fn is_recovered(&self) -> bool {
        self.segment().recovered
    }

    #[inline]
    pub(crate) fn record(&self) -> Record<'_> {
        let maps = self.maps();
        let len = maps.commit_word(self.units);
        Record {
            maps,
            units: self.units,
            header: maps.header(self.units, len),
        }
    }

    /// Counts a delivery, before it happens. Returns the new count.
    #[inline]
    pub(crate) fn count_delivery(&self) -> u8 {
        self.maps().acks.count_delivery(self.index)
    }

    pub(crate) fn deliveries(&self) -> u8 {
        self.maps().acks.deliveries(self.index)
    }

    /// Whether another lease of the same record has marked it done; only counted leases can have
    /// another.
    pub(crate) fn is_done(&self) -> bool {
        match &self.hold {
            Hold::NotDone(_) => false,
            Hold::Counted(pinned) => pinned.maps.acks.is_done(self.index),
        }
    }

    /// A second lease of the same record, if leases are counted.
    pub(crate) fn duplicate(&self) -> Option<Lease> {
        match &self.hold {
            Hold::NotDone(_) => None,
            Hold::Counted(pinned) => Some(Lease {
                hold: Hold::Counted(Arc::clone(pinned)),
                units: self.units,
                index: self.index,
            }),
        }
    }

    /// Marks the job done.
    #[inline]
    pub(crate) fn ack(self) -> Acked {
        match &self.hold {
            Hold::NotDone(_) => {
                let segment = self.segment();
                let filled = self.maps().acks.set_once(self.index);
                // If the word is not full, another acker may complete and retire the segment from
                // here on. If it is, the segment cannot be complete before it is counted.
                Acked {
                    first: true,
                    segment_complete: filled && segment.count_full_words(1),
                }
            }
            Hold::Counted(pinned) => match pinned.mark_done(self.index) {
                Some(segment_complete) => Acked {
                    first: true,
                    segment_complete,
                },
                None => Acked {
                    first: false,
                    segment_complete: false,
                },
            },
        }
    }
}
