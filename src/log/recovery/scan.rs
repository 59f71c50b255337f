//! The scan of a segment: finds its valid records, and what lies between them.
//!
//! It only reads. Its time is linear in the segment's size, whatever the bytes are.

use std::collections::HashMap;
use std::io;

use super::checksums::Checksums;
use crate::Sequence;
use crate::log::meta::{Elsewhere, Meta};
use crate::log::raw::{RawRecord, RawSegment};
use crate::log::record::{self, HEADER_UNITS, Header, KIND_PAD, RECORD_HEADER_BYTES, UNIT};
use crate::log::segment::START;
use crate::log::tail::Position;
use crate::storage::{Entry, StorageError};

/// How the place where a scan ends is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScanLimit {
    /// Records may end anywhere up to here, and producers may have died before they wrote theirs.
    AtMost(Position),
    /// The same in files that had an earlier life, of which a power cut may have left bytes from
    /// these units on.
    Reused(Position, u32),
    /// A seal proves that all records were written; the file has been cut off here since.
    CutOff(Position),
    /// A seal proves that the records fill everything up to here.
    Exactly(Position),
}

/// The result of a scan: valid records up to `end`, except for the regions and ordinals listed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The position after the last valid record or region.
    pub(crate) end: Position,
    pub(crate) regions: Vec<Region>,
    /// Ordinals `[from, to)` without a record that can be live: lost ones, and cancellations.
    pub(crate) missing: Vec<(u32, u32)>,
    /// The first record that only a later version of this library knows the meaning of.
    pub(crate) not_understood: Option<u32>,
    /// What the records settle.
    pub(crate) settles: Vec<Sequence>,
    /// What the records settle elsewhere.
    pub(crate) settles_elsewhere: Vec<Elsewhere>,
    /// Bytes hashed during the scan.
    #[cfg(fuzzing)]
    pub(crate) hashed: usize,
}

/// Units that hold no valid record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// The lowest ordinal that the next record can have.
    pub(crate) index: u32,
    /// The kind of damage.
    pub(crate) kind: RegionKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegionKind {
    /// All zero: reserved by a producer that died before it wrote anything.
    Hole,
    /// Starts with a zero length.
    Uncommitted,
    /// Starts with a record of a batch that is not complete.
    Incomplete,
    /// Anything else.
    Invalid,
}

impl Scan {
    /// Scans the units of a segment up to the limit, for records of at most `max_record` bytes.
    pub(crate) fn run(
        records: RawSegment<'_>,
        limit: ScanLimit,
        salt: u64,
        max_record: usize,
    ) -> Self {
        let (end, reused_from) = match limit {
            ScanLimit::AtMost(end) | ScanLimit::CutOff(end) | ScanLimit::Exactly(end) => {
                (end, u32::MAX)
            }
            ScanLimit::Reused(end, from) => (end, from),
        };
        let mut scanner = Scanner {
            records,
            checksums: Checksums::new(&records.bytes()[..end.units as usize * UNIT]),
            salt,
            max_record,
            limit: end,
            is_exact: matches!(limit, ScanLimit::Exactly(_)),
            was_sealed: !matches!(limit, ScanLimit::AtMost(_) | ScanLimit::Reused(..)),
            reused_from,
            lost: 0,
            is_in_batch: false,
            is_torn: false,
            incomplete: HashMap::new(),
            written: None,
            scan: Self {
                end: START,
                regions: Vec::new(),
                missing: Vec::new(),
                not_understood: None,
                settles: Vec::new(),
                settles_elsewhere: Vec::new(),
                #[cfg(fuzzing)]
                hashed: 0,
            },
        };
        scanner.run();
        #[cfg(fuzzing)]
        {
            scanner.scan.hashed = scanner.checksums.hashed;
        }
        scanner.scan
    }

    /// Scans the segment file of this name. A record that only a later version of this library
    /// understands is an error.
    pub(crate) fn of_file(
        entry: &Entry,
        records: RawSegment<'_>,
        limit: ScanLimit,
        salt: u64,
        max_record: usize,
    ) -> Result<Self, StorageError> {
        let scan = Self::run(records, limit, salt, max_record);
        match scan.not_understood {
            None => Ok(scan),
            Some(units) => {
                let offset = u64::from(units) * UNIT as u64;
                let why = format!(
                    "the record at byte {offset} is of a later version of this library: open the queue with that version"
                );
                Err(StorageError::new(
                    "read",
                    entry.path(),
                    io::Error::other(why),
                ))
            }
        }
    }

