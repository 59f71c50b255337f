//! The reading side of a segment: walking its records, claiming them, and the lease of a claimed
//! record.
//!
//! What keeps the mapping that all this reads is said in `segment.rs`: a [`Pinned`] by owning a
//! share of it, a [`Lease`] by being the lease of a record that is not done.

#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ack::{self, Deliveries};
use super::header::{self, FileKind, Identity};
use super::record::{
    self, HEADER_BYTES, HEADER_UNITS, Header, KIND_JOB, KIND_PAD, META_LEN_SHIFT, UNIT,
};
use super::segment::{self, Maps, Segment};
use super::tail::Position;
use crate::storage::mapped::{MappedFile, RecordWords};
use crate::storage::mappings::Purpose;
use crate::storage::{Entry, StorageError};
use crate::{Sequence, Timestamp};

/// The mapped file of a segment's records.
pub(crate) struct Records {
    pub(super) file: MappedFile,
}

impl Records {
    /// Maps the first `len` bytes of an existing segment file.
    pub(crate) fn open(entry: Entry, len: u64, purpose: Purpose) -> Result<Self, StorageError> {
        let file = MappedFile::open(entry, len, purpose)?;
        Ok(Self { file })
    }

    /// Reads the whole file in.
    pub(crate) fn read_in(&self) -> Result<(), StorageError> {
        self.file.read_in(self.file.len())
    }

    /// Writes the header, but for the seal.
    pub(crate) fn restore_header(&self, identity: &Identity) {
        let bytes = identity.encode(FileKind::Segment);
        segment::write_header(&self.file, &bytes[..header::SEAL_OFFSET]);
    }

    #[inline]
    fn commit_word(&self, units: u32) -> u32 {
        // Acquire pairs with the Release in `write_record_header`.
        self.file
            .word32(units as usize * UNIT)
            .load(Ordering::Acquire)
    }

    #[inline]
    fn words(&self, units: u32) -> &RecordWords {
        self.file.record_words(units as usize * UNIT)
    }

    #[inline]
    fn header(&self, units: u32) -> Header {
        let words = self.words(units);
        Header::from_words(
            // As in `commit_word`.
            words.len.load(Ordering::Acquire),
            words.identity.load(Ordering::Relaxed),
            words.enqueued_at.load(Ordering::Relaxed),
            words.due_at.load(Ordering::Relaxed),
        )
    }

    /// Units that are mapped.
    pub(crate) fn units(&self) -> u32 {
        (self.file.len() / UNIT) as u32
    }

    /// The word at `units`, for a scan.
    pub(crate) fn unit(&self, units: u32) -> u64 {
        self.file
            .word64(units as usize * UNIT)
            .load(Ordering::Relaxed)
    }

