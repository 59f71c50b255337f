//! Copies of segments, taken from outside: without the lock of the queue, while its owner may write
//! to the files, cut them off, remove them, or make other segments of them.
//!
//! The files are read, not mapped. What is read counts only if both files still have their names
//! and their headers afterwards. The owner renames or removes a segment's file before it changes
//! anything else about it, so nothing was reused until then. Within that time records and acks only
//! grow: a record that passes its check was appended. The acks are read first: what was moved to the
//! end of the segment by then is among the records.

mod opened;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use self::opened::{Opened, bytes_to};
use super::ack::CopiedAcks;
use super::header::{FILE_HEADER_BYTES, Identity};
use super::meta::{Meta, has_engine_fields};
use super::raw::{RawRecord, RawSegment};
use super::record::UNIT;
use super::recovery::base_of;
use super::recovery::scan::{Scan, ScanLimit};
use super::segment::{START, capacity_of};
use super::tail::Position;
use crate::Sequence;
use crate::log::ack::Deliveries;
use crate::storage::{Directory, ReadFile, StorageError};

/// How often a segment is read that changes each time.
const ATTEMPTS: u32 = 8;
/// The pause between two of these, in which the owner can finish what it is doing. In unit tests it
/// is not at work meanwhile.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 1 });
/// How much of a file is read at once: the zeros at its end need no more memory than this.
const CHUNK: usize = 256 * 1024;

/// The files of one log, seen from outside.
pub(crate) struct LogFiles {
    directory: Arc<Directory>,
    origin: Sequence,
    segment_size: u64,
}

/// A copy of a segment at one moment.
pub(crate) struct Snapshot {
    base: Sequence,
    bytes: Vec<u8>,
    /// Where the jobs are that are not done, in units.
    live: Vec<u32>,
    acks: CopiedAcks,
    /// Whether a job that compaction moved here is done, and so may have been moved on.
    pub(crate) has_moved_on: bool,
    /// Whether it has no records.
    is_empty: bool,
}

/// What a segment holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Jobs that are not done.
    pub(crate) jobs: u64,
    /// Bytes of the segment file.
    pub(crate) bytes: u64,
}

impl LogFiles {
    pub(crate) fn new(directory: Directory, origin: Sequence, segment_size: u64) -> Self {
        Self {
            directory: Arc::new(directory),
            origin,
            segment_size,
        }
    }

    /// The bases of the segments after `after`, oldest first.
    pub(crate) fn bases(&self, after: Option<Sequence>) -> Result<Vec<Sequence>, StorageError> {
        let capacity = capacity_of(self.segment_size);
        let names = self.directory.list()?;
        let bases = names
            .iter()
            .filter_map(|name| base_of(name, ".seg", capacity));
        let bases = bases.map(|base| self.origin.plus_wide(base));
        Ok(bases.filter(|&base| Some(base) > after).collect())
    }

    /// A copy of the segment with this base; None if it is gone, or holds nothing.
    pub(crate) fn snapshot(&self, base: Sequence) -> Result<Option<Snapshot>, StorageError> {
        self.read_settled(base, |opened, identity| self.copy(opened, identity))
    }

    /// What the segment with this base holds, without the jobs in `settled`; None if it is gone, or
    /// has no records. Of a sealed segment, only the acks are read.
    pub(crate) fn held(
        &self,
        base: Sequence,
        settled: &BTreeSet<Sequence>,
    ) -> Result<Option<Held>, StorageError> {
        let is_settled = |index| settled.contains(&base.plus(index));
        let held = self.read_settled(base, |opened, identity| {
            let bytes = opened.records.len()?;
            let jobs = match opened.headers.seal {
                Some(end) => {
                    let acks = self.acks(opened, &identity)?;
                    let named = settled.range(base..base.plus(end.index));
                    let named = named.map(|one| one.offset_from(base));
                    let also = named.filter(|&index| !acks.is_done(index)).count();
                    u64::from(end.index - acks.done_below(end.index)).saturating_sub(also as u64)
                }
                None => {
                    let copy = self.copy(opened, identity)?;
                    if copy.is_empty {
                        return Ok(None);
                    }
                    let live = copy.live.iter().filter_map(|&units| copy.record(units));
                    live.filter(|record| !is_settled(record.header().index))
                        .count() as u64
                }
            };
            Ok(Some(Held { jobs, bytes }))
        })?;
        Ok(held.flatten())
    }