    /// The records that the scan found in these bytes, in order.
    pub(crate) fn records<'a>(
        &self,
        scanned: RawSegment<'a>,
    ) -> impl Iterator<Item = RawRecord<'a>> {
        let mut at = START.units;
        let mut regions = self.regions.iter().peekable();
        std::iter::from_fn(move || {
            while let Some(region) = regions.next_if(|region| region.from == at) {
                at = region.to;
            }
            // None also for zeros in which no pad would fit, which are at the end.
            let record = scanned.plausible_record(at, self.end.units)?;
            at = record.next();
            Some(record)
        })
    }
}

struct Scanner<'a> {
    records: RawSegment<'a>,
    checksums: Checksums<'a>,
    salt: u64,
    max_record: usize,
    limit: Position,
    is_exact: bool,
    was_sealed: bool,
    /// From here on, what no record follows may be of an earlier life of the file.
    reused_from: u32,
    /// Most records that may have been lost since the last valid one: one for each smallest record
    /// that fits the pads and regions passed since. With `scan.end.index`, it limits the ordinals
    /// to what fits the bytes, whatever the headers say.
    lost: u32,
    /// Whether the last record found is one of a batch of which more records follow.
    is_in_batch: bool,
    /// Whether the last batch that was not complete lacks a record, rather than having a damaged
    /// one.
    is_torn: bool,
    /// Records that continue batches which are not complete, by the units where they start, and
    /// whether a record is missing behind them (rather than damaged). So no record is looked at
    /// once for each record before it.
    incomplete: HashMap<u32, bool>,
    /// All units from here on are zero; computed when the first invalid record is found.
    written: Option<u32>,
    scan: Scan,
}

impl<'a> Scanner<'a> {
    fn run(&mut self) {
        while self.scan.end.units < self.limit.units {
            let at = self.scan.end.units;
            let valid = self.valid_record(at, self.lost);
            match valid {
                Some(record) if self.is_of_whole_batch(&record) => {
                    self.take(record);
                    continue;
                }
                _ => self.is_in_batch = false,
            }
            let is_torn = self.is_torn;
            let written = self.written();
            // No gap between two records is shorter than a header.
            let next = (at.saturating_add(HEADER_UNITS)..written).find(|&candidate| {
                let reach = self.lost + (candidate - at) / HEADER_UNITS;
                // A record's first word holds its length.
                self.records.unit(candidate) != 0
                    && self
                        .valid_record(candidate, reach)
                        .is_some_and(|record| self.is_of_whole_batch(&record))
            });
            let to = match next {
                Some(next) => next,
                None if self.is_exact => self.limit.units,
                None if written.min(self.reused_from) > at => written
                    .min(self.reused_from)
                    .max(at + HEADER_UNITS)
                    .min(self.limit.units),
                // Zeros up to the limit, or what an earlier life has left: this is where the records
                // end.
                None => return,
            };
            self.pass(to, valid.is_some() && is_torn);
        }
        if self.is_exact && self.scan.end.index < self.limit.index {
            let from = self.scan.end.index;
            self.scan.missing.push((from, self.limit.index));
            self.scan.end.index = self.limit.index;
        }
    }

    /// The end of the last unit that is not zero.
    fn written(&mut self) -> u32 {
        let find = || {
            let bytes = &self.records.bytes()[..self.limit.units as usize * UNIT];
            // Mostly zeros: skipped in large steps first, because memory is read faster forwards.
            let bytes = without_zeros(without_zeros(bytes, 1 << 20), 4096);
            let end = (bytes.len() / UNIT) as u32;
            let last = (0..end).rev().find(|&units| self.records.unit(units) != 0);
            last.map_or(0, |last| last + 1)
        };
        *self.written.get_or_insert_with(find)
    }