    /// The whole file.
    ///
    /// For scans of a segment that was found at open: no producer can write to it, and whoever
    /// mends it is alone with it and holds no slice meanwhile.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: nobody writes, by this function's contract.
        unsafe { self.file.bytes(0, self.file.len()) }
    }

    /// What stands behind the header of a record of `len` bytes, but for the first `from` bytes.
    #[inline]
    fn content(&self, units: u32, from: usize, len: u32) -> &[u8] {
        let start = HEADER_BYTES + from;
        // SAFETY: the record is committed, and the bytes of a committed record never change; or
        // it is part of a scan, and then nobody writes, see `bytes`.
        unsafe {
            self.file
                .bytes(units as usize * UNIT + start, len as usize - start)
        }
    }

    /// What may be a record at `units`, by its header alone, and fits below `end`.
    ///
    /// For scans, as [`bytes`](Self::bytes), or of a committed record.
    pub(crate) fn plausible_record(&self, units: u32, end: u32) -> Option<Record<'_>> {
        let end = end.min(self.units());
        if units >= end || end - units < HEADER_UNITS {
            return None;
        }
        let header = self.header(units);
        let flags = self.unit(units + 1) >> 40 & 0xff;
        let plausible = flags == 0 && header.is_plausible((end - units) as usize * UNIT);
        plausible.then_some(Record {
            records: self,
            units,
            header,
        })
    }

    /// The record at `units`, if there is a whole, valid one below `end`; for scans, as above.
    pub(crate) fn valid_record(&self, units: u32, end: u32, salt: u64) -> Option<Record<'_>> {
        let record = self.plausible_record(units, end)?;
        let check = record.header.check(salt, record.meta(), record.payload());
        (record.stored_check() == check).then_some(record)
    }

    /// Covers the units `[from, to)` of a found segment by a pad, or by zeros where a pad would
    /// not fit.
    pub(crate) fn cover(&self, from: u32, to: u32, index: u32, salt: u64) {
        if to - from < HEADER_UNITS {
            for units in from..to {
                self.file
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
        segment::write_record_header(&self.file, from as usize * UNIT, &header, check);
    }
}

/// A segment and a share of its mappings: committed records can be read as long as this lives.
pub(crate) struct Pinned {
    segment: Arc<Segment>,
    maps: Arc<Maps>,
    /// It was mapped for use, and so can be claimed from.
    is_in_use: bool,
}

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Runs were added. `caught_up`: the next record is not committed yet, rather than that the claim was
    /// large enough.
    Taken { caught_up: bool },
    /// Nothing is committed past the cursor.
    Empty,
    /// Everything is claimed and nothing can follow.
    Exhausted,
}

/// Most jobs in a run: what a crossbeam deque holds without growing, and two ack words.
pub(crate) const RUN_JOBS: u32 = 64;

/// A stretch of records that a claim walked over.
struct Walked {
    from: Position,
    to: Position,
    /// How many of them are not done.
    live: u32,
}

impl Pinned {
    /// Of a segment that is mapped for use.
    pub(super) fn in_use(segment: Arc<Segment>, maps: Arc<Maps>) -> Self {
        Self {
            segment,
            maps,
            is_in_use: true,
        }
    }

    pub(super) fn to_look(segment: Arc<Segment>, maps: Arc<Maps>) -> Self {
        Self {
            segment,
            maps,
            is_in_use: false,
        }
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The record at `units`, if one is committed there. Not for segments that are unscanned.
    #[inline]
    pub(crate) fn record(&self, units: u32) -> Option<Record<'_>> {
        Record::at(&self.maps.records, units)
    }