    /// What the records of the segment with this base settle, if it is not sealed. (A segment with
    /// a record whose settlement is not durable is neither sealed nor retired.)
    pub(crate) fn settles(&self, base: Sequence) -> Result<Vec<Sequence>, StorageError> {
        let Some(opened) = self.open(base)? else {
            return Ok(Vec::new());
        };
        let identity = opened.headers.identity();
        let Some(identity) = identity.filter(|_| opened.headers.seal.is_none()) else {
            return Ok(Vec::new());
        };
        // The salt shows that a record was appended to this segment, whatever became of it since.
        Ok(self.scan(&opened, &identity)?.1.settles)
    }

    /// Reads something of a segment, again and again until nothing that matters has changed in the
    /// meantime.
    fn read_settled<T>(
        &self,
        base: Sequence,
        read: impl Fn(&Opened, Identity) -> Result<T, StorageError>,
    ) -> Result<Option<T>, StorageError> {
        let mut is_damaged = false;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                thread::sleep(PAUSE);
            }
            let Some(opened) = self.open(base)? else {
                return Ok(None);
            };
            let found = opened.headers.identity();
            let found = found.map(|identity| read(&opened, identity));
            let is_unchanged = self.is_unchanged(&opened)?;
            match found.transpose() {
                _ if !is_unchanged => {}
                Ok(Some(found)) => return Ok(Some(found)),
                // It is being made, or was emptied.
                Ok(None) if opened.headers.is_zero || self.is_half_made(&opened)? => {
                    return Ok(None);
                }
                Ok(None) => is_damaged = true,
                Err(error) => return Err(error),
            }
        }
        let why = match is_damaged {
            true => "its header is damaged",
            false => "it changed each time while it was read",
        };
        let path = self.entry(base, "seg");
        Err(StorageError::new(
            "read",
            path.path(),
            io::Error::other(why),
        ))
    }

    /// Whether a segment without a valid header has nothing but a part of one: a kill, or this moment,
    /// came between two of its words.
    fn is_half_made(&self, opened: &Opened) -> Result<bool, StorageError> {
        if !opened.headers.may_be_half_written {
            return Ok(false);
        }
        let len = opened.records.len()?.min(self.segment_size);
        let bytes = read(&opened.records, len, 0)?;
        Ok(bytes[FILE_HEADER_BYTES..].iter().all(|&byte| byte == 0))
    }

    /// Copies the acks, and then the records. A job may be moved behind the end of the same segment
    /// meanwhile: if its old place was done by then, its new one is read.
    fn copy(&self, opened: &Opened, identity: Identity) -> Result<Snapshot, StorageError> {
        let acks = self.acks(opened, &identity)?;
        self.copy_records(opened, identity, acks)
    }

    fn copy_records(
        &self,
        opened: &Opened,
        identity: Identity,
        mut acks: CopiedAcks,
    ) -> Result<Snapshot, StorageError> {
        let (bytes, mut scan) = self.scan(opened, &identity)?;
        if let Some(file) = Self::own_acks(opened, &identity) {
            acks.read_deliveries(file, capacity_of(self.segment_size), scan.end.index)?;
        }
        let mut snapshot = Snapshot {
            base: opened.base,
            bytes: Vec::new(),
            live: Vec::new(),
            acks,
            has_moved_on: false,
            is_empty: scan.end.index == 0,
        };
        scan.settles.sort_unstable();
        for record in scan.records(RawSegment::new(&bytes)) {
            let header = record.header();
            let settles_it = |index| scan.settles.binary_search(&opened.base.plus(index)).is_ok();
            let is_done = |index| snapshot.acks.is_done(index) || settles_it(index);
            if header.is_job() && !is_done(header.index) {
                snapshot.live.push(record.units());
            } else if header.is_job() && has_engine_fields(record.content().meta) {
                let original = Meta::decode(record.content().meta).original;
                snapshot.has_moved_on |= original.is_some();
            }
        }
        snapshot.bytes = bytes;
        Ok(snapshot)
    }

    /// Reads and scans the records.
    fn scan(&self, opened: &Opened, identity: &Identity) -> Result<(Vec<u8>, Scan), StorageError> {
        let max_record = super::max_record_bytes(self.segment_size);
        let seal = opened.headers.seal;
        let bytes = match seal {
            Some(end) => read(&opened.records, bytes_to(end), 0)?,
            None => {
                let len = opened.records.len()?.min(self.segment_size);
                read(&opened.records, len, max_record)?
            }
        };
        let all = Position {
            index: capacity_of(self.segment_size),
            units: ((bytes.len() / UNIT) as u32).max(START.units),
        };
        let has_its_acks = opened.headers.copied == Some(*identity);
        let reused_from = opened.headers.reused_from.filter(|_| has_its_acks);
        let limit = match (seal, reused_from) {
            (Some(end), _) if bytes.len() as u64 == bytes_to(end) => ScanLimit::Exactly(end),
            (Some(_), _) => ScanLimit::CutOff(all),
            // The seal says that every batch was complete.
            (None, _) if opened.is_cut_off => ScanLimit::CutOff(all),
            (None, Some(from)) => ScanLimit::Reused(all, from),
            (None, None) => ScanLimit::AtMost(all),
        };
        let entry = self.entry(opened.base, "seg");
        let raw = RawSegment::new(&bytes);
        let scan = Scan::of_file(&entry, raw, limit, identity.salt, max_record)?;
        Ok((bytes, scan))
    }

    /// Which records are done: of a segment that is not sealed, among all that fit.
    fn acks(&self, opened: &Opened, identity: &Identity) -> Result<CopiedAcks, StorageError> {
        let capacity = capacity_of(self.segment_size);
        let records = opened.headers.seal.map_or(capacity, |end| end.index);
        match Self::own_acks(opened, identity) {
            Some(acks) => CopiedAcks::read(acks, identity.salt, capacity, records),
            None => Ok(CopiedAcks::none(identity.salt)),
        }
    }

    /// The ack file of this segment. Any other one an open makes anew, without a done record.
    fn own_acks<'a>(opened: &'a Opened, identity: &Identity) -> Option<&'a ReadFile> {
        let acks = opened.acks.as_ref();
        acks.filter(|_| opened.headers.copied == Some(*identity))
    }
}