    /// The record at `at`, if it is valid and can be the next one after at most `lost` lost
    /// records.
    fn valid_record(&mut self, at: u32, lost: u32) -> Option<RawRecord<'a>> {
        let next = self.scan.end.index;
        self.valid_record_of(at, next, lost)
    }

    /// The record at `at`, if it is valid and has the ordinal `next`, or up to `lost` more.
    fn valid_record_of(&mut self, at: u32, next: u32, lost: u32) -> Option<RawRecord<'a>> {
        let record = self.records.plausible_record(at, self.limit.units)?;
        let header = record.header();
        if !self.may_follow(header, next, lost) || !self.may_be_so_long(header) {
            return None;
        }
        let start = at as usize * UNIT + RECORD_HEADER_BYTES;
        let meta = start + usize::from(header.name_len);
        let payload = meta + usize::from(header.meta_len);
        let end = start - RECORD_HEADER_BYTES + header.len as usize;
        let (name, content) = match header.kind {
            KIND_PAD => (&b""[..], 0),
            _ => {
                let payload_check = self.checksums.of(payload, end);
                let meta_check = self.checksums.of(meta, payload);
                (
                    record.content().name,
                    record::joined_check(meta_check, payload_check),
                )
            }
        };
        let check = header.check_over(self.salt, name, content);
        (record.stored_check() == check).then_some(record)
    }

    /// Whether the batch of a valid record is complete, if it is of one. In a sealed segment every
    /// batch was, and what is there of it counts.
    fn is_of_whole_batch(&mut self, record: &RawRecord<'a>) -> bool {
        let header = record.header();
        if self.was_sealed || self.is_in_batch {
            return true;
        }
        self.is_torn = true;
        if header.is_continued() {
            // The records before it are missing.
            return false;
        }
        let mut passed = Vec::new();
        let (mut has_more, mut at, mut index) = (header.has_more(), record.next(), header.index);
        while has_more {
            index += 1;
            let next = self.valid_record_of(at, index, 0);
            let next = next.filter(|next| next.header().is_continued());
            let known = next.and_then(|_| self.incomplete.get(&at).copied());
            match next {
                Some(next) if known.is_none() => {
                    passed.push(at);
                    (has_more, at) = (next.header().has_more(), next.next());
                }
                _ => {
                    // A record that was never written has no length.
                    let is_missing = || at >= self.limit.units || self.records.unit(at) as u32 == 0;
                    self.is_torn = known.unwrap_or_else(is_missing);
                    let of_batch = passed.into_iter().map(|at| (at, self.is_torn));
                    self.incomplete.extend(of_batch);
                    return false;
                }
            }
        }
        true
    }

    fn may_follow(&self, header: &Header, next: u32, lost: u32) -> bool {
        // A pad has no ordinal of its own; it names the next record's. At the end of a segment that
        // can be more than a seal counts, if jobs before the pad were lost after it was written.
        let is_counted = !header.has_ordinal() || header.index < self.limit.index;
        is_counted && header.index >= next && header.index - next <= lost
    }

    /// Whether the length is allowed. No longer job is ever appended: its letter, or its copy in
    /// another segment, might not fit.
    fn may_be_so_long(&self, header: &Header) -> bool {
        !header.has_ordinal() || header.len as usize <= self.max_record
    }

    fn take(&mut self, record: RawRecord<'_>) {
        let header = record.header();
        let units = record::units_of(header.len as usize);
        let scan = &mut self.scan;
        if !header.is_understood() {
            scan.not_understood.get_or_insert(record.units());
        }
        self.is_in_batch = header.has_more();
        if header.has_ordinal() {
            // A process that died may not have marked a cancellation done.
            let to = header.index + u32::from(!header.is_job());
            if to > scan.end.index {
                scan.missing.push((scan.end.index, to));
            }
            scan.end.index = header.index + 1;
            if header.meta_len > 0 {
                let meta = Meta::decode(record.content().meta);
                scan.settles.extend(meta.settles);
                scan.settles_elsewhere.extend(meta.settles_elsewhere);
            }
            self.lost = 0;
        } else {
            self.lost += units / HEADER_UNITS;
        }
        scan.end.units += units;
    }

    /// Records that there is no valid record before `to`, or none of a whole batch.
    fn pass(&mut self, to: u32, is_incomplete: bool) {
        let from = self.scan.end.units;
        let is_zero = (from..to).all(|units| self.records.unit(units) == 0);
        if is_zero && to - from < HEADER_UNITS {
            // An earlier recovery left these zeros at the end of a file, where a pad did not fit.
            self.scan.end.units = to;
            return;
        }
        let kind = if is_incomplete {
            RegionKind::Incomplete
        } else if is_zero && !self.is_exact {
            RegionKind::Hole
        } else if self.records.unit(from) as u32 == 0 {
            RegionKind::Uncommitted
        } else {
            RegionKind::Invalid
        };
        self.scan.regions.push(Region {
            from,
            to,
            index: self.scan.end.index,
            kind,
        });
        self.lost += (to - from) / HEADER_UNITS;
        self.scan.end.units = to;
    }
}

/// The bytes without the zero blocks of this size at their end. Blocks are counted from the end;
/// the first may be shorter.
fn without_zeros(bytes: &[u8], block: usize) -> &[u8] {
    // Without a branch for each byte, and no further than to the first page that is not zero.
    let is_zero = |page: &[u8]| page.iter().fold(0, |all, byte| all | byte) == 0;
    let are_zero = |block: &&[u8]| block.chunks(4096).all(is_zero);
    let zeros = bytes.rchunks(block).take_while(are_zero);
    &bytes[..bytes.len() - zeros.map(<[u8]>::len).sum::<usize>()]
}