    /// All committed records from `from` on, up to the first that is not.
    pub(crate) fn records(&self, from: Position) -> impl Iterator<Item = Record<'_>> {
        let mut units = from.units;
        // An open segment's end bounds the walk as well: a reservation that crossed it is none.
        let end = self
            .segment
            .closed()
            .map_or_else(|| self.maps.records.units(), |end| end.units);
        std::iter::from_fn(move || {
            if units + HEADER_UNITS > end {
                return None;
            }
            let record = self.record(units)?;
            units = record.next();
            Some(record)
        })
    }

    /// Takes up to `max_jobs` committed records, or about `max_bytes`, and adds the runs that they
    /// are to `runs`. With `counted`, each of their leases will own a share of the mappings.
    pub(crate) fn claim(
        &self,
        max_jobs: u32,
        max_bytes: usize,
        counted: bool,
        runs: &mut Vec<Run>,
    ) -> Claim {
        let segment = &*self.segment;
        assert!(self.is_in_use, "claimed from a segment that waits");
        let runs_before = runs.len();
        let mut shared = None;
        let mut hold = || {
            if counted {
                let pinned = shared.get_or_insert_with(|| Arc::new(self.share()));
                Hold::counted(Arc::clone(pinned))
            } else {
                Hold::not_done(segment)
            }
        };
        let max_units = u32::try_from(max_bytes / UNIT).unwrap_or(u32::MAX).max(1);
        loop {
            let from = segment.cursor.position();
            // Looked at before the walk: what was committed before the close is then seen.
            let closed = segment.tail.closed();
            let end = closed.map_or_else(|| self.maps.records.units(), |end| end.units);
            // Up to a whole ack word, so that the ackers of two claims meet in no word.
            let last = from.index.saturating_add(max_jobs.max(1));
            let last = match last - last % ack::RECORDS_PER_WORD {
                aligned if aligned > from.index => aligned,
                _ => last,
            };
            let end_units = end.min(from.units.saturating_add(max_units));
            let mut to = from;
            runs.truncate(runs_before);
            while to.index < last
                && to.units < end_units
                && let Some(run) = self.walk_run(to, last, end_units, end)
            {
                to = run.to;
                // A run keeps its segment only if there is a record in it that is not done.
                if run.live > 0 {
                    runs.push(Run {
                        hold: hold(),
                        from: run.from,
                        to_units: run.to.units,
                        jobs: run.live,
                    });
                }
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
            if segment.cursor.advance(from, to) && runs.len() > runs_before {
                let is_open = closed.is_none() && !segment.recovered;
                return Claim::Taken {
                    caught_up: is_open && to.index < last && to.units < end_units,
                };
            }
            // Another consumer was faster, or there were only pads and records that are done.
        }
    }

    /// Walks committed records from `from` on, to the end of a run; None if there is none. Those
    /// count that start before `end_units`; the segment's own end is `end`.
    #[inline]
    fn walk_run(&self, from: Position, last: u32, end_units: u32, end: u32) -> Option<Walked> {
        let records = &self.maps.records;
        let recovered = self.segment.recovered;
        let last = last.min(from.index + RUN_JOBS - from.index % RUN_JOBS);
        let mut to = from;
        let mut live = 0;
        while to.index < last && to.units < end_units && to.units + HEADER_UNITS <= end {
            let len = records.commit_word(to.units);
            if len == 0 {
                break;
            }
            if recovered {
                // There may be pads, and gaps in the ordinals. Only an earlier process can have
                // acked what is past the cursor.
                let header = records.header(to.units);
                if header.kind == KIND_JOB {
                    to.index = header.index + 1;
                    live += u32::from(!self.maps.acks.is_done(header.index));
                }
            } else {
                to.index += 1;
                live += 1;
            }
            to.units += record::units_of(len as usize);
        }
        (to.units > from.units).then_some(Walked { from, to, live })
    }

    fn share(&self) -> Self {
        Self {
            segment: Arc::clone(&self.segment),
            maps: Arc::clone(&self.maps),
            is_in_use: self.is_in_use,
        }
    }

    /// Marks a record done that no lease exists of. Returns None if it was done already, else
    /// whether that made the segment complete.
    pub(crate) fn mark_done(&self, index: u32) -> Option<bool> {
        let complete = self.set_done(index)?;
        self.segment.not_acked.fetch_add(1, Ordering::Relaxed);
        Some(complete)
    }

    fn set_done(&self, index: u32) -> Option<bool> {
        let filled = self.maps.acks.set(index)?;
        Some(filled && self.segment.count_full_word())
    }

    /// Records that are done, as of now.
    pub(crate) fn done(&self) -> u32 {
        self.done_within(0, self.segment.reached().index)
    }

    /// How many of the records `[from, to)` are done.
    pub(crate) fn done_within(&self, from: u32, to: u32) -> u32 {
        let mut done = 0;
        for word in from / ack::RECORDS_PER_WORD..ack::words_for(to) {
            let first = word * ack::RECORDS_PER_WORD;
            let below = |index: u32| match index.saturating_sub(first) {
                bits @ 0..ack::RECORDS_PER_WORD => (1 << bits) - 1,
                _ => u32::MAX,
            };
            let within = below(to) & !below(from);
            done += (self.maps.acks.done_bits(word) & within).count_ones();
        }
        done
    }

    /// When the oldest job that is not done was enqueued.
    pub(crate) fn oldest_enqueued_at(&self) -> Option<Timestamp> {
        let hint = Position {
            index: 0,
            units: self.segment.oldest.load(Ordering::Relaxed),
        };
        for record in self.records(hint) {
            let header = record.header();
            if header.kind == KIND_JOB && !self.maps.acks.is_done(header.index) {
                return Some(header.enqueued_at);
            }
            // Relaxed: any of the values ever stored is a right place to start.
            self.segment.oldest.store(record.next(), Ordering::Relaxed);
        }
        None
    }

    /// Since when the first job has been due that no handler of this process has had, looking at no
    /// more records than `budget`. Those that such a handler has had are in another's hands, wait in
    /// the timer, or came back.
    pub(crate) fn waiting_since(&self, now: Timestamp, budget: &mut u32) -> Option<Timestamp> {
        let segment = &*self.segment;
        let claimed = segment.claimed().units;
        let hint = Position {
            index: 0,
            // Relaxed, here and below: any of the values ever stored is a right place to start.
            units: segment.waiting.load(Ordering::Relaxed),
        };
        let mut is_passed = true;
        for record in self.records(hint) {
            *budget = budget.checked_sub(1)?;
            let header = record.header();
            let is_live = header.kind == KIND_JOB && !self.maps.acks.is_done(header.index);
            let is_claimed = record.units() < claimed;
            let was_delivered =
                is_claimed && self.maps.acks.deliveries(header.index) != Deliveries::default();
            if is_live && !was_delivered && header.due_at <= now {
                return Some(header.enqueued_at.max(header.due_at));
            }
            // One that is claimed and not due is in the timer, and comes back from there.
            is_passed &= !is_live || is_claimed;
            if is_passed {
                segment.waiting.store(record.next(), Ordering::Relaxed);
            }
        }
        None
    }

    /// The first job that is not done, in a segment that is unscanned and that nobody mends
    /// meanwhile. None also if it is damaged, or cannot be found for damage.
    pub(crate) fn peek_first(&self) -> Option<Header> {
        let records = &self.maps.records;
        let Position { index, units: end } = self.segment.closed()?;
        let mut present = 0;
        // Has the records up to there present, so that a bad sector is no signal.
        let mut read_in = |units: u32| {
            let len = units.min(end) as usize * UNIT;
            if len > present {
                // In growing steps: mostly, the first record will do.
                present = len.max(2 * present).min(records.file.len());
                records.file.read_in(present).ok()?;
            }
            Some(())
        };
        let mut units = segment::START.units;
        loop {
            read_in(units + HEADER_UNITS)?;
            let record = records.plausible_record(units, end)?;
            let header = record.header();
            if header.kind == KIND_JOB && header.index >= index {
                return None;
            }
            if header.kind == KIND_JOB && !self.maps.acks.is_done(header.index) {
                read_in(record.next())?;
                let salt = self.segment.identity().salt;
                return Some(*records.valid_record(units, end, salt)?.header());
            }
            units = record.next();
        }
    }
}