/// The first `len` bytes of a file, or fewer if it was cut off. Zeros at their end are left out,
/// except for the first `most` of them, in which a record may end.
fn read(file: &ReadFile, len: u64, most: usize) -> Result<Vec<u8>, StorageError> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    let mut chunk = vec![0; CHUNK.min(len)];
    let mut end = 0;
    while end < len {
        let chunk = &mut chunk[..CHUNK.min(len - end)];
        let read = file.read_at(end as u64, chunk)?;
        let is_zero = chunk[..read].iter().fold(0, |all, byte| all | byte) == 0;
        if !is_zero || most == 0 {
            bytes.resize(end, 0);
            bytes.extend_from_slice(&chunk[..read]);
        }
        end += read;
        if read < chunk.len() {
            break;
        }
    }
    if bytes.len() < end {
        bytes.resize(end.min(bytes.len() + most), 0);
    }
    // A scan begins behind the header.
    bytes.resize(bytes.len().max(FILE_HEADER_BYTES), 0);
    Ok(bytes)
}

impl Snapshot {
    /// Where the jobs are that were not done, in the order of the log.
    pub(crate) fn live(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.live)
    }

    /// One of these jobs.
    pub(crate) fn record(&self, units: u32) -> Option<RawRecord<'_>> {
        let raw = RawSegment::new(&self.bytes);
        raw.plausible_record(units, u32::MAX)
    }

    pub(crate) fn sequence(&self, index: u32) -> Sequence {
        self.base.plus(index)
    }

    /// How the deliveries of a record have gone.
    pub(crate) fn deliveries(&self, index: u32) -> Deliveries {
        self.acks.deliveries(index)
    }
}