/// A committed record.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    records: &'a Records,
    units: u32,
    header: Header,
}

impl<'a> Record<'a> {
    #[inline]
    fn at(records: &'a Records, units: u32) -> Option<Self> {
        (records.commit_word(units) != 0).then(|| Self {
            records,
            units,
            header: records.header(units),
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
        let meta_len = u32::from(self.header.meta_len);
        self.records
            .content(self.units, 0, HEADER_BYTES as u32 + meta_len)
    }

    #[inline]
    pub(crate) fn payload(&self) -> &'a [u8] {
        let meta_len = usize::from(self.header.meta_len);
        self.records.content(self.units, meta_len, self.header.len)
    }

    /// Metadata and payload.
    pub(crate) fn content(&self) -> &'a [u8] {
        self.records.content(self.units, 0, self.header.len)
    }

    /// The check value that stands in its header.
    pub(crate) fn stored_check(&self) -> u32 {
        self.records
            .file
            .word32(self.units as usize * UNIT + 4)
            .load(Ordering::Relaxed)
    }
}

/// What keeps the segment of a run or a lease alive: the records themselves, being not done, so
/// that the segment is not complete; or a share, for leases of which a record can have two (lease
/// timeouts).
///
/// One word, as leases go through the deques one by one: the address of the [`Segment`], or that
/// of a [`Pinned`] that an `Arc` owns, with the lowest bit set.
struct Hold(NonNull<()>);

const _: () = assert!(align_of::<Segment>() > 1 && align_of::<Pinned>() > 1);

/// A [`Hold`], looked at.
enum Held<'a> {
    NotDone(&'a Segment),
    Counted(&'a Pinned),
}

impl Hold {
    #[inline]
    fn not_done(segment: &Segment) -> Self {
        Self(NonNull::from(segment).cast())
    }

    fn counted(pinned: Arc<Pinned>) -> Self {
        let pointer = Arc::into_raw(pinned).cast_mut().cast::<()>();
        // SAFETY: an Arc's pointer is not null, and setting a bit does not make it so.
        Self(unsafe { NonNull::new_unchecked(pointer.map_addr(|address| address | 1)) })
    }

    #[inline]
    fn pinned(&self) -> Option<*const Pinned> {
        let pointer = self.0.as_ptr();
        (pointer.addr() & 1 == 1)
            .then(|| pointer.map_addr(|address| address & !1).cast_const().cast())
    }

    #[inline]
    fn get(&self) -> Held<'_> {
        match self.pinned() {
            // SAFETY: a record that this is held for is not done as long as its only lease, or the
            // run before that, exists: `ack` consumes it. So the segment is not complete, and its
            // stripe holds a reference to it.
            None => Held::NotDone(unsafe { self.0.cast::<Segment>().as_ref() }),
            // SAFETY: from `Arc::into_raw`, and that Arc is given back in `drop` only.
            Some(pinned) => Held::Counted(unsafe { &*pinned }),
        }
    }
}

impl Clone for Hold {
    #[inline]
    fn clone(&self) -> Self {
        if let Some(pinned) = self.pinned() {
            // SAFETY: from `Arc::into_raw`, and alive, as `self` owns one of its counts.
            unsafe { Arc::increment_strong_count(pinned) };
        }
        Self(self.0)
    }
}

impl Drop for Hold {
    #[inline]
    fn drop(&mut self) {
        if let Some(pinned) = self.pinned() {
            // SAFETY: from `Arc::into_raw`; each hold owns one count.
            drop(unsafe { Arc::from_raw(pinned) });
        }
    }
}

// SAFETY: it stands for a `&Segment` or an `Arc<Pinned>`, which are both Send and Sync; what keeps
// them alive does not depend on the thread.
unsafe impl Send for Hold {}
// SAFETY: as for Send.
unsafe impl Sync for Hold {}

/// Claimed records that nobody has a lease of yet: at most [`RUN_JOBS`], in log order.
#[must_use]
pub(crate) struct Run {
    hold: Hold,
    from: Position,
    to_units: u32,
    /// Those that are not done.
    jobs: u32,
}

impl Run {
    /// How many leases there will be.
    pub(crate) fn jobs(&self) -> u64 {
        u64::from(self.jobs)
    }

    /// Makes the leases, in log order. `plain` of a lease says that the job can be delivered as it
    /// is: it has no due time, and was not found at open.
    #[inline]
    pub(crate) fn expand(self, mut each: impl FnMut(Lease, bool)) {
        let (segment, maps) = match self.hold.get() {
            Held::NotDone(segment) => {
                // SAFETY: as in `Lease::maps`.
                (segment, unsafe { segment.maps_in_use() })
            }
            Held::Counted(pinned) => (&*pinned.segment, &*pinned.maps),
        };
        // Both stay locals: as arguments they would be taken to be valid until the end, and after the
        // last lease is let go the segment may be retired.
        let records = &maps.records;
        let mut at = self.from;
        if !segment.recovered {
            // All are jobs, their ordinals have no gaps, and none is done.
            while at.units < self.to_units {
                let words = records.words(at.units);
                let is_bare = words.identity.load(Ordering::Relaxed) >> META_LEN_SHIFT == 0;
                let is_due = words.due_at.load(Ordering::Relaxed) == 0;
                let next = at.units + record::units_of(words.len.load(Ordering::Acquire) as usize);
                let lease = Lease::new(self.hold.clone(), at, is_bare);
                at.units = next;
                at.index += 1;
                // Whoever gets it may ack it at once. The segment is not complete all the same,
                // before the next one has a lease.
                each(lease, is_due);
            }
            return;
        }
        // A lease is let go only when the next one is made: whoever gets it may ack it at once,
        // and without another record that is not done the segment might be complete.
        let mut previous: Option<Lease> = None;
        while at.units < self.to_units {
            let header = records.header(at.units);
            if header.kind == KIND_JOB && !maps.acks.is_done(header.index) {
                at.index = header.index;
                let lease = Lease::new(self.hold.clone(), at, false);
                if let Some(lease) = previous.replace(lease) {
                    each(lease, false);
                }
            }
            at.units += record::units_of(header.len as usize);
        }
        if let Some(lease) = previous {
            each(lease, false);
        }
    }
}

/// The right to deliver one record and to say what became of it.
///
/// A record has at most one lease that is not counted. Losing a lease loses no job: the record
/// stays not done and is found again at the next open.
#[must_use]
pub(crate) struct Lease {
    hold: Hold,
    /// The record's position, packed, and [`BARE`]: two words are all there is to move.
    place: u64,
}

/// Set in a lease's place if its segment was made since the open and its record has no metadata. No
/// units reach this bit, and unpacking a position passes over it.
const BARE: u64 = 1 << 37;
/// Set in a lease's place if a handler had the job when a process died, and its delivery has not timed out
/// since. As unlikely to be reached as [`BARE`].
const SUSPECT: u64 = 1 << 36;

// Deques and timers hold many.
const _: () = assert!(size_of::<Lease>() == 16);

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
    fn new(hold: Hold, position: Position, is_bare: bool) -> Self {
        Self {
            hold,
            place: position.pack() | if is_bare { BARE } else { 0 },
        }
    }

    /// Whether its record was appended since the open and has no metadata.
    #[inline]
    pub(crate) fn is_bare(&self) -> bool {
        self.place & BARE != 0
    }

    /// Whether it is to be delivered while no other suspect is.
    #[inline]
    pub(crate) fn is_suspect(&self) -> bool {
        self.place & SUSPECT != 0
    }

    pub(crate) fn into_suspect(mut self) -> Self {
        self.place |= SUSPECT;
        self
    }

    /// Makes it one like others, once a handler has it. Returns whether it was a suspect.
    pub(crate) fn take_suspicion(&mut self) -> bool {
        let was_suspect = self.is_suspect();
        self.place &= !SUSPECT;
        was_suspect
    }

    #[inline]
    fn index(&self) -> u32 {
        Position::unpack(self.place).index
    }

    #[inline]
    fn units(&self) -> u32 {
        Position::unpack(self.place).units
    }

    #[inline]
    fn segment(&self) -> &Segment {
        match self.hold.get() {
            Held::NotDone(segment) => segment,
            Held::Counted(pinned) => &pinned.segment,
        }
    }

    #[inline]
    fn maps(&self) -> &Maps {
        match self.hold.get() {
            // SAFETY: the record is claimed and not done, see `Hold::get`, so the segment is neither
            // waiting nor complete.
            Held::NotDone(segment) => unsafe { segment.maps_in_use() },
            Held::Counted(pinned) => &pinned.maps,
        }
    }

    #[inline]
    pub(crate) fn sequence(&self) -> Sequence {
        self.segment().sequence(self.index())
    }

    /// Whether its segment [owes](Segment::owes_nothing) settlements.
    pub(crate) fn owes(&self) -> bool {
        !self.segment().owes_nothing()
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
        let records = &self.maps().records;
        Record {
            records,
            units: self.units(),
            header: records.header(self.units()),
        }
    }

    #[inline]
    pub(crate) fn payload(&self) -> &[u8] {
        let records = &self.maps().records;
        let units = self.units();
        let (len, meta_len) = if self.is_bare() {
            (records.commit_word(units), 0)
        } else {
            let header = records.header(units);
            (header.len, header.meta_len)
        };
        records.content(units, usize::from(meta_len), len)
    }

    /// Notes that a handler has the job, before it does.
    #[inline]
    pub(crate) fn begin_delivery(&self) -> Deliveries {
        let begun = self.maps().acks.begin_delivery(self.index());
        self.segment().deliveries_changed.note();
        begun
    }

    /// Notes that no handler has the job any more, though it is not done.
    pub(crate) fn end_delivery(&self) {
        self.update_deliveries(Deliveries::ended);
    }

    /// Counts a failed attempt at the job, whose handler may be at it still (lease timeouts).
    pub(crate) fn count_failure(&self, is_running: bool) {
        self.update_deliveries(|deliveries| match is_running {
            true => deliveries.failed_once(),
            false => deliveries.failed_once().ended(),
        });
    }

    fn update_deliveries(&self, change: impl Fn(Deliveries) -> Deliveries) {
        self.maps().acks.update_deliveries(self.index(), change);
        self.segment().deliveries_changed.note_end();
    }

    /// How the deliveries of its record have gone.
    pub(crate) fn deliveries(&self) -> Deliveries {
        self.maps().acks.deliveries(self.index())
    }

    /// Whether another lease of the same record has marked it done; only counted leases can have
    /// another.
    pub(crate) fn is_done(&self) -> bool {
        match self.hold.get() {
            Held::NotDone(_) => false,
            Held::Counted(pinned) => pinned.maps.acks.is_done(self.index()),
        }
    }

    /// A second lease of the same record, if leases are counted.
    pub(crate) fn duplicate(&self) -> Option<Lease> {
        match self.hold.get() {
            Held::NotDone(_) => None,
            Held::Counted(_) => Some(Lease {
                hold: self.hold.clone(),
                place: self.place,
            }),
        }
    }

    /// Marks the job done.
    #[inline(always)]
    pub(crate) fn ack(self) -> Acked {
        match self.hold.get() {
            Held::NotDone(segment) => {
                let filled = self.maps().acks.set_once(self.index());
                // If the word is not full, another acker may complete and retire the segment from
                // here on. If it is, the segment cannot be complete before it is counted.
                Acked {
                    first: true,
                    segment_complete: filled && segment.count_full_word(),
                }
            }
            Held::Counted(pinned) => match pinned.set_done(self.index()) {
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

/// Claims in one step, for tests of what is below the dispatch.
#[cfg(test)]
impl Pinned {
    /// As a stripe has a segment that is about to be claimed from.
    pub(crate) fn to_claim(segment: &Arc<Segment>) -> Self {
        segment.begin_use().unwrap();
        segment.pin().unwrap()
    }

    pub(crate) fn claim_leases(
        &self,
        max_jobs: u32,
        max_bytes: usize,
        counted: bool,
        leases: &mut Vec<Lease>,
    ) -> Claim {
        let mut runs = Vec::new();
        let claim = self.claim(max_jobs, max_bytes, counted, &mut runs);
        for run in runs {
            run.expand(|lease, _| leases.push(lease));
        }
        claim
    }
}
